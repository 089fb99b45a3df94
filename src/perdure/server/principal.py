"""Authenticates clients and checks their scopes. Every address needs authentication, even on
loopback. `guard` lists the exceptions.

A program sends its token as `Authorization: Bearer ...`. A browser signs in with a token and gets a
cookie. The cookie alone allows reading; writes also need the value of `form_secret`. Each scope
includes the lower ones: `read`, `answer`, `dispatch`, `admin`.

`guard` authenticates before the routing, so an address without an access rule of its own is still
protected. Every route calls `authenticated`, which checks scope and limits. `new_token` and
`new_cookie` create secrets; the store keeps only their digests.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from msgspec import Struct, field
from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser

from perdure.engine.attempt.engine import EngineStore
from perdure.errors import PerdureError
from perdure.host.actors import actor
from perdure.model import Token, TokenScope
from perdure.rules.access import AccessLimits, limits_of
from perdure.rules.text import one_line
from perdure.server.limits import Reach, whole_server
from perdure.server.problems import Problem

BEGINS = "prd_"
"""Prefix of every token. Secret scanners recognize tokens by this prefix."""
SECRET_BYTES = 32
LONGEST = 200


def new_token() -> tuple[str, str]:
    """Return the secret of a new token, and its digest for the store."""
    secret = BEGINS + secrets.token_urlsafe(SECRET_BYTES)
    return secret, digest(secret)


def new_cookie() -> tuple[str, str]:
    """Return the value of a new sign-in cookie, and its digest for the store."""
    secret = secrets.token_urlsafe(SECRET_BYTES)
    return secret, digest(secret)


def digest(secret: str) -> str:
    """Return the SHA-256 of a secret. The secret has 256 random bits, so a slow hash is not
    needed."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


COOKIE = "perdure"
SIGNED_IN_S = 12 * 3600.0
FAILURES_MOST = 20
WINDOW_S = 60.0
"""Period in seconds over which invalid tokens are counted. If `FAILURES_MOST` invalid tokens came
from one address in this period, or the same invalid token came as often, the next is answered with
429. A valid token is always accepted, because many people may share one address."""
ADDRESSES_MOST = 4096
USED_EVERY_MS = 3_600_000
ALL = tuple(TokenScope)
WHAT_MOST = 200
"""Maximum length in characters of the description of a refused request in the audit trail."""


class Principal(Struct, frozen=True):
    """An authenticated client. `name` is the name of its token. `cookie` is the secret in a
    signed-in browser's cookie; empty for a program."""

    name: str
    scopes: frozenset[TokenScope]
    cookie: str = ""
    limits: AccessLimits = AccessLimits()
    expires: int = 0
    """Time in milliseconds since 1970 at which the token expires; 0 if it never does."""
    kind: str = "token"
    """Kind of the client: `token`, or `openid` for a person who signed in at a provider."""

    @property
    def actor(self) -> str:
        """Return the client's name in the audit trail, as the actor of its actions."""
        return actor(self.kind, self.name)

    @property
    def scope(self) -> TokenScope:
        """Return the highest scope of the client."""
        return max(self.scopes, key=ALL.index)

    @property
    def may_widen(self) -> bool:
        """Return whether the client may go beyond the owner's settings. Only an admin without
        limits may. An admin can give a task commands that are executed on the server, and the
        limits of a token do not restrict these commands."""
        return self.may(TokenScope.ADMIN) and not self.limits

    def __repr__(self) -> str:
        return f"Principal(name={self.name!r}, scopes={self.scopes!r})"

    def may(self, scope: TokenScope) -> bool:
        return scope in self.scopes

    @property
    def form_secret(self) -> str:
        """Return the secret that every form of a signed-in browser must contain; empty for a
        program. Other sites cannot know it."""
        if self.cookie:
            return hmac.new(self.cookie.encode(), b"form", hashlib.sha256).hexdigest()
        return ""

    def sent_form(self, given: str) -> bool:
        """Return whether `given` is this principal's form secret. If it is, the form came from
        one of perdure's own pages."""
        return bool(self.cookie) and hmac.compare_digest(
            self.form_secret.encode(), given.encode("utf-8", "replace")
        )


def authenticated(
    request: Request, scope: TokenScope = TokenScope.READ, reach: Reach = Reach.WHOLE
) -> Principal:
    """Return the principal of a request. Raises Problem with 401 if there is none, which happens at
    addresses that `Guard` does not check. Raises Problem with 403 if the scope is too low, or if
    the route is about the whole server and the token has limits."""
    found = getattr(request.state, "principal", None)
    if not isinstance(found, Principal):
        raise unknown()
    if not found.may(scope):
        raise Problem(
            403,
            f"This needs the scope {scope}, and the token {found.name!r} has {found.scope}",
            f"perdure token new NAME --scope {scope}",
        )
    if found.limits and reach is Reach.WHOLE:
        raise whole_server(found.limits)
    return found


def unknown() -> Problem:
    """Return the error for a client without a valid token or cookie."""
    return Problem(
        401,
        "missing or invalid token",
        "perdure token new NAME",
        {"www-authenticate": "Bearer"},
    )


