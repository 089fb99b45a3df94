"""Counts the attempts of a TaskRun, from its status. Pure. `status_moves` calls it after each
attempt, and passes the tally to `lifecycle.decide`.

Three kinds of attempts do not use up an allowed one: those that the infrastructure ended, those
with an outcome in `lifecycle.UNCOUNTED`, and those that a person stopped.
"""

from __future__ import annotations

from perdure.kubernetes.spec import Spec
from perdure.kubernetes.status import AttemptStatus, TaskRunStatus, moment
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
from perdure.rules.crashes import loop
from perdure.rules.lifecycle import FREE, UNCOUNTED, Tally
from perdure.rules.pricing import cost, price_of


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
