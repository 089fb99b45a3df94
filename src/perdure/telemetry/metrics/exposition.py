"""Renders all metrics in the format that the scraper requests. Called by `perdure serve`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from contextlib import suppress

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from perdure.engine.attempt.engine import Engine
from perdure.engine.sweeper.usage import usage
from perdure.host.volumes import DiskRoom, free_space
from perdure.telemetry.metrics import families
from perdure.telemetry.metrics.disk import DiskGauges
from perdure.telemetry.metrics.follower import AttemptTallies

OPENMETRICS = "application/openmetrics-text"
FRESH_S = 5.0
"""Time in seconds for which the same metrics are served again before new ones are computed. This
limits the load if many scrapers ask."""


class MetricsPage:
    """Renders the metrics for scrapes. Thread-safe; only one thread at a time queries the store."""

    def __init__(self, engine: Engine, version: str, fresh_s: float = FRESH_S) -> None:
        self._engine = engine
        self._version = version
        self._fresh_s = fresh_s
        self._following = AttemptTallies(engine.store)
        self._disk = DiskGauges(lambda: usage(engine.store, engine.workspaces, engine.state))
        self._turn = threading.Lock()
        self._until = 0.0
        self._found: list[Metric] = []

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Return the metrics as text, and their content type. `accept`: the request's Accept
        header. Raises StoreError."""
        with self._turn:
            if time.monotonic() >= self._until:
                self._found = list(self._families())
                self._until = time.monotonic() + self._fresh_s
            found = self._found
        # The request's Accept header itself is not passed on: prometheus-client 0.26 raises
        # TypeError for a version such as `1.x`.
        encode, content_type = choose_encoder(
            f"{OPENMETRICS}; version=1.0.0" if OPENMETRICS in accept else ""
        )
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Given(found))
        return encode(registry), content_type

    def _families(self) -> Iterable[Metric]:
        yield from families.build(self._version)
        yield from families.state_gauges(self._engine.store.counts())
        self._following.catch_up()
        if self._following.complete:
            yield from families.ended(self._following.tallies)
        crowded = bool(self._engine.volumes.crowded())
        yield from families.on_disk(self._rooms(), crowded, self._disk.look())

    def _rooms(self) -> list[tuple[str, DiskRoom]]:
        found = []
        for name, path in (
            ("state", self._engine.state),
            ("workdirs", self._engine.workspaces.root),
        ):
            with suppress(OSError):
                found.append((name, free_space(path)))
        return found


class _Given(Collector):
    def __init__(self, found: list[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        return self._found
