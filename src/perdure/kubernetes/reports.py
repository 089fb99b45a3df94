"""Data types for reports about a TaskRun, which `perdure --cluster` prints with `--json`.

`view` makes them. The order of the fields is their order in the JSON. New fields are added without
a new `schema_version`. Times are in milliseconds since 1970 (UTC), costs in US dollars. Texts come
from the cluster and are not trusted; they are cleaned where they are printed.
"""

from __future__ import annotations

from msgspec import Struct


class TaskRunOfList(Struct, frozen=True, kw_only=True):
    """A TaskRun as a row of a list."""

    namespace: str
    name: str
    phase: str
    service: str
    task: str
    agent: str
    attempt: int
    receipt: str
    work: str
    session_id: str
    reason: str
    run_after: int
    created: int


class WorkspaceOfTaskRun(Struct, frozen=True, kw_only=True):
    """The place of a TaskRun's work."""

    mode: str
    claim: str
    path: str
    branch: str
    commit: str
    checkpoints: str
    saved: bool


class UsageOfTaskRun(Struct, frozen=True, kw_only=True):
    """The tokens and dollars that a TaskRun or one of its attempts has used."""

    input: int
    output: int
    cost_usd: float


class ConditionOfTaskRun(Struct, frozen=True, kw_only=True):
    type: str
    status: str
    reason: str
    message: str
    since: int


class WorkOfAttempt(Struct, frozen=True, kw_only=True):
    """The summary of an attempt's work report."""

    verdict: str
    reason: str
    files: int
    commits: int
    pushed: bool | None
    denied: int
    question: str


class AttemptOfTaskRun(Struct, frozen=True, kw_only=True):
    """An attempt of a TaskRun. `verdict`, `rung` and `reasons` are those of its receipt."""

    number: int
    context_version: int
    job: str
    pod: str
    node: str
    started: int
    ended: int
    outcome: str
    detail: str
    infrastructure: bool
    exit_code: int | None
    session_id: str
    work: WorkOfAttempt
    verdict: str
    rung: str
    reasons: list[str]
    usage: UsageOfTaskRun


class RequestOfTaskRun(Struct, frozen=True, kw_only=True):
    """A request of a TaskRun's agent to a person, and its answer."""

    number: int
    id: str
    attempt: int
    kind: str
    tool: str
    text: str
    size: int
    sha256: str
    expires: int
    answer: str
    words: str
    by: str
    answered: int


class TaskRunReport(Struct, frozen=True, kw_only=True):
    """A TaskRun with its attempts, as `show --json` prints it. It begins with the fields of
    `TaskRunOfList`."""

    schema_version: int
    namespace: str
    name: str
    phase: str
    service: str
    task: str
    agent: str
    attempt: int
    receipt: str
    work: str
    session_id: str
    reason: str
    run_after: int
    created: int
    uid: str
    suspend: bool
    policy: str
    context_version: int
    recorded_version: int
    attempts_allowed: int
    workspace: WorkspaceOfTaskRun
    usage: UsageOfTaskRun
    conditions: list[ConditionOfTaskRun]
    attempts: list[AttemptOfTaskRun]
    requests: list[RequestOfTaskRun]


class TaskRunWhyReport(Struct, frozen=True, kw_only=True):
    """The report that `why --json` prints. It has some of the fields of `TaskRunReport`."""

    schema_version: int
    namespace: str
    name: str
    phase: str
    reason: str
    run_after: int
    policy: str
    conditions: list[ConditionOfTaskRun]
    attempts: list[AttemptOfTaskRun]
