# The plain calls of the operating system are what the guard has to see.
# ruff: noqa: PTH104, PTH106, PTH107, PTH123, PTH208, PTH211, SIM115
"""The environment of the tests: the guard of the real home works, and the scratch home is complete."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import HOMES

REAL = next(path for path in map(Path, sorted(HOMES)) if path.is_dir())
ABSENT = ".local/state/perdure/no-such-thing-of-a-test"

REACHES: dict[str, Callable[[], Any]] = {
    "opens": lambda: (REAL / ".claude/settings.json").read_text(),
    "opens by bytes": lambda: open(os.fsencode(REAL / ".netrc")),
    "opens by a detour": lambda: open(f"{REAL}/x/../.ssh/id_ed25519"),
    "opens with flags": lambda: os.open(REAL / ".gitconfig", os.O_RDONLY),
    "makes a file": lambda: (REAL / ABSENT).write_text("x"),
    "makes a directory": lambda: (REAL / ABSENT).mkdir(),
    "makes all directories": lambda: (REAL / ABSENT / "a/b").mkdir(parents=True),
    "lists": lambda: os.listdir(REAL / ".codex"),
    "walks": lambda: list(os.walk(REAL / ".config", onerror=_raise)),
    "removes": lambda: os.remove(REAL / ABSENT),
    "removes a directory": lambda: os.rmdir(REAL / ABSENT),
    "removes a tree": lambda: shutil.rmtree(REAL / ABSENT),
    "moves something in": lambda: os.rename("/nonexistent", REAL / ABSENT),
    "links": lambda: os.symlink("/nonexistent", REAL / ABSENT),
    "goes in": lambda: os.chdir(REAL / ".gemini"),
}


def _raise(error: OSError) -> None:
    raise error


@pytest.mark.parametrize("reach", REACHES.values(), ids=REACHES)
def test_what_reaches_into_the_real_home_is_an_error(
    reach: Callable[[], Any], touched: list[str]
) -> None:
    """Each way to open, list, make, move or remove one of the guarded names raises before it has an
    effect."""
    with pytest.raises(AssertionError, match="must not touch the real home"):
        reach()
    assert len(touched) == 1
    touched.clear()


def test_the_error_counts_even_if_it_is_swallowed(touched: list[str]) -> None:
    """An access to the real home is reported even if the code swallows every exception."""
    with contextlib.suppress(Exception):
        (REAL / ".claude.json").read_text()
    assert len(touched) == 1
    touched.clear()


STARTS: dict[str, Callable[[dict[str, str]], Any]] = {
    "run": lambda env: subprocess.run(["true"], env=env, check=True),
    "run, bytes": lambda env: subprocess.run(
        ["true"], env={os.fsencode(k): os.fsencode(v) for k, v in env.items()}, check=True
    ),
    "posix_spawn": lambda env: os.waitpid(os.posix_spawn("/bin/true", ["true"], env), 0),
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_a_program_with_the_real_home_is_an_error(
    start: Callable[[dict[str, str]], Any], touched: list[str]
) -> None:
    """No program is started with the real home as HOME; with another HOME it starts."""
    with pytest.raises(AssertionError, match="with the real home as HOME"):
        start({"PATH": os.environ["PATH"], "HOME": str(REAL)})
    touched.clear()
    start({"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]})


def test_what_else_lies_in_the_home_is_free() -> None:
    """Other files in the real home are not guarded, because Python itself may be installed there.
    Programs start, modules are imported, and the home can be listed."""
    assert os.listdir(REAL) is not None
    assert not (REAL / ".claudette").exists()
    subprocess.run([sys.executable, "-c", "import perdure, msgspec"], check=True)


def test_a_test_sees_a_scratch_world() -> None:
    """HOME, the XDG directories and TMPDIR are in the scratch directory. The environment has no
    variables of the user's agents, git or perdure."""
    assert Path.home() != REAL
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        assert Path(os.environ[name]).is_relative_to(Path.home())
    left = [
        n
        for n in os.environ
        if n.startswith(
            ("PERDURE_", "ANTHROPIC_", "OPENAI_", "CODEX_", "CLAUDE", "GEMINI_", "GIT_")
        )
    ]
    assert [
        name for name in left if not name.startswith(("PERDURE_TEST_", "PERDURE_DISK_BALLAST"))
    ] == []
    assert len(f"{os.environ['TMPDIR']}/some-agent-0/socket-with-a-long-name-0123456789.sock") < 108
    assert Path(tempfile.gettempdir()).is_dir()


def test_a_scratch_is_enough_for_a_real_cli(agents: dict[str, Path], scratch: Any) -> None:
    """Both pinned CLIs run in the scratch environment and print their version."""
    for name, program in agents.items():
        done = subprocess.run(
            [program, "--version"], env=scratch.environ, capture_output=True, text=True, check=True
        )
        assert done.stdout[0].isdigit() or name in done.stdout
    assert scratch.environ["HOME"] == str(scratch.home)
    assert scratch.tmp.is_dir()


def test_the_repository_has_two_commits_and_no_hooks(repository: Path, scratch: Any) -> None:
    """The fixture makes a real repository with a clean worktree."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words],
            cwd=repository,
            env=scratch.environ,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert git("log", "--format=%an %s").splitlines() == ["Ada second", "Ada first"]
    assert git("status", "--porcelain") == ""
    assert git("config", "core.hooksPath").strip() == os.devnull
