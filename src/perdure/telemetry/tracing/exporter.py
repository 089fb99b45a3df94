"""Sends spans in a thread to the collector that OpenTelemetry's variables name. An attempt never
waits for the collector and never fails because of it.

A batch that the collector rejects is retried for OTEL_EXPORTER_OTLP_TIMEOUT (10 s), then dropped
and reported once. When the process ends, the last spans are sent for at most `LAST_S` seconds.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Protocol

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from perdure.config.passwords import without_password
from perdure.model.events import AttemptEnded, Record
from perdure.protocols import CountingStore, RunStore
from perdure.telemetry.tracing.spans import span_of

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
        attempt = next(
            each for each in self.store.attempts(record.run) if each.number == record.attempt
        )
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
