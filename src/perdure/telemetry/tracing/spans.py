"""Converts an attempt that has ended into a span, by OpenTelemetry's conventions for generative AI
(0.66b, still in development), with additional attributes of perdure. Used by `exporter`.

Ids are derived from run and attempt. So every process reports the same span for an attempt, and the
link to the previous attempt needs no stored state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from perdure.model import Attempt, TaskRun
from perdure.model.events import (
    AgentLaunched,
    CheckpointTaken,
    Compacted,
    DriftSeen,
    Record,
    RolledOver,
    VerifyEnded,
)

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

Value = str | int | float | bool

PROVIDERS = {"claude": "anthropic", "codex": "openai", "gemini": "gcp.gemini"}
"""Provider of each agent's models, by agent. Agents that use several providers have no entry."""
MS = 1_000_000
"""Nanoseconds in a millisecond."""
SCOPE = InstrumentationScope("perdure")


def span_of(
    run: TaskRun, attempt: Attempt, marks: Sequence[Record], resource: Resource
) -> ReadableSpan:
    """Return the span of an attempt that has ended. `marks`: the attempt's journal records of
    events that perdure itself caused."""
    assert attempt.ended is not None and attempt.outcome is not None
    kind = attempt.outcome.kind
    if attempt.number > 1:
        before = [Link(context_of(run.id, attempt.number - 1), {"perdure.link": "attempt before"})]
    else:
        before = []
    return ReadableSpan(
        name=f"invoke_agent {run.spec.agent}",
        context=context_of(run.id, attempt.number),
        resource=resource,
        attributes=dict(attributes(run, attempt)),
        events=[*(_event(record) for record in marks), *_receipt(attempt)],
        links=before,
        kind=SpanKind.INTERNAL,
        status=Status() if attempt.outcome.ok else Status(StatusCode.ERROR, str(kind)),
        start_time=attempt.started * MS,
        end_time=attempt.ended * MS,
        instrumentation_scope=SCOPE,
    )


def context_of(run_id: str, number: int) -> SpanContext:
    """Return the span context of an attempt. Each attempt has a trace of its own, because two
    attempts may be days apart."""
    digest = hashlib.sha256(f"{run_id}.{number}".encode()).digest()
    trace, span = int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:24], "big")
    return SpanContext(
        trace or 1, span or 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)
    )


def attributes(run: TaskRun, attempt: Attempt) -> Iterator[tuple[str, Value]]:
    """Yield the attributes of the span. They contain no text from prompts or output."""
    outcome, usage, asked = attempt.outcome, attempt.usage, attempt.continuation
    yield "gen_ai.operation.name", "invoke_agent"
    yield "gen_ai.agent.name", run.spec.agent
    if run.spec.agent in PROVIDERS:
        yield "gen_ai.provider.name", PROVIDERS[run.spec.agent]
    if attempt.agent_version:
        yield "gen_ai.agent.version", attempt.agent_version
    if attempt.session_id:
        yield "gen_ai.conversation.id", attempt.session_id
    if run.spec.model:
        yield "gen_ai.request.model", run.spec.model
    if attempt.fill is not None and attempt.fill.model:
        yield "gen_ai.response.model", attempt.fill.model
    yield "gen_ai.usage.input_tokens", usage.input
    yield "gen_ai.usage.output_tokens", usage.output
    yield "gen_ai.usage.cache_read.input_tokens", usage.cached
    yield "gen_ai.usage.cache_creation.input_tokens", usage.cache_write
    if outcome is not None:
        yield "perdure.outcome", str(outcome.kind)
        if not outcome.ok:
            yield "error.type", str(outcome.kind)
    yield "perdure.cost_usd", usage.cost_usd
    yield "perdure.run.id", run.id
    yield "perdure.run.name", run.name
    yield "perdure.attempt.number", attempt.number
    yield "perdure.context_version", attempt.context_version
    if run.host_name:
        yield "perdure.host", run.host_name
    if asked is not None:
        yield "perdure.continuation", str(asked.kind)
        yield "perdure.rung", str(asked.rung)
    if attempt.receipt is not None:
        yield "perdure.receipt", str(attempt.receipt.verdict)


def _event(record: Record) -> Event:
    kind = type(record.event).__struct_config__.tag
    return Event(f"perdure.{kind}", dict(_of_event(record)), record.at * MS)


def _of_event(record: Record) -> Iterator[tuple[str, Value]]:
    """Yield the attributes of an event: numbers and perdure's own words, but no command, file name
    or text from an agent."""
    match record.event:
        case AgentLaunched(turn=turn):
            yield "turn", turn
        case CheckpointTaken(number=number, why=why, changed=changed, untracked=untracked):
            yield from (
                ("number", number),
                ("why", why),
                ("changed", changed),
                ("untracked", untracked),
            )
        case VerifyEnded(code=code, round=round_, seconds=seconds):
            yield from (("code", code), ("round", round_), ("seconds", seconds))
        case Compacted(before=before, after=after, asked=asked):
            yield from (("before", before), ("after", after), ("asked", asked))
        case RolledOver(tokens=tokens, window=window):
            yield from (("tokens", tokens), ("window", window))
        case DriftSeen(count=count):
            yield "count", count
        case _:
            return


def _receipt(attempt: Attempt) -> Iterator[Event]:
    if attempt.receipt is not None and attempt.ended is not None:
        found = attempt.receipt
        yield Event(
            "perdure.receipt",
            {"verdict": str(found.verdict), "rung": str(found.rung)},
            attempt.ended * MS,
        )
