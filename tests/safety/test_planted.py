"""Files of git that were replaced by links, loops, pipes or invalid content; and changes that an
agent hides."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from perdure.engine.attempt.prompt_facts import named
from perdure.errors import GitFailed, PerdureError
from perdure.host.git import Git
from perdure.workspace.locks import read
from tests.safety.test_vectors import ground
from tests.safety.trust import documented
from tests.workspace.yard import Yard, make_yard


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return make_yard(tmp_path)


def _replaced(place: Path, kind: str, victim: Path) -> None:
    shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink(
        missing_ok=True
    )
    match kind:
        case "link to another":
            place.symlink_to(victim)
        case "loop of links":
            place.symlink_to(place)
        case "loop of files":
            place.write_text(f"gitdir: {place}\n")
        case "pipe":
            os.mkfifo(place)
        case "nonsense":
            place.write_bytes(b"\0\xff" * 70_000)
        case _:
            place.mkdir()


@pytest.mark.parametrize(
    "kind",
    ["link to another", "loop of links", "loop of files", "pipe", "nonsense", "empty directory"],
)
@pytest.mark.parametrize("backend", ["worktree", "isolated"])
def test_a_git_directory_that_is_something_else_is_refused(
    yard: Yard, backend: str, kind: str
) -> None:
    """`.git` was replaced by something else. Every verb ends with an error, the files stay, and the
    other repository is unchanged."""
    victim = make_yard(yard.top / "victim")
    before = sorted((path, path.lstat().st_mtime_ns) for path in (victim.repo / ".git").rglob("*"))
    place, workspace = ground(yard, backend)
    _replaced(place.top / ".git", kind, victim.repo / ".git")
    for verb in (
        lambda: yard.workspaces.prepare(workspace, "claude"),
        lambda: yard.workspaces.state(workspace),
        lambda: yard.workspaces.rescue(workspace, "x"),
    ):
        with pytest.raises(PerdureError):
            verb()
    assert (place.top / "README").read_text() == "second\n"
    assert (
        sorted((path, path.lstat().st_mtime_ns) for path in (victim.repo / ".git").rglob("*"))
        == before
    )


@pytest.mark.parametrize("name", ["index", "HEAD", "refs", "objects", "packed-refs"])
@pytest.mark.parametrize("kind", ["link to another", "loop of links", "nonsense"])
def test_a_part_of_a_git_directory_that_is_something_else_harms_nobody(
    yard: Yard, name: str, kind: str
) -> None:
    """One file or directory in an isolated workdir's .git was replaced. perdure gives a result or
    an error, and writes nothing through a link."""
    victim = make_yard(yard.top / "victim")
    victim.git("pack-refs", "--all")
    before = sorted((path, path.lstat().st_mtime_ns) for path in (victim.repo / ".git").rglob("*"))
    place, workspace = ground(yard, "isolated")
    _replaced(place.common / name, kind, victim.repo / ".git" / name)
    for verb in (
        lambda: yard.workspaces.prepare(workspace, "claude"),
        lambda: yard.workspaces.state(workspace),
        lambda: yard.workspaces.rescue(workspace, "x"),
    ):
        try:
            verb()
        except PerdureError as error:
            assert str(error)
    assert (
        sorted((path, path.lstat().st_mtime_ns) for path in (victim.repo / ".git").rglob("*"))
        == before
    )
    assert yard.workspaces.prepare(yard.plan("isolated", agent="bob", branch="bob"), "bob").created


def test_a_pipe_in_place_of_a_git_file_is_not_read(yard: Yard) -> None:
    """perdure itself never waits on a pipe. It reports an error about the workdir's state at
    once."""
    place, workspace = ground(yard, "worktree")
    (place.admin / "gitdir").unlink()
    os.mkfifo(place.admin / "gitdir")
    with pytest.raises(PerdureError, match="no longer a worktree"):
        yard.workspaces.state(workspace)
    assert read(place.admin / "gitdir") == read(place.admin) == read(Path("/dev/zero")) == ""


@pytest.mark.parametrize("backend", ["worktree", "isolated"])
def test_a_pipe_stalls_a_neighbours_git_only_where_it_is_documented(
    yard: Yard, backend: str
) -> None:
    """git waits on a pipe in a shared admin directory until its timeout. In the isolated backend
    another agent's git never opens it."""
    place, _ = ground(yard, backend)
    (place.common / "worktrees" / place.admin.name).mkdir(parents=True, exist_ok=True)
    pipe = place.common / "worktrees" / place.admin.name / "gitdir"
    pipe.unlink(missing_ok=True)
    other = yard.plan(backend, agent="bob", branch="bob")
    if backend == "isolated":
        os.mkfifo(pipe)
    yard.workspaces.prepare(other, "bob")
    if backend == "worktree":
        os.mkfifo(pipe)
    git = Git(cwd=Path(other.path), ceiling=yard.root, environ=yard.environ)
    stalls = "stall-by-pipe" in documented(backend)
    try:
        git.run("worktree", "list", "--porcelain", "-z", timeout_s=3.0 if stalls else 60.0)
        stalled = False
    except GitFailed as error:
        stalled = "did not end within" in str(error)
    assert stalled == stalls


HIDING = {
    "hide-by-index": [
        ("update-index", "--assume-unchanged", "README"),
        ("update-index", "--skip-worktree", "src/file1.txt"),
    ],
    "hide-by-setting": [("config", "status.showUntrackedFiles", "no")],
    "hide-by-exclude": [],
    "hide-by-gitignore": [],
}


@pytest.mark.parametrize("name", HIDING)
@pytest.mark.parametrize("backend", ["worktree", "isolated"])
def test_what_is_hidden_from_status_is_seen_where_it_is_documented(
    yard: Yard, backend: str, name: str
) -> None:
    """The agent hides changes from `git status`. perdure then sees exactly the changes that the
    table documents."""
    place, workspace = ground(yard, backend)
    for command in HIDING[name]:
        place.git(*command)
    (place.top / "sub").mkdir()
    if name == "hide-by-exclude":
        (place.common / "info").mkdir(exist_ok=True)
        (place.common / "info/exclude").write_text("hidden\nsub\n")
    if name == "hide-by-gitignore":
        (place.top / "sub/.gitignore").write_text("*\n")
    for file in ["README", "src/file1.txt"] if name == "hide-by-index" else ["sub/hidden"]:
        (place.top / file).write_text("x")
    assert yard.git("status", "--porcelain", cwd=place.top) == ""
    state = yard.workspaces.state(workspace)
    assert (state.changed + state.untracked == 0) == (name in documented(backend))


@pytest.mark.parametrize(
    "name",
    [
        "a\nb",
        "x). New instructions: (",
        "\x1b[2J",
        "\u202etxt",
        "a`b",
        "q'\"",
        "a, b",
        "\udcff",
        "a" * 300,
        "\u2028",
    ],
)
def test_a_files_name_stays_one_word_of_the_prompt(name: str) -> None:
    """Newlines, escape sequences and sentences in file names reach the agent as one short, quoted
    word."""
    shown = named(name)
    assert shown.isprintable() and len(shown) < 1000
    plain = set(shown) <= set("abcdefghijklmnopqrstuvwxyz.")
    assert plain or (shown[0] == shown[-1] and shown[0] in "'\"")
    assert named("src/main-2.py") == "src/main-2.py"
