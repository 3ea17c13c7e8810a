// Signs tokens with jose for every algorithm; `sign_tokens.py` says what is written and does the same with PyJWT.
import { createHmac } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import * as jose from "jose";

const out = process.argv[2];
const now = Math.floor(Date.now() / 1000);
const secret = "a secret of more than sixty-four bytes, as RFC 7518 asks for when HS512 is used with it";
const claims = { sub: "user-1", aud: "ringway", iss: "tests", iat: now, exp: now + 3600, jti: "token-1" };
const good = { ...claims, info: { name: "Zoë" }, channels: ["news"], subs: { $room: { data: { x: 1 } } } };

async function cases(alg, key, stranger) {
  const sign = (payload, by = key, header = {}) => new jose.SignJWT(payload).setProtectedHeader({ alg, typ: "JWT", ...header }).sign(by);
  return {
    good: await sign(good),
    by_kid: await sign(good, key, { kid: `kid-${alg}` }),
    subscribe: await sign({ ...claims, channel: "$room" }),
    expired: await sign({ ...claims, exp: now - 10 }),
    not_yet: await sign({ ...claims, nbf: now + 3600 }),
    other_audience: await sign({ ...claims, aud: ["somebody", "else"] }),
    other_issuer: await sign({ ...claims, iss: "nobody" }),
    wrong_key: await sign(good, stranger),
    wrong_key_by_kid: await sign(good, stranger, { kid: `kid-${alg}` }),
  };
}

// The public key's text taken for a shared secret.
function confused(pem) {
  const part = (text) => Buffer.from(text).toString("base64url");
  const signed = `${part(JSON.stringify({ alg: "HS256", typ: "JWT" }))}.${part(JSON.stringify(good))}`;
  return `${signed}.${createHmac("sha256", pem).update(signed).digest("base64url")}`;
}

const tokens = [];
const keys = [];
for (const alg of ["HS256", "HS384", "HS512"]) {
  const bytes = (text) => new TextEncoder().encode(text);
  tokens.push({ alg, ...(await cases(alg, bytes(secret), bytes(`${secret}x`))) });
}
for (const alg of ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "EdDSA"]) {
  const { publicKey, privateKey } = await jose.generateKeyPair(alg, { extractable: true });
  const stranger = await jose.generateKeyPair(alg, { extractable: true });
  const pem = await jose.exportSPKI(publicKey);
  writeFileSync(join(out, `${alg}.pem`), pem);
  keys.push({ ...(await jose.exportJWK(publicKey)), kid: `kid-${alg}`, alg, use: "sig" });
  tokens.push({ alg, ...(await cases(alg, privateKey, stranger.privateKey)), confused: confused(pem) });
}

writeFileSync(join(out, "hmac.txt"), `${secret}\n`);
writeFileSync(join(out, "jwks.json"), JSON.stringify({ keys }));
writeFileSync(join(out, "tokens.json"), JSON.stringify(tokens));
console.log(`ok: ${tokens.length} algorithms with jose`);
