"""Pushes the branch of an isolated workdir to the repository that it was cloned from. The caller
can inspect the new commits first. Never forces a push.

The git directory of the workdir belongs to its agent, so nothing is pushed from there. The
configuration in that directory could name a proxy or another address, which would receive the
password. Instead, new objects are copied through perdure's view (see `view`) into a repository of
perdure's own, under the workdir's lock. Nothing is copied if the workdir's objects directory
contains a link, or names another directory than the cache as an alternate: both could lead into
another repository. The caller inspects the copy and pushes it, while the agent may be running
again. `transport` gives the password to this one git call.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from msgspec import Struct

from perdure.errors import Diverged, GitFailed, UsageError
from perdure.host.git import Git, GitResult
from perdure.host.git.output import excluded, one_a_line
from perdure.model import Backend, Workspace
from perdure.workspace.identity import Places
from perdure.workspace.isolated import check_objects, open_cache
from perdure.workspace.locks import make_private, quote_alternate, write
from perdure.workspace.transport import RemoteSource
from perdure.workspace.view import WorkdirGit, open_through_view, repair_view

PLAIN = (
    ("core.commitGraph", "false"),
    ("core.multiPackIndex", "false"),
    ("pack.useBitmaps", "false"),
)
"""Settings that make git ignore cache files in the agent's objects directory. An agent could write
cache files that contradict the objects."""
_TIME_S = 1800.0


class Outgoing(Struct, frozen=True, kw_only=True):
    """A branch that is ready to be pushed."""

    branch: str
    commit: str
    tip: str
    """The commit that the branch has on the remote; empty where the remote has no such branch."""
    commits: int
    """Number of commits of the branch that the remote does not have."""
    have: tuple[str, ...]
    """Ids of the remote's commits and tags that also exist in the workdir's repository. A commit
    counts as new if none of these reaches it."""
    git: Git
    """Git on a repository of perdure's own that has all objects of the branch."""
    source: RemoteSource
    scratch: Path

    def raw_commits(self) -> bytes:
        """Return the new commits in git's raw format, with authors, times and messages. Untrusted
        bytes."""
        words = ("rev-list", "--format=raw", "--stdin")
        return self.git.run(
            *words, stdin=_since(self.commit, self.have), cap=1 << 28, timeout_s=_TIME_S
        ).stdout

    def names(self) -> bytes:
        """Return the names of the files and directories in the new commits, one on each line.
        Untrusted bytes."""
        words = ("rev-list", "--objects", "--stdin")
        said = self.git.run(
            *words, stdin=_since(self.commit, self.have), cap=1 << 30, timeout_s=_TIME_S
        ).stdout
        return b"\n".join(line.partition(b" ")[2] for line in said.split(b"\n"))

    def push(self) -> None:
        """Push `commit` to the branch. Raises Diverged if the push is not a fast-forward, and
        GitFailed."""
        options = (
            "--quiet",
            "--no-verify",
            "--no-signed",
            "--no-follow-tags",
            "--recurse-submodules=no",
            "--receive-pack=git-receive-pack",
        )
        try:
            self._run_on_remote(
                "push",
                *options,
                "--",
                self.source.address,
                f"{self.commit}:refs/heads/{self.branch}",
            )
        except GitFailed as error:
            if re.search(
                r"\[rejected\]|incorrect old value|failed to update ref|cannot lock ref",
                error.stderr,
            ):
                raise _diverged(self.branch) from error
            raise _refused(error) from error

    def default_branch(self) -> str:
        """Return the branch that the remote's HEAD names; empty if HEAD names no branch. Raises
        GitFailed."""
        said = self._run_on_remote(
            "ls-remote",
            "--symref",
            "--upload-pack=git-upload-pack",
            "--",
            self.source.address,
            "HEAD",
        ).text
        found = re.search(r"^ref: refs/heads/(\S+)\tHEAD$", said, re.MULTILINE)
        if found:
            return found[1]
        return ""

    def _run_on_remote(self, *words: str) -> GitResult:
        """Run one git command against the remote, and return its result."""
        return self.source.call(self.git, self.scratch, *words, timeout_s=_TIME_S)


