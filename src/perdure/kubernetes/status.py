"""`status` of a TaskRun: its state, and how sentences and times are written there. Pure.

Only the operator should write it, but anyone with permission can write anything into it. Parts of a
status that are not valid count as missing. Nothing in a status may stop the operator.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from perdure.kubernetes.amounts import Dollars, dollars_or_none
from perdure.kubernetes.spec import Camel, SpecSource
from perdure.model import Usage
from perdure.model.codec import resolved
from perdure.rules.text import clean

MOST_RECORDS = 50

SENTENCE = 2000
"""Maximum number of characters of a sentence in a status."""

FINAL: frozenset[str] = frozenset({"Succeeded", "Failed", "Cancelled"})


class Spent(Camel, frozen=True):
    input_tokens: int = 0
    output_tokens: int = 0
    cost: Dollars = msgspec.field(default=0, name="costUSD")

    @property
    def usage(self) -> Usage:
        paid = dollars_or_none(self.cost)
        return Usage(input=self.input_tokens, output=self.output_tokens, cost_usd=paid)


class ReceiptSummary(Camel, frozen=True):
    """An attempt's receipt."""

    verdict: str = ""
    rung: str = ""
    reasons: tuple[str, ...] = ()


class WorkOfRecord(Camel, frozen=True):
    """An attempt's work report in short."""

    verdict: str = ""
    reason: str = ""
    files: int = 0
    commits: int = 0
    pushed: bool | None = None
    denied: int = 0
    question: str = ""


class AttemptStatus(Camel, frozen=True):
    """One attempt. It is running as long as it has no outcome."""

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
    work: WorkOfRecord | None = None
    usage: Spent | None = None
    exit_code: int | None = None


class Lying(Camel, frozen=True):
    """`status.workspace`: where the work is."""

    claim_name: str = ""
    path: str = ""
    branch: str = ""
    commit: str = ""
    checkpoints: str = ""
    saved: bool = False


class StatusCondition(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A condition. All fields are always written, because the API server requires them."""

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
    """Number of attempts that used up an allowed one and are no longer in `attempts`."""
    run_after: str = ""
    completion_time: str = ""
    """Time at which the TaskRun ended; empty while it goes on."""
    reason: str = ""
    session_id: str = ""
    receipt: str = ""
    work: str = ""
    """The verdict on the newest attempt's work."""
    retried: str = ""
    workspace: Lying = Lying()
    usage: Spent = Spent()
    conditions: tuple[StatusCondition, ...] = ()
    attempts: tuple[AttemptStatus, ...] = ()
    contexts: int = 0
    """Number of versions of the instructions so far, including deleted ones."""
    instructions_from: tuple[SpecSource, ...] = ()
    """The newest versions that are in Secrets. They are not recorded in the ConfigMap, because
    anyone who may write that could then choose the Secret that is read."""

    @property
    def open(self) -> AttemptStatus | None:
        """The attempt that is running; None if there is none."""
        last = self.attempts[-1] if self.attempts else None
        if last is not None and not last.outcome:
            return last
        return None

    def condition(self, type: str) -> StatusCondition | None:
        """Return the condition of a type if it is true, or else None."""
        return next(
            (each for each in self.conditions if each.type == type and each.status == "True"), None
        )


def status_of(raw: dict[str, Any]) -> TaskRunStatus:
    """Return the valid parts of a status. The parts are read one by one, so that an invalid part
    does not make the others unusable."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(TaskRunStatus):
        if field.encode_name in raw:
            try:
                found[field.name] = msgspec.convert(raw[field.encode_name], resolved(field.type))
            except msgspec.ValidationError:
                continue
    return TaskRunStatus(**found)


def said(text: str, most: int = SENTENCE) -> str:
    """Return untrusted text for use in a status: on one line, without control characters, and
    cut."""
    line = " ".join(clean(text).split())
    if len(line) <= most:
        return line
    return f"{line[: most - 3]}..."


def stamp(ms: int) -> str:
    """Return milliseconds since 1970 as RFC 3339 in UTC, with milliseconds. The format of
    `metadata` has none, but attempts need them."""
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
