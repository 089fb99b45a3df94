"""The operator's metrics for Prometheus, and the web server for /metrics, /healthz and /readyz."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from enum import StrEnum

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from perdure.kubernetes.api import Api
from perdure.kubernetes.status import AttemptStatus
from perdure.kubernetes.wanted import WantedRun
from perdure.model import Verdict
from perdure.model.work import WorkVerdict

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class OperatorMetrics:
    """The operator's metrics. They have a registry of their own, without the default metrics of the
    process."""

    def __init__(
        self,
        api: Api,
        watch_age_s: Callable[[], float],
        waiting: Callable[[], int],
        known: Callable[[], int],
        phases: Callable[[], Mapping[tuple[str, str, str], int]],
    ) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.reconcile = Histogram(
            "perdure_operator_reconcile_seconds",
            "Duration of one reconciliation of a TaskRun.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.launch = Histogram(
            "perdure_operator_launch_seconds",
            "Time from the event that allows an attempt until its Job is created.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.begun = Counter(
            "perdure_operator_attempts_begun", "Attempts that were started.", registry=self.registry
        )
        whose = ["namespace", "agent"]
        self.ended = Counter(
            "perdure_operator_attempts_ended",
            "Attempts that ended.",
            [*whose, "outcome", "infrastructure"],
            registry=self.registry,
        )
        self.receipts = Counter(
            "perdure_operator_receipts",
            "Attempts that ended with a receipt, by its verdict on their conversation.",
            [*whose, "verdict"],
            registry=self.registry,
        )
        self.works = Counter(
            "perdure_operator_works",
            "Attempts that ended with a work report, by its verdict.",
            [*whose, "verdict"],
            registry=self.registry,
        )
        self.tokens = Counter(
            "perdure_operator_tokens",
            "Tokens of attempts that ended.",
            [*whose, "direction"],
            registry=self.registry,
        )
        self.cost = Counter(
            "perdure_operator_cost_usd",
            "Cost of attempts that ended, in dollars, as their agents report it.",
            whose,
            registry=self.registry,
        )
        self.failed = Counter(
            "perdure_operator_reconcile_failures",
            "Reconciliations that failed and are retried.",
            ["cause"],
            registry=self.registry,
        )
        for name, what, ask in (
            (
                "perdure_operator_watch_age_seconds",
                "Time since the last message of the watch that has been silent longest.",
                watch_age_s,
            ),
            (
                "perdure_operator_queue_length",
                "TaskRuns that wait for their reconciliation.",
                waiting,
            ),
            ("perdure_operator_taskruns", "TaskRuns that are known.", known),
        ):
            Gauge(name, what, registry=self.registry).set_function(ask)
        self.registry.register(_Requests(api))
        self.registry.register(_Phases(phases))

    def end(self, run: WantedRun, record: AttemptStatus) -> None:
        """Count an attempt that ended, with its verdicts, tokens and cost."""
        whose = (run.namespace, run.spec.agent)
        infrastructure = str(record.infrastructure).lower()
        self.ended.labels(*whose, record.outcome, infrastructure).inc()
        if record.receipt is not None:
            self.receipts.labels(*whose, _one_of(record.receipt.verdict, Verdict)).inc()
        if record.work is not None:
            self.works.labels(*whose, _one_of(record.work.verdict, WorkVerdict)).inc()
        if record.usage is not None:
            self.tokens.labels(*whose, "input").inc(record.usage.input_tokens)
            self.tokens.labels(*whose, "output").inc(record.usage.output_tokens)
            self.cost.labels(*whose).inc(record.usage.usage.cost_usd)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        encode, kind = choose_encoder(
            "application/openmetrics-text; version=1.0.0" if "openmetrics" in accept else ""
        )
        return encode(self.registry), kind


def _one_of(verdict: str, known: type[StrEnum]) -> str:
    """Return the verdict if it is a known one, or else `unknown`. A pod can write any text as its
    verdict, so the number of label values must be limited."""
    if verdict in set(known):
        return verdict
    return "unknown"


class _Phases(Collector):
    """Exports the number of TaskRuns by namespace, agent and phase."""

    def __init__(self, phases: Callable[[], Mapping[tuple[str, str, str], int]]) -> None:
        self._phases = phases

    def collect(self) -> Iterable[Metric]:
        found = GaugeMetricFamily(
            "perdure_operator_taskruns_by_phase",
            "TaskRuns by phase.",
            labels=["namespace", "agent", "phase"],
        )
        for labels, count in sorted(self._phases().items()):
            found.add_metric(labels, count)
        yield found


class _Requests(Collector):
    """Exports the number of requests to the API server, without those of the watches."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def collect(self) -> Iterable[Metric]:
        sent = CounterMetricFamily(
            "perdure_operator_api_requests",
            "Requests to the API server.",
            labels=["verb", "resource"],
        )
        for (verb, kind), count in sorted(self._api.counted.items()):
            sent.add_metric([verb, kind], count)
        yield sent
        yield CounterMetricFamily(
            "perdure_operator_api_retries",
            "Requests to the API server that were retried.",
            value=self._api.retried,
        )


async def serve(
    port: int, numbers: OperatorMetrics, ill: Callable[[], str], unready: Callable[[], str]
) -> tuple[web.AppRunner, int]:
    """Start a web server on all addresses. `ill` returns the reason why the operator must be
    restarted, and `unready` the reason why it is not ready; both return an empty text if there is
    no problem.

    Return the port and the runner. The runner's `cleanup` stops the server. Raises OSError if the
    server cannot listen on the port.
    """

    def probe(ask: Callable[[], str]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(_: web.Request) -> web.StreamResponse:
            why = ask()
            return web.Response(text=f"{why or 'ok'}\n", status=503 if why else 200)

        return answer

    async def metrics(request: web.Request) -> web.Response:
        text, kind = numbers.exposition(request.headers.get("Accept", ""))
        return web.Response(body=text, headers={"Content-Type": kind})

    app = web.Application()
    app.router.add_get("/healthz", probe(ill))
    app.router.add_get("/readyz", probe(unready))
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    if not port:  # With port 0, choose one free port that serves both IPv4 and IPv6.
        with socket.create_server(("", 0)) as free:
            port = int(free.getsockname()[1])
    site = web.TCPSite(runner, port=port)
    await site.start()
    return runner, port
