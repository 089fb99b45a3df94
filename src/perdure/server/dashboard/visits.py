"""One request of a signed-in user: its parameters, the user's permissions, and the answer. Every
page function gets a `Visit`. `ask` returns the page that asks for confirmation of an action; the
page names the consequences and has the fields to fill in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from msgspec import Struct, field
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from perdure.errors import UsageError
from perdure.model import TokenScope
from perdure.server.dashboard.pages import HEADERS, page
from perdure.server.principal import Principal

if TYPE_CHECKING:
    from perdure.server.dashboard.context import PageContext

PLACES = (
    ("/", "Board", "b"),
    ("/digest", "Digest", "w"),
    ("/sessions", "Sessions", "s"),
    ("/plans", "Plans", "p"),
    ("/failures", "Failures", "f"),
    ("/continuity", "Continuity", "c"),
    ("/disk", "Disk", "d"),
    ("/inbox", "Inbox", "i"),
    ("/checks", "Checks", "h"),
    ("/audit", "Audit", "a"),
)
LIMITED_PLACES = frozenset({"/", "/digest", "/audit"})
"""Paths of the sections that a user with a limited token may open. The other sections are about the
whole server."""
TOLD = {
    "retried": "It continues where it stopped as soon as a worker is free.",
    "updated": "The new instructions are saved; the conversation continues with them.",
    "told": "The message is saved; the page shows when the agent has it.",
    "stopped": "It is stopping.",
    "answered": "The answer is saved; the run continues as soon as a worker is free.",
    "forked": "This is the fork. Its parent is unchanged.",
    "begun": "It is queued, and starts as soon as a worker is free.",
    "resumed": "The conversation continues in this run.",
    "reset": "It starts over with the next attempt. Its old work is in the trash.",
    "removed": "Removed the run; its log is kept.",
    "restored": (
        "Workdir and conversation are as they were at that checkpoint. The state before is a "
        "checkpoint too."
    ),
    "replayed": "The delivery was processed again.",
    "measured": "Measured again.",
    "device_added": "This device gets messages now.",
    "device_removed": "The device gets no more messages.",
    "device_tested": "The push service accepted the test message.",
}
"""Messages that a page shows after an action, by the value of the parameter `done`. A link can
choose one of these messages, but cannot make the page show other text."""


class Visit(Struct, frozen=True, kw_only=True, dict=True):
    """A request of a signed-in user. `now` is the time by the store's clock, in milliseconds since
    1970."""

    desk: PageContext
    request: Request
    principal: Principal
    now: int
    form: Mapping[str, str] = field(default_factory=dict)

    @property
    def places(self) -> tuple[tuple[str, str, str], ...]:
        """Return the sections that the user may see, as path, title and keyboard shortcut."""
        if self.principal.limits:
            return tuple(each for each in PLACES if each[0] in LIMITED_PLACES)
        return PLACES

    @property
    def may_be_notified(self) -> bool:
        """Return whether the user can add a browser, to get push messages in it."""
        return bool(self.csrf and self.desk.settings.serve_push_contact)

    @property
    def name(self) -> str:
        """Return the name of the user's token."""
        return self.principal.name

    @property
    def csrf(self) -> str:
        """Return the secret that every form must contain."""
        return self.principal.form_secret

    def may(self, scope: str) -> bool:
        """Return whether the user has this scope and uses a signed-in browser. A program's token is
        not enough for the actions of the dashboard."""
        return bool(self.csrf) and self.principal.may(TokenScope(scope))

    def asked(self, name: str) -> str:
        """Return a parameter of the query; empty if the query does not contain it."""
        return self.request.query_params.get(name, "")[:500]

    def given(self, name: str) -> str:
        """Return a field of the form; empty if the form does not contain it."""
        return self.form.get(name, "").replace("\r\n", "\n")

    def number(self, name: str) -> int:
        """Return an integer field of the form; 0 if it is missing. Raises UsageError if it is not
        an integer."""
        text = self.given(name).strip()
        if text and not (text.isascii() and text.isdecimal() and len(text) < 10):
            raise UsageError(
                f"{text[:40]!r} is not a whole number",
                f"the field {name} must be a whole number or empty",
            )
        return int(text or 0)

    def named(self, name: str) -> str:
        """Return the value of the path parameter with this name."""
        return str(self.request.path_params[name])

    @property
    def here(self) -> str:
        """Return the path and query of the request, without the parameter `done`."""
        rest = []
        for name, value in self.request.query_params.multi_items():
            if name != "done":
                rest.append((name, value))
        if rest:
            return f"{self.request.url.path}?{urlencode(rest)}"
        return self.request.url.path

    @property
    def place(self) -> str:
        """Return the path of the section to which the page belongs."""
        path = self.request.url.path
        for each, _, _ in PLACES:
            if each != "/" and path.startswith(each):
                return each
        return "/"

    @cached_property
    def asking(self) -> int:
        """Return the number of runs that need a person."""
        return self.desk.look.board_asking()

    @property
    def told(self) -> str:
        return TOLD.get(self.asked("done"), "")

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        return page(template, status, visit=self, now=self.now, **values)

    def to(self, path: str, done: str = "") -> Response:
        """Return a redirect after an action. `done` selects the message that the next page
        shows."""
        return RedirectResponse(f"{path}?done={done}" if done else path, 303, HEADERS)


Answer = Callable[[Visit], Response]


class Field(Struct, frozen=True):
    """A field of the form on a page that `ask` returns. `kind` is `line`, `text` (several lines),
    `choice` or `tick` (a checkbox)."""

    name: str
    label: str
    kind: str = "line"
    value: str = ""
    hint: str = ""
    needed: bool = False
    options: Sequence[str] = ()


def ask(
    visit: Visit,
    question: str,
    *,
    yes: str,
    back: str,
    consequences: Sequence[str] = (),
    lists: Sequence[tuple[str, Sequence[str]]] = (),
    fields: Sequence[Field] = (),
    undo: str = "",
    danger: bool = False,
) -> Response:
    """Return the page that asks `question`. Its form is sent to the address of the page itself.
    `yes` is the text of the button, and `back` the path of the page to return to."""
    return visit.page(
        "ask.html",
        question=question,
        yes=yes,
        back=back,
        consequences=consequences,
        lists=lists,
        fields=fields,
        undo=undo,
        danger=danger,
        action=visit.request.url.path,
    )
