"""Defines all metrics, and renders them in the format that the scraper requests. Called by `perdure
serve`.

The names of metrics begin with `perdure_`. Labels are agents, roles, states, hosts, sources and
causes, and never text from an agent, a repository or a person.

`DiskGauges` measures the disk usage by walking over all files. A walk may take long, so it runs in
a thread, at intervals. `MetricsPage` renders the metrics.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import product

from msgspec import Struct
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector, CollectorRegistry

from perdure.engine.attempt.engine import Engine
from perdure.engine.sessions.statistics import CAUSES
from perdure.engine.sweeper.usage import DiskUsage, usage
from perdure.errors import PerdureError
from perdure.host.volumes import DiskRoom, free_space
from perdure.model import OutcomeKind, RunState, Verdict
from perdure.protocols import Counts
from perdure.telemetry.metrics.follower import (
    BOUNDS_S,
    NO_RECEIPT,
    AttemptTallies,
    MetricTally,
    agent_label,
)

EVERY_S = 600.0
REST = 50
"""Minimum pause after a walk over all files, as a multiple of the walk's duration."""


class DiskMeasure(Struct, frozen=True):
    """The result of the latest walk: its end (seconds since 1970), its duration in seconds, and the
    bytes and number of files by class of data."""

    at: float
    took_s: float
    bytes: Counter[str]
    files: Counter[str]


class DiskGauges:
    """Provides the result of the latest walk to each scrape, without waiting for a new walk.
    Thread-safe."""

    def __init__(self, walk: Callable[[], DiskUsage], every_s: float = EVERY_S) -> None:
        self._walk = walk
        self._every_s = every_s
        self._walking = threading.Lock()
        self._due = 0.0
        self._found: DiskMeasure | None = None

    def look(self) -> DiskMeasure | None:
        """Return the result of the latest walk; None if no walk has ended yet. If a new walk is
        due, start it in a thread."""
        if time.monotonic() >= self._due and self._walking.acquire(blocking=False):
            threading.Thread(target=self._go, name="disk", daemon=True).start()
        return self._found

    def _go(self) -> None:
        began = time.monotonic()
        try:
            with suppress(PerdureError, OSError):
                self._found = _measured(self._walk(), began)
        finally:
            ended = time.monotonic()
            self._due = ended + max(self._every_s, REST * (ended - began))
            self._walking.release()


def _measured(usage: DiskUsage, began: float) -> DiskMeasure:
    size, files = Counter[str](), Counter[str]()
    for (cls, *_), number in usage.bytes.items():
        size[cls] += number
    for (cls, *_), number in usage.files.items():
        files[cls] += number
    return DiskMeasure(time.time(), time.monotonic() - began, size, files)


ROLES_MOST = 50
"""Maximum number of roles with a label of their own."""
TROUBLE = {
    "collision_seen": (
        "perdure_collisions",
        "Times that another program wrote to or opened a conversation in use",
    ),
    "checkpoint_missed": (
        "perdure_checkpoints_missed",
        "Checkpoints that were due and could not be taken",
    ),
    "copy_missed": (
        "perdure_copies_missed",
        "Times that perdure's copy of a conversation could not be updated",
    ),
    "compacted": ("perdure_compactions", "Times that an agent compacted its conversation"),
    "rolled_over": (
        "perdure_roll_overs",
        "Conversations that were too long and were replaced by a new one",
    ),
}


def build(version: str) -> Iterator[Metric]:
    """Yield the metric with perdure's version as its label."""
    yield InfoMetricFamily("perdure_build", "Version of this perdure", value={"version": version})


