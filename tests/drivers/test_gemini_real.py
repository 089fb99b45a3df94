"""The driver on the real Gemini CLI, against the rehearsal: the conformance suite, and the traps that only this CLI has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from perdure import drivers
from perdure.model import Continuation, OutcomeKind, Permissions, Start
from perdure.rehearsal import Rehearsal
from perdure.testing.drivers import Bench, DriverConformance, resume

MODULES = Path(os.environ.get("PERDURE_TEST_AGENTS") or Path(__file__).parents[2] / "agents" / "node_modules")
Make = Callable[..., Bench]


@pytest.fixture
def bench() -> Iterator[Make]:
    """Makes benches in one scratch directory, without retries of the CLI's own, which take five seconds each."""
    scratch = Path(tempfile.mkdtemp(prefix="pg"))
    started: list[Rehearsal] = []

    def make(script: str, subscription: bool = False, retries: int = 0) -> Bench:
        rehearsal = Rehearsal(script).start()
        started.append(rehearsal)
        for name in ("home", "tmp", "work"):
            (scratch / name).mkdir(exist_ok=True)
        environ = {
            "PATH": f"{MODULES / '.bin'}:{os.environ['PATH']}",
            "HOME": str(scratch / "home"),
            "TMPDIR": str(scratch / "tmp"),
            "LANG": "C.UTF-8",
            **rehearsal.environ("gemini", scratch / "home" / "gemini", retries=retries),
        }
        return Bench(driver=drivers.load("gemini"), environ=environ, rehearsal=rehearsal, cwd=scratch / "work")

    yield make
    for rehearsal in started:
        rehearsal.stop()
    shutil.rmtree(scratch, ignore_errors=True)


class TestGemini(DriverConformance):
    """The Gemini CLI."""

    @pytest.fixture
    def bench(self, bench: Make) -> Make:
        return bench
