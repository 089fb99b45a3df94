"""Following a run that only a person can continue."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from perdure import wiring
from perdure.config.files import load
from perdure.engine.plans.driver import follow_run
from perdure.model import RunState, TaskRun
from perdure.testing.stores.requests import waiting
from tests.conftest import Scratch

OFTEN = 100


def test_a_plan_sleeps_while_its_task_waits_for_an_answer(
    scratch: Scratch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a plan's task waits for a person's answer, perdure checks for the answer a few times a
    second, and not in a busy loop."""
    environ = {**scratch.environ, "PERDURE_STATE": str(tmp_path / "state")}
    engine = wiring.open_engine(load(environ, tmp_path), environ)
    run = waiting(engine.store)
    real, reads = engine.store.get, 0
    found: list[TaskRun] = []

    def counted(ref: str) -> TaskRun:
        nonlocal reads
        reads += 1
        return real(ref)

    monkeypatch.setattr(engine.store, "get", counted)
    thread = threading.Thread(target=lambda: found.append(follow_run(engine, run.id)))
    thread.start()
    try:
        time.sleep(2)
        assert 0 < reads < OFTEN
    finally:
        engine.store.request_cancel(run.id)
        thread.join()
    assert [each.state for each in found] == [RunState.CANCELLED]
