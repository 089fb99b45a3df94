"""The traces of a real agent's run, as a collector receives them from two perdure processes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from perdure.agents.rehearsal import Rehearsal
from tests.journeys.stage import Stage
from tests.tracing.collecting import Collector, values

pytestmark = pytest.mark.journey

TALK = """by history
run echo quicksilver > one.txt
---
say The quicksilver is written.
---
say All of it is there.
"""


def test_two_processes_tell_of_one_run() -> None:
    """A run and its update are two linked spans of one conversation, with tokens and checkpoints.
    No text of the conversation is sent."""
    directory = Path(tempfile.mkdtemp(prefix="px"))
    with Collector() as collector:
        one = Stage(
            directory,
            "claude",
            Rehearsal(TALK).start(),
            {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address},
        )
        try:
            words = ("--agent", "claude", "--permissions", "full", "--name", "task")
            assert one.perdure("run", *words, prompt="Write quicksilver down").code == 0
            assert one.perdure("update", "task", prompt="Is the quicksilver there?").code == 0
            report = one.show()
        finally:
            one.close()
            one.rehearsal.stop()
            shutil.rmtree(directory, ignore_errors=True)
    first, second = collector.spans
    assert second.links[0].span_id == first.span_id
    for span, attempt in zip((first, second), report["attempts"], strict=True):
        told = values(span.attributes)
        assert told["gen_ai.conversation.id"] == attempt["session_id"]
        assert told["gen_ai.usage.output_tokens"] == attempt["usage"]["output"] > 0
        assert (
            told["perdure.receipt"] == attempt["receipt"]["verdict"]
            and told["gen_ai.agent.version"] == attempt["agent_version"]
        )
        names = [event.name for event in span.events]
        assert (
            names[0] == "perdure.agent_launched"
            and names[-1] == "perdure.receipt"
            and "perdure.checkpoint_taken" in names
        )
    assert [values(span.attributes)["perdure.receipt"] for span in (first, second)] == [
        "fresh",
        "native",
    ]
    assert b"quicksilver" not in collector.raw


def test_a_command_says_that_its_traces_are_lost() -> None:
    """If no collector listens, the run succeeds, and the command says before its end that the
    traces are lost. It does not wait for all retries of the exporter."""
    directory = Path(tempfile.mkdtemp(prefix="px"))
    address = "http://127.0.0.1:9"
    rehearsal = Rehearsal(TALK).start()
    one = Stage(directory, "claude", rehearsal, {"OTEL_EXPORTER_OTLP_ENDPOINT": address})
    try:
        done = one.perdure("run", "--permissions", "full", "--name", "task", prompt="Write it down")
    finally:
        one.close()
        rehearsal.stop()
        shutil.rmtree(directory, ignore_errors=True)
    assert done.code == 0 and done.err.count("traces are lost") == 1, done.err
