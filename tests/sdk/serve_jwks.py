"""Serves the file of argument 1 over HTTPS on 127.0.0.1 with a certificate of its own authority, whose PEM it writes to
argument 2, and prints `READY <port>`. Ends when stdin does."""

import datetime
import http.server
import ipaddress
import pathlib
import ssl
import sys
import tempfile
import threading

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

file, ca_file = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
now = datetime.datetime.now(datetime.timezone.utc)


def certificate(name, key, issuer_name, issuer_key, extensions):
    def named(text):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    builder = x509.CertificateBuilder().subject_name(named(name)).issuer_name(named(issuer_name))
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(hours=1))
    builder = builder.not_valid_after(now + datetime.timedelta(hours=1))
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
authority = [(x509.BasicConstraints(ca=True, path_length=0), True)]
ca_file.write_bytes(certificate("ringway tests", ca_key, "ringway tests", ca_key, authority))
names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
server = certificate("jwks", key, "ringway tests", ca_key, [(names, False)])
private = key.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = file.read_bytes()
        self.send_response(200 if self.path == "/keys?of=tests" else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
with tempfile.NamedTemporaryFile() as pem:
    pem.write(server + private)
    pem.flush()
    context.load_cert_chain(pem.name)
httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
httpd.socket = context.wrap_socket(httpd.socket, server_side=True, do_handshake_on_connect=False)
threading.Thread(target=httpd.serve_forever, daemon=True).start()
print(f"READY {httpd.server_address[1]}", flush=True)
sys.stdin.read()
