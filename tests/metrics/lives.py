"""Runs with attempts of every kind, and the metrics that a scrape returns for them."""

from __future__ import annotations

from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from perdure.model import (
    Continuation,
    Decision,
    Outcome,
    OutcomeKind,
    Receipt,
    RunState,
    Start,
    TaskSpec,
    Usage,
    Verdict,
)
from perdure.protocols import Ending
from perdure.telemetry.metrics.exposition import MetricsPage
from perdure.testing.stores.samples import Store, begun, claimed, session_of, submit

FRESH = Continuation(kind=Start.FRESH, session_id="s")
RESUME = Continuation(kind=Start.RESUME, session_id="s")
REBUILD = Continuation(kind=Start.REBUILD, session_id="t", lost_session_id="s")

NOTHING = Usage()

Samples = dict[tuple[str, ...], float]


def attempt(
    store: Store,
    run_id: str,
    how: Continuation,
    verdict: Verdict | None,
    outcome: OutcomeKind,
    usage: Usage = NOTHING,
) -> None:
    """Play one attempt of a run, from claim to end. Afterwards the run is due again."""
    claim = claimed(store, store.get(run_id))
    store.begin(claim, replace(begun(claim.run, session_of(claim.run, "s")), continuation=how))
    receipt = Receipt(verdict=verdict) if verdict is not None else None
    store.finish(
        claim,
        Ending(
            outcome=Outcome(kind=outcome),
            decision=Decision(state=RunState.QUEUED),
            receipt=receipt,
            usage=usage,
        ),
    )


def a_life(store: Store, agent: str = "claude") -> str:
    """Play three attempts: a cold start, a resume, and one whose conversation was lost. Return the
    run's id."""
    run = submit(store, TaskSpec(prompt="do it", agent=agent))
    attempt(store, run.id, FRESH, Verdict.FRESH, OutcomeKind.SUCCEEDED, Usage(1000, 100, 0, 0, 0.5))
    attempt(
        store, run.id, RESUME, Verdict.NATIVE, OutcomeKind.SUCCEEDED, Usage(1200, 50, 1100, 0, 0.25)
    )
    attempt(
        store, run.id, REBUILD, Verdict.REBUILT, OutcomeKind.TIMED_OUT, Usage(900, 10, 0, 0, 0.1)
    )
    return run.id


def samples(text: str) -> Samples:
    """Return all metrics of a scrape: for each name the values, by the label values in the order of
    the labels' names."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            address = (sample.name, *(value for _, value in sorted(sample.labels.items())))
            assert address not in found, f"told twice: {address}"
            found[address] = sample.value
    return found


def scraped(meter: MetricsPage) -> Samples:
    text, content_type = meter.exposition("text/plain")
    assert content_type.startswith("text/plain")
    return samples(text.decode())
