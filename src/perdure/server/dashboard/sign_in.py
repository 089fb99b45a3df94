"""The routes for signing in with a token and for signing out. No script can read the cookie of a
sign-in, and no other site can make a browser send it."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from perdure.server.dashboard.endpoints import read_form
from perdure.server.dashboard.pages import HEADERS, page
from perdure.server.limits import Reach
from perdure.server.principal import COOKIE, SIGNED_IN_S, Principals, authenticated
from perdure.server.problems import Problem

LOCAL = re.compile(r"/(?![/\\])[^\x00-\x1f\\]*")
"""Pattern of a path on this site. `//other` and `/\\other` do not match, because they lead to
another site."""
FORM_MOST = 8192
"""Maximum size in bytes of a form from a user who is not signed in."""


def routes(principals: Principals, public_url: str = "", provider: str = "") -> list[BaseRoute]:
    """Return the routes of `/sign-in` and `/sign-out`. `public_url` is the URL at which people
    reach the server. `provider` is the name of the OpenID Connect provider; empty for none."""

    async def sign_in(request: Request) -> Response:
        if request.method != "POST":
            return sign_in_page(request.query_params.get("next", "/"), provider=provider)
        form: dict[str, str] = {}
        try:
            form = await read_form(request, FORM_MOST)
            address = request.client.host if request.client else ""
            _, cookie = await run_in_threadpool(principals.sign_in, form.get("token", ""), address)
        except Problem as problem:
            if problem.status == 401:
                wrong = "That token is not known here, or it has expired."
            else:
                wrong = str(problem)
            return sign_in_page(form.get("next", "/"), wrong, problem.status, provider)
        answer = RedirectResponse(local(form.get("next", "/")), 303, HEADERS)
        set_cookie(answer, cookie, request, public_url)
        return answer

    async def sign_out(request: Request) -> Response:
        principal = authenticated(request, reach=Reach.NOTHING)
        if not principal.sent_form((await read_form(request)).get("csrf", "")):
            raise Problem(
                403,
                "The form does not come from a page that was made for you",
                "reload the page",
            )
        await run_in_threadpool(principals.sign_out, principal)
        answer = RedirectResponse("/sign-in", 303, HEADERS)
        answer.delete_cookie(
            COOKIE, httponly=True, samesite="strict", secure=is_secure(request, public_url)
        )
        return answer

    return [
        Route("/sign-in", sign_in, methods=["GET", "POST"]),
        Route("/sign-out", sign_out, methods=["POST"]),
    ]


def set_cookie(answer: Response, cookie: str, request: Request, public_url: str) -> None:
    """Set the cookie of a sign-in in an answer. `cookie` is its value."""
    answer.set_cookie(
        COOKIE,
        cookie,
        max_age=int(SIGNED_IN_S),
        httponly=True,
        samesite="strict",
        secure=is_secure(request, public_url),
    )


def is_secure(request: Request, public_url: str) -> bool:
    """Return whether the browser uses https to reach the server. That is so if the request has the
    scheme https, which a trusted proxy may have set. It is also so if the request names the host of
    the public URL and that URL has https."""
    public = urlsplit(public_url)
    named = request.headers.get("host", "").lower() == public.netloc.lower()
    return request.url.scheme == "https" or (public.scheme == "https" and named)


def sign_in_page(next: str, sentence: str = "", status: int = 200, provider: str = "") -> Response:
    """Return the page for signing in. `next` is the path to open afterwards. `sentence` is the
    reason why the last try failed. `provider` is the name of the OpenID Connect provider; empty for
    none."""
    return page("sign_in.html", status, next=local(next), sentence=sentence, provider=provider)


def local(next: str) -> str:
    """Return the path `next` if it is on this site; otherwise return the path of the board."""
    if LOCAL.fullmatch(next):
        return next
    return "/"
