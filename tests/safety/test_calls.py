"""The git commands that perdure runs. None of them is a command whose options can run programs."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from perdure.workspace import Workspaces
from tests.workspace.yard import make_yard

SOURCES = sorted((Path(__file__).parents[2] / "src/perdure").rglob("*.py"))
DANGEROUS = {
    "archive", "checkout", "clone", "commit", "credential", "difftool", "gc", "log", "ls-remote", "merge", "mergetool", "pull", "push",
    "rebase", "remote", "repack", "prune", "show", "stash",
    "submodule", "switch", "add", "maintenance", "filter-branch", "bisect", "branch",
}  # fmt: skip
_CALL = r"(?:\.run\(|run_as_user\(|\.call\([^\")]*)\s*\"([a-z][a-z-]+)\""
OWN = {
    ("demo.py", "add"),
    ("demo.py", "commit"),
    ("helpers.py", "credential"),
    ("refs.py", "gc"),
    ("index.py", "add"),
    ("transport.py", "ls-remote"),
}
"""Commands that perdure uses only with its own git directory or without a repository. No
configuration of others applies to that directory, and its attributes turn every filter off. The
demonstration's repository is perdure's own from its first file. The credential helpers are the
user's, and are asked outside of a repository. A server is asked from a scratch directory of
perdure's, and the program on the server's side is named."""


def test_no_command_that_runs_what_a_repository_says_is_called() -> None:
    """The sources have no push, clone, archive, log, stash, gc or submodule, so their options and
    drivers cannot be reached."""
    called = {(file.name, name) for file in SOURCES for name in re.findall(_CALL, file.read_text())}
    assert {"fetch", "worktree", "read-tree", "rev-parse"} <= {name for _, name in called}
    assert {(file, name) for file, name in called if name in DANGEROUS} == OWN


@pytest.mark.parametrize("backend", ["worktree", "isolated"])
def test_every_operand_stands_behind_its_guard(tmp_path: Path, backend: str) -> None:
    """In all calls for a workdir, paths, addresses and names from outside come after `--` or
    --end-of-options."""
    yard = make_yard(tmp_path)
    real, place, log = shutil.which("git"), tmp_path / "bin", tmp_path / "calls"
    place.mkdir()
    (place / "git").write_text(
        f'#!/bin/sh\nfor a in "$@"; do printf "%s\\037" "$a" >> {log}; done; echo >> {log}; exec '
        f'{real} "$@"\n'
    )
    (place / "git").chmod(0o755)
    workspaces = Workspaces(
        yard.root, environ=yard.environ | {"PATH": f"{place}:{os.environ['PATH']}"}
    )
    workspace = workspaces.plan(yard.spec(backend, base="main"), "brave-otter", yard.repo)
    workspaces.prepare(workspace, "claude")
    workspaces.state(workspace)
    workspaces.rescue(workspace, "x")
    calls = [[arg for arg in line.split("\037") if arg] for line in log.read_text().splitlines()]
    outside = ("main", "work", str(yard.repo), str(yard.repo / ".git"), workspace.path)
    for call in calls:
        guard = min(
            (call.index(word) for word in ("--", "--end-of-options") if word in call),
            default=len(call),
        )
        assert not [arg for arg in call[:guard] if arg in outside], call
        assert not call[0].startswith("-c"), call
    assert any("fetch" in call for call in calls) == (backend == "isolated")
