"""Real agents for the process tests: small sh and Python programs. Whatever a test does, no process
may survive it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from perdure.host import system
from perdure.host.process import Process, end_all, find, start, survivors
from perdure.host.process.launch import compiled_shim
from perdure.model import Command
from tests.process.agents import Launcher

SHIMS = ("compiled", "python") if compiled_shim() else ("python",)
"""The shims that are available here. The compiled one is missing on other systems than Linux, and
where perdure was installed without a compiler."""


@pytest.fixture(params=SHIMS)
def shim(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test with each shim. Return its name."""
    chosen: str = request.param
    if "compiled" in SHIMS:
        monkeypatch.setenv(system.VARIABLE, "python" if chosen == "python" else "")
    return chosen


@pytest.fixture
def mark() -> str:
    return f"test-{uuid4().hex}"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    home = tmp_path / "home"
    home.mkdir()
    return {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home)}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return the attempt's directory, which `start` makes."""
    return tmp_path / "attempt"


@pytest.fixture
def launch(tmp_path: Path, directory: Path, env: dict[str, str], mark: str) -> Iterator[Launcher]:
    """Yield a function that starts an agent from a shell script or an argv. At the end of the test
    no process with the agent's mark may be alive."""
    workdir = tmp_path / "work"
    workdir.mkdir()

    def launcher(
        agent: str | tuple[str, ...],
        stdin: bytes = b"",
        extra: dict[str, str] | None = None,
        **options: Any,
    ) -> Process:
        argv = ("/bin/sh", "-c", agent) if isinstance(agent, str) else agent
        given = {
            "directory": directory,
            "cwd": workdir,
            "env": env,
            "mark": mark,
            "deadline_s": 60.0,
            "grace_s": 5.0,
        } | options
        return start(Command(argv=argv, stdin=stdin, env=extra or {}), **given)

    yield launcher
    left = survivors(mark)
    end_all(mark, 0)
    process = find(directory)
    if process is not None:
        process.alive()  # reaps a shim that has ended
    assert left == []
