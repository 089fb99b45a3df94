"""What a server may send: faulty paths are refused before they are in the cache, faults of honest old history are let in."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.workspace.yard import Yard, make_yard

from perdure.errors import GitFailed


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return make_yard(tmp_path)


def serve(yard: Yard, entries: list[tuple[str, str, str]]) -> None:
    """Puts a commit with a tree of these (mode, name, content) on main, as no honest git would make it."""
    tree = b""
    for mode, name, content in entries:
        oid = (
            write(yard, "blob", content.encode())
            if not mode.startswith("04")
            else write(yard, "tree", b"100644 x\0" + bytes.fromhex(write(yard, "blob", b"x")))
        )
        tree += f"{mode} {name}\0".encode() + bytes.fromhex(oid)
    oid = yard.git("commit-tree", write(yard, "tree", tree), "-p", "HEAD", "-m", "odd")
    yard.git("update-ref", "refs/heads/main", oid)


def write(yard: Yard, kind: str, content: bytes) -> str:
    command = ["git", "hash-object", "-w", "--literally", "-t", kind, "--stdin"]
    return subprocess.run(command, input=content, cwd=yard.repo, env=yard.environ, capture_output=True, check=True).stdout.decode().strip()


HOSTILE = {
    "hasDotgit": [("100644", ".git", "gitdir: /elsewhere\n")],
    "hasDotgit-folded": [("100644", ".GIT", "x")],
    "hasDotgit-short": [("100644", "git~1", "x")],
    "hasDotdot": [("100644", "..", "x")],
    "hasDot": [("100644", ".", "x")],
    "fullPathname": [("100644", "a/b", "x")],
    "gitmodulesUrl": [("100644", ".gitmodules", '[submodule "x"]\n\tpath = x\n\turl = -u./evil\n')],
    "gitmodulesSymlink": [("120000", ".gitmodules", "elsewhere")],
}


@pytest.mark.parametrize("entries", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_tree_that_attacks_is_refused(yard: Yard, entries: list[tuple[str, str, str]]) -> None:
    """The fetch fails, no workdir is made, and when the server is honest again the same call works."""
    honest = yard.git("rev-parse", "main")
    serve(yard, entries)
    bad = yard.git("rev-parse", "main")
    workspace = yard.plan("isolated")
    with pytest.raises(GitFailed):
        yard.workspaces.prepare(workspace, "claude")
    assert not Path(workspace.path).exists()
    cache = str(next((yard.root / ".perdure/repos").iterdir()))
    assert bad not in yard.git("--git-dir", cache, "for-each-ref")
    yard.git("update-ref", "refs/heads/main", honest)
    assert yard.workspaces.prepare(yard.plan("isolated"), "claude").created


def test_a_padded_mode_of_old_history_is_let_in(yard: Yard) -> None:
    """pallets/flask has such trees; refusing them would refuse the repository."""
    serve(yard, [("040000", "dir", "")])
    assert (
        "zeroPaddedFilemode"
        in yard.git("fsck", check=False)
        + subprocess.run(["git", "fsck"], cwd=yard.repo, env=yard.environ, capture_output=True, text=True).stderr
    )
    assert yard.workspaces.prepare(yard.plan("isolated"), "claude").created


def test_submodules_are_left_alone(yard: Yard) -> None:
    """A repository with submodules gets its workdir; nothing of the submodules is fetched or run."""
    (yard.repo / ".gitmodules").write_text('[submodule "sub"]\n\tpath = sub\n\turl = https://forge.invalid/sub\n')
    yard.git("add", ".gitmodules")
    yard.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},sub")
    yard.git("commit", "-qm", "with a submodule")
    for backend in ("worktree", "isolated"):
        workspace = yard.plan(backend, branch=f"with-{backend}")
        assert yard.workspaces.prepare(workspace, "claude").created
        assert list((Path(workspace.path) / "sub").iterdir()) == []
        assert yard.workspaces.state(workspace).changed == 0


def test_a_renamed_branch_of_the_origin_does_not_stop_the_cache(yard: Yard) -> None:
    """After `foo` became `foo/bar` upstream, a fetch without --prune would fail for ever."""
    yard.git("branch", "foo")
    yard.workspaces.prepare(yard.plan("isolated", base="foo"), "claude")
    yard.git("branch", "-D", "foo")
    yard.git("branch", "foo/bar")
    assert yard.workspaces.prepare(yard.plan("isolated", branch="next", base="foo/bar"), "claude").created
