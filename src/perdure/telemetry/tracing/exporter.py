"""Converts each attempt that has ended into a span, and sends the span in a thread to the collector
that OpenTelemetry's variables name. An attempt never waits for the collector and never fails
because of it.

`span_of` follows OpenTelemetry's conventions for generative AI (0.66b, still in development), and
adds attributes of perdure. Ids are derived from run and attempt. So every process reports the same
span for an attempt, and the link to the previous attempt needs no stored state.

`Tracer` retries a batch that the collector rejects for OTEL_EXPORTER_OTLP_TIMEOUT (10 s). Then it
drops the batch and reports the failure once. When the process ends, the last spans are sent for at
most `LAST_S` seconds.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Protocol

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from perdure.config.passwords import without_password
from perdure.model import Attempt, TaskRun
from perdure.model.events import (
    AgentLaunched,
    AttemptEnded,
    CheckpointTaken,
    Compacted,
    DriftSeen,
    Record,
    RolledOver,
    VerifyEnded,
)
from perdure.protocols import CountingStore, RunStore

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


WAITING_MOST = 1000
BATCH = 100
LAST_S = 3.0


class PendingSpans(RunStore, CountingStore, Protocol):
    """The part of the store from which a span is built."""


class Tracer:
    """An Observer of the store that sends a span for each attempt whose end is stored."""

    def __init__(
        self, endpoint: str, environ: Mapping[str, str], tell: Callable[[str], None]
    ) -> None:
        # The OpenTelemetry exporter logs every failed try. Without a logging configuration these
        # messages go to standard error. So the exporter's log is silenced here, and `tell` reports
        # the problem once.
        logging.getLogger(OTLPSpanExporter.__module__).addHandler(logging.NullHandler())
        named = "OTEL_SERVICE_NAME" in environ or "service.name=" in environ.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        )
        self._resource = Resource.create(
            {"service.version": version("perdure")} | ({} if named else {"service.name": "perdure"})
        )
        self._exporter = OTLPSpanExporter(endpoint=endpoint)
        self._endpoint = endpoint
        self._tell = tell
        self._failed = False
        self._waiting: queue.Queue[ReadableSpan | None] = queue.Queue(WAITING_MOST)
        self._thread = threading.Thread(target=self._send, name="traces", daemon=True)
        self._thread.start()
        self.store: PendingSpans | None = None
        """The store from which runs and attempts are read. None until the store is open."""
        atexit.register(self.close)

    def __call__(self, record: Record) -> None:
        if self.store is None or not isinstance(record.event, AttemptEnded):
            return
        run = self.store.get(record.run)
        attempts = {each.number: each for each in self.store.attempts(record.run)}
        attempt = attempts[record.attempt]
        span = span_of(
            run, attempt, self.store.attempt_records(record.run, record.attempt), self._resource
        )
        try:
            self._waiting.put_nowait(span)
        except queue.Full:
            self._lost()

    def close(self) -> None:
        """Send the pending spans, for at most `LAST_S` seconds. A second call is harmless."""
        atexit.unregister(self.close)
        try:
            self._waiting.put_nowait(None)
            self._thread.join(LAST_S)
        except queue.Full:
            self._lost()
        self._exporter.shutdown()  # type: ignore[no-untyped-call]
        if self._thread.is_alive():
            # The thread would report the failure only after OTEL_EXPORTER_OTLP_TIMEOUT. A command
            # has ended by then, so the failure is reported here.
            self._lost()

    def _send(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch, over = [first], False
            while len(batch) < BATCH and not over and not self._waiting.empty():
                more = self._waiting.get()
                over = more is None
                batch += [more] if more is not None else []
            if self._exporter.export(batch) is SpanExportResult.SUCCESS:
                self._failed = False
            else:
                self._lost()
            if over:
                return

    def _lost(self) -> None:
        if not self._failed:
            self._failed = True
            self._tell(
                f"traces are lost: the collector at {without_password(self._endpoint)} does not "
                f"accept them; the runs continue"
            )
