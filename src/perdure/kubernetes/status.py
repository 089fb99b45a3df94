"""The `status` of a TaskRun: its fields, the format of texts and times in it, and the number of
attempts that it shows as used up. Pure.

Only the operator should write the status, but anyone with permission can write anything into it.
Parts of a status that are not valid are therefore treated as missing. No content of a status may
stop the operator.

`tally` counts the attempts. `status_moves` calls it after each attempt, and passes the tally to
`lifecycle.decide`. Three kinds of attempts do not use up an allowed one: those that the
infrastructure ended, those with an outcome in `lifecycle.UNCOUNTED`, and those that a person
stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from perdure.kubernetes.objects import Dollars, dollars_or_zero
from perdure.kubernetes.spec import Camel, Spec, SpecSource
from perdure.model import (
    Attempt,
    Continuation,
    Evidence,
    Outcome,
    OutcomeKind,
    Receipt,
    Start,
    Usage,
    Verdict,
)
from perdure.model.codec import resolved
from perdure.model.requests import AnswerKind, RequestKind
from perdure.rules.crashes import loop
from perdure.rules.lifecycle import FREE, UNCOUNTED, Tally
from perdure.rules.pricing import cost, price_of
from perdure.rules.text import clean

MOST_RECORDS = 50

SENTENCE = 2000
"""Maximum number of characters of a text in a status."""

FINAL: frozenset[str] = frozenset({"Succeeded", "Failed", "Cancelled"})


class UsageStatus(Camel, frozen=True):
    input_tokens: int = 0
    output_tokens: int = 0
    cost: Dollars = msgspec.field(default=0, name="costUSD")

    @property
    def usage(self) -> Usage:
        paid = dollars_or_zero(self.cost)
        return Usage(input=self.input_tokens, output=self.output_tokens, cost_usd=paid)


class ReceiptSummary(Camel, frozen=True):
    """The verdict of an attempt's receipt, with its reasons."""

    verdict: str = ""
    rung: str = ""
    reasons: tuple[str, ...] = ()


class WorkStatus(Camel, frozen=True):
    """Summary of an attempt's work report."""

    verdict: str = ""
    reason: str = ""
    files: int = 0
    commits: int = 0
    pushed: bool | None = None
    denied: int = 0
    question: str = ""


class AttemptStatus(Camel, frozen=True):
    """The record of one attempt. An attempt without an outcome is still open."""

    number: int
    job: str = ""
    job_uid: str = msgspec.field(default="", name="jobUID")
    pod: str = ""
    node: str = ""
    context_version: int = 1
    started: str = ""
    ended: str = ""
    outcome: str = ""
    detail: str = ""
    infrastructure: bool = False
    session_id: str = ""
    receipt: ReceiptSummary | None = None
    work: WorkStatus | None = None
    usage: UsageStatus | None = None
    exit_code: int | None = None


class RequestStatus(Camel, frozen=True):
    """A request of the agent to a person, and the answer as soon as the operator has read it. A
    request without an answer is open."""

    number: int
    id: str
    """Short id of the request. It depends on the request's number and on the call."""
    attempt: int
    kind: RequestKind
    tool: str
    text: str = ""
    """Arguments of the call as JSON, in ASCII; only their beginning if they were too long."""
    size: int = 0
    """Length of the complete arguments in characters. If `text` was cut, this is greater than the
    length of `text`."""
    sha256: str = ""
    expires: str = ""
    answer: AnswerKind | None = None
    words: str = ""
    by: str = ""
    answered: str = ""


class WorkspaceStatus(Camel, frozen=True):
    """The field `status.workspace`: where the work of the TaskRun is."""

    claim_name: str = ""
    path: str = ""
    branch: str = ""
    commit: str = ""
    checkpoints: str = ""
    saved: bool = False


