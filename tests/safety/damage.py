"""Damage that an agent can do to other agents through a shared git directory, without making them
run a program.

Mallory makes each attack in her own workdir, with plain git and her ordinary rights. Bob has a
workdir of the same repository. `succeeded` checks Bob's workdir, or the next workdir that perdure
makes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from perdure.errors import PerdureError
from perdure.model import Workspace
from tests.workspace.yard import Yard


@dataclass(frozen=True)
class Scene:
    """Two workdirs of one repository. `hers` is Mallory's. `his` is Bob's, with a commit on its
    branch (`tip`), one on no branch (`loose`), and a stash."""

    yard: Yard
    backend: str
    hers: Workspace
    his: Workspace
    common: Path
    """The git directory that Mallory's workdir uses."""
    tip: str
    loose: str

    def mallory(self, *args: str) -> str:
        return self.yard.git(*args, cwd=self.hers.path, check=False)

    def bob(self, *args: str) -> str:
        return self.yard.git(*args, cwd=self.his.path, check=False)

    def bob_fails(self, *args: str) -> str:
        """Return the error of Bob's git command, or an empty string if it does not fail."""
        return self.yard.complaint(*args, cwd=self.his.path)

    def evil(self) -> str:
        """Make a commit of Mallory's that is on no branch, and return it."""
        (Path(self.hers.path) / "README").write_text("EVIL\n")
        blob = self.mallory("hash-object", "-w", "README")
        self.mallory("read-tree", "--empty")
        self.mallory("update-index", "--add", "--cacheinfo", f"100644,{blob},README")
        return self.mallory(
            "-c",
            "user.name=m",
            "-c",
            "user.email=m@m",
            "commit-tree",
            self.mallory("write-tree"),
            "-m",
            "evil",
        )

    def next_one(self, base: str = "") -> str:
        """Return the README that the next agent finds in its new workdir, or an empty string if
        perdure cannot make the workdir."""
        try:
            other = self.yard.plan(self.backend, agent="carol", branch="carol", base=base)
            self.yard.workspaces.prepare(other, "carol")
        except PerdureError:
            return ""
        return (Path(other.path) / "README").read_text()


def scene(yard: Yard, backend: str) -> Scene:
    yard.git("update-ref", "refs/remotes/origin/main", "HEAD")
    plans = [yard.plan(backend, agent=agent, branch=agent) for agent in ("mallory", "bob")]
    for workspace in plans:
        yard.workspaces.prepare(workspace, "x")
    his = plans[1].path
    yard.git("commit", "-q", "--allow-empty", "-m", "bob's", cwd=his)
    loose = yard.git("commit-tree", "HEAD^{tree}", "-m", "loose", cwd=his)
    (Path(his) / "README").write_text("stashed\n")
    yard.git("stash", cwd=his)
    common = Path(
        yard.git("rev-parse", "--path-format=absolute", "--git-common-dir", cwd=plans[0].path)
    )
    return Scene(
        yard, backend, plans[0], plans[1], common, yard.git("rev-parse", "HEAD", cwd=his), loose
    )


def _delete_objects(scene: Scene) -> None:
    shutil.rmtree(scene.common / "objects")
    (scene.common / "objects").mkdir()


def _replace(scene: Scene) -> None:
    scene.mallory(
        "replace",
        scene.mallory("rev-parse", "HEAD:README"),
        scene.mallory("rev-parse", f"{scene.evil()}:README"),
    )


def _is_dead(scene: Scene) -> bool:
    return not scene.bob("rev-parse", "--verify", "--quiet", "HEAD^{tree}")


def _checked_out(scene: Scene) -> str:
    """Return the README of Bob's last commit, as Bob's own git reads it."""
    return scene.bob("show", "HEAD:README")


@dataclass(frozen=True)
class Attack:
    name: str
    do: Callable[[Scene], object]
    succeeded: Callable[[Scene], bool]


ATTACKS = (
    Attack("delete-branch", lambda s: s.mallory("update-ref", "-d", "refs/heads/bob"), _is_dead),
    Attack(
        "move-branch",
        lambda s: s.mallory("update-ref", "refs/heads/bob", s.evil()),
        lambda s: s.bob("rev-parse", "HEAD") != s.tip,
    ),
    Attack("stash-pop", lambda s: s.mallory("stash", "pop"), lambda s: not s.bob("stash", "list")),
    Attack(
        "worktree-remove",
        lambda s: s.mallory("worktree", "remove", "--force", "--force", s.his.path),
        lambda s: not Path(s.his.path).exists(),
    ),
    Attack(
        "worktree-remove-once",
        lambda s: s.mallory("worktree", "remove", "--force", s.his.path),
        lambda s: not Path(s.his.path).exists(),
    ),
    Attack("worktree-prune", lambda s: s.mallory("worktree", "prune", "--expire=now"), _is_dead),
    Attack("replace-theirs", _replace, lambda s: _checked_out(s) == "EVIL"),
    Attack("replace-next", _replace, lambda s: s.next_one() == "EVIL\n"),
    Attack(
        "move-remote-branch",
        lambda s: s.mallory("update-ref", "refs/remotes/origin/main", s.evil()),
        lambda s: s.next_one("origin/main") == "EVIL\n",
    ),
    Attack(
        "format-99", lambda s: s.mallory("config", "core.repositoryFormatVersion", "99"), _is_dead
    ),
    Attack(
        "worktree-config",
        lambda s: _worktree_config(s),
        lambda s: "must be run in a work tree" in s.bob_fails("status"),
    ),
    Attack("gc-by-perdure", lambda s: _gc_settings(s), lambda s: not _outlives_perdure(s)),
    Attack(
        "gc-by-agent",
        lambda s: s.mallory("gc", "-q", "--prune=now"),
        lambda s: not s.bob("cat-file", "-t", s.loose),
    ),
    Attack("delete-objects", _delete_objects, _is_dead),
    Attack(
        "block-names",
        lambda s: s.mallory("update-ref", "refs/heads/carol/x", "HEAD"),
        lambda s: not s.next_one(),
    ),
)


def _worktree_config(scene: Scene) -> None:
    scene.mallory("config", "extensions.worktreeConfig", "true")
    for admin in (scene.common / "worktrees").glob("*"):
        scene.mallory("config", "--file", str(admin / "config.worktree"), "core.bare", "true")


def _gc_settings(scene: Scene) -> None:
    for key, value in (
        ("gc.pruneExpire", "now"),
        ("gc.auto", "1"),
        ("maintenance.auto", "true"),
        ("gc.autoDetach", "false"),
    ):
        scene.mallory("config", key, value)


def _outlives_perdure(scene: Scene) -> bool:
    """Return whether Bob's commit on no branch still exists after perdure has prepared and saved
    both workdirs and has made another one."""
    for workspace in (scene.his, scene.hers):
        scene.yard.workspaces.prepare(workspace, "x")
        scene.yard.workspaces.state(workspace)
        scene.yard.workspaces.rescue(workspace, "x")
    return bool(scene.next_one()) and scene.bob("cat-file", "-t", scene.loose) == "commit"
