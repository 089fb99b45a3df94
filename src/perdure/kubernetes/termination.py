"""Reports an attempt from its pod to the operator: by the `AttemptResult` at the end of the pod,
built from the run's own record, and before that by a log line that names the conversation.

A pod has no access to the API server. It therefore prints the conversation's id (`session_line`) as
soon as the agent has reported it, and the operator searches the beginning of the log for that line
(`session_in`). Only the first such line counts. The agent's output is printed later, so an agent
cannot forge the line. Until the result confirms the id, the operator only displays it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress

from msgspec.structs import replace

from perdure.engine.attempt.engine import EngineStore, work_records
from perdure.errors import PerdureError
from perdure.host.redaction import Redactor
from perdure.kubernetes.order import SESSION_ID, Order
from perdure.kubernetes.requests import shown
from perdure.kubernetes.result import AttemptResult, Before, PlaceResult, ReceiptResult, WorkSummary
from perdure.model import Attempt, Outcome, OutcomeKind, TaskRun
from perdure.model.events import PlaceLost
from perdure.protocols import Publisher, RunStore
from perdure.rules.work_report import work_report
from perdure.workspace import Workspaces

RECORDS = 1_000
DISPLACED = "another pod has taken the run over"


def result_of(
    store: EngineStore,
    workspaces: Workspaces,
    publisher: Publisher | None,
    redactor: Redactor,
    stopping: Callable[[], bool],
    order: Order,
    run: TaskRun,
) -> AttemptResult:
    """Return the result of the attempt that the order names. The attempt must be in the run's
    record and must have ended."""
    attempts = store.attempts(run.id)
    attempt = next(each for each in attempts if each.number == order.attempt)
    receipt = attempt.receipt
    text = redactor.text
    return AttemptResult(
        attempt=attempt.number,
        outcome=_outcome(store, redactor, attempt),
        session_id=attempt.session_id,
        receipt=ReceiptResult(
            verdict=receipt.verdict, rung=receipt.rung, reasons=tuple(map(text, receipt.reasons))
        )
        if receipt
        else None,
        work=_work(store, redactor, attempt),
        usage=attempt.usage,
        context_version=order.contexts[
            min(max(attempt.context_version - order.unlisted, 1), len(order.contexts)) - 1
        ],
        workspace=_place(store, run),
        saved=_saved(publisher, workspaces, stopping, run),
        earlier=tuple(_before(each) for each in attempts if each.number < attempt.number),
        requests=shown([each for each in store.requests(run.id) if each.attempt == attempt.number]),
    )


def _work(store: RunStore, redactor: Redactor, attempt: Attempt) -> WorkSummary | None:
    report = work_report(attempt, work_records(store, attempt))
    if report.verdict is None:
        return None
    text = redactor.text
    return WorkSummary(
        verdict=report.verdict,
        reason=text("; ".join(report.reasons[:1])),
        files=report.file_count,
        commits=report.commit_count,
        pushed=report.pushed,
        denied=sum(each.count for each in report.denied),
        question=text(report.question),
    )


def _outcome(store: RunStore, redactor: Redactor, attempt: Attempt) -> Outcome:
    """Return the outcome of an attempt. If it was stopped because another pod has taken over the
    run, the stored outcome is `cancelled`, and `lost` is returned instead."""
    outcome = attempt.outcome or Outcome(kind=OutcomeKind.LOST, detail="it has no end yet")
    if outcome.kind is OutcomeKind.CANCELLED and _lost_place(store, attempt):
        outcome = replace(outcome, kind=OutcomeKind.LOST, detail=DISPLACED)
    return replace(outcome, detail=redactor.text(outcome.detail))


def _lost_place(store: RunStore, attempt: Attempt) -> bool:
    """Return whether this attempt recorded that another pod has taken over the run."""
    for record in store.run_events(attempt.run):
        if record.attempt == attempt.number and isinstance(record.event, PlaceLost):
            return True
    return False


def _before(attempt: Attempt) -> Before:
    return Before(
        number=attempt.number,
        outcome=attempt.outcome.kind if attempt.outcome is not None else None,
        verdict=attempt.receipt.verdict if attempt.receipt is not None else None,
        session_id=attempt.session_id,
    )


def _place(store: RunStore, run: TaskRun) -> PlaceResult:
    if run.workspace is None:
        return PlaceResult()
    taken = store.checkpoints(run.id)
    return PlaceResult(
        path=run.workspace.path,
        branch=run.workspace.branch,
        commit=taken[-1].workdir.head if taken else "",
    )


def _saved(
    publisher: Publisher | None, workspaces: Workspaces, stopping: Callable[[], bool], run: TaskRun
) -> bool:
    """Return whether the pod and its volume could be deleted without losing work. The repository's
    server is not contacted, because the pod is about to end."""
    if publisher is not None and publisher.settled(run.id):
        return True
    if stopping() or run.workspace is None:
        return False
    with suppress(PerdureError, OSError):
        return not workspaces.unsaved(run.workspace)
    return False


BEGINNING = 65_536
"""Number of bytes at the beginning of a log that are searched for the line."""
_LINE = re.compile(rf"attempt ([0-9]{{1,7}}): conversation ({SESSION_ID.pattern})")


def session_line(attempt: int, session_id: str) -> str:
    """Return the log line that names the conversation of an attempt."""
    return f"attempt {attempt}: conversation {session_id}"


def session_in(log: str, attempt: int) -> str:
    """Return the id of the conversation that the beginning of an attempt's log names; empty if it
    names none, or if the first such line names another attempt."""
    for line in log.splitlines():
        found = _LINE.fullmatch(line)
        if found is not None:
            return found[2] if int(found[1]) == attempt else ""
    return ""
