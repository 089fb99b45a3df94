"""Data types for reports about disk usage, clean-up and the trash, which `--json`, the API and the
library return.

`engine.sweeper` and `workspace.trash` make them. The OpenAPI schema is made from these classes. The
order of the fields is their order in the JSON. Import this module only where reports are made or
shown, so that the start of an agent does not load it.
"""

from __future__ import annotations

from msgspec import field

from perdure.model.reports import Answer, Shape


class UsageRow(Shape):
    class_: str = field(name="class")
    agent: str
    owner: str
    role: str
    bytes: int
    files: int


class DiskReport(Answer):
    bytes: int
    rows: list[UsageRow]
    unreadable: list[str]


class SweepRow(Shape):
    class_: str = field(name="class")
    name: str
    path: str
    verdict: str
    why: str
    used: int | None
    bytes: int
    trash: str


class SweepReport(Answer):
    """The result of a sweep. `trouble` is the reason why nothing was removed; otherwise empty."""

    dry_run: bool
    trouble: str
    rows: list[SweepRow]


class ResetReport(Answer):
    dry_run: bool
    runs: list[str]
    sessions: list[str]
    saved: list[str]
    trash: list[str]
    unsaved: list[str]
    kept: list[str]


class TrashEntry(Shape):
    id: str
    at: int | None
    kind: str
    run: str
    why: str
    verb: str
    path: str
    parts: dict[str, str]
    unsaved: list[str] | None


class TrashList(Answer):
    entries: list[TrashEntry]
