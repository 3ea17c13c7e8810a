"""Signs tokens with PyJWT for every algorithm, and writes them with their keys into the folder given as argument 1:
`hmac.txt`, `<alg>.pem`, `jwks.json`, and `tokens.json`, which `tests/tokens.rs` reads. `sign_tokens.mjs` does the same
with jose.

An entry of `tokens.json` has the algorithm, the key id of the JWKS, and one token per case; `by_kid` names the key, the
others do not."""

import base64
import hashlib
import hmac
import json
import pathlib
import sys
import time

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

OUT = pathlib.Path(sys.argv[1])
NOW = int(time.time())
SECRET = "a secret of more than sixty-four bytes, because PyJWT warns about shorter ones with HS512"
CLAIMS = {"sub": "user-1", "aud": "ringway", "iss": "tests", "iat": NOW, "exp": NOW + 3600, "jti": "token-1"}
GOOD = CLAIMS | {"info": {"name": "Zoë"}, "channels": ["news"], "subs": {"$room": {"data": {"x": 1}}}}

rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
KEYS = {
    "RS256": (rsa_key, RSAAlgorithm),
    "RS384": (rsa.generate_private_key(public_exponent=3, key_size=2048), RSAAlgorithm),
    "RS512": (rsa.generate_private_key(public_exponent=65537, key_size=3072), RSAAlgorithm),
    "ES256": (ec.generate_private_key(ec.SECP256R1()), ECAlgorithm),
    "ES384": (ec.generate_private_key(ec.SECP384R1()), ECAlgorithm),
    "ES512": (ec.generate_private_key(ec.SECP521R1()), ECAlgorithm),
    "EdDSA": (ed25519.Ed25519PrivateKey.generate(), OKPAlgorithm),
}
STRANGERS = {
    "RS": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
    "Ed": ed25519.Ed25519PrivateKey.generate(),
}


def cases(alg, key, stranger):
    def sign(claims, by=key, **headers):
        return jwt.encode(claims, by, algorithm=alg, headers=headers or None)

    return {
        "good": sign(GOOD),
        "by_kid": sign(GOOD, kid=f"kid-{alg}"),
        "subscribe": sign(CLAIMS | {"channel": "$room"}),
        "expired": sign(CLAIMS | {"exp": NOW - 10}),
        "not_yet": sign(CLAIMS | {"nbf": NOW + 3600}),
        "other_audience": sign(CLAIMS | {"aud": ["somebody", "else"]}),
        "other_issuer": sign(CLAIMS | {"iss": "nobody"}),
        "wrong_key": sign(GOOD, by=stranger),
        "wrong_key_by_kid": sign(GOOD, by=stranger, kid=f"kid-{alg}"),
    }


def part(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def confused(pem):
    """The public key's text taken for a shared secret, as an attacker would who knows nothing but the public key."""
    signed = part(b'{"alg":"HS256","typ":"JWT"}') + b"." + part(json.dumps(GOOD).encode())
    return (signed + b"." + part(hmac.new(pem, signed, hashlib.sha256).digest())).decode()


tokens, jwks = [], []
for alg in ["HS256", "HS384", "HS512"]:
    tokens.append({"alg": alg, **cases(alg, SECRET, SECRET + "x")})
for alg, (key, kind) in KEYS.items():
    stranger = next(other for prefix, other in STRANGERS.items() if alg.startswith(prefix))
    pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (OUT / f"{alg}.pem").write_bytes(pem)
    jwks.append(json.loads(kind.to_jwk(key.public_key())) | {"kid": f"kid-{alg}", "use": "sig"})
    tokens.append({"alg": alg, **cases(alg, key, stranger), "confused": confused(pem)})
# RFC 8017's own form of an RSA key, which some tools write.
pkcs1 = rsa_key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.PKCS1)
(OUT / "RS256.pem").write_bytes(pkcs1)
# What a set of an identity provider also holds, and nobody may trip over.
jwks.append({"kty": "oct", "kid": "shared", "k": part(SECRET.encode()).decode()})
jwks.append(jwks[0] | {"kid": "for-encryption", "use": "enc"})
jwks.append({"kty": "EC", "crv": "secp256k1", "kid": "coin", "x": "AA", "y": "AA"})

(OUT / "hmac.txt").write_text(SECRET + "\n")
(OUT / "jwks.json").write_text(json.dumps({"keys": jwks}))
(OUT / "tokens.json").write_text(json.dumps(tokens))
print(f"ok: {len(tokens)} algorithms with PyJWT {jwt.__version__}")
