"""A run with its results, as the library returns it."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import asdict

from perdure.model import NO_USAGE, Outcome, Receipt, RunState, TaskRun, Usage
from perdure.model.work import WorkVerdict
from perdure.protocols import RunStore
from perdure.rules.final_message import last_message

LOOKED_AT = 200
"""Number of a run's newest journal records that are searched for the agent's final message."""


class RunResult(TaskRun, frozen=True, kw_only=True):
    """The state of a run when it was read, with its newest attempt's outcome, its newest receipt
    and its results."""

    result: str = ""
    """The agent's final message in its newest attempt; empty if there is none."""
    outcome: Outcome | None = None
    """How the newest attempt ended; None while it is running, and before the first attempt."""
    receipt: Receipt | None = None
    """The newest receipt: whether the conversation was continued, with the evidence. None if no
    attempt has one."""
    verdict: WorkVerdict | None = None
    """The newest verdict on the work; None if no attempt has one. See `Runner.work`."""
    usage: Usage = NO_USAGE
    """Total tokens and cost of all attempts."""

    @property
    def ok(self) -> bool:
        """Whether the run succeeded."""
        return self.state is RunState.SUCCEEDED

    @property
    def workdir(self) -> Path | None:
        """The directory in which the agent works; None if it is not yet chosen."""
        if self.workspace is not None:
            return Path(self.workspace.path)
        return None

    @property
    def branch(self) -> str:
        """The branch of the workdir; empty if there is none."""
        if self.workspace is not None:
            return self.workspace.branch
        return ""


def result_of_run(store: RunStore, run: TaskRun) -> RunResult:
    """Return the run with its results, which are read from its attempts and its journal."""
    attempts = store.attempts(run.id)
    newest = attempts[-1] if attempts else None
    receipts = [attempt.receipt for attempt in attempts if attempt.receipt is not None]
    verdicts = [attempt.work for attempt in attempts if attempt.work]
    usage = NO_USAGE
    for attempt in attempts:
        usage = usage + attempt.usage
    return RunResult(
        **asdict(run),
        result=last_message(store.latest(run.id, LOOKED_AT), newest.number) if newest else "",
        outcome=newest.outcome if newest is not None else None,
        receipt=receipts[-1] if receipts else None,
        verdict=WorkVerdict(verdicts[-1]) if verdicts else None,
        usage=usage,
    )
