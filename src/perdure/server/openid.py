"""A client of the OpenID Connect provider. It reads the provider's configuration and keys,
exchanges a code for an ID token, and checks the token's signature. Used by
`dashboard.openid_sign_in`.

Answers of the provider are not trusted. Their size and the waiting time are limited, and redirects
are not followed. An endpoint must have https; only on loopback it may have http.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import ssl
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from msgspec import Struct, field

from perdure.errors import ConfigError
from perdure.host.extras import install_command
from perdure.model.openid import OpenIdProvider
from perdure.rules.openid import ALGORITHMS, Claims, claims_problem
from perdure.server.problems import Problem

TIMEOUT_S = 10.0
ANSWER_MOST = 512 * 1024
TOKEN_MOST = 64 * 1024
FRESH_S = 3600.0
"""Time in seconds for which the provider's configuration and keys are cached."""
AGAIN_S = 20.0
"""Minimum age in seconds of the cached keys before an invalid signature makes perdure fetch the
keys again."""
WELL_KNOWN = "/.well-known/openid-configuration"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SECRET_MOST = 4096

JsonWebKey = dict[str, str | list[str]]
"""A key of the provider (JWK, RFC 7517), as the JOSE library takes it."""
ProviderMetadata = Mapping[str, object]
"""The provider's configuration (OpenID Connect Discovery 1.0, section 3)."""


class ProviderAway(Exception):
    """Raised when the provider does not answer, or violates the protocol. The message is for the
    log."""


class Provider(Struct):
    """One OpenID Connect provider. Thread-safe. It blocks on the network, so it must not be called
    on an event loop."""

    chosen: OpenIdProvider
    ca_file: Path | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _found: ProviderMetadata = field(default_factory=dict)
    _found_at: float = -FRESH_S
    _keys: Any = None
    _keys_at: float = -FRESH_S

    def configuration(self) -> ProviderMetadata:
        """Return the provider's configuration. Raises ProviderAway."""
        with self._lock:
            if time.monotonic() - self._found_at < FRESH_S:
                return self._found
            found = self._asked(f"{self.chosen.issuer.rstrip('/')}{WELL_KNOWN}")
            if found.get("issuer") != self.chosen.issuer:
                raise ProviderAway("the provider's configuration names another issuer")
            for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
                _endpoint(name, found.get(name))
            self._found, self._found_at = found, time.monotonic()
            return found

    def place(self, back: str, state: str, nonce: str, challenge: str) -> str:
        """Return the URL at the provider where a person signs in. `back` is the URL on this server
        to which the provider then redirects the browser. Raises ProviderAway."""
        at = str(self.configuration()["authorization_endpoint"])
        asked = {
            "response_type": "code",
            "client_id": self.chosen.client_id,
            "redirect_uri": back,
            "scope": " ".join(self.chosen.scopes),
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        joint = "&" if "?" in at else "?"
        return f"{at}{joint}{urlencode(asked)}"

    def claims(self, code: str, back: str, verifier: str, nonce: str) -> Claims:
        """Exchange a code for an ID token, check the token, and return its claims. Raises
        ProviderAway."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": back,
            "code_verifier": verifier,
            "client_id": self.chosen.client_id,
        }
        headers = {"content-type": "application/x-www-form-urlencoded"}
        if secret := self._secret():
            headers["authorization"] = _basic(self.chosen.client_id, secret)
        at = str(self.configuration()["token_endpoint"])
        found = self._asked(at, urlencode(form).encode(), headers)
        token = found.get("id_token")
        if not isinstance(token, str) or len(token) > TOKEN_MOST:
            raise ProviderAway("the provider's response to the code has no ID token")
        claims = self._verified(token)
        if why := claims_problem(claims, self.chosen, nonce, time.time()):
            raise ProviderAway(f"the ID token is refused: {why}")
        return claims

    def _verified(self, token: str) -> Claims:
        """Return the claims of a token if its signature is valid. If it is not, and the cached keys
        are older than `AGAIN_S`, fetch the keys again and check once more, because the keys may
        have changed. Raises ProviderAway."""
        from joserfc import jwt
        from joserfc.errors import JoseError

        for again in (False, True):
            try:
                keys = self._key_set(again=again)
                claims: object = jwt.decode(token, keys, algorithms=list(ALGORITHMS)).claims
            except (JoseError, ValueError, TypeError, KeyError) as error:
                if again or not self._may_ask_again():
                    raise ProviderAway(
                        f"the signature is refused: {type(error).__name__}"
                    ) from error
                continue
            if isinstance(claims, dict):
                return claims
            break
        raise ProviderAway("the ID token has no claims")

    def _may_ask_again(self) -> bool:
        with self._lock:
            return time.monotonic() - self._keys_at > AGAIN_S

    def _key_set(self, *, again: bool) -> Any:
        """Return the provider's public keys, from the cache if they are fresh. With `again`, the
        keys are fetched in any case. Raises ProviderAway."""
        from joserfc.errors import JoseError
        from joserfc.jwk import KeySet

        at = str(self.configuration()["jwks_uri"])
        with self._lock:
            if self._keys is not None and not again and self._is_fresh():
                return self._keys
            found = self._asked(at).get("keys")
            listed = found if isinstance(found, list) else []
            public = [each for each in listed if _is_for_signatures(each)]
            try:
                self._keys = KeySet.import_key_set({"keys": list(filter(_is_known, public))})
            except (JoseError, ValueError, TypeError, KeyError) as error:
                raise ProviderAway("the provider's keys cannot be read") from error
            finally:
                self._keys_at = time.monotonic()
            return self._keys

    def _is_fresh(self) -> bool:
        return time.monotonic() - self._keys_at < FRESH_S

    def _secret(self) -> str:
        """Return the client's secret; empty if none is configured. The file is read each time, so
        that the secret can be changed while the server runs. Raises ProviderAway."""
        if not self.chosen.secret_file:
            return ""
        try:
            return secret_in(self.chosen.secret_file)
        except ConfigError as error:
            raise ProviderAway(str(error)) from error

    def _asked(
        self, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Mapping[str, object]:
        """Request a URL and return the JSON object in the answer. Raises ProviderAway."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=self.ca_file)
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, parts.port, timeout=TIMEOUT_S, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, parts.port, timeout=TIMEOUT_S)
        path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        sent = {"accept": "application/json", "user-agent": "perdure", **(headers or {})}
        try:
            connection.request("GET" if body is None else "POST", path, body, sent)
            answer = connection.getresponse()
            status, content = answer.status, answer.read(ANSWER_MOST + 1)
        except (OSError, http.client.HTTPException) as error:
            raise ProviderAway(f"{host} does not answer: {type(error).__name__}") from error
        finally:
            connection.close()
        if status != 200 or len(content) > ANSWER_MOST:
            raise ProviderAway(f"{host} answered {status}{_error_code(content)}")
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ProviderAway(f"{host} did not answer with JSON") from error
        if not isinstance(found, dict):
            raise ProviderAway(f"{host} did not answer with an object")
        return found


