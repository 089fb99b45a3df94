"""The fields of answers, for the OpenAPI document. Reports of runs and plans are declared in
`model.reports`, and the document describes those classes. The other answers are made by the code
behind the command line's `--json`. A test compares real answers with the shapes here."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType, field

from perdure.model import (
    Checkpoint,
    RunState,
    TokenScope,
    Verdict,
)
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


class SessionOfList(Shape):
    id: str
    agent: str
    state: str
    cause: str
    parent: str
    run: str | None
    run_state: RunState | None
    scope: str | None
    cwd: str
    on_disk: bool
    path: str
    turns: int | None
    first: str
    title: str
    link: str
    role: str
    updated: int
    cost_usd: float
    cost_estimated: bool


class SessionsShape(Answer):
    sessions: list[SessionOfList]


class SessionShape(SessionOfList):
    schema_version: Literal[1]
    lineage: list[SessionOfList]


class SessionRecord(Answer):
    """perdure's record of a conversation. `expires` is null if the conversation never expires."""

    id: str
    agent: str
    scope: str
    state: str
    cause: str
    created: int
    updated: int
    lifetime_s: float
    expires: int | None
    tasks: int


class SpokenOfSession(Shape):
    by_agent: bool
    text: str


class SpokenShape(Answer):
    session: str
    spoken: list[SpokenOfSession]


class StatisticsShape(Answer):
    attempts: int
    begun: int
    to_go_on: int
    went_on: int
    expired: int
    verdicts: dict[Verdict, int]
    fallbacks: dict[str, int]
    bought: int
    cached: int
    saved: int | None
    success_rate: float | None


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


class UsageRow(Shape):
    class_: str = field(name="class")
    agent: str
    owner: str
    role: str
    bytes: int
    files: int


class Disk(Answer):
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


class Swept(Answer):
    """The result of a sweep. `trouble` is the reason why nothing was removed; otherwise empty."""

    dry_run: bool
    trouble: str
    rows: list[SweepRow]


class Cleared(Answer):
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


class Trash(Answer):
    entries: list[TrashEntry]


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


RENAMED: dict[type[Struct], str] = {
    RunReport: "Run",
    WhyReport: "Why",
    PlanReport: "Plan",
    TaskOfPlan: "PlanTask",
}
"""Names of report classes in the OpenAPI document, where they differ from the class names. These
names must not change, because clients use them."""


def named(name: str) -> type[Struct]:
    """Return the shape that has the name `name` in the OpenAPI document."""
    for kind, known in RENAMED.items():
        if known == name:
            return kind
    found: type[Struct] = globals().get(f"{name}Shape") or globals()[name]
    return found
