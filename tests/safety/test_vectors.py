"""Hostile repositories: plain git runs programs that an agent planted, and perdure does not."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from perdure.errors import PerdureError
from perdure.model import Backend, Workspace
from tests import spread
from tests.safety.trust import documented
from tests.safety.vectors import VECTORS, Ground, Vector
from tests.workspace.yard import Yard, make_yard

by_name = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return make_yard(tmp_path)


def ground(yard: Yard, backend: str) -> tuple[Ground, Workspace]:
    """Make a workdir in which an agent has worked, before anything is planted."""
    workspace = yard.plan(backend, agent="mallory")
    yard.workspaces.prepare(workspace, "mallory")
    admin, common = (
        Path(yard.git("rev-parse", "--path-format=absolute", what, cwd=workspace.path))
        for what in ("--git-dir", "--git-common-dir")
    )
    return Ground(yard, Path(workspace.path), common, admin), workspace


def everything(yard: Yard, mine: Workspace, *others: str) -> None:
    """Run everything that perdure does with the hostile workdir, and with workdirs of other agents
    on the same repository."""
    steps = [
        lambda: yard.workspaces.prepare(mine, "mallory"),
        lambda: yard.workspaces.state(mine),
        lambda: yard.workspaces.rescue(mine, "x"),
    ]
    for backend in others:
        other = yard.plan(backend, agent=f"bob-{backend}", branch=f"bob-{backend}")
        steps += [
            lambda other=other: yard.workspaces.prepare(other, "bob"),
            lambda other=other: yard.workspaces.state(other),
        ]
        steps += [lambda other=other: yard.workspaces.rescue(other, "x")]
    for step in steps:
        with contextlib.suppress(PerdureError):
            step()


@by_name
def test_nothing_fires_in_the_isolated_backend(yard: Yard, vector: Vector) -> None:
    """perdure reuses, checks and rescues a hostile workdir, and makes workdirs for other agents,
    without running a planted program. Plain git runs it."""
    place, workspace = ground(yard, "isolated")
    vector.plant(place)
    place.canary.unlink(missing_ok=True)
    everything(yard, workspace, "isolated", "worktree")
    assert place.canary.exists() == (vector.name in documented("isolated"))
    vector.spring(place)
    assert place.canary.exists(), "the fixture could not have fired"


@by_name
def test_only_the_documented_ones_fire_in_the_worktree_backend(yard: Yard, vector: Vector) -> None:
    """In a shared repository only filters can run. The documentation lists exactly those that
    do."""
    place, workspace = ground(yard, "worktree")
    vector.plant(place)
    place.canary.unlink(missing_ok=True)
    everything(yard, workspace, "worktree")
    assert place.canary.exists() == (vector.name in documented("worktree"))
    place.canary.unlink(missing_ok=True)
    vector.spring(place)
    assert place.canary.exists(), "the fixture could not have fired"


@by_name
def test_a_poisoned_repository_is_fetched_from_without_harm(yard: Yard, vector: Vector) -> None:
    """From a local repository with planted programs an isolated workdir is made. None of them
    runs."""
    place, _ = ground(yard, "worktree")
    vector.plant(place)
    place.canary.unlink(missing_ok=True)
    other = yard.plan("isolated", agent="bob", branch="bob")
    assert yard.workspaces.prepare(other, "bob").created
    yard.workspaces.state(other)
    assert not place.canary.exists()


def test_a_bare_repository_inside_a_checkout_is_not_believed(yard: Yard) -> None:
    """In a directory that looks like a bare repository, plain git runs its fsmonitor; perdure does
    not."""
    trap = yard.repo / "src"
    yard.git("clone", "-q", "--bare", str(yard.repo), str(trap / "x"))
    for entry in list((trap / "x").iterdir()):
        entry.rename(trap / entry.name)
    place = Ground(yard, trap, trap, trap)
    place.config(
        ("core.bare", "false"),
        ("core.worktree", "."),
        ("core.fsmonitor", place.program),
        file=trap / "config",
    )
    yard.git("config", "--file", str(trap / "config"), "--replace-all", "core.bare", "false")
    place.git("status")
    assert place.canary.exists()
    place.canary.unlink()
    workspace = Workspace(id="x", path=str(trap), backend=Backend.HERE)
    everything(yard, workspace)
    assert not place.canary.exists()
    assert yard.workspaces.state(workspace).head == ""


def test_replaced_objects_do_not_reach_the_next_workdir(yard: Yard) -> None:
    """`git replace` in the shared repository makes plain git check out other content. The next
    workdir of perdure has the true content."""
    place, _ = ground(yard, "worktree")
    (place.top / "evil").write_text("EVIL\n")
    evil = yard.git("hash-object", "-w", "evil", cwd=place.top)
    yard.git("replace", yard.git("rev-parse", "HEAD:README"), evil, cwd=place.top)
    assert yard.git("cat-file", "-p", "HEAD:README") == "EVIL"
    for backend in ("worktree", "isolated"):
        other = yard.plan(backend, agent="bob", branch=f"bob-{backend}")
        yard.workspaces.prepare(other, "bob")
        assert (Path(other.path) / "README").read_text() == "second\n"


def test_what_an_isolated_agent_does_to_its_repository_reaches_nobody(yard: Yard) -> None:
    """Deleted refs, replaced objects, gc --prune=now and an invalid repository format do not affect
    the workdirs of other agents or the cache."""
    place, _ = ground(yard, "isolated")
    other = yard.plan("isolated", agent="bob", branch="bob")
    yard.workspaces.prepare(other, "bob")
    for command in (
        ("replace", "HEAD", "HEAD~1"),
        ("config", "gc.pruneExpire", "now"),
        ("update-ref", "-d", "refs/heads/bob"),
        ("repack", "-a", "-d", "-q"),
        ("gc", "--quiet", "--prune=now"),
        ("config", "core.repositoryFormatVersion", "99"),
    ):
        place.git(*command)
    cache = next((yard.root / ".perdure/repos").iterdir())
    assert yard.git("fsck", "--full", cwd=other.path) == ""
    assert yard.git("--git-dir", str(cache), "fsck", "--full") == ""
    assert yard.workspaces.state(other).changed == 0
    third = yard.plan("isolated", agent="carol", branch="carol")
    assert yard.workspaces.prepare(third, "carol").created


def test_the_cache_is_never_pruned(yard: Yard) -> None:
    """The start commit is pinned. Even without that pin, gc, prune and repack -d keep a commit that
    its origin no longer has."""
    tip = yard.git("commit-tree", "HEAD^{tree}", "-p", "HEAD", "-m", "soon forgotten")
    yard.git("branch", "short-lived", tip)
    workspace = yard.plan("isolated", base="short-lived")
    yard.workspaces.prepare(workspace, "claude")
    yard.git("branch", "-D", "short-lived")
    yard.workspaces.prepare(yard.plan("isolated", branch="another"), "claude")
    cache = str(next((yard.root / ".perdure/repos").iterdir()))
    pin = f"refs/perdure/pin/{workspace.id}"
    assert yard.git("--git-dir", cache, "rev-parse", pin) == tip
    yard.git("--git-dir", cache, "update-ref", "-d", pin)
    for command in (
        ("reflog", "expire", "--expire=now", "--all"),
        ("gc", "--prune=now"),
        ("prune", "--expire=now"),
        ("repack", "-a", "-d"),
    ):
        yard.git("--git-dir", cache, *command, check=False)
    assert yard.git("--git-dir", cache, "cat-file", "-t", tip) == "commit"
    assert yard.git("log", "-1", "--format=%s", cwd=workspace.path) == "soon forgotten"


def test_a_borrowed_secret_does_not_reach_the_cache(yard: Yard) -> None:
    """An agent that points its alternates at another tenant's objects cannot make perdure copy them
    (confused deputy)."""
    tenant = make_yard(yard.top / "tenant")
    (tenant.repo / "secret").write_text("TOPSECRET\n")
    tenant.git("add", ".")
    tenant.git("commit", "-qm", "private")
    secret = tenant.git("rev-parse", "HEAD")
    place, workspace = ground(yard, "isolated")
    with (place.common / "objects/info/alternates").open("a") as file:
        file.write(f"{tenant.repo / '.git/objects'}\n")
    (place.common / "refs/heads/work").write_text(f"{secret}\n")
    everything(yard, workspace, "isolated")
    cache = str(next((yard.root / ".perdure/repos").iterdir()))
    there = yard.git("--git-dir", cache, "cat-file", "--batch-check", "--batch-all-objects")
    assert there and secret not in there


def test_a_linked_object_directory_is_not_written_through(yard: Yard) -> None:
    """If an agent links its directory of objects to another directory, a rescue is refused, and
    nothing is written to that directory."""
    place, workspace = ground(yard, "isolated")
    tenant = make_yard(yard.top / "tenant")
    before = sorted((tenant.repo / ".git/objects").rglob("*"))
    spread.rename(place.common / "objects", yard.top / "objects")
    (place.common / "objects").symlink_to(tenant.repo / ".git/objects")
    with pytest.raises(PerdureError):
        yard.workspaces.rescue(workspace, "x")
    assert sorted((tenant.repo / ".git/objects").rglob("*")) == before


def test_a_workdir_without_its_git_directory_is_not_taken_for_its_parents(yard: Yard) -> None:
    """If .git is missing, plain git uses the repository above the workdir and runs its fsmonitor.
    perdure refuses."""
    yard.git("init", "-q", str(yard.root))
    place, workspace = ground(yard, "isolated")
    above = Ground(yard, yard.root, yard.root / ".git", yard.root / ".git")
    above.config(("core.fsmonitor", above.program))
    spread.rename(place.top / ".git", yard.top / "gone")
    place.git("status")
    assert above.canary.exists()
    above.canary.unlink()
    everything(yard, workspace)
    assert not above.canary.exists()
