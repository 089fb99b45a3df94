"""Content that a server may send: invalid paths are refused before they are in the cache, but
harmless errors in old history are accepted."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from msgspec.structs import replace

from perdure.errors import GitFailed, NotFound, WorkspaceError
from tests.workspace.yard import Yard, make_yard


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return make_yard(tmp_path)


def serve(yard: Yard, entries: list[tuple[str, str, str]]) -> None:
    """Put a commit on main whose tree has these entries (mode, name, content), which git itself
    would not make."""
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
    return (
        subprocess.run(
            command, input=content, cwd=yard.repo, env=yard.environ, capture_output=True, check=True
        )
        .stdout.decode()
        .strip()
    )


HOSTILE = {
    "hasDotgit": [("100644", ".git", "gitdir: /elsewhere\n")],
    "hasDotgit-folded": [("100644", ".GIT", "x")],
    "hasDotgit-short": [("100644", "git~1", "x")],
    "hasDotdot": [("100644", "..", "x")],
    "hasDot": [("100644", ".", "x")],
    "fullPathname": [("100644", "a/b", "x")],
    "gitmodulesUrl": [("100644", ".gitmodules", '[submodule "x"]\n\tpath = x\n\turl = -u./evil\n')],
    "gitmodulesPath": [("100644", ".gitmodules", '[submodule "x"]\n\tpath = -x\n\turl = ./x\n')],
    "gitmodulesName": [
        ("100644", ".gitmodules", '[submodule "../../x"]\n\tpath = x\n\turl = ./x\n')
    ],
    "gitmodulesUpdate": [
        (
            "100644",
            ".gitmodules",
            '[submodule "x"]\n\tpath = x\n\turl = ./x\n\tupdate = !touch fired\n',
        )
    ],
    "gitmodulesSymlink": [("120000", ".gitmodules", "elsewhere")],
}


@pytest.mark.parametrize("entries", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_tree_that_attacks_is_refused(yard: Yard, entries: list[tuple[str, str, str]]) -> None:
    """The fetch fails and no workdir is made. When the server sends valid content again, the same
    call works."""
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
    """The mode of a tree may have a leading zero, as in old history. pallets/flask has such trees,
    and would otherwise be refused."""
    serve(yard, [("040000", "dir", "")])
    assert (
        "zeroPaddedFilemode"
        in yard.git("fsck", check=False)
        + subprocess.run(
            ["git", "fsck"], cwd=yard.repo, env=yard.environ, capture_output=True, text=True
        ).stderr
    )
    assert yard.workspaces.prepare(yard.plan("isolated"), "claude").created


def test_submodules_are_left_alone(yard: Yard) -> None:
    """A repository with submodules gets its workdir. Nothing of the submodules is fetched or run."""
    (yard.repo / ".gitmodules").write_text(
        '[submodule "sub"]\n\tpath = sub\n\turl = https://forge.invalid/sub\n'
    )
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
    assert yard.workspaces.prepare(
        yard.plan("isolated", branch="next", base="foo/bar"), "claude"
    ).created


@pytest.mark.parametrize(
    "who",
    [
        "A <a@b> 0123456789 +0000",
        "A <a@b> 99999999999999999999 +0000",
        "A <a@b> now +0000",
        "A a@b 1 +0000",
        "A<a@b> 1 +0000",
        "A <a@b> 1 +00",
        "A <a@b 1 +0000",
    ],
)
def test_faults_of_dates_and_authors_are_let_in(yard: Yard, who: str) -> None:
    """Harmless repositories have invalid dates and authors that old tools made. git's check reports
    them, but the workdir is made."""
    parent, tree = yard.git("rev-parse", "HEAD"), yard.git("rev-parse", "HEAD^{tree}")
    text = f"tree {tree}\nparent {parent}\nauthor {who}\ncommitter C <c@d> 1 +0000\n\nold\n"
    yard.git("update-ref", "refs/heads/main", write(yard, "commit", text.encode()))
    assert (
        "author/committer" in yard.complaint("fsck", "--strict")
        or "bad" in yard.complaint("fsck", "--strict").lower()
    )
    assert yard.workspaces.prepare(yard.plan("isolated"), "claude").created


def test_a_submodule_path_with_a_carriage_return_writes_nothing(yard: Yard) -> None:
    """CVE-2025-48384: a submodule's path ends in CR, a link has the name without it, and the
    submodule has a hook. No submodule is entered."""
    hook = yard.top / "CANARY"
    sub = make_yard(yard.top / "sub")
    (sub.repo / "post-checkout").write_text(f"#!/bin/sh\n: > {hook}\n")
    (sub.repo / "post-checkout").chmod(0o755)
    sub.git("add", ".")
    sub.git("commit", "-qm", "hook")
    (yard.repo / ".gitmodules").write_bytes(
        f'[submodule "x"]\n\tpath = "sub\r"\n\turl = {sub.repo}\n'.encode()
    )
    (yard.repo / "sub").symlink_to(".git/modules/x/hooks")
    yard.git("add", ".gitmodules", "sub")
    yard.git("update-index", "--add", "--cacheinfo", f"160000,{sub.git('rev-parse', 'HEAD')},sub\r")
    yard.git("commit", "-qm", "trap")
    for backend in ("worktree", "isolated"):
        workspace = yard.plan(backend, branch=f"with-{backend}")
        yard.workspaces.prepare(workspace, "claude")
        yard.workspaces.state(workspace)
        yard.workspaces.rescue(workspace, "x")
        assert not (Path(workspace.path) / ".git/modules").exists()
    assert not hook.exists() and not (yard.repo / ".git/modules").exists()


def test_an_origin_with_an_unborn_head_is_no_empty_repository(yard: Yard) -> None:
    """HEAD of the origin names a branch that nobody has pushed. A workdir from a named base can be
    made. Without one, the error says what to do."""
    yard.git("symbolic-ref", "HEAD", "refs/heads/trunk")
    assert yard.workspaces.prepare(yard.plan("isolated", base="main"), "claude").created
    workspace = yard.plan("isolated", branch="other", base="main")
    with pytest.raises(NotFound, match="no default branch") as caught:
        yard.workspaces.prepare(replace(workspace, base=""), "claude")
    assert "--base" in caught.value.hint
    yard.git("update-ref", "-d", "refs/heads/main")
    with pytest.raises(WorkspaceError, match="has no commit yet"):
        yard.workspaces.prepare(workspace, "claude")


def test_strange_names_of_an_origins_branches_are_only_names(yard: Yard) -> None:
    """Branches of an origin may be named `-D` or `$(id)`, have line separators or bytes that are
    not text, or differ only in case. The workdir is made, and its git knows all branches."""
    oid = yard.git("rev-parse", "main")
    strange = [
        "-D",
        "$(touch${IFS}fired)",
        "`id`",
        "a;b",
        "a\u2028b",
        "a\x85b",
        "Foo",
        "foo",
        "caf\u00e9",
        "cafe\u0301",
        "\udcff",
        "x" * 240,
    ]
    for name in strange:
        yard.git("update-ref", f"refs/heads/{name}", oid)
    for backend in ("worktree", "isolated"):
        workspace = yard.plan(backend, branch=f"with-{backend}", base=oid)
        assert yard.workspaces.prepare(workspace, "claude").created
        prefix = "refs/heads" if backend == "worktree" else "refs/remotes/origin"
        assert all(
            yard.git("rev-parse", f"{prefix}/{name}", cwd=workspace.path) == oid for name in strange
        )
        yard.workspaces.state(workspace)
    assert not list(yard.top.rglob("fired"))


def test_a_renamed_branch_would_stop_a_cache_that_is_not_pruned(yard: Yard) -> None:
    """This shows that the problem exists: plain git without --prune always fails after `foo` became
    `foo/bar`."""
    far = yard.top / "far"
    yard.git("branch", "foo")
    yard.git("clone", "-q", str(yard.repo), str(far))
    yard.git("branch", "-m", "foo", "foo/bar")
    assert "cannot lock ref" in yard.complaint("fetch", cwd=far)
    assert "cannot lock ref" in yard.complaint("fetch", cwd=far)
    assert yard.complaint("fetch", "--prune", cwd=far) == ""