def state_gauges(counts: Counts) -> Iterator[Metric]:
    """Yield the metrics of the present state."""
    agents = sorted({agent for agent, _ in counts.runs})
    runs = [(pair, counts.runs.get(pair, 0)) for pair in product(agents, RunState)]
    yield _gauge("perdure_runs", "Runs on the list, by agent and state", ("agent", "state"), runs)
    yield _gauge(
        "perdure_role_runs",
        "Runs on the list that work under a rule, by role and state",
        ("role", "state"),
        _by_role(counts.roles),
    )
    yield _one("perdure_runs_due", "Runs that are due", counts.due)
    yield _one(
        "perdure_queue_age_seconds",
        "Waiting time of the oldest due run; 0: none waits",
        _age(counts.due_since, counts.at),
    )
    at_work = [((each.agent, each.host), each.runs) for each in counts.at_work]
    yield _gauge(
        "perdure_attempts_running",
        "Running attempts, by agent and host",
        ("agent", "host"),
        at_work,
    )
    yield _one(
        "perdure_runs_lapsed",
        "Running runs whose lease was not renewed",
        sum(each.lapsed for each in counts.at_work),
    )
    oldest = min((each.lease_until for each in counts.at_work), default=counts.at)
    lapsed = _age(min(oldest, counts.at), counts.at)
    yield _one(
        "perdure_oldest_lapsed_seconds",
        "Time since the oldest lease expired of a running run that was not taken over; 0: none",
        lapsed,
    )
    need = [((agent,), counts.need_person.get(agent, 0)) for agent in agents]
    yield _gauge(
        "perdure_runs_need_person",
        "Runs that need a person",
        ("agent",),
        need,
    )
    yield _one(
        "perdure_runs_open", "Runs that a person has open in the agent's own program", counts.opened
    )
    yield _one(
        "perdure_parked",
        "Accounts, models and agents on which nothing is launched for now",
        counts.parked,
    )
    sessions = [
        ((agent, state), number) for (agent, state), number in sorted(counts.sessions.items())
    ]
    yield _gauge(
        "perdure_sessions", "Conversations, by agent and state", ("agent", "state"), sessions
    )
    yield _one("perdure_checkpoints", "Checkpoints that are kept", counts.checkpoints)
    deliveries = [
        ((source, state), number) for (source, state), number in sorted(counts.deliveries.items())
    ]
    yield _gauge(
        "perdure_deliveries",
        "Deliveries in the inbox, by source and state",
        ("source", "state"),
        deliveries,
    )
    waited = _age(counts.delivery_since, counts.at)
    yield _one(
        "perdure_delivery_age_seconds",
        "Waiting time of the oldest unsettled delivery; 0: none waits",
        waited,
    )
    for kind, (name, text) in TROUBLE.items():
        yield _counter(
            name,
            text,
            ("agent",),
            [((agent,), counts.trouble.get((agent, kind), 0)) for agent in agents],
        )


def _by_role(
    roles: Mapping[tuple[str, RunState], int],
) -> list[tuple[tuple[str, RunState], int]]:
    """Return the number for each of the first `ROLES_MOST` roles by name, and the sum of all other
    roles as `other`. A store may contain the roles of many configurations."""
    known = sorted({role for role, _ in roles if agent_label(role) == role})[:ROLES_MOST]
    found = Counter({(role if role in known else "other", state): 0 for role, state in roles})
    for (role, state), number in roles.items():
        found[role if role in known else "other", state] += number
    names = sorted({role for role, _ in found})
    return [(pair, found[pair]) for pair in product(names, RunState)]


def ended(tallies: Mapping[str, MetricTally]) -> Iterator[Metric]:
    """Yield the metrics with totals over all attempts that have ended."""
    agents = sorted(tallies.items())
    pairs = product(agents, OutcomeKind)
    outcomes = [((agent, kind), tally.outcomes[kind]) for (agent, tally), kind in pairs]
    yield _counter(
        "perdure_attempts",
        "Attempts that have ended, by agent and outcome",
        ("agent", "outcome"),
        outcomes,
    )
    took = HistogramMetricFamily(
        "perdure_attempt_duration_seconds",
        "Duration of attempts, from claim to end",
        labels=("agent",),
    )
    for agent, tally in agents:
        took.add_metric((agent,), buckets=_cumulative(tally.buckets), sum_value=tally.seconds)
    yield took
    # Zeros are reported too: Prometheus sees no increase in a counter whose first sample is 1.
    each_verdict = product(agents, Verdict)
    verdicts = [
        ((agent, verdict), tally.verdicts[verdict]) for (agent, tally), verdict in each_verdict
    ]
    yield _counter(
        "perdure_receipts",
        "Receipts of attempts, by agent and verdict",
        ("agent", "verdict"),
        verdicts,
    )
    each_resume = product(agents, (*Verdict, NO_RECEIPT))
    resumes = [
        ((agent, verdict), tally.resumes[verdict]) for (agent, tally), verdict in each_resume
    ]
    text = "Attempts that were to continue a conversation, by the verdict of their receipt"
    yield _counter("perdure_resumes", text, ("agent", "verdict"), resumes)
    each_cause = product(agents, CAUSES)
    falls = [((agent, cause), tally.fallbacks[cause]) for (agent, tally), cause in each_cause]
    text = "Conversations that did not continue from the agent's own transcript, by cause"
    yield _counter("perdure_fallbacks", text, ("agent", "cause"), falls)
    kinds = (("fresh", "fresh_tokens"), ("cached", "cached_tokens"), ("output", "output_tokens"))
    each_kind = product(agents, kinds)
    tokens = [((agent, kind), getattr(tally, field)) for (agent, tally), (kind, field) in each_kind]
    yield _counter(
        "perdure_tokens",
        "Tokens: fresh input, input from the prompt cache, output",
        ("agent", "kind"),
        tokens,
    )
    cost = [((agent,), round(tally.cost_usd, 6)) for agent, tally in agents]
    yield _counter(
        "perdure_cost_dollars", "Cost of attempts, as reported by their agents", ("agent",), cost
    )
    saved = [((agent,), tally.saved) for agent, tally in agents if tally.saved is not None]
    text = (
        "Tokens that successful resumes did not buy, against the agent's mean cold start; "
        "negative: they cost more"
    )
    yield _gauge("perdure_tokens_saved", text, ("agent",), saved)


