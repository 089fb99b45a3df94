"""Spans, as a real collector on loopback receives them: what they contain and never contain, and
what happens without a collector."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from opentelemetry.semconv._incubating.attributes import (
    error_attributes,
    gen_ai_attributes,
    service_attributes,
)

from perdure.config.files import load
from perdure.engine.attempt import Engine
from perdure.model import Outcome, OutcomeKind, RunState, TaskSpec
from perdure.model.events import AgentLaunched, DriftSeen, Said, ToolStarted, VerifyEnded
from perdure.protocols import Ending
from perdure.telemetry.tracing import tracer
from perdure.telemetry.tracing.exporter import Tracer
from perdure.testing.stores.samples import SUCCESS, begun, claimed, submit
from perdure.wiring import open_engine
from tests.metrics.lives import a_life
from tests.patience import PATIENCE_S
from tests.tracing.collecting import Collector, values

SECRET = "the-canary-of-the-prompt"
CONVENTIONS = {
    value
    for module in (gen_ai_attributes, service_attributes, error_attributes)
    for value in vars(module).values()
    if isinstance(value, str) and "." in value
}

MakeEngine = Callable[..., tuple[Engine, Tracer]]


@pytest.fixture
def traced(tmp_path: Path) -> Iterator[MakeEngine]:
    """Make an engine whose environment names a collector."""
    made: list[Engine] = []

    def make(address: str, **environ: str) -> tuple[Engine, Tracer]:
        given = {
            "HOME": str(tmp_path),
            "PATH": "/usr/bin:/bin",
            "PERDURE_DISK_BALLAST": "0",
            "OTEL_EXPORTER_OTLP_ENDPOINT": address,
            **environ,
        }
        made.append(open_engine(load(given, tmp_path), given))
        (found,) = (each for each in made[-1].store._observers if isinstance(each, Tracer))  # type: ignore[attr-defined]
        return made[-1], found

    yield make
    for each in made:
        each.store.close()


def test_a_span_for_each_attempt(traced: MakeEngine) -> None:
    """Three attempts give three spans, each linked to the previous one, with outcome, receipt,
    tokens, cost and conversation."""
    with Collector() as collector:
        engine, found = traced(collector.address)
        run_id = a_life(engine.store)
        found.close()
    first, second, third = sorted(
        collector.spans, key=lambda span: values(span.attributes)["perdure.attempt.number"]
    )
    assert {span.name for span in collector.spans} == {"invoke_agent claude"}
    assert len({span.trace_id for span in collector.spans}) == 3
    assert [len(span.links) for span in (first, second, third)] == [0, 1, 1]
    assert (second.links[0].trace_id, second.links[0].span_id) == (first.trace_id, first.span_id)
    assert third.links[0].span_id == second.span_id
    told = values(second.attributes)
    assert (
        told["gen_ai.operation.name"] == "invoke_agent"
        and told["gen_ai.provider.name"] == "anthropic"
    )
    assert (told["gen_ai.agent.name"], told["gen_ai.conversation.id"], told["perdure.run.id"]) == (
        "claude",
        "s",
        run_id,
    )
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (1200, 50)
    assert (told["gen_ai.usage.cache_read.input_tokens"], told["perdure.cost_usd"]) == (1100, 0.25)
    assert (told["perdure.continuation"], told["perdure.receipt"], told["perdure.outcome"]) == (
        "resume",
        "native",
        "succeeded",
    )
    assert first.status.code == Status.STATUS_CODE_UNSET and "error.type" not in values(
        first.attributes
    )
    assert (
        third.status.code == Status.STATUS_CODE_ERROR
        and values(third.attributes)["error.type"] == "timed_out"
    )
    attempt = engine.store.attempts(run_id)[1]
    assert (second.start_time_unix_nano, second.end_time_unix_nano) == (
        attempt.started * 10**6,
        (attempt.ended or 0) * 10**6,
    )
    (receipt,) = second.events
    assert (receipt.name, values(receipt.attributes)) == (
        "perdure.receipt",
        {"verdict": "native", "rung": "native"},
    )
    assert all(
        each["service.name"] == "perdure" and each["service.version"]
        for each in collector.resources
    )


def test_names_are_those_of_the_conventions(traced: MakeEngine) -> None:
    """Every attribute is one of OpenTelemetry's generative-AI conventions, or begins with perdure's
    own name."""
    with Collector() as collector:
        engine, found = traced(collector.address)
        a_life(engine.store, "codex")
        found.close()
    names = {name for span in collector.spans for name in values(span.attributes)}
    assert {name for name in names if not name.startswith("perdure.")} <= CONVENTIONS
    assert {"gen_ai.usage.cache_read.input_tokens", "gen_ai.provider.name", "error.type"} <= names


def test_no_word_of_prompt_and_output(traced: MakeEngine) -> None:
    """Launch, drift and checks are sent as events, in order. No text of prompts, answers, commands
    and errors is sent."""
    with Collector() as collector:
        engine, found = traced(collector.address)
        store = engine.store
        run = submit(store, TaskSpec(prompt=SECRET, labels={"x": SECRET}, verify=SECRET))
        claim = claimed(store, run)
        store.begin(claim, begun(run))
        store.record(claim, [AgentLaunched(pid=7, turn=2)])
        store.record(
            claim, [Said(text=SECRET), ToolStarted(tool_id="1", name=SECRET, summary=SECRET)]
        )
        store.record(claim, [DriftSeen(number=7, paths=(SECRET,), count=2)])
        store.record(
            claim, [VerifyEnded(code=1, output=SECRET, command=SECRET, round=1, seconds=2.5)]
        )
        outcome = Outcome(kind=OutcomeKind.VERIFY_FAILED, detail=SECRET)
        store.finish(claim, Ending(outcome=outcome, decision=SUCCESS.decision))
        found.close()
    (span,) = collector.spans
    assert [(event.name, values(event.attributes)) for event in span.events] == [
        ("perdure.agent_launched", {"turn": 2}),
        ("perdure.drift_seen", {"count": 2}),
        ("perdure.verify_ended", {"code": 1, "round": 1, "seconds": 2.5}),
    ]
    assert SECRET.encode() not in collector.raw and len(collector.raw) > 200


def test_a_collector_that_is_busy_is_asked_again(traced: MakeEngine) -> None:
    """A span that a collector refuses with 503 is sent again, and arrives once."""
    with Collector(refuse=1) as collector:
        engine, found = traced(collector.address)
        run = submit(engine.store)
        engine.store.finish(claimed(engine.store, run), SUCCESS)
        assert collector.got.wait(PATIENCE_S)
        found.close()
    assert collector.refused == 1 and len(collector.spans) == 1


def test_where_no_collector_is(traced: MakeEngine, capfd: pytest.CaptureFixture[str]) -> None:
    """If no collector listens at the configured address, runs and attempts are still performed and
    stored. One sentence says that traces are lost, and does not show the password in the
    address."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    engine, found = traced(f"http://me:hunter2@127.0.0.1:{port}")
    run_id = a_life(engine.store)
    found.close()
    found.close()
    assert (
        engine.store.get(run_id).state is RunState.QUEUED
        and len(engine.store.attempts(run_id)) == 3
    )
    found._thread.join()
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "traces are lost" in said and "hunter2" not in said


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "TRUE"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"}, ""),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            },
            "'grpc' is not spoken",
        ),
    ],
)
def test_who_does_not_ask_gets_none(environ: dict[str, str], said: str) -> None:
    """Without an address, or with tracing switched off, nothing is sent. An unsupported protocol is
    reported."""
    told: list[str] = []
    assert tracer(environ, told.append) is None
    assert said in "".join(told) and bool(told) == bool(said)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """If OpenTelemetry is not installed, a sentence says how to get it, and nothing else
    changes."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    told: list[str] = []
    assert tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, told.append) is None
    assert "[otel]" in told[0]
