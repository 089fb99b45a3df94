"""Permissions of files: modes that are kept, and modes that a checkpoint can never give."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.errors import WorkspaceError
from perdure.model import TaskSpec
from perdure.workspace import Workspaces
from tests.workspace.test_photograph import made
from tests.workspace.yard import BACKENDS, Yard

USER = {
    "GIT_AUTHOR_NAME": "u",
    "GIT_AUTHOR_EMAIL": "u@e",
    "GIT_COMMITTER_NAME": "u",
    "GIT_COMMITTER_EMAIL": "u@e",
}
KEPT = {
    "secret.env": 0o600,
    "tool": 0o700,
    "fixed.txt": 0o444,
    "vault": 0o700,
    "vault/deep": 0o500,
    "vault/deep/key": 0o400,
    "README": 0o640,
}


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """Set the usual umask, and reset it after the test."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(top: Path) -> dict[str, int]:
    return {name: stat.S_IMODE((top / name).lstat().st_mode) for name in KEPT}


def restrict(top: Path) -> None:
    (top / "vault/deep").mkdir(parents=True)
    for name in ("secret.env", "tool", "fixed.txt", "vault/deep/key"):
        (top / name).write_text("x\n")
    for name, mode in reversed(KEPT.items()):
        (top / name).chmod(mode)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_secret_stays_one(yard: Yard, backend: str) -> None:
    """Files and directories that only their owner may read are restored as such, whether they were
    deleted or only opened to others. Files that others may read are restored as such, too."""
    workspace, top = made(yard, backend)
    (top / "README").write_text("here too\n")
    yard.workspaces.checkpoints.save(workspace, 1)
    restrict(top)
    saved = yard.workspaces.checkpoints.save(workspace, 2)
    (top / "secret.env").unlink()
    (top / "tool").chmod(0o755)
    (top / "vault/deep").chmod(0o755)
    (top / "vault/deep/key").unlink()
    assert set(yard.workspaces.checkpoints.drift(workspace, saved.commit)) >= {
        "secret.env",
        "tool",
        "vault/deep/",
        "vault/deep/key",
    }
    restored = yard.workspaces.checkpoints.restore(workspace, saved.commit)
    assert (modes(top), restored.differs, restored.notes) == (KEPT, (), ())
    assert restored.rescue is not None
    again = yard.workspaces.checkpoints.restore(workspace, restored.rescue.commit)
    assert stat.S_IMODE((top / "tool").stat().st_mode) == 0o755
    assert again.differs == ()


def test_only_a_mode_makes_a_new_checkpoint(yard: Yard) -> None:
    """A change of only a file's mode is noticed, saved, reported as drift and restored. Mode bits
    that do not matter are ignored."""
    workspace, top = made(yard, "worktree")
    first = yard.workspaces.checkpoints.save(workspace, 1)
    (top / "src/file1.txt").chmod(0o600)
    second = yard.workspaces.checkpoints.save(workspace, 2)
    assert first.commit != second.commit
    assert yard.workspaces.checkpoints.drift(workspace, first.commit) == ("src/file1.txt",)
    yard.workspaces.checkpoints.restore(workspace, first.commit)
    assert stat.S_IMODE((top / "src/file1.txt").stat().st_mode) == 0o644
    (top / "src/file1.txt").chmod(0o666)
    assert yard.workspaces.checkpoints.drift(workspace, first.commit) == ()


def test_modes_travel(yard: Yard, tmp_path: Path) -> None:
    """A checkpoint that is unpacked elsewhere has the same modes, even with another umask."""
    workspace, top = made(yard, "isolated")
    restrict(top)
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    os.umask(0o002)
    other = Workspaces(tmp_path / "other", environ=yard.environ)
    (tmp_path / "landed").mkdir()
    there = other.plan(TaskSpec(prompt="p", here=str(tmp_path / "landed")), "brave-otter", tmp_path)
    with yard.workspaces.checkpoints.pack(workspace, saved.commit) as packed:
        other.checkpoints.unpack(there, packed.file, packed.facts)
    assert other.checkpoints.restore(there, packed.facts.commit).differs == ()
    assert modes(Path(there.path)) == KEPT | {"README": 0o640}


@pytest.mark.parametrize(
    "said",
    [{"4755": ["README"]}, {"999": ["README"]}, {"777": ["README", "src/", "../../outside"]}],
)
def test_a_checkpoint_gives_no_rights(yard: Yard, said: dict[str, list[str]]) -> None:
    """A forged checkpoint with setuid bits is refused. One with all access rights gives none that
    the umask forbids."""
    workspace, top = made(yard, "isolated")
    outside = top.parent.parent / "outside"
    outside.write_text("not yours\n")
    outside.chmod(0o600)
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    about = json.loads(
        yard.git("--git-dir", saved.git_dir, "show", f"{saved.commit}:checkpoint.json")
    ) | {"modes": said, "umask": "000"}

    def run(*words: str, stdin: str) -> str:
        done = subprocess.run(
            ["git", "--git-dir", saved.git_dir, *words],
            input=stdin,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    blob = run("hash-object", "-w", "--stdin", stdin=json.dumps(about))
    entries = yard.git("--git-dir", saved.git_dir, "ls-tree", saved.commit).split("\n")
    tree = run(
        "mktree",
        stdin="\n".join(
            f"100644 blob {blob}\tcheckpoint.json" if "checkpoint.json" in e else e for e in entries
        )
        + "\n",
    )
    forged = yard.git("--git-dir", saved.git_dir, "commit-tree", "-m", "x", tree, env=USER)
    if "777" in said:
        (top / "README").unlink()
        yard.workspaces.checkpoints.restore(workspace, forged)
        assert [stat.S_IMODE((top / name).stat().st_mode) for name in ("README", "src")] == [
            0o644,
            0o755,
        ]
    else:
        with pytest.raises(WorkspaceError, match="damaged"):
            yard.workspaces.checkpoints.restore(workspace, forged)
    assert stat.S_IMODE(outside.stat().st_mode) == 0o600