def on_disk(
    rooms: Sequence[tuple[str, DiskRoom]], crowded: bool, measured: DiskMeasure | None
) -> Iterator[Metric]:
    """Yield the metrics of disk usage and free space."""
    yield _gauge(
        "perdure_disk_free_bytes",
        "Free space on the volume of a place",
        ("place",),
        [((place,), room.free) for place, room in rooms],
    )
    yield _gauge(
        "perdure_disk_size_bytes",
        "Size of the volume of a place",
        ("place",),
        [((place,), room.size) for place, room in rooms],
    )
    yield _one("perdure_disk_crowded", "1: too little free space to start new work", int(crowded))
    if measured is None:
        return
    for name, text, found in (
        ("perdure_disk_bytes", "Bytes on disk by class", measured.bytes),
        ("perdure_disk_files", "Number of files on disk by class", measured.files),
    ):
        yield _gauge(
            name,
            text,
            ("class",),
            [((cls.replace(" ", "_"),), number) for cls, number in sorted(found.items())],
        )
    yield _one(
        "perdure_disk_measured_timestamp_seconds",
        "Time of the last measurement of the disk",
        measured.at,
    )


def _age(since: int | None, now: int) -> float:
    if since is None:
        return 0.0
    return max(0, now - since) / 1000


def _one(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _gauge(
    name: str, text: str, labels: tuple[str, ...], rows: Sequence[tuple[tuple[str, ...], float]]
) -> Metric:
    return _filled(GaugeMetricFamily(name, text, labels=labels), labels, rows)


def _counter(
    name: str, text: str, labels: tuple[str, ...], rows: Sequence[tuple[tuple[str, ...], float]]
) -> Metric:
    return _filled(CounterMetricFamily(name, text, labels=labels), labels, rows)


def _filled(
    family: GaugeMetricFamily | CounterMetricFamily,
    labels: tuple[str, ...],
    rows: Sequence[tuple[tuple[str, ...], float]],
) -> Metric:
    """Add the rows to the family, and return the family. Rows with equal labels are summed. Labels
    are equal if two agents have invalid names, because both are labeled `other`."""
    sums: dict[tuple[str, ...], float] = {}
    for values, number in rows:
        named = tuple(
            agent_label(value) if label == "agent" else value
            for label, value in zip(labels, values, strict=True)
        )
        sums[named] = sums.get(named, 0) + number
    for named, number in sums.items():
        family.add_metric(named, number)
    return family


def _cumulative(buckets: Sequence[int]) -> list[tuple[str, float]]:
    found, total = [], 0
    for bound, number in zip((*map(str, BOUNDS_S), "+Inf"), buckets, strict=True):
        total += number
        found.append((bound, float(total)))
    return found


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
        yield from build(self._version)
        yield from state_gauges(self._engine.store.counts())
        self._following.catch_up()
        if self._following.complete:
            yield from ended(self._following.tallies)
        crowded = bool(self._engine.volumes.crowded())
        yield from on_disk(self._rooms(), crowded, self._disk.look())

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
