"""The page of a signed link in a notice. It shows one call of an agent and one answer, with a
button.

Anybody who has the link may use it, without a token. Opening the page changes nothing, so link
previews of a chat and scanners of a mail server do no harm. Only the button answers the request,
and a request can be answered once.
"""

from __future__ import annotations

from msgspec import Struct
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from perdure.engine import service
from perdure.engine.attempt.engine import moved_to
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
"""Headers that keep the link secret: other sites see only the origin, and search engines do not
index the page. `no-referrer` is not possible. A browser would then send `Origin: null` with the
button's request, which is refused as coming from another site."""


class Asked(Struct, frozen=True):
    """A signed link, with the run and the request that it names, in their current state."""

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
    """Return the run and the request of a link. Raises NotFound if the link was not created by this
    server, Conflict if it can no longer be used, and StoreError."""
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
    if run.state is not RunState.QUEUED or moved_to(desk.engine.state, run.id).exists():
        raise Conflict(f"{run.name} does not wait for this answer any more.")
    if link.answer is AnswerKind.ALLOW and (why := why_not_allowed(request)):
        raise Conflict(f"The call is {why}, so it can only be refused.")
    return Asked(link, run, request)


def _show(asked: Asked) -> Response:
    """Return the page that asks for confirmation of the answer."""
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
    """Store the link's answer to the request, and return a page about the result. Raises the errors
    of `service.answer`."""
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
