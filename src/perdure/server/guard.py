"""Authenticates requests before any route is chosen. Refuses unknown clients. Also refuses a write
request that a browser sent because of a page of another site.

`OPEN` and `OPEN_BELOW` list the addresses that need no authentication. Every other request needs a
principal, even if nothing exists at its address.
"""

from __future__ import annotations

from urllib.parse import SplitResult, quote, urlsplit

from anyio import CapacityLimiter, to_thread
from starlette.datastructures import Headers
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from perdure.errors import PerdureError
from perdure.server.principal import Principal, Principals, unknown
from perdure.server.problems import Problem, problem

OPEN = frozenset({"/healthz", "/readyz", "/sign-in", "/sign-in/openid", "/sign-in/openid/back"})
OPEN_BELOW = ("/webhooks/", "/static/", "/link/")
OWN_CHECKS = "/webhooks/"
"""Prefix of the addresses whose routes check requests themselves. Forges sign their requests, and
send no Origin header."""
SIGN_IN = "/sign-in"
API = "/api/"
FORM_SECRET = "x-form-secret"
LOOKS_MOST = 8
"""Maximum number of tokens that are looked up in the store at the same time."""
SAFE = frozenset({"GET", "HEAD"})
WEBHOOK_HEADERS = ("x-github-event", "x-gitea-event", "x-forgejo-event", "x-gitlab-event")
"""Headers by which the webhooks of the forges are recognized."""


class Guard:
    """Middleware that sets `request.state.principal`, or answers 401, 403 or 429. A browser without
    a sign-in is redirected to the sign-in page."""

    def __init__(self, app: ASGIApp, principals: Principals | None) -> None:
        self.app, self.principals = app, principals
        self._looks: CapacityLimiter | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, headers = scope["path"], Headers(scope=scope)
        try:
            if scope["method"] not in SAFE and not path.startswith(OWN_CHECKS):
                refuse_other_sites(headers)
            if path not in OPEN and not path.startswith(OPEN_BELOW):
                refuse_misaddressed_webhook(scope["method"], headers)
                found = await self._principal(scope, headers)
                if scope["method"] not in SAFE and path.startswith(API):
                    refuse_forged(found, headers)
                scope.setdefault("state", {})["principal"] = found
        except PerdureError as error:
            await self._refused(scope, headers, error)(scope, receive, send)
            return
        await self.app(scope, receive, self._noting_refusals(scope, send))

    def _noting_refusals(self, scope: Scope, send: Send) -> Send:
        """Return a `send` function that passes messages on. If the answer to a known client is a
        403, it also adds the request to the audit trail."""
        principal = scope.get("state", {}).get("principal")
        if not isinstance(principal, Principal) or self.principals is None:
            return send
        note = self.principals.note_refusal

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 403:
                what = f"{scope['method']} {scope['path']}"
                await to_thread.run_sync(note, principal, what, limiter=self._looks)
            await send(message)

        return sending

    async def _principal(self, scope: Scope, headers: Headers) -> Principal:
        if self.principals is None:
            raise unknown()
        self._looks = self._looks or CapacityLimiter(LOOKS_MOST)
        return await to_thread.run_sync(
            self.principals.known, headers, address_of(scope), limiter=self._looks
        )

    def _refused(self, scope: Scope, headers: Headers, error: PerdureError) -> ASGIApp:
        a_page = (
            scope["method"] in SAFE
            and not scope["path"].startswith(API)
            and "text/html" in headers.get("accept", "")
        )
        if not a_page or not isinstance(error, Problem) or error.status != 401:
            return problem(error)
        if headers.get("hx-request") == "true":
            # htmx requests a part of an open page. The header `hx-redirect` makes the browser leave
            # that page and open the sign-in page. An HTTP redirect would show the sign-in form
            # inside the part, or htmx would retry forever.
            door = f"{SIGN_IN}?next={quote(_split(headers.get('hx-current-url', '')).path)}"
            return problem(
                Problem(401, str(error), error.hint, {**error.headers, "hx-redirect": door})
            )
        return RedirectResponse(f"{SIGN_IN}?next={quote(scope['path'])}", 303)


def address_of(scope: Scope) -> str:
    """Return the network address of the client; empty if it is unknown."""
    return (scope.get("client") or ("", 0))[0]


def refuse_misaddressed_webhook(method: str, headers: Headers) -> None:
    """Raise Problem if a forge sends a webhook to an address that takes none, for example
    `/webhook/shop`. Without this check the answer would be "invalid token", and people would look
    for the mistake in the secret."""
    if method in SAFE or not any(name in headers for name in WEBHOOK_HEADERS):
        return
    if "authorization" not in headers:
        raise Problem(
            404,
            "No webhook has this address",
            "on the forge, let the address end with /webhooks/NAME, with a NAME of the "
            "configuration",
        )


def refuse_other_sites(headers: Headers) -> None:
    """Raise Problem if a browser sent this write request because of a page of another site. Only
    browsers send the headers Origin and Sec-Fetch-Site, so requests of other programs pass."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is not None and _split(origin).netloc.lower() != headers.get("host", "").lower():
        raise Problem(
            403,
            "The request comes from a page of another site",
            "a proxy must pass the Host header on",
        )
    if site is not None and site not in ("same-origin", "none"):
        raise Problem(403, "The request comes from a page of another site")


def _split(url: str) -> SplitResult:
    """Split a URL from a request. All parts are empty if the URL is invalid."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def refuse_forged(principal: Principal, headers: Headers) -> None:
    """Raise Problem if a browser's write request to the API has no proof that one of perdure's own
    pages sent it. The proof is a header. Forms of the dashboard use a field instead."""
    if principal.cookie and not principal.sent_form(headers.get(FORM_SECRET, "")):
        raise Problem(
            403,
            f"A write by a signed-in browser needs the header {FORM_SECRET}",
            "programs send a token",
        )