class Principals(Struct):
    """Authenticates clients by token or cookie. Thread-safe. It blocks on the store, so it must not
    be called on an event loop."""

    reading: EngineStore
    """Connection to the store that only reads, and therefore blocks no writer."""
    writing: EngineStore
    say: Callable[[str], None] = lambda line: None
    _failed: dict[str, list[float]] = field(default_factory=dict)
    _wrong: dict[str, float] = field(default_factory=dict)
    """Time at which each invalid token was first refused (monotonic clock, in seconds), by the
    token's digest. Such a token is not looked up again for `WINDOW_S`."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def known(self, headers: Headers, address: str) -> Principal:
        """Return the principal for the token or cookie in a request's headers. Raises Problem with
        401, or with 429 after many failures."""
        given = headers.getlist("authorization")
        if given:
            kind, _, secret = given[0].partition(" ")
            if len(given) > 1 or kind.lower() != "bearer":
                raise unknown()
            return self.bearer(secret.strip(), address)
        return self.cookie(cookie_parser(headers.get("cookie", "")).get(COOKIE, ""))

    def bearer(self, secret: str, address: str) -> Principal:
        """Return the principal for a token. `address` is the client's network address. Raises
        Problem with 401, or with 429 after many failures."""
        return _principal(self._token(secret, address))

    def cookie(self, secret: str) -> Principal:
        """Return the principal for the cookie of a signed-in browser. Raises Problem with 401."""
        if 0 < len(secret) <= LONGEST:
            found = self.reading.signed_in(digest(secret))
        else:
            found = None
        if found is None:
            raise unknown()
        return _principal(found, secret)

    def sign_in(self, secret: str, address: str) -> tuple[Principal, str]:
        """Sign a browser in with a token. Return the principal and the value of the new cookie.
        Raises the same errors as `bearer`."""
        token = self._token(secret.strip(), address)
        cookie, sha256 = new_cookie()
        self.writing.sign_in(token.name, sha256, SIGNED_IN_S)
        return _principal(token, cookie), cookie

    def sign_in_person(self, person: Token) -> str:
        """Sign in the browser of a person whom an OpenID provider has authenticated. Return the
        value of the new cookie. Raises StoreError."""
        cookie, sha256 = new_cookie()
        self.writing.sign_in_person(person, sha256, SIGNED_IN_S)
        return cookie

    def sign_out(self, principal: Principal) -> None:
        """Invalidate the principal's cookie."""
        self.writing.sign_out(digest(principal.cookie))

    def note_refusal(self, principal: Principal, what: str) -> None:
        """Add a refused request to the audit trail. Do nothing if the client already had
        `FAILURES_MOST` refusals within `WINDOW_S`."""
        with self._lock:
            key = f"refused {principal.actor}"
            many = self._is_many(key)
            if not many:
                self._note(key)
        if not many:
            # If the audit entry cannot be stored, for example on a full disk, the answer stays the
            # same.
            with suppress(PerdureError):
                self.writing.note_refusal(principal.actor, one_line(what, WHAT_MOST))

    def _token(self, secret: str, address: str) -> Token:
        given = digest(secret[: LONGEST + 1])
        with self._lock:
            was_wrong = time.monotonic() - self._wrong.get(given, -WINDOW_S) < WINDOW_S
        known = not was_wrong and 0 < len(secret) <= LONGEST
        found = self.reading.token_of(given) if known else None
        if found is None:
            raise self._refusal(given, address)
        if self.reading.now() - found.used > USED_EVERY_MS:
            # Even if the time of use cannot be stored, for example on a full disk, the token is
            # accepted.
            with suppress(PerdureError):
                self.writing.use_token(found.name)
        return found

    def _refusal(self, given: str, address: str) -> Problem:
        """Count an invalid token, and return the error to answer with: 401, or 429 after many
        failures."""
        with self._lock:
            many = list(map(self._is_many, (f"from {address}", f"of {given}")))
            if not any(many):
                self._note(f"from {address}")
                self._note(f"of {given}")
            if given not in self._wrong:
                _make_room(self._wrong)
                self._wrong[given] = time.monotonic()
        if any(many):
            return Problem(
                429,
                "Too many invalid tokens came from this address",
                "try again in a minute; a valid token is accepted at once",
            )
        return unknown()

    def _is_many(self, key: str) -> bool:
        failed = self._failed.get(key, [])
        return len(failed) >= FAILURES_MOST and time.monotonic() - failed[-FAILURES_MOST] < WINDOW_S

    def _note(self, key: str) -> None:
        """Record the time of a failure or refusal under a key, such as a client's address. The
        caller must hold the lock."""
        failed = [*self._failed.pop(key, [])[1 - FAILURES_MOST :], time.monotonic()]
        if len(failed) == FAILURES_MOST and key.startswith("from "):
            self.say(f"{FAILURES_MOST} invalid tokens came {key}")
        _make_room(self._failed)
        self._failed[key] = failed


def _make_room(kept: dict[str, float] | dict[str, list[float]]) -> None:
    """Remove the oldest entries of `kept` until there is room for one more."""
    while len(kept) >= ADDRESSES_MOST:
        kept.pop(next(iter(kept)))


def _principal(token: Token, cookie: str = "") -> Principal:
    return Principal(
        token.name,
        frozenset(ALL[: ALL.index(token.scope) + 1]),
        cookie,
        limits_of(token.repositories, token.labels),
        token.expires,
        token.kind,
    )
