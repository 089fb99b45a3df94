"""A run with what came of it, as the library returns it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from perdure.lateclass import dataclass
from perdure.model import NO_USAGE, Outcome, Receipt, RunState, TaskRun, Usage
from perdure.model.work import WorkVerdict
from perdure.protocols import RunStore
from perdure.rules.final_message import last_message

LOOKED_AT = 200
"""Number of the newest records in which the agent's final message is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult(TaskRun):
    """A run as it was when it was read, with the newest attempt's outcome and receipt."""

    result: str = ""
    """What the agent said at the end of its newest attempt; empty where it said nothing."""
    outcome: Outcome | None = None
    """How the newest attempt ended; None while it works."""
    receipt: Receipt | None = None
    """The evidence that the conversation went on, of the newest attempt that has ended."""
    verdict: WorkVerdict | None = None
    """What the evidence says of the work of the newest attempt that has ended; see
    `Runner.work`."""
    usage: Usage = NO_USAGE
    """Tokens and cost of all attempts."""

    @property
    def ok(self) -> bool:
        """Whether the run succeeded."""
        return self.state is RunState.SUCCEEDED

    @property
    def workdir(self) -> Path | None:
        """The directory in which the agent works; None before it is planned."""
        return Path(self.workspace.path) if self.workspace is not None else None

    @property
    def branch(self) -> str:
        """The branch of its worktree; empty where it has none."""
        return self.workspace.branch if self.workspace is not None else ""


def result_of_run(store: RunStore, run: TaskRun) -> RunResult:
    """Return the run with its newest outcome, receipt and final message."""
    attempts = store.attempts(run.id)
    newest = attempts[-1] if attempts else None
    receipts = [attempt.receipt for attempt in attempts if attempt.receipt is not None]
    verdicts = [attempt.work for attempt in attempts if attempt.work]
    usage = NO_USAGE
    for attempt in attempts:
        usage = usage + attempt.usage
    known: dict[str, Any] = {field.name: getattr(run, field.name) for field in fields(TaskRun)}
    return RunResult(
        **known,
        result=last_message(store.latest(run.id, LOOKED_AT), newest.number) if newest else "",
        outcome=newest.outcome if newest is not None else None,
        receipt=receipts[-1] if receipts else None,
        verdict=WorkVerdict(verdicts[-1]) if verdicts else None,
        usage=usage,
    )
