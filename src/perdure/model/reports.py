"""Data types for reports about a run or a plan, which `--json`, the API and the library return.

`engine.report` and `engine.plans.report` make them. The OpenAPI schema is made from these classes.
The order of the fields is their order in the JSON. New fields are added without a new
`schema_version`. Import this module by its full name, and only where reports are made or shown, so
that the start of an agent does not load it.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from perdure.model import (
    Condition,
    Context,
    FileChange,
    Fill,
    Liveness,
    Outcome,
    Receipt,
    Rung,
    RunState,
    Start,
    Usage,
    Verdict,
)
from perdure.model.events import DriftSeen, VerifyEnded
from perdure.model.forge.postings import Posting
from perdure.model.requests import MessageState
from perdure.model.work import WorkReport, WorkVerdict


class Shape(Struct, forbid_unknown_fields=True, kw_only=True):
    """Base class of all reports and their parts."""


class Answer(Shape):
    """Base class of whole reports. New fields are added without a new `schema_version`."""

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
    """A checkpoint of an attempt. `changed` and `untracked` are the numbers of changed and of new
    files. They are null for an imported checkpoint, because a capsule does not contain them."""

    number: int
    at: int
    why: str
    commit: str
    ref: str
    changed: int | None
    untracked: int | None
    left_out: int


class MapOfAttempt(Shape):
    """The project map in an attempt's prompt. `missed` says why there is none."""

    tokens: int
    files: int
    full: int
    left: int
    missed: str


class SizeOfAttempt(Shape, tag_field="event"):
    """A change of a conversation's size. `event` and `kind` have the same value."""

    kind: str
    session_id: str


class CompactedSize(SizeOfAttempt, tag="compacted"):
    before: int
    after: int
    times: int
    asked: bool


class UncompactedSize(SizeOfAttempt, tag="not_compacted"):
    tokens: int


class SummarisedSize(SizeOfAttempt, tag="summarised"):
    text: str
    usage: Usage
    reason: str


class ReplacedSize(SizeOfAttempt, tag="rolled_over"):
    tokens: int
    window: int
    cause: str


AnySize = CompactedSize | UncompactedSize | SummarisedSize | ReplacedSize


class AttemptOfRun(Shape):
    number: int
    context_version: int
    continuation: Start | None
    rung: Rung | None
    why: str
    prices: dict[str, float]
    lost_session_id: str
    expired: int
    rebuilt_sessions: list[str]
    session_id: str
    agent_version: str
    flags: dict[str, str]
    outcome: Outcome | None
    receipt: Receipt | None
    usage: Usage
    fill: Fill | None
    sizes: list[AnySize]
    effects: list[EffectOfAttempt]
    files: list[FileChange]
    map: MapOfAttempt | None
    checkpoint: int
    checkpoints: list[CheckpointOfAttempt]
    drift: list[DriftSeen]
    missed_checkpoints: list[str]
    checks: list[VerifyEnded]
    result: str
    work: WorkReport
    turn: int
    started: int
    ended: int | None
    directory: str


class RunReport(Answer):
    """A run with its attempts and receipts."""

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
    when_full: str
    on_denied: str
    last_word: str
    on_leftover: str
    conditions: list[Condition]
    missed_checkpoint: str
    posting: Posting | None
    created: int
    updated: int
    finished: int | None
    run_after: int


class AttemptWhy(Shape):
    """How an attempt started, its evidence and its receipt. These are some of the fields of
    `AttemptOfRun`."""

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
    sizes: list[AnySize]
    agent_version: str
    flags: dict[str, str]
    outcome: Outcome | None
    receipt: Receipt | None
    effects: list[EffectOfAttempt]
    turn: int
    checkpoint: int
    checkpoints: list[CheckpointOfAttempt]
    missed_checkpoints: list[str]
    drift: list[DriftSeen]
    files: list[FileChange]
    checks: list[VerifyEnded]
    work: WorkReport


class WhyReport(Answer):
    """The report that `perdure why` shows. It has some of the fields of `RunReport`."""

    name: str
    state: RunState
    liveness: Liveness | None
    reason: str
    run_after: int
    conditions: list[Condition]
    posting: Posting | None
    messages: list[MessageState]
    attempts: list[AttemptWhy]


class PlanOfList(Shape):
    name: str
    state: str
    tasks: int
    done: int
    file: str
    updated: int


class ConflictOfTask(Shape):
    """A file that two predecessors of a task changed in different ways."""

    file: str
    reason: str


class TaskOfPlan(Shape):
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
    conflicts: list[ConflictOfTask]
    branch: str
    path: str
    commit: str
    started: int | None
    ended: int | None


class PlanResult(Shape):
    """The location of a plan's result, which is the result of its last task."""

    task: str
    path: str
    branch: str
    backend: str
    run: str
    base: str
    commit: str


class PlanReport(Answer):
    """A plan with its tasks."""

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
    tasks: list[TaskOfPlan]
    usage: Usage
    budget_usd: float
    spent_usd: float
    result: PlanResult
    created: int
    updated: int
