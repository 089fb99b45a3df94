"""The page of a signed link in a notice: it shows one call and one answer, with a button.

Anybody who has the link may use it, without a token. Looking at the page changes nothing, so that
the preview of a chat or the scanner of a mail server does not use the link up. The answer is the
button's, and a request is answered once.
"""

from __future__ import annotations

from msgspec import Struct
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from perdure.engine import service
from perdure.engine.notices.links import link_key
from perdure.errors import Conflict, NotFound, PerdureError
from perdure.host.actors import acting, actor
from perdure.model import RunState, TaskRun
from perdure.model.requests import AgentRequest, AnswerKind, RequestState
from perdure.rules.answer_links import AnswerLink, matches_request, verified
from perdure.rules.approvals import why_not_allowed
from perdure.rules.requests import expired, late, payload_lines
from perdure.rules.run_titles import title_of_run
from perdure.rules.text import visible
from perdure.server.dashboard.context import PageContext
from perdure.server.dashboard.pages import HEADERS, page
from perdure.server.problems import status_of

UNKNOWN = "This link is not valid. It may have been cut off by the program that you opened it from."
QUIET = {**HEADERS, "referrer-policy": "strict-origin", "x-robots-tag": "noindex"}
"""The path is the secret, so no other page is told the path. With `no-referrer` a browser would
send `Origin: null` with the button's request, which is refused as one of another site."""


class Asked(Struct, frozen=True):
    """A link with its run and its request, as they are now."""

    link: AnswerLink
    run: TaskRun
    request: AgentRequest


def route(desk: PageContext) -> Route:
    """Return the route of `/link/TEXT`."""

    async def answered(request: Request) -> Response:
        text = request.path_params["text"]
        return await run_in_threadpool(_page, desk, text, acts=request.method == "POST")

    return Route("/link/{text}", answered, methods=["GET", "POST"])


def _page(desk: PageContext, text: str, *, acts: bool) -> Response:
    try:
        asked = _request_of_link(desk, text)
        if acts:
            return _answer(desk, asked)
        return _show(asked)
    except PerdureError as error:
        return _sentence_page(status_of(error), str(error))


def _request_of_link(desk: PageContext, text: str) -> Asked:
    """Return what a link asks for. Raises NotFound for a link that was not made here, Conflict for
    one that cannot be used any more, StoreError."""
    key = link_key(desk.engine.state)
    link = verified(text, key) if key else None
    if link is None:
        raise NotFound(UNKNOWN)
    try:
        run = desk.look.get(link.run)
    except NotFound:
        raise Conflict("The run was removed. This link cannot be used any more.") from None
    found = [each for each in desk.look.requests(run.id) if each.number == link.number]
    if not found or not matches_request(link, found[0]):
        raise Conflict("The request does not exist any more. This link cannot be used.")
    request = expired(found[0], desk.look.now())
    if request.state is not RequestState.OPEN:
        raise Conflict(late(request))
    if run.state is not RunState.QUEUED or desk.engine.moved_to(run.id).exists():
        raise Conflict(f"{run.name} does not wait for this answer any more.")
    if link.answer is AnswerKind.ALLOW and (why := why_not_allowed(request)):
        raise Conflict(f"The call is {why}, so it can only be refused.")
    return Asked(link, run, request)


def _show(asked: Asked) -> Response:
    """Return the page that asks for a confirmation."""
    allows = asked.link.answer is AnswerKind.ALLOW
    return page(
        "link.html",
        headers=QUIET,
        question="Allow this call once?" if allows else "Refuse this call?",
        yes="Allow once" if allows else "Refuse",
        danger=not allows,
        title=title_of_run(asked.run),
        name=asked.run.name,
        tool=visible(asked.request.tool),
        lines=payload_lines(asked.request),
        expires=asked.request.expires,
        sentence="",
    )


def _answer(desk: PageContext, asked: Asked) -> Response:
    """Give the answer of the link. Raises what `service.answer` raises."""
    link = asked.link
    via = f"link/{link.channel}"
    with acting(actor("link", link.channel)):
        service.answer(desk.engine, asked.run.id, link.number, link.answer, "", via=via)
    desk.ring()
    words = "allowed, once" if link.answer is AnswerKind.ALLOW else "refused"
    return _sentence_page(
        200, f"The call is {words}. {asked.run.name} goes on as soon as a worker is free."
    )


def _sentence_page(status: int, sentence: str) -> Response:
    return page("link.html", status, headers=QUIET, question="", sentence=sentence)
