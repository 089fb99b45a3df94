"""One request of somebody who is signed in: what they ask for, what they may do, and the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from perdure.errors import UsageError
from perdure.lateclass import dataclass
from perdure.model import TokenScope
from perdure.server.dashboard.pages import HEADERS, page
from perdure.server.principal import Principal

if TYPE_CHECKING:
    from perdure.server.dashboard.context import PageContext

PLACES = (
    ("/", "Board", "b"),
    ("/sessions", "Sessions", "s"),
    ("/plans", "Plans", "p"),
    ("/failures", "Failures", "f"),
    ("/continuity", "Continuity", "c"),
    ("/disk", "Disk", "d"),
    ("/inbox", "Inbox", "i"),
    ("/checks", "Checks", "h"),
)
TOLD = {
    "retried": "It continues where it stopped, as soon as the pool has room.",
    "updated": "The new instructions are there; the conversation goes on with them.",
    "stopped": "It is being stopped in good order.",
    "forked": "This is the fork. Its parent stays as it is.",
    "begun": "It is queued, and begins as soon as the pool has room.",
    "resumed": "The conversation goes on in this run.",
    "reset": "It begins anew with the next attempt. What was there is in the trash.",
    "removed": "Removed the run; its log is kept.",
    "restored": (
        "Workdir and conversation are as they were at that checkpoint. What was there before is a "
        "checkpoint too."
    ),
    "replayed": "The delivery was read anew.",
    "measured": "Measured anew.",
}
"""What a page says after an act. Only these: a link cannot put words into perdure's mouth."""


@dataclass(frozen=True, kw_only=True)
class Visit:
    """`now` is the store's clock, in ms."""

    desk: PageContext
    request: Request
    principal: Principal
    now: int
    form: Mapping[str, str] = field(default_factory=dict)

    places: ClassVar = PLACES

    @property
    def name(self) -> str:
        """The token's."""
        return self.principal.name

    @property
    def csrf(self) -> str:
        """What every form carries."""
        return self.principal.form_secret

    def may(self, scope: str) -> bool:
        """Whether a verb of this scope can be done from here: only by who has signed in."""
        return bool(self.csrf) and self.principal.may(TokenScope(scope))

    def asked(self, name: str) -> str:
        """A parameter of the address; empty where it is missing."""
        return self.request.query_params.get(name, "")[:500]

    def given(self, name: str) -> str:
        """A field of the form; empty where it is missing."""
        return self.form.get(name, "").replace("\r\n", "\n")

    def number(self, name: str) -> int:
        """A whole number of the form; 0 where it is missing. Raises UsageError."""
        text = self.given(name).strip()
        if text and not (text.isascii() and text.isdecimal() and len(text) < 10):
            raise UsageError(
                f"{text[:40]!r} is no whole number", f"the field {name} takes one, or nothing"
            )
        return int(text or 0)

    def named(self, name: str) -> str:
        """A part of the path."""
        return str(self.request.path_params[name])

    @property
    def here(self) -> str:
        """The address that was asked for, without what was told."""
        rest = [
            (name, value)
            for name, value in self.request.query_params.multi_items()
            if name != "done"
        ]
        return f"{self.request.url.path}?{urlencode(rest)}" if rest else self.request.url.path

    @property
    def place(self) -> str:
        """Which of the places this is in."""
        path = self.request.url.path
        return next((each for each, _, _ in PLACES if each != "/" and path.startswith(each)), "/")

    @cached_property
    def asking(self) -> int:
        """How many runs need a person."""
        return self.desk.look.board_asking()

    @property
    def told(self) -> str:
        return TOLD.get(self.asked("done"), "")

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        return page(template, status, visit=self, now=self.now, **values)

    def to(self, path: str, done: str = "") -> Response:
        """Sends the visitor on, after an act."""
        return RedirectResponse(f"{path}?done={done}" if done else path, 303, HEADERS)


Answer = Callable[[Visit], Response]
