"""Makes routes from pages and actions. A route authenticates the user, reads the form's fields, and
shows any error as a page."""

from __future__ import annotations

from urllib.parse import parse_qsl

from anyio import to_thread
from msgspec import Struct
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from perdure.errors import PerdureError
from perdure.host.actors import acting as acting_as
from perdure.model import TokenScope
from perdure.server.api.verbs import body_of
from perdure.server.dashboard.context import PageContext
from perdure.server.dashboard.visits import Answer, Visit
from perdure.server.limits import Reach, store_of
from perdure.server.principal import authenticated
from perdure.server.problems import Problem, status_of

BODY_MOST = 1024 * 1024
"""Maximum size of a form in bytes: enough for the longest prompt."""
FIELDS_MOST = 32


class Need(Struct, frozen=True):
    """The requirements of a page: the scope that the user needs, and how the page enforces the
    limits of a token."""

    scope: TokenScope
    reach: Reach


def read_route(desk: PageContext, path: str, answer: Answer, reach: Reach | None = None) -> Route:
    """Return the route of a page that needs the scope `read`. `reach` is how the page enforces the
    limits of a token; None means the default for its path (`Reach.of`)."""
    need = Need(TokenScope.READ, reach or Reach.of(path))

    async def page(request: Request) -> Response:
        return await to_thread.run_sync(
            _respond, desk, request, need, answer, {}, limiter=desk.limiter
        )

    return Route(path, page, methods=["GET"])


def action_route(
    desk: PageContext,
    path: str,
    scope: TokenScope,
    act: Answer,
    question: Answer | None = None,
    reach: Reach | None = None,
) -> Route:
    """Return the route of an action that a form triggers. If there is a `question` page, a GET
    shows it to ask for confirmation."""
    need = Need(scope, reach or Reach.of(path))

    async def page(request: Request) -> Response:
        if request.method != "POST":
            assert question is not None
            return await to_thread.run_sync(
                _respond, desk, request, need, question, {}, limiter=desk.limiter
            )
        try:
            form = await read_form(request)
        except Problem as problem:
            return await to_thread.run_sync(
                _error_page, desk, request, problem, limiter=desk.limiter
            )
        return await to_thread.run_sync(
            _respond, desk, request, need, act, form, limiter=desk.limiter
        )

    return Route(path, page, methods=["GET", "POST"] if question is not None else ["POST"])


def _respond(
    desk: PageContext, request: Request, need: Need, answer: Answer, form: dict[str, str]
) -> Response:
    try:
        principal = authenticated(request, need.scope, need.reach)
        if request.method == "POST" and not principal.sent_form(form.get("csrf", "")):
            raise Problem(
                403,
                "The form does not come from a page that was made for you",
                "reload the page, and send it again",
            )
        visit = _visit(desk, request, form)
        if principal.limits and need.reach is Reach.RUN:
            visit.desk.look.get(visit.named("name"))
        with acting_as(principal.actor):
            return answer(visit)
    except PerdureError as error:
        return _error_page(desk, request, error)


def _visit(desk: PageContext, request: Request, form: dict[str, str]) -> Visit:
    """Return the visit for a request. Its store contains only what the user's token may see."""
    principal = authenticated(request, reach=Reach.NOTHING)
    if principal.limits:
        desk = replace(desk, look=store_of(desk.look, principal.limits))
    return Visit(desk=desk, request=request, principal=principal, now=desk.look.now(), form=form)


def _error_page(desk: PageContext, request: Request, error: PerdureError) -> Response:
    """Return a page with the message of an error and its advice."""
    path = request.url.path.rstrip("/")
    if request.method == "POST" or status_of(error) != 404:
        back = path.rpartition("/")[0]
    else:
        back = ""
    return _visit(desk, request, {}).page(
        "trouble.html", status_of(error), sentence=str(error), hint=error.hint, back=back or "/"
    )


async def read_form(request: Request, most: int = BODY_MOST) -> dict[str, str]:
    """Return the fields of a form. If several fields have the same name, the last one is used.
    Raises Problem if the body is not a form, too large or too slow."""
    if (
        request.headers.get("content-type", "").partition(";")[0].strip().lower()
        != "application/x-www-form-urlencoded"
    ):
        raise Problem(415, "expected a form (application/x-www-form-urlencoded)")
    body = await body_of(request, most)
    try:
        return dict(
            parse_qsl(
                body.decode(), keep_blank_values=True, errors="strict", max_num_fields=FIELDS_MOST
            )
        )
    except ValueError:
        raise Problem(
            400, "The form cannot be read: it is not in UTF-8, or has too many fields"
        ) from None
