"""The fields of answers, for the document. The answers themselves are made by the code behind the
command line's `--json`. A test compares real answers with these shapes, so that answers and
document have the same fields."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType, field

from perdure.model import (
    Checkpoint,
    Condition,
    Context,
    FileChange,
    Fill,
    Outcome,
    Receipt,
    Rung,
    RunState,
    Start,
    TokenScope,
    Usage,
    Verdict,
)
from perdure.model.events import Record
from perdure.model.forge.deliveries import DeliveryState, Forge, Intent
from perdure.model.forge.postings import Posting
from perdure.model.requests import AnswerKind, RequestKind, RequestState
from perdure.model.work import WorkReport, WorkVerdict
from perdure.rules.liveness import Liveness
from perdure.rules.messages import MessageState


class Shape(Struct, forbid_unknown_fields=True, kw_only=True):
    """An answer or a part of one."""


class Answer(Shape):
    """A whole answer. Fields are added without a new `schema_version`."""

    schema_version: Literal[1]


class RunOfList(Shape):
    id: str
    name: str
    state: RunState
    liveness: Liveness | None
    agent: str
    attempt: int
    reason: str
    updated: int
    created: int
    place: str
    run_after: int
    fill_tokens: int
    fill_window: int
    repo: str
    branch: str
    prompt: str
    title: str
    link: str
    role: str
    labels: dict[str, str]
    cost_usd: float
    estimated: bool
    work: str


class Runs(Answer):
    """`next` is the `cursor` of the next page; null on the last one."""

    runs: list[RunOfList]
    next: str | None


class Caller(Answer):
    """`expires`: when (ms) the token expires; 0: never. Empty `repositories` and `labels`: no
    limits."""

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
    """`next` is the `after` of the next page; null on the last one."""

    lines: list[LineOfAudit]
    next: int | None


class WorkspaceOfRun(Shape):
    path: str
    repo: str
    branch: str
    base: str
    backend: str
    head: str


class EffectOfAttempt(Shape):
    kind: str
    command: str
    ok: bool | None
    outcome: str
    possible: bool
    reversible: bool | None


class CheckpointOfAttempt(Shape):
    number: int
    at: int
    why: str
    commit: str
    ref: str
    changed: int
    untracked: int
    left_out: int


class AttemptWhy(Shape):
    number: int
    continuation: Start | None
    rung: Rung | None
    why: str
    prices: dict[str, float]
    session_id: str
    lost_session_id: str
    expired: int
    rebuilt_sessions: list[str]
    fill: Fill | None
    sizes: list[dict[str, Any]]
    agent_version: str
    flags: dict[str, str]
    outcome: Outcome | None
    receipt: Receipt | None
    effects: list[EffectOfAttempt]
    turn: int
    checkpoint: int
    checkpoints: list[CheckpointOfAttempt]
    missed_checkpoints: list[str]
    drift: list[dict[str, Any]]
    files: list[FileChange]
    checks: list[dict[str, Any]]
    work: WorkReport


class AttemptOfRun(AttemptWhy):
    context_version: int
    usage: Usage
    map: dict[str, Any] | None
    started: int
    ended: int | None
    directory: str
    result: str


class Run(Answer):
    id: str
    name: str
    title: str
    link: str
    role: str
    state: RunState
    liveness: Liveness | None
    reason: str
    agent: str
    scope: str
    key: str
    origin: str
    host: str
    host_id: str
    labels: dict[str, str]
    policy: str
    context_version: int
    contexts: list[Context]
    retired_contexts: list[int]
    messages: list[MessageState]
    workspace: WorkspaceOfRun
    attempts_allowed: int
    attempts: list[AttemptOfRun]
    result: str
    verdict: WorkVerdict | None
    usage: Usage
    fill: Fill | None
    conditions: list[Condition]
    missed_checkpoint: str
    when_full: str
    on_denied: str
    last_word: str
    on_leftover: str
    created: int
    updated: int
    finished: int | None
    run_after: int
    posting: Posting | None


class Why(Answer):
    name: str
    state: RunState
    liveness: Liveness | None
    reason: str
    run_after: int
    conditions: list[Condition]
    posting: Posting | None
    messages: list[MessageState]
    attempts: list[AttemptWhy]


class Records(Answer):
    """`next` is the `after` of the next page; null where there is none yet."""

    run: str
    records: list[Record]
    next: int | None


class Checkpoints(Answer):
    run: str
    checkpoints: list[Checkpoint]


class Restored(Answer):
    """`undo` is the checkpoint of the state before the restore."""

    run: str
    checkpoint: Checkpoint
    undo: Checkpoint | None
    transcript: str


class Removed(Answer):
    """`trash` is the entry that has the workdir; `kept`: why the workdir stays."""

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
    """perdure's record of a conversation. `expires`: null for one that never does."""

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


class PlanOfList(Shape):
    name: str
    state: str
    tasks: int
    done: int
    file: str
    updated: int


class PlansShape(Answer):
    plans: list[PlanOfList]


class PlanTaskShape(Shape):
    name: str
    agent: str
    needs: list[str]
    state: str
    liveness: Liveness | None
    reason: str
    conversation: str
    how: str
    instead: str
    run: str
    run_id: str
    attempts: int
    session_id: str
    continuation: Start | None
    verdict: Verdict | None
    usage: Usage
    files: list[str]
    changed: list[str]
    merged: list[str]
    conflicts: list[dict[str, str]]
    branch: str
    path: str
    commit: str
    started: int | None
    ended: int | None


class PlanResult(Shape):
    task: str
    path: str
    branch: str
    commit: str


class PlanShape(Answer):
    id: str
    name: str
    state: str
    reason: str
    file: str
    repo: str
    base: str
    jobs: int
    policy: str
    verify: str
    verified: bool
    tasks: list[PlanTaskShape]
    usage: Usage
    budget_usd: float
    spent_usd: float
    result: PlanResult
    created: int
    updated: int


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
    """`next` is the `before` of the next page; null on the last one."""

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
    """The result of a sweep. `trouble`: the reason if nothing was removed."""

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
    """A problem (RFC 9457): `detail` is a sentence, `hint` what to do next."""

    type: str
    title: str
    status: int
    detail: str
    hint: str | UnsetType = UNSET
    problems: list[str] | UnsetType = UNSET


def named(name: str) -> type[Shape]:
    """Return the shape with this name in the document."""
    found: type[Shape] = globals().get(f"{name}Shape") or globals()[name]
    return found
