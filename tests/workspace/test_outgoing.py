"""A branch is pushed by the real git over HTTP with a password, never with force, and without the
agent's own settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from perdure.errors import Diverged, GitFailed, UsageError, WorkspaceError
from perdure.host.git import unreachable
from perdure.model import TaskSpec, Workspace
from tests.servers.githttp import GitHttp, serving
from tests.workspace.yard import Yard

PASSWORD = "correct-horse-battery"


@dataclass
class SharedCache:
    """An isolated workdir of a repository behind HTTP, on the branch `perdure/dev-7`."""

    yard: Yard
    http: GitHttp
    bare: Path
    workspace: Workspace

    @property
    def path(self) -> Path:
        return Path(self.workspace.path)

    def credentials(self, url: str) -> tuple[str, str]:
        return "dev-bot", PASSWORD

    def commit(self, name: str, text: str = "x\n", cwd: Path | None = None) -> str:
        place = cwd or self.path
        (place / name).write_text(text)
        self.yard.git("add", "-A", cwd=place)
        who = {
            f"GIT_{role}_{part}": "a@b"
            for role in ("AUTHOR", "COMMITTER")
            for part in ("NAME", "EMAIL")
        }
        self.yard.git("commit", "-qm", name, cwd=place, env=who)
        return self.yard.git("rev-parse", "HEAD", cwd=place)

    def there(self) -> str:
        return self.yard.git(
            "rev-parse", "--verify", "-q", "refs/heads/perdure/dev-7", cwd=self.bare, check=False
        )

    def push(self) -> str:
        with self.yard.workspaces.outgoing(
            self.workspace, nullcontext(), self.credentials
        ) as found:
            found.push()
            return found.commit


@pytest.fixture
def far(yard: Yard) -> Iterator[SharedCache]:
    with serving(yard.top / "forge", PASSWORD) as http:
        bare = http.make("shop/web", yard.repo)
        spec = TaskSpec(prompt="p", repo=http.url("shop/web"), branch="perdure/dev-7")
        workspaces = yard.workspaces
        workspaces._credentials = lambda url: ("dev-bot", PASSWORD)
        workspace = workspaces.plan(spec, "brave-otter", yard.top)
        workspaces.prepare(workspace, "claude")
        yield SharedCache(yard, http, bare, workspace)


def test_pushed_with_its_own_password(far: SharedCache) -> None:
    """New commits are counted, reported and pushed unchanged. A second push has nothing to do. The
    password is in no file."""
    head = far.commit("one.txt")
    with far.yard.workspaces.outgoing(far.workspace, nullcontext(), far.credentials) as found:
        assert (found.branch, found.commit, found.tip, found.commits) == (
            "perdure/dev-7",
            head,
            "",
            1,
        )
        assert b"one.txt" in found.raw_commits() and b"second" not in found.raw_commits()
        found.push()
    assert far.there() == head and far.http.users == {"dev-bot"}
    with far.yard.workspaces.outgoing(far.workspace, nullcontext(), far.credentials) as found:
        assert (found.tip, found.commits) == (head, 0)
    head = far.commit("two.txt")
    assert far.push() == head == far.there()
    for path in far.yard.root.rglob("*"):
        assert not path.is_file() or PASSWORD.encode() not in path.read_bytes(), path


def test_never_by_force(far: SharedCache, tmp_path: Path) -> None:
    """If the branch on the remote has other new commits, it is not changed, and the agent can merge
    those commits. After the merge the branch is pushed."""
    far.commit("one.txt")
    far.push()
    other = tmp_path / "other"
    far.yard.git("clone", "-q", "-b", "perdure/dev-7", str(far.bare), str(other), cwd=tmp_path)
    theirs = far.commit("theirs.txt", cwd=other)
    far.yard.git("push", "-q", cwd=other)
    far.commit("mine.txt")
    with pytest.raises(Diverged, match="does not have"):
        far.push()
    assert far.there() == theirs
    who = {
        f"GIT_{role}_{part}": "a@b"
        for role in ("AUTHOR", "COMMITTER")
        for part in ("NAME", "EMAIL")
    }
    far.yard.git("merge", "-q", "--no-edit", "origin/perdure/dev-7", cwd=far.path, env=who)
    assert far.push() == far.there() != theirs


def test_moved_at_the_last_moment(far: SharedCache, tmp_path: Path) -> None:
    """Commits that arrive on the remote after the check are not overwritten either."""
    far.commit("one.txt")
    with far.yard.workspaces.outgoing(far.workspace, nullcontext(), far.credentials) as found:
        other = tmp_path / "other"
        far.yard.git("clone", "-q", str(far.bare), str(other), cwd=tmp_path)
        far.yard.git("checkout", "-q", "-b", "perdure/dev-7", cwd=other)
        theirs = far.commit("theirs.txt", cwd=other)
        far.yard.git("push", "-q", "origin", "perdure/dev-7", cwd=other)
        with pytest.raises(Diverged):
            found.push()
    assert far.there() == theirs


def test_by_none_of_the_agents_settings(far: SharedCache) -> None:
    """A push uses no address, proxy, hook or helper that is configured in the agent's own
    repository."""
    trap = far.yard.top / "trap"
    hook = far.path / ".git/hooks/pre-push"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {trap}\n")
    hook.chmod(0o755)
    url = far.http.url("shop/web")
    for key, value in (
        (f"url.{far.yard.top}/elsewhere.git.pushInsteadOf", url),
        (f"url.{far.yard.top}/elsewhere.git.insteadOf", url),
        ("http.proxy", "http://127.0.0.1:1"),
        (f"http.{url}.proxy", "http://127.0.0.1:1"),
        ("credential.helper", f"!touch {trap}"),
        ("push.gpgSign", "true"),
        ("gpg.program", f"{hook}"),
    ):
        far.yard.git("config", key, value, cwd=far.path)
    head = far.commit("one.txt")
    assert far.push() == head == far.there()
    assert not trap.exists()


@pytest.mark.parametrize("way", ["alternates", "link", "linked pack"])
def test_no_objects_of_others(far: SharedCache, way: str) -> None:
    """Objects that an agent borrows from another repository are not pushed."""
    far.commit("one.txt")
    objects = far.path / ".git/objects"
    other = far.yard.top / "elsewhere"
    (other / "pack").mkdir(parents=True)
    if way == "alternates":
        with (objects / "info/alternates").open("a") as file:
            file.write(f"{other}\n")
    elif way == "link":
        (objects / "ff").rename(objects / "fe") if (objects / "ff").exists() else None
        (objects / "ff").symlink_to(other)
    else:
        (objects / "pack/pack-1.pack").symlink_to(other / "pack-1.pack")
    with pytest.raises(WorkspaceError, match="cannot be trusted"):
        far.push()
    assert far.there() == ""


def test_where_the_agent_left_its_branch(far: SharedCache) -> None:
    """The branch is pushed, whatever HEAD is."""
    head = far.commit("one.txt")
    far.yard.git("checkout", "-q", "--detach", "HEAD~1", cwd=far.path)
    assert far.push() == head == far.there()


def test_what_the_other_side_says(far: SharedCache) -> None:
    """If a hook on the server declines the push, the error quotes its message. A server that is
    down, one that refuses, and a wrong password give different errors."""
    hook = far.bare / "hooks/pre-receive"
    hook.write_text("#!/bin/sh\necho 'this branch is protected'\nexit 1\n")
    hook.chmod(0o755)
    far.commit("one.txt")
    with pytest.raises(GitFailed, match="pre-receive hook declined; this branch is protected"):
        far.push()
    far.http.down = True
    with pytest.raises(GitFailed) as failed:
        far.push()
    assert failed.value.transient or unreachable(failed.value)
    far.http.down = False
    with (
        pytest.raises(GitFailed, match="failed") as failed,
        far.yard.workspaces.outgoing(far.workspace, nullcontext(), lambda url: ("x", "wrong")) as _,
    ):
        pass
    assert not failed.value.transient and "credentials" in failed.value.hint
    assert far.there() == ""


def test_a_worktree_has_nothing_to_push(yard: Yard) -> None:
    """The branch of a worktree is already in the user's repository."""
    workspace = yard.plan("worktree")
    yard.workspaces.prepare(workspace, "claude")
    with (
        pytest.raises(UsageError, match="already"),
        yard.workspaces.outgoing(workspace, nullcontext()),
    ):
        pass
    assert os.path.lexists(workspace.path)
