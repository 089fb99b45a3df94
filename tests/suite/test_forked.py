"""A forked command is a process of its own, as one that `exec` started is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import forked
from tests.conftest import Scratch
from tests.patience import PATIENCE_S


@pytest.fixture
def environ(scratch: Scratch) -> dict[str, str]:
    return scratch.environ


def done(started: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = started.communicate(timeout=PATIENCE_S)
    return started.returncode, out, err


def test_it_has_its_own_arguments_variables_and_directory(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    """Two commands with different variables, at once: each reads its own, and fails or succeeds by
    itself."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    (there / "perdure.toml").write_text("jobs = 'many'\n")
    fine = forked.start(("config", "--json"), here, environ | {"PERDURE_STATE": str(here)})
    wrong = forked.start(("config",), there, environ)
    assert isinstance(fine, forked.Forked) and isinstance(wrong, forked.Forked)
    assert fine.pid != wrong.pid
    code, out, _ = done(fine)
    assert code == 0 and str(here) in json.dumps(json.loads(out))
    code, _, err = done(wrong)
    assert code != 0 and "perdure.toml:1" in err, err


def test_it_has_the_umask_of_the_test(tmp_path: Path, environ: dict[str, str]) -> None:
    before = os.umask(0o027)
    try:
        started = forked.start(("run", "-"), tmp_path, environ)
    finally:
        os.umask(before)
    end = time.monotonic() + PATIENCE_S
    # The process sets it soon after its fork, and then waits for its input.
    while "Umask:\t0027" not in Path(f"/proc/{started.pid}/status").read_text():
        assert time.monotonic() < end
    done(started)


def test_a_kill_is_seen(tmp_path: Path, environ: dict[str, str]) -> None:
    """While the command waits for its input, `poll` finds nothing; afterwards the signal is known,
    as often as it is asked for."""
    started = forked.start(("run", "-"), tmp_path, environ)
    assert started.poll() is None
    started.send_signal(signal.SIGKILL)
    assert started.wait(PATIENCE_S) == started.wait() == started.poll() == -signal.SIGKILL
    assert done(started)[0] == -signal.SIGKILL
    assert not Path(f"/proc/{started.pid}").exists()


@pytest.mark.parametrize("name", ["LC_ALL", "PYTHONUTF8", "PERDURE_HOST", "LD_PRELOAD"])
def test_what_python_reads_at_its_start_takes_a_start(
    tmp_path: Path, environ: dict[str, str], name: str
) -> None:
    value = {"PERDURE_HOST": "portable", "PYTHONUTF8": "1"}.get(name, "")
    started = forked.start(("--version",), tmp_path, environ | {name: value})
    assert not isinstance(started, forked.Forked)
    assert done(started)[0] == 0
