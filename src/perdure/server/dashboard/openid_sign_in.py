"""Signs a person in at an OpenID Connect provider (authorization code with PKCE). One route sends
the browser to the provider, and another receives it when it comes back.

A signed cookie holds the sign-in in progress, so only the browser that began it can complete it.
The random `state` of a sign-in, which the provider sends back, is accepted once. At the end the
person gets a page and not a redirect, because a browser would not send the new cookie
(SameSite=Strict) after a redirect that began on another site.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

import msgspec
from anyio import CapacityLimiter, to_thread
from msgspec import Struct, field
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from perdure.model import Token
from perdure.model.codec import resolved
from perdure.rules.openid import person_of, rule_for
from perdure.rules.text import one_line
from perdure.server.dashboard.pages import HEADERS, page
from perdure.server.dashboard.sign_in import is_secure, local, set_cookie, sign_in_page
from perdure.server.openid import Provider, ProviderAway
from perdure.server.principal import Principals

START, BACK = "/sign-in/openid", "/sign-in/openid/back"
COOKIE = "perdure_way"
LASTS_S = 600
USED_MOST = 4096
AT_ONCE = 4
"""Maximum number of requests that may wait for the provider at the same time."""
CODE_MOST = 4096
NEXT_MOST = 1000
FAILED = "The sign-in did not work. The server's log has the reason."


class SignInWay(msgspec.Struct, frozen=True, array_like=True):
    """A sign-in in progress, as the browser's cookie contains it. `at` is the time when the sign-in
    began, in seconds since 1970."""

    state: str
    nonce: str
    verifier: str
    next: str
    at: float


class SignIns(Struct):
    """Begins and completes sign-ins. The signing key is new in each process, so a restart ends
    sign-ins that are in progress."""

    provider: Provider
    principals: Principals
    public_url: str
    say: Callable[[str], None]
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    _used: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        """Return the provider's name for display."""
        return self.provider.chosen.name or urlsplit(self.provider.chosen.issuer).netloc

    @property
    def back(self) -> str:
        return f"{self.public_url}{BACK}"

    def begin(self, next: str) -> tuple[str, str]:
        """Begin a sign-in. Return the URL at the provider, and the cookie that holds the sign-in.
        Raises ProviderAway."""
        words = [secrets.token_urlsafe(32) for _ in range(3)]
        way = SignInWay(words[0], words[1], words[2], local(next[:NEXT_MOST]), time.time())
        digest = hashlib.sha256(way.verifier.encode()).digest()
        place = self.provider.place(self.back, way.state, way.nonce, _text(digest))
        return place, self._sealed(way)

    def end(self, way: SignInWay, code: str) -> str:
        """Complete a sign-in with the code that the provider gave. Return the value of the person's
        new cookie; empty if no rule of `[openid]` matches the person. Raises ProviderAway,
        StoreError."""
        claims = self.provider.claims(code, self.back, way.verifier, way.nonce)
        rule = rule_for(claims, self.provider.chosen)
        name = person_of(claims)
        if rule is None:
            self.say(f"sign-in: no rule of [openid] fits {name}")
            return ""
        person = Token(
            name=name,
            scope=rule.scope,
            created=0,
            repositories=rule.repositories,
            labels=rule.labels,
            kind="openid",
        )
        return self.principals.sign_in_person(person)

    def way_of(self, cookie: str, state: str) -> SignInWay | None:
        """Return the sign-in that a cookie contains. Return None if the cookie's signature is not
        valid. Also return None if the sign-in has another state than `state`, is too old, or was
        already completed with this state."""
        body, _, seal = cookie.partition(".")
        if not hmac.compare_digest(self._seal(body).encode(), seal.encode("utf-8", "replace")):
            return None
        way = msgspec.json.decode(_bytes(body), type=resolved(SignInWay))
        right = hmac.compare_digest(way.state.encode(), state.encode("utf-8", "replace"))
        if not right or time.time() - way.at > LASTS_S:
            return None
        with self._lock:
            if way.state in self._used:
                return None
            while len(self._used) >= USED_MOST:
                self._used.pop(next(iter(self._used)))
            self._used[way.state] = way.at
        return way

    def _sealed(self, way: SignInWay) -> str:
        body = _text(msgspec.json.encode(way))
        return f"{body}.{self._seal(body)}"

    def _seal(self, body: str) -> str:
        given = body.encode("utf-8", "replace")
        return hmac.new(self._key, given, hashlib.sha256).hexdigest()


def routes(sign_ins: SignIns) -> list[BaseRoute]:
    """Return the routes that begin and complete a sign-in."""
    limiter: list[CapacityLimiter] = []

    def room() -> CapacityLimiter:
        if not limiter:
            limiter.append(CapacityLimiter(AT_ONCE))
        return limiter[0]

    async def start(request: Request) -> Response:
        wanted = request.query_params.get("next", "/")
        try:
            place, cookie = await to_thread.run_sync(sign_ins.begin, wanted, limiter=room())
        except ProviderAway as error:
            sign_ins.say(f"sign-in: {one_line(str(error), 300)}")
            return sign_in_page(wanted, FAILED, 502, sign_ins.name)
        answer = RedirectResponse(place, 303, HEADERS)
        # SameSite=Lax, because the browser must send this cookie when the provider redirects the
        # browser back.
        answer.set_cookie(
            COOKIE,
            cookie,
            max_age=LASTS_S,
            path=START,
            httponly=True,
            samesite="lax",
            secure=is_secure(request, sign_ins.public_url),
        )
        return answer

    def refused(next: str, sentence: str) -> Response:
        return _over(sign_in_page(next, sentence, 403, sign_ins.name))

    async def back(request: Request) -> Response:
        asked = request.query_params
        way = None
        with suppress(msgspec.MsgspecError, ValueError):
            way = sign_ins.way_of(request.cookies.get(COOKIE, ""), asked.get("state", ""))
        if way is None:
            return refused("/", "This sign-in has ended, or was started in another browser.")
        code, issuer = asked.get("code", ""), asked.get("iss")
        if asked.get("error") or not 0 < len(code) <= CODE_MOST:
            sign_ins.say(f"sign-in: the provider said {one_line(asked.get('error', ''), 100)!r}")
            return refused(way.next, "The provider did not let you in.")
        if issuer is not None and issuer != sign_ins.provider.chosen.issuer:
            sign_ins.say("sign-in: the response comes from another issuer")
            return refused(way.next, FAILED)
        try:
            cookie = await to_thread.run_sync(sign_ins.end, way, code, limiter=room())
        except ProviderAway as error:
            sign_ins.say(f"sign-in: {one_line(str(error), 300)}")
            return refused(way.next, FAILED)
        if not cookie:
            return refused(way.next, "You are known, but may not use this perdure.")
        answer = page("signed_in.html", next=way.next)
        set_cookie(answer, cookie, request, sign_ins.public_url)
        return _over(answer)

    return [Route(START, start, methods=["GET"]), Route(BACK, back, methods=["GET"])]


def _over(answer: Response) -> Response:
    """Delete the cookie of the sign-in in progress, and return the answer."""
    answer.delete_cookie(COOKIE, path=START)
    return answer


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
