"""A push service on loopback with a browser behind it. It checks perdure's signature (RFC 8292), and
keeps messages by their topic until the browser takes them (RFC 8030). The browser decrypts them
(RFC 8291) with the primitives of `cryptography`, not with the library that perdure uses."""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

CURVE = ec.SECP256R1()
MESSAGE_MOST = 4096
TOPIC_MOST = 32


def unpadded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def certificate(directory: Path) -> Path:
    """Make a certificate for 127.0.0.1. Return the file with it and its key."""
    both, key = directory / "push.pem", directory / "push.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=push", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", both],
        check=True, capture_output=True,
    )  # fmt: skip
    both.write_text(both.read_text() + key.read_text())
    return both


class Subscribed:
    """A browser's subscription, with its private key."""

    def __init__(self, key: ec.EllipticCurvePrivateKey | None = None, auth: bytes = b"") -> None:
        self.key = key or ec.generate_private_key(CURVE)
        self.auth = auth or bytes(range(16))
        self.point = self.key.public_key().public_bytes(
            Encoding.X962, PublicFormat.UncompressedPoint
        )

    @property
    def keys(self) -> dict[str, str]:
        return {"p256dh": unpadded(self.point), "auth": unpadded(self.auth)}

    def decrypt(self, content: bytes) -> bytes:
        """Return the plaintext of a message in one record."""
        salt, size, length = content[:16], int.from_bytes(content[16:20]), content[20]
        sender, sealed = content[21 : 21 + length], content[21 + length :]
        assert length == 65 and len(sealed) <= size
        shared = self.key.exchange(
            ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(CURVE, sender)
        )
        info = b"WebPush: info\x00" + self.point + sender
        secret = HKDF(SHA256(), 32, self.auth, info).derive(shared)
        key = HKDF(SHA256(), 16, salt, b"Content-Encoding: aes128gcm\x00").derive(secret)
        nonce = HKDF(SHA256(), 12, salt, b"Content-Encoding: nonce\x00").derive(secret)
        padded = AESGCM(key).decrypt(nonce, sealed, None).rstrip(b"\x00")
        assert padded.endswith(b"\x02")
        return padded[:-1]


class PushService:
    """A push service. `status` is its answer. `before` and `after` are called before and after the
    answer. `waiting` has the messages for a browser that is offline, by topic."""

    def __init__(self, directory: Path) -> None:
        self.file = certificate(directory)
        self.browser = Subscribed()
        self.status = 201
        self.slow_s = 0.0
        self.server_key = ""
        self.topics: Counter[str] = Counter()
        self.waiting: dict[str, bytes] = {}
        self.headers: list[dict[str, str]] = []
        self.wrong: list[str] = []
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None
        self.lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                service.take(self, body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.file)
        self.server.socket = context.wrap_socket(
            self.server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server.server_port}"

    @property
    def endpoint(self) -> str:
        return f"https://{self.host}/send/a-browser?v=1"

    def take(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self.lock:
            self.headers.append(headers)
            try:
                self.check(headers, body, handler.path)
            except Exception as error:
                self.wrong.append(f"{type(error).__name__}: {error}")
            if self.status == 201:
                self.topics[headers["topic"]] += 1
                self.waiting[headers["topic"]] = body
        self.before()
        if self.slow_s:
            for _ in range(100):
                handler.wfile.write(b"H")
                handler.wfile.flush()
                time.sleep(self.slow_s)
        try:
            handler.send_response(self.status)
            handler.send_header("content-length", "0")
            handler.send_header("location", f"https://{self.host}/elsewhere")
            handler.end_headers()
            handler.wfile.flush()
        except OSError:
            return  # The sender was killed in the meantime.
        self.after()

    def check(self, headers: dict[str, str], body: bytes, path: str) -> None:
        """Raise an exception unless a push service would accept the request."""
        assert path == "/send/a-browser?v=1" and len(body) <= MESSAGE_MOST
        assert headers["content-encoding"] == "aes128gcm" and int(headers["ttl"]) > 0
        assert 0 < len(headers["topic"]) <= TOPIC_MOST and headers["urgency"] in ("high", "normal")
        scheme, _, parameters = headers["authorization"].partition(" ")
        given = dict(each.strip().split("=", 1) for each in parameters.split(","))
        assert scheme == "vapid" and given["k"] == (self.server_key or given["k"])
        claims = self.claims(given["t"], decoded(given["k"]))
        assert claims["aud"] == f"https://{self.host}" and claims["sub"] == "mailto:ops@example.com"
        assert time.time() < claims["exp"] <= time.time() + 86_400

    @staticmethod
    def claims(token: str, point: bytes) -> dict[str, Any]:
        """Verify a signed token, and return its claims."""
        head, claims, signature = token.split(".")
        assert json.loads(decoded(head)) == {"typ": "JWT", "alg": "ES256"}
        raw = decoded(signature)
        assert len(raw) == 64
        der = utils.encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))
        key = ec.EllipticCurvePublicKey.from_encoded_point(CURVE, point)
        key.verify(der, f"{head}.{claims}".encode(), ec.ECDSA(SHA256()))
        found: dict[str, Any] = json.loads(decoded(claims))
        return found

    def delivered(self) -> list[dict[str, Any]]:
        """Return the messages that the browser gets when it is online again, decrypted."""
        with self.lock:
            sealed = list(self.waiting.values())
            self.waiting.clear()
        return [json.loads(self.browser.decrypt(each)) for each in sealed]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def subscribe(store: Any, server_key: str, service: PushService, **wishes: object) -> None:
    """Store a browser for a person who has signed in with a token. Return its subscription."""
    from perdure.errors import Conflict
    from perdure.model import Token, TokenScope
    from perdure.model.notices import PushDevice, device_id

    sign_in = hashlib.sha256(b"a browser").hexdigest()
    try:
        store.add_token(Token(name="ada", scope=TokenScope.READ, created=0), "0" * 64)
    except Conflict:
        pass
    else:
        store.sign_in("ada", sign_in, 3600)
    keys = service.browser.keys
    store.put_device(
        PushDevice(
            id=device_id("token:ada", service.endpoint), person="token:ada", sign_in=sign_in, name="a browser", endpoint=service.endpoint,
            public_key=keys["p256dh"], auth=keys["auth"], server_key=server_key, wishes=json.dumps(wishes),
            expires=store.now() + 10**9,
        )
    )  # fmt: skip