class StatusCondition(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A condition as Kubernetes defines it. All fields are always written, because the API server
    requires them."""

    type: str
    status: str
    observed_generation: int = 0
    reason: str
    message: str = ""
    last_transition_time: str


class TaskRunStatus(Camel, frozen=True):
    phase: str = ""
    observed_generation: int = 0
    context_version: int = 0
    attempt: int = 0
    attempts_allowed: int = 0
    used_before: int = 0
    """Number of used-up attempts whose records are no longer in `attempts`."""
    run_after: str = ""
    completion_time: str = ""
    """Time at which the TaskRun ended; empty as long as it has not ended."""
    reason: str = ""
    session_id: str = ""
    receipt: str = ""
    work: str = ""
    """Verdict on the work of the newest attempt, from its work report."""
    retried: str = ""
    workspace: WorkspaceStatus = WorkspaceStatus()
    usage: UsageStatus = UsageStatus()
    conditions: tuple[StatusCondition, ...] = ()
    attempts: tuple[AttemptStatus, ...] = ()
    requests: tuple[RequestStatus, ...] = ()
    """The newest requests of the agent. Answered ones stay, for the orders of later attempts, until
    the agent asks again or the answers are cancelled."""
    contexts: int = 0
    """Number of versions of the instructions that the TaskRun has had, including deleted ones."""
    instructions_from: tuple[SpecSource, ...] = ()
    """For the newest versions of the instructions: the Secret and key of each version that is in a
    Secret. These references are not kept in the ConfigMap. Otherwise anyone who may write
    ConfigMaps could choose which Secret the pod reads."""

    @property
    def open(self) -> AttemptStatus | None:
        """Return the open attempt; None if there is none."""
        last = self.attempts[-1] if self.attempts else None
        if last is not None and not last.outcome:
            return last
        return None

    @property
    def asks(self) -> bool:
        """Return whether a request of the agent is open."""
        return any(each.answer is None for each in self.requests)

    def condition(self, type: str) -> StatusCondition | None:
        """Return the condition of this type if it is true; otherwise None."""
        for each in self.conditions:
            if each.type == type and each.status == "True":
                return each
        return None


def status_of(raw: Mapping[str, object]) -> TaskRunStatus:
    """Return the valid parts of a status. Each field is decoded separately, so that an invalid
    field does not affect the others."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(TaskRunStatus):
        if field.encode_name in raw:
            try:
                found[field.name] = msgspec.convert(raw[field.encode_name], resolved(field.type))
            except msgspec.ValidationError:
                continue
    return TaskRunStatus(**found)


def safe_line(text: str, most: int = SENTENCE) -> str:
    """Return untrusted text in a form that is safe in a status: one line, without control
    characters, at most `most` characters."""
    line = " ".join(clean(text).split())
    if len(line) <= most:
        return line
    return f"{line[: most - 3]}..."


def stamp(ms: int) -> str:
    """Return milliseconds since 1970 as an RFC 3339 time in UTC, with milliseconds. (Times in
    Kubernetes' `metadata` have whole seconds only, but attempts need more precision.)"""
    return (
        datetime.fromtimestamp(ms / 1000, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def moment(text: str) -> int:
    """Return an RFC 3339 time as milliseconds since 1970; 0 if it is not valid."""
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return 0
    if found.tzinfo is not None:
        return int(found.timestamp() * 1000)
    return 0


def tally(status: TaskRunStatus, spec: Spec) -> Tally:
    """Return the tally of attempts for `lifecycle.decide`. The newest attempt must have ended."""
    counted = []
    for record in status.attempts:
        if record.outcome and record.outcome != OutcomeKind.CANCELLED:
            counted.append(record)
    free = 0
    for record in reversed(counted):
        if not (record.infrastructure or record.outcome in FREE):
            break
        free += 1
    last = status.attempts[-1]
    rounds = 0
    for record in counted:
        is_of_last = record.context_version == last.context_version
        rounds += record.outcome == OutcomeKind.VERIFY_FAILED and is_of_last
    used = status.usage.usage
    spent = used.cost_usd or _reckoned(used, spec.model)
    return Tally(
        counted=used_up(status),
        free=free,
        unbegun=last.infrastructure,
        allowed=status.attempts_allowed or spec.policy.attempts,
        spent_usd=spent,
        budget_usd=spec.policy.budget_usd,
        rounds=rounds,
        rounds_allowed=spec.policy.verify_rounds,
        loop=loop(list(map(_attempt, counted))),
    )


def used_up(status: TaskRunStatus) -> int:
    """Return how many of the allowed attempts are used up."""
    return status.used_before + sum(map(is_counted, status.attempts))


def is_counted(record: AttemptStatus) -> bool:
    """Return whether an attempt counts toward the allowed number of attempts."""
    free = (
        record.infrastructure
        or record.outcome in UNCOUNTED
        or record.outcome == OutcomeKind.CANCELLED
    )
    return bool(record.outcome) and not free


def _attempt(record: AttemptStatus) -> Attempt:
    """Convert a record to the form that `crashes.loop` examines. An attempt that reported neither
    receipt nor usage is treated as if the agent had answered, so it does not count as a crash."""
    reported = record.receipt is not None or record.usage is not None
    receipt = Receipt(
        verdict=Verdict.NATIVE,
        evidence=Evidence(answered=not reported, prompt_found=record.receipt is not None),
    )
    return Attempt(
        run="",
        number=record.number,
        context_version=record.context_version,
        worker="",
        started=moment(record.started),
        ended=moment(record.ended),
        continuation=None if record.infrastructure else Continuation(kind=Start.FRESH),
        outcome=Outcome(kind=_kind(record.outcome), detail=record.detail),
        usage=record.usage.usage if record.usage else Usage(),
        receipt=receipt,
    )


def _kind(word: str) -> OutcomeKind:
    """Return the kind of an outcome; FAILED for an unknown word. Anyone may have written the
    status."""
    if word in set(OutcomeKind):
        return OutcomeKind(word)
    return OutcomeKind.FAILED


def _reckoned(usage: Usage, model: str) -> float:
    price = price_of(model)
    if price is not None:
        return cost(usage, price)
    return 0.0