def ready(chosen: OpenIdProvider, public_url: str) -> None:
    """Check that the sign-in with OpenID Connect is completely configured on this machine. The
    provider is not contacted. Raises ConfigError."""
    from importlib.util import find_spec

    problems = []
    if find_spec("joserfc") is None:
        problems.append(f"openid needs a library: {install_command('openid')}")
    if not public_url:
        problems.append("openid needs public_url of [serve]: the provider sends people back there")
    if chosen.secret_file:
        try:
            secret_in(chosen.secret_file)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


def secret_in(path: str) -> str:
    """Return the secret in a file. Raises ConfigError."""
    try:
        with Path(path).open("rb") as file:
            found = file.read(_SECRET_MOST).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"openid: the secret in {path} cannot be read: {error}"]) from None
    if not found:
        raise ConfigError([f"openid: the secret in {path} is empty"])
    return found


def refused(why: str) -> Problem:
    """Return the error for a sign-in that failed. It does not contain the details, which are only
    in the log."""
    return Problem(403, why, "sign in again, or with a token")


def _basic(user: str, secret: str) -> str:
    """Return the Authorization header for a client that authenticates with a secret. User and
    secret are form-encoded (RFC 6749, 2.3.1)."""
    both = f"{quote(user, safe='')}:{quote(secret, safe='')}"
    return f"Basic {base64.b64encode(both.encode()).decode()}"


def _endpoint(name: str, url: object) -> None:
    """Check that a URL of the provider's configuration is safe to request. Raises ProviderAway."""
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        _ = parts.port
    except ValueError:
        raise ProviderAway(f"{name} is not an address") from None
    near = parts.scheme == "http" and parts.hostname in LOOPBACK
    if not (near or parts.scheme == "https") or not parts.hostname or parts.fragment:
        raise ProviderAway(f"{name} is not an https address")
    if "@" in parts.netloc or not str(url).isprintable() or " " in str(url):
        raise ProviderAway(f"{name} is not a plain address")


def _is_known(key: JsonWebKey) -> bool:
    """Return whether the JOSE library can read a key. Other keys are ignored (RFC 7517, section
    5)."""
    from joserfc.errors import JoseError
    from joserfc.jwk import KeySet

    try:
        KeySet.import_key_set({"keys": [key]})
    except (JoseError, ValueError, TypeError, KeyError):
        return False
    return True


def _is_for_signatures(key: object) -> bool:
    """Return whether a key of the provider is a public key for signatures. A symmetric key is
    refused, because anybody can read the provider's keys."""
    return isinstance(key, dict) and key.get("kty") != "oct" and key.get("use", "sig") == "sig"


def _error_code(content: bytes) -> str:
    """Return the error code in an answer of the provider (RFC 6749, section 5.2), as the end of an
    error message: `: CODE`. For `invalid_client`, which means a wrong secret, advice follows. Empty
    if the answer has no code."""
    try:
        found = json.loads(content[:ANSWER_MOST])
    except (ValueError, RecursionError):
        return ""
    code = found.get("error") if isinstance(found, dict) else None
    if not isinstance(code, str) or not re.fullmatch(r"[a-z_]{1,60}", code):
        return ""
    if code == "invalid_client":
        return f": {code}; check client_id and the secret of [openid]"
    return f": {code}"
