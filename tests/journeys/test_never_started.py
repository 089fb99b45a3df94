"""An attempt that is lost before its agent was started shows nothing about the task, and does not
use up an attempt."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from msgspec.structs import replace

from perdure import wiring
from perdure.config.files import load
from perdure.engine.attempt import Engine, perform, take_over
from perdure.engine.attempt.opening_steps import open_attempt
from perdure.engine.service import stop
from perdure.model import OutcomeKind, RunState, TaskSpec
from perdure.model.events import AgentLaunched, Record
from perdure.protocols import Observer
from tests.conftest import Scratch


@pytest.fixture
def engine(scratch: Scratch, tmp_path: Path) -> Engine:
    """Make an engine with an agent that prints nothing and writes nothing."""
    return make_engine(scratch, tmp_path)


def make_engine(scratch: Scratch, tmp_path: Path, *observers: Observer) -> Engine:
    program = tmp_path / "claude"
    program.write_text("#!/bin/sh\nexec sleep 98\n")
    program.chmod(0o755)
    environ = {
        **scratch.environ,
        "PERDURE_CLAUDE": str(program),
        "PERDURE_STATE": str(tmp_path / "state"),
    }
    return wiring.open_engine(load(environ, tmp_path), environ, observers)


def killed(engine: Engine, *, recorded: bool) -> Path:
    """Make a run whose only attempt was killed with its shim and its agent. If `recorded` is false,
    remove the record of the agent's start, as if the kill came before it."""
    spec = TaskSpec(prompt="Do it.", service="api", task="t", attempts=1)
    run = engine.store.add(spec, "0" * 32, "task", engine.workspaces.plan(spec, "task", Path("/")))
    claim = engine.store.claim("gone:00000000:1:1", 60.0, ref=run.id)
    assert claim is not None
    opened = open_attempt(engine, claim)
    assert (
        opened.process is not None and opened.process.shim is not None and opened.process.agent_pid
    )
    agent = opened.process.agent_pid
    opened.process.shim.send(signal.SIGKILL)
    os.kill(agent, signal.SIGKILL)
    with opened:
        directory = opened.directory
    assert json.loads((directory / "shim.json").read_text())["pid"]
    if not recorded:
        (directory / "agent.json").unlink()
    return directory


@pytest.mark.parametrize("recorded", [False, True])
def test_only_an_attempt_whose_agent_was_started_counts(engine: Engine, recorded: bool) -> None:
    """If the shim has recorded the agent's start, the only attempt is used up. Without that record
    and without output the attempt is repeated."""
    killed(engine, recorded=recorded)
    (claim,) = engine.store.claims()
    run = take_over(engine, claim)
    (attempt,) = engine.store.attempts(run.id)
    assert attempt.outcome is not None and attempt.outcome.kind is OutcomeKind.LOST
    assert attempt.outcome.began is recorded
    assert run.state is (RunState.FAILED if recorded else RunState.QUEUED), run.reason


def test_what_it_said_is_proof_that_it_was_started(engine: Engine) -> None:
    """A missing record alone does not prove that the agent never started. Output proves that it did
    start."""
    directory = killed(engine, recorded=False)
    (directory / "stdout").write_text("{}\n")
    (claim,) = engine.store.claims()
    assert take_over(engine, claim).state is RunState.FAILED


def test_a_stop_during_the_preparation_starts_no_agent(
    engine: Engine, scratch: Scratch, tmp_path: Path
) -> None:
    """A run is stopped after its attempt was claimed, and before its agent is started. The run is
    canceled, and the agent's program never runs."""
    started = tmp_path / "started"
    (tmp_path / "claude").write_text(f"#!/bin/sh\ntouch {started}\nexec sleep 98\n")
    spec = TaskSpec(prompt="Do it.", service="api", task="t")
    run = engine.store.add(spec, "0" * 32, "task", engine.workspaces.plan(spec, "task", Path("/")))
    claim = engine.store.claim(engine.worker, 60.0, ref=run.id)
    assert claim is not None
    assert stop(engine, run.name).state is RunState.RUNNING
    ended = perform(engine, claim)
    assert (ended.state, ended.reason) == (RunState.CANCELLED, "stopped on request")
    assert not started.exists()


def test_a_stop_during_the_launch_is_obeyed_at_once(scratch: Scratch, tmp_path: Path) -> None:
    """A stop is stored while the agent is started, so `perdure stop` finds no agent to stop. The
    supervisor stops it, although it does not renew the lease for an hour."""

    def observe(record: Record) -> None:
        if isinstance(record.event, AgentLaunched):
            engine.store.request_cancel(record.run)

    engine = replace(make_engine(scratch, tmp_path, observe), lease_s=4 * 3600.0)
    finished = tmp_path / "finished"
    (tmp_path / "claude").write_text(f"#!/bin/sh\nsleep 60\ntouch {finished}\n")
    spec = TaskSpec(prompt="Do it.", service="api", task="t")
    run = engine.store.add(spec, "0" * 32, "task", engine.workspaces.plan(spec, "task", Path("/")))
    claim = engine.store.claim(engine.worker, engine.lease_s, ref=run.id)
    assert claim is not None
    assert perform(engine, claim).state is RunState.CANCELLED
    (attempt,) = engine.store.attempts(run.id)
    assert attempt.outcome is not None and attempt.outcome.kind is OutcomeKind.CANCELLED
    assert not finished.exists()