@contextlib.contextmanager
def outgoing(
    places: Places,
    workspace: Workspace,
    source: RemoteSource,
    git: Git,
    ready: AbstractContextManager[None],
) -> Iterator[Outgoing]:
    """Yield the commits to push, compared with the remote's current state. `ready` is a context
    manager that holds the workdir's lock. It is entered while the workdir is read, and left before
    anything is pushed.

    Raises UsageError for a workdir without a repository of its own, Diverged, GitFailed where the
    remote does not answer, and any error of `ready`.
    """
    if workspace.backend is not Backend.ISOLATED:
        raise UsageError(
            f"{workspace.path} is not a repository of its own: its branch is already in "
            f"{workspace.repo}.",
            "Use the branch in that repository.",
        )
    with open_cache(places, source, git) as (cache, fault):
        if fault is not None:
            raise fault
        there = cache.refs("refs/remotes/origin", "refs/tags")
        objects = places.cache(source.id) / "objects"
    tip = there.get(f"refs/remotes/origin/{workspace.branch}", "")
    scratch = make_private(places.scratch)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="outgoing-") as made:
        directory = Path(made)
        with ready:
            check_objects(Path(workspace.path) / ".git/objects", objects)
            with _open_repaired_view(places, workspace, git) as workdir_git:
                commit = (
                    workdir_git.repository.commit(f"refs/heads/{workspace.branch}")
                    or workdir_git.head
                )
                have = _existing_here(workdir_git.inspector, list(dict.fromkeys(there.values())))
                if tip and (tip not in have or not _is_behind(workdir_git.inspector, tip, commit)):
                    _update_tracking_ref(workdir_git, workspace.branch, tip)
                    raise _diverged(workspace.branch)
                own = _copy_new_objects(workdir_git.inspector, directory, commit, have, objects)
        counted = own.run(
            "rev-list", "--count", "--stdin", stdin=_since(commit, have), timeout_s=_TIME_S
        )
        yield Outgoing(
            branch=workspace.branch,
            commit=commit,
            tip=tip,
            commits=int(counted.text),
            have=have,
            git=own,
            source=source,
            scratch=scratch,
        )


def _copy_new_objects(
    inspector: Git, directory: Path, commit: str, have: Sequence[str], cache: Path
) -> Git:
    """Return a new repository of perdure's own, in `directory`. It contains the new objects of
    `commit` and borrows all others from the cache."""
    form = "sha256" if len(commit) == 64 else "sha1"
    own = Git(
        cwd=directory,
        git_dir=directory,
        ceiling=inspector.ceiling,
        keep=(),
        environ=inspector.environ,
        memory=inspector.memory,
    )
    own.at(directory.parent).run(
        "init", "--quiet", "--bare", "--template=", f"--object-format={form}", "--", str(directory)
    )
    (directory / "objects/pack").mkdir(exist_ok=True)
    (directory / "objects/info").mkdir(exist_ok=True)
    write(directory / "objects/info/alternates", f"{quote_alternate(cache)}\n")
    words = (
        "pack-objects",
        "-q",
        "--revs",
        "--window=0",
        "--compression=1",
        "--non-empty",
        str(directory / "objects/pack/pack"),
    )
    inspector.run(*words, stdin=_since(commit, have), settings=PLAIN, timeout_s=_TIME_S)
    return own


@contextlib.contextmanager
def _open_repaired_view(places: Places, workspace: Workspace, git: Git) -> Iterator[WorkdirGit]:
    repair_view(places, workspace, git)
    with open_through_view(places, workspace, git) as workdir_git:
        assert workdir_git is not None
        yield workdir_git


def _since(commit: str, have: Sequence[str]) -> bytes:
    return one_a_line([commit, *excluded(have)]).encode()


def _existing_here(git: Git, oids: Sequence[str]) -> tuple[str, ...]:
    """Return those of the ids in `oids` whose objects exist in the repository of `git`. Some may be
    missing, because an agent can drop objects that it borrowed."""
    said = git.run(
        "cat-file", "--batch-check", stdin=one_a_line(oids).encode(), cap=1 << 28
    ).stdout.decode()
    found = []
    for line in said.splitlines():
        if not line.endswith(" missing"):
            found.append(line.split(" ")[0])
    return tuple(found)


def _is_behind(git: Git, tip: str, commit: str) -> bool:
    return (
        git.run("merge-base", "--is-ancestor", tip, commit, good=(0, 1), settings=PLAIN).code == 0
    )


def _update_tracking_ref(workdir_git: WorkdirGit, branch: str, tip: str) -> None:
    """Update the remote-tracking ref in the agent's repository to `tip`. The agent can then merge
    the remote's commits without a network."""
    with contextlib.suppress(GitFailed):
        workdir_git.repository.set_ref(f"refs/remotes/origin/{branch}", tip, "perdure: it moved")


def _diverged(branch: str) -> Diverged:
    return Diverged(
        f"The branch {branch} has commits on the forge that this run does not have; perdure never "
        f"force-pushes.",
        f'perdure update NAME "Merge origin/{branch} into your branch, then continue."',
    )


def _refused(error: GitFailed) -> GitFailed:
    """Return an error that contains the remote's own message, which is missing in the last line
    that git prints. If the remote sent no message, return the given error."""
    said = []
    for line in error.stderr.split("\n"):
        if line.startswith("remote:"):
            said.append(line.removeprefix("remote:").strip())
    why = re.search(r"\[remote rejected\][^\n]*\(([^\n]*)\)", error.stderr)
    words = "; ".join(filter(None, [why[1] if why else "", *said]))[:500]
    if words:
        return GitFailed(
            f"The push was refused: {words}.",
            argv=error.argv,
            code=error.code,
            stderr=error.stderr,
            hint=error.hint,
        )
    return error
