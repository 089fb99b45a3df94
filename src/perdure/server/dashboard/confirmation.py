"""The page that asks for confirmation of an action. It names the consequences and has the fields to
fill in."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from starlette.responses import Response

from perdure.server.dashboard.visits import Visit


class Field(Struct, frozen=True):
    """A field of the form. `kind` is `line`, `text`, `choice` or `tick` (a checkbox)."""

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
