"""A provider of OpenID Connect as a separate process on 127.0.0.1, which can also send wrong
answers.

`POST /lie` with a JSON object sets the next answers: `claims` replaces claims of the ID token (null
removes one), `alg` is how the token is signed (`none`, `HS256`, `stranger`: by an unknown key),
`rotate` makes a new key, `configuration` replaces fields of the configuration, `token` replaces the
whole answer to a code, `status` is the status of that answer. `GET /seen` returns the forms that
were sent.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

CLIENT, SECRET = "perdure", "a secret: with % and ü"


class State:
    """The provider's keys, the codes that it has given, and the wrong answers that are set."""

    def __init__(self) -> None:
        self.key = self.new_key()
        self.codes: dict[str, dict[str, str]] = {}
        self.lie: dict[str, Any] = {}
        self.seen: list[dict[str, str]] = []

    def new_key(self) -> RSAKey:
        return RSAKey.generate_key(2048, {"kid": secrets.token_hex(4), "use": "sig"})


STATE = State()


class Handler(BaseHTTPRequestHandler):
    @property
    def issuer(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/.well-known/openid-configuration":
            found = {
                "issuer": self.issuer, "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token", "jwks_uri": f"{self.issuer}/keys",
            }  # fmt: skip
            self.answer(found | STATE.lie.get("configuration", {}))
        elif parts.path == "/keys":
            keys = [STATE.key.as_dict(private=False)]
            # A symmetric key among the public keys must not make a token with HS256 valid.
            keys.append(OctKey.import_key("public-to-everybody-0123456789ab").as_dict(private=True))
            self.answer({"keys": keys})
        elif parts.path == "/authorize":
            self.authorize({name: value[0] for name, value in parse_qs(parts.query).items()})
        elif parts.path == "/seen":
            self.answer({"seen": STATE.seen})
        else:
            self.answer({}, 404)

    def authorize(self, asked: dict[str, str]) -> None:
        """Send the browser back with a code, as if a person had signed in."""
        code = secrets.token_urlsafe(16)
        STATE.codes[code] = asked
        STATE.seen.append(asked)
        back = urlencode({"code": code, "state": asked["state"], "iss": self.issuer})
        self.send_response(303)
        self.send_header("location", f"{asked['redirect_uri']}?{back}")
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        if self.path == "/lie":
            STATE.lie = json.loads(body)
            if STATE.lie.get("rotate"):
                STATE.key = STATE.new_key()
            self.answer({})
            return
        form = {name: value[0] for name, value in parse_qs(body).items()}
        STATE.seen.append(form)
        asked = STATE.codes.pop(form.get("code", ""), None)
        if asked is None or not self.is_right(asked, form):
            self.answer({"error": "invalid_grant"}, 400)
        elif "token" in STATE.lie:
            self.answer(STATE.lie["token"], STATE.lie.get("status", 200))
        else:
            token = {"access_token": "x", "token_type": "Bearer", "id_token": self.token(asked)}
            self.answer(token, STATE.lie.get("status", 200))

    def is_right(self, asked: dict[str, str], form: dict[str, str]) -> bool:
        """Return whether the client has authenticated itself, and is the one that began this
        sign-in (PKCE)."""
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        both = base64.b64decode(self.headers.get("authorization", "").removeprefix("Basic "))
        return (
            asked["code_challenge_method"] == "S256"
            and asked["code_challenge"] == challenge
            and asked["redirect_uri"] == form.get("redirect_uri")
            and both == b"perdure:a%20secret%3A%20with%20%25%20and%20%C3%BC"
        )

    def token(self, asked: dict[str, str]) -> str:
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": self.issuer, "sub": "u-7", "aud": asked["client_id"], "exp": now + 300, "iat": now,
            "nonce": asked["nonce"], "email": "ada@example.com", "email_verified": True,
        }  # fmt: skip
        claims |= STATE.lie.get("claims", {})
        claims = {name: value for name, value in claims.items() if value is not None}
        alg, header = STATE.lie.get("alg", "RS256"), {"kid": STATE.key.kid}
        if alg == "none":
            parts = ({"alg": "none"}, claims)
            return ".".join(text(json.dumps(each).encode()) for each in parts) + "."
        if alg == "HS256":
            key = OctKey.import_key("public-to-everybody-0123456789ab")
            return jwt.encode({"alg": "HS256"}, claims, key)
        signing = STATE.new_key() if alg == "stranger" else STATE.key
        return jwt.encode({"alg": "RS256", **header}, claims, signing)

    def answer(self, found: object, status: int = 200) -> None:
        body = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    sys.stdin.close()
    server.serve_forever()
