"""Classes for the JSON that the API returns. The functions in the tables of verbs (`runs.VERBS` and
others) return instances of these classes, or mappings with the same fields. `openapi` derives the
schemas of the OpenAPI document from the classes.

Reports that the command line prints too are declared in `model` (`reports`, `session_reports`,
`disk_reports`). The order of the fields is their order in the JSON. A test compares real answers
with these classes.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from perdure.model import Checkpoint, TokenScope
from perdure.model.disk_reports import DiskReport, ResetReport, SweepReport, TrashList
from perdure.model.events import Record
from perdure.model.forge.deliveries import DeliveryState, Forge, Intent
from perdure.model.reports import (
    Answer,
    PlanOfList,
    PlanReport,
    RunOfList,
    RunReport,
    Shape,
    TaskOfPlan,
    WhyReport,
)
from perdure.model.requests import AnswerKind, RequestKind, RequestState
from perdure.model.session_reports import (
    SessionList,
    SessionOfList,
    SessionRecord,
    StatisticsReport,
)


class Runs(Answer):
    """A page of runs. `next` is the `cursor` of the next page; null on the last page."""

    runs: list[RunOfList]
    next: str | None


class Caller(Answer):
    """The client's identity. `expires` is the time in milliseconds since 1970 at which the token
    expires; 0 if it never does. Empty `repositories` and `labels` mean no limits."""

    actor: str
    name: str
    scope: TokenScope
    repositories: list[str]
    labels: list[str]
    expires: int


class RequestOfRun(Shape):
    name: str
    run: str
    number: int
    attempt: int
    kind: RequestKind
    tool: str
    call: str
    summary: str
    payload: str
    size: int
    sha256: str
    parked: bool
    asked: int
    expires: int
    state: RequestState
    answer: AnswerKind | None
    words: str
    by: str
    rule: str
    via: str
    answered: int
    given: int


class Requests(Answer):
    requests: list[RequestOfRun]


class LineOfAudit(Shape):
    number: int
    at: int
    actor: str
    kind: str
    run: str
    attempt: int
    record: int
    about: str
    sha256: str
    previous: str
    hash: str


class Audit(Answer):
    """A page of the audit trail. `next` is the `after` of the next page; null on the last page."""

    lines: list[LineOfAudit]
    next: int | None


class Records(Answer):
    """A page of a run's journal. `next` is the `after` of the next page; null if the run has no
    later records yet."""

    run: str
    records: list[Record]
    next: int | None


class Checkpoints(Answer):
    run: str
    checkpoints: list[Checkpoint]


class Restored(Answer):
    """The result of a restore. `undo` is a checkpoint of the state before the restore; null if
    there is none."""

    run: str
    checkpoint: Checkpoint
    undo: Checkpoint | None
    transcript: str


class Removed(Answer):
    """The result of a removal. `trash` is the id of the trash entry that contains the workdir; null
    if there is none. If the workdir was not moved to the trash, `kept` is the reason."""

    run: str
    id: str
    trash: str | None
    kept: str
    unsaved: list[str]


class SessionShape(SessionOfList):
    schema_version: Literal[1]
    lineage: list[SessionOfList]


class SpokenOfSession(Shape):
    by_agent: bool
    text: str


class SpokenShape(Answer):
    session: str
    spoken: list[SpokenOfSession]


class Agent(Shape):
    name: str
    installed: bool
    version: str
    program: str
    home: str
    abilities: dict[str, Any]
    running: int
    problem: str


class Agents(Answer):
    agents: list[Agent]


class PlansShape(Answer):
    plans: list[PlanOfList]


class DeliveryOfList(Shape):
    number: int
    source: str
    id: str
    forge: Forge
    event: str
    sha256: str
    state: DeliveryState
    reason: str
    received: int
    updated: int
    times: int
    size: int
    kept: bool
    intent: Intent | None


class Deliveries(Answer):
    """A page of deliveries. `next` is the `before` of the next page; null on the last page."""

    deliveries: list[DeliveryOfList]
    next: int | None


class DeliveryShape(DeliveryOfList):
    schema_version: Literal[1]
    body: str | UnsetType = UNSET


class Returned(Answer):
    places: list[str]
    sessions: list[str]
    run: str


class Purged(Answer):
    id: str


class ProblemDetails(Struct, kw_only=True):
    """An error (RFC 9457). `detail` is the error message. `hint` is advice on what to do."""

    type: str
    title: str
    status: int
    detail: str
    hint: str | UnsetType = UNSET
    problems: list[str] | UnsetType = UNSET


REPORTS: dict[type[Struct], str] = {
    RunReport: "Run",
    WhyReport: "Why",
    PlanReport: "Plan",
    TaskOfPlan: "PlanTask",
    SessionList: "Sessions",
    SessionRecord: "SessionRecord",
    StatisticsReport: "Statistics",
    DiskReport: "Disk",
    SweepReport: "Swept",
    ResetReport: "Cleared",
    TrashList: "Trash",
}
"""Names of report classes in the OpenAPI document. Listed are the classes of `model` that describe
a whole answer, or whose name in the document differs from the name in the code. These names must
not change, because clients use them."""


def named(name: str) -> type[Struct]:
    """Return the class that has the name `name` in the OpenAPI document."""
    for kind, known in REPORTS.items():
        if known == name:
            return kind
    found: type[Struct] = globals().get(f"{name}Shape") or globals()[name]
    return found
