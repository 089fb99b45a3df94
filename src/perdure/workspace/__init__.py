"""Working directories of tasks. Each task has its own workdir, always at the same path.

The caller calls `plan` once, when the run is accepted. Each attempt then calls `lock` and
`prepare`, and `state` as often as needed. The path depends only on (repository, agent, branch) or
on (service, task). `prepare` makes the workdir, or reuses it unchanged. If a kill left the workdir
half-made, `prepare` finishes it or makes it again. Uncommitted work is kept: anything in the way is
moved to the trash or saved under a rescue ref, never deleted.

`layout` plans and chooses paths, `identity` checks names, `locks` has locks and atomic writes,
`worktree` and `isolated` make workdirs, `spares` prepares checkouts for them, `transport` runs the
git calls that need a network, `view` inspects and rescues, `changes` compares, `removal` moves
workdirs to the trash, `trash` manages the trash, `contents` lists everything below the root. In the
package `merge`, `apply` merges changes into a checkout, `join` commits and merges for plans, and
`push` pushes. The package `task_files` puts a person's files into a workdir.

The package `snapshot` makes checkpoints. `checkpoint_repository` is the git directory that stores
them, `trees` reads and writes git trees in it, and `refs` names each checkpoint. `capture` saves a
workdir: `scan` reads its files, `index` its git index, and `cache` keeps the state of unchanged
files. `restore` and `files` restore a workdir, `pack` exports and imports checkpoints, and `work`
reports the changes of an attempt. docs/reference/trust.md says what each backend protects from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field
from msgspec.structs import replace

from perdure.errors import NotFound, PerdureError, WorkspaceError
from perdure.host.git import Git, on_disk
from perdure.host.git.environment import OWN, Ssh
from perdure.host.git.servers import ANYWHERE, Hosts
from perdure.model import Backend, TaskSpec, Workspace
from perdure.workspace import layout, locks, worktree
from perdure.workspace.identity import Places, check_name, identify, is_remote, parse_remote
from perdure.workspace.snapshot import checkpoint_repository
from perdure.workspace.snapshot.checkpoints import WorkdirCheckpoints

if TYPE_CHECKING:
    from perdure.workspace.contents import RootItem
    from perdure.workspace.merge.apply import Applied
    from perdure.workspace.merge.join import MergedCommit, NewBaseCommits
    from perdure.workspace.merge.push import Outgoing
    from perdure.workspace.removal import RemovalCheck
    from perdure.workspace.snapshot.checkpoint_repository import CheckpointRepository
    from perdure.workspace.snapshot.pack import Packed, PackedFacts
    from perdure.workspace.snapshot.restore import RestoredWorkdir
    from perdure.workspace.transport import Credentials, RemoteSource
    from perdure.workspace.view import WorkdirState
    from perdure.workspace.work import AttemptBaseline

__all__ = [
    "Applied",
    "AttemptBaseline",
    "Credentials",
    "MergedCommit",
    "NewBaseCommits",
    "Outgoing",
    "Packed",
    "PackedFacts",
    "Prepared",
    "RemovalCheck",
    "RestoredWorkdir",
    "RootItem",
    "WorkdirState",
    "Workspaces",
]


_SUBMODULES = {
    "AttemptBaseline": "work",
    "NewBaseCommits": "merge.join",
    "Applied": "merge.apply",
    "Credentials": "transport",
    "MergedCommit": "merge.join",
    "Outgoing": "merge.push",
    "Packed": "snapshot.pack",
    "PackedFacts": "snapshot.pack",
    "RemovalCheck": "removal",
    "RestoredWorkdir": "snapshot.restore",
    "RootItem": "contents",
    "WorkdirState": "view",
}
"""Submodule that defines each of these public names. `__getattr__` imports the submodule on first
use, because starting an agent needs none of these names."""

PATCH_BYTES = 1 << 30
"""Maximum size of a patch, in bytes."""


def __getattr__(name: str) -> Any:
    if name not in _SUBMODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_SUBMODULES[name]}"), name)


class Prepared(Struct, frozen=True, kw_only=True):
    """A workdir that is ready. `head` is empty without git. `env` holds the agent's environment
    variables for the author and committer of its commits."""

    created: bool
    head: str = ""
    notes: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)


class Workspaces:
    """All workdirs below one root. One root is one trust domain: its caches are shared by all its
    workspaces.

    `transports`: the URL schemes that may be fetched from. `credentials` is called before each
    https request; `helpers` is called if `credentials` returns nothing and the server wants a
    login. `ca_file`: the CA certificates for a self-hosted forge. `ssh`: the keys and known hosts
    for ssh. `hosts`: the servers that may be fetched from. `relay` returns the address on this
    machine through which all repositories are fetched, or an empty string. `most_files`: the
    maximum number of files in a directory without git; a directory with more files gets no
    checkpoints. `end_waiting_agents` ends agents that only wait in a workdir for their next turn;
    it is called with the workdir's lock held, and may raise Conflict. `checkpoint_ignored`: the
    git-ignored files that checkpoints include (`small`, `all`, `none`). `spares`: the number of
    spare checkouts that `make_spares` makes for each repository."""

    def __init__(
        self,
        root: Path,
        *,
        environ: Mapping[str, str] | None = None,
        transports: frozenset[str] = frozenset({"https", "ssh"}),
        credentials: Credentials | None = None,
        helpers: Credentials | None = None,
        ca_file: Path | None = None,
        ssh: Ssh = OWN,
        hosts: Hosts = ANYWHERE,
        relay: Callable[[], str] = str,
        most_files: int = checkpoint_repository.MOST_FILES,
        end_waiting_agents: Callable[[Workspace], None] = lambda _: None,
        checkpoint_ignored: str = "small",
        spares: int = 0,
    ) -> None:
        self._places = Places(root.resolve())
        self._environ = os.environ if environ is None else environ
        self._transports = transports
        self._credentials = credentials
        self._helpers = helpers
        self._ca_file = ca_file
        self._ssh = ssh
        self._hosts = hosts
        self._relay = relay
        self._most_files = most_files
        self._end_waiting_agents = end_waiting_agents
        self._spares = spares
        self._newest_of: dict[tuple[Backend, str], Workspace] = {}
        self.checkpoints = WorkdirCheckpoints(
            self._places, self._git_at_root, self._open_checkpoint_repository, checkpoint_ignored
        )

    def add_credentials(self, credentials: Credentials) -> None:
        """Add credentials for URLs for which the credentials that were added earlier return
        nothing."""
        before = self._credentials
        self._credentials = lambda url: (
            (before(url) if before is not None else None) or credentials(url)
        )

    def plan(self, spec: TaskSpec, run_name: str, cwd: Path) -> Workspace:
        """Return the workspace of this task. Changes nothing.

        `cwd` is the user's current directory. Relative paths start there. If the task names no
        repository, the one that contains `cwd` is used. Raises UsageError for invalid names and
        combinations, NotFound for a missing repository or base, WorkspaceError for a repository
        without a commit, and for a branch that is checked out elsewhere.
        """
        return layout.plan(
            self._places,
            spec,
            run_name,
            cwd,
            transports=self._transports,
            hosts=self._hosts,
            environ=self._environ,
        )

    def reach(self, repo: str) -> None:
        """Ask the server whether the repository at a URL exists. Does nothing if perdure has
        already fetched from that URL, because a workdir can then begin without the server. Raises
        NotFound, WorkspaceError, UsageError."""
        source = self._source(repo)
        if not self._places.cache(source.id).is_dir():
            self._ready()
            source.reach(self._git(), locks.make_private(self._places.scratch))

    def plan_here(self, path: Path) -> Workspace:
        """Return the workspace of an existing directory that belongs to the user. Changes nothing.
        Raises NotFound."""
        return layout.plan_here(path)

    def plan_new(self, path: Path) -> Workspace:
        """Return the workspace of a user's directory that does not exist yet. Changes nothing."""
        return layout.plan_new(path)

    def existing_branches(self, workspace: Workspace, branches: Iterable[str]) -> list[str]:
        """Return those of `branches` that already exist in the repository. For an isolated workdir,
        only fetched branches are known. Changes nothing."""
        if workspace.backend is Backend.WORKTREE:
            common, below = worktree.common_directory(workspace.repo), "refs/heads"
        elif workspace.backend is Backend.ISOLATED:
            common, below = (
                self._places.cache(self._source(workspace.repo).id),
                "refs/remotes/origin",
            )
        else:
            return []
        if common.is_dir():
            there = Git(cwd=common, git_dir=common, environ=self._environ).refs(f"{below}/")
        else:
            there = {}
        return [branch for branch in branches if f"{below}/{branch}" in there]

    def resolve(self, workspace: Workspace) -> str:
        """Return the base commit of a workdir. For an isolated workdir, fetch the repository, and
        return the commit at which it would begin now. Raises NotFound, GitFailed."""
        from perdure.workspace.isolated import open_cache, resolve_base

        if workspace.backend is not Backend.ISOLATED:
            return workspace.base
        self._ready()
        source = self._source(workspace.repo)
        with open_cache(self._places, source, self._git()) as (cache, fault):
            return resolve_base(self._places, source, cache, workspace.base, fault)

    def lock(
        self,
        workspace: Workspace,
        holder: str = "",
        *,
        keep_waiting_agents: bool = False,
        brief: bool = False,
    ) -> int:
        """Take the exclusive lock on a workspace and return its file descriptor (close-on-exec).
        The caller passes the descriptor to the process that keeps the lock.

        `holder` names the lock's owner in the error that the next caller gets. `brief` marks a lock
        that is held only for a moment. Agents that wait in the workdir for their next turn are
        ended, unless `keep_waiting_agents` is set. Raises InUse while the lock is held,
        WorkspaceError where the workdir's name belongs to another task."""
        self._ready()
        layout.claim(self._places, workspace)
        fd = locks.lock_workspace(self._places, workspace, holder, brief=brief)
        try:
            if not keep_waiting_agents:
                self._end_waiting_agents(workspace)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def conflict(self, workspace: Workspace) -> str:
        """Return the reason why `lock` will never accept this workspace. Empty if there is no such
        reason."""
        return layout.conflict(self._places, workspace)

    def prepare(self, workspace: Workspace, agent: str) -> Prepared:
        """Make, recover or reuse the workdir. Idempotent; the caller holds its lock. Raises
        WorkspaceError and its subclasses."""
        check_name("agent", agent)
        path, git = Path(workspace.path), self._git()
        created, notes, head = False, list[str](), ""
        self._ready()
        match workspace.backend:
            case Backend.TASK:
                created = self._make_task(path)
            case Backend.HERE:
                if not path.is_dir():
                    raise NotFound(
                        f"The directory {path} does not exist.",
                        "Create it, or name another one with --here.",
                    )
            case Backend.WORKTREE:
                created, notes = worktree.prepare(self._places, workspace, git)
            case Backend.ISOLATED:
                from perdure.workspace import isolated

                created, notes = isolated.prepare(
                    self._places, workspace, self._source(workspace.repo), git
                )
        if created and workspace.repo and self._spares:
            self._newest_of[workspace.backend, workspace.repo] = workspace
        if workspace.repo:
            notes += [] if created else locks.clear_locks(path, *_locks(workspace))
            inside = git.at(path, path / ".git", path)
            if created:
                from perdure.workspace.snapshot.absent import absent

                notes += absent(path, inside)
            head, branch = inside.head()
            if branch != workspace.branch:
                notes.append(
                    f"The workdir is on {branch or 'a detached HEAD'}, not on {workspace.branch}."
                )
        return Prepared(
            created=created, head=head, notes=tuple(notes), env=self._identity(workspace, agent)
        )

    def make_spares(self) -> int:
        """Make spare checkouts of the repositories for which this object has made a workdir since
        the last call. Return how many were made. Each one takes as long as a first checkout. Raises
        WorkspaceError and OSError."""
        made = 0
        while self._newest_of:
            from perdure.workspace import spares

            _, workspace = self._newest_of.popitem()
            if workspace.backend is Backend.WORKTREE:
                repository = identify("repository", workspace.repo)
                common = worktree.common_directory(workspace.repo)
                if not on_disk.has_usual_worktrees(common):
                    continue
            else:
                repository = self._source(workspace.repo).id
                common = self._places.cache(repository)
            commit = self._pinned(workspace)
            while spares.make(self._places, repository, self._git(), common, commit, self._spares):
                made += 1
        return made

    def state(self, workspace: Workspace) -> WorkdirState:
        """Return the workdir's current state. Raises WorkspaceError where the state cannot be
        read."""
        from perdure.workspace import view

        self._ready()
        return view.state(self._places, workspace, self._git())

    def head(self, workspace: Workspace) -> str:
        """Return the commit that the workdir's HEAD names; empty before the first commit or without
        git. Raises WorkspaceError where HEAD cannot be read."""
        if workspace.backend in (Backend.WORKTREE, Backend.ISOLATED):
            known = on_disk.head(Path(workspace.path) / ".git")
            if known is not None:
                return known[0]
        return self.state(workspace).head

    def rescue(self, workspace: Workspace, why: str) -> str:
        """Save all tracked and untracked files as a commit under a rescue ref, and return the ref's
        name. Changes nothing else."""
        from perdure.workspace import view

        self._ready()
        return view.rescue(self._places, workspace, why, self._git())

    def sources(self, workspace: Workspace) -> list[str]:
        """Return the names of the project's own files: tracked files, and new ones that are not
        ignored. The names are untrusted text. Raises WorkspaceError."""
        from perdure.workspace import contents

        self._ready()
        return contents.sources(self._places, workspace, self._git())

    def began(self, workspace: Workspace) -> str:
        """Return the commit that the workdir began at, as an id or a ref name; empty if none was
        recorded."""
        self._ready()
        return self._pinned(workspace)

    def diff(
        self,
        workspace: Workspace,
        *,
        stat: int = 0,
        binary: bool = False,
        most: int = PATCH_BYTES,
    ) -> bytes:
        """Return git's patch of all changes since the workdir began, untracked files included.
        These are untrusted bytes, to be cleaned before they are shown.

        `stat`: return the summary instead, this many columns wide. `binary`: return a patch that
        git apply accepts for binary files too. Raises UsageError where the patch has more than
        `most` bytes.
        """
        from perdure.workspace import changes

        self._ready()
        return changes.diff(
            self._places,
            workspace,
            self._git(),
            self._pinned(workspace),
            stat=stat,
            binary=binary,
            most=most,
        )

    def apply(self, workspace: Workspace, to: Path, agent: str, text: str = "") -> Applied:
        """Apply the workdir's changes to the checkout at `to`: all of them, or none. If `text` is
        not empty, also commit the changes in the checkout, with this message and the agent as the
        author.

        Raises NotFound or UsageError for an unsuitable target, Conflict if another process uses it,
        WorkspaceError.
        """
        from perdure.workspace.merge import apply
        from perdure.workspace.merge.apply import Message

        here = layout.plan_here(to)
        self._ready()
        if text:
            message = Message(text=text, env=self._identity(here, agent))
        else:
            message = None
        fd = self.lock(here, "perdure apply")
        try:
            return apply.apply(
                self._places, workspace, self._git(), self._pinned(workspace), here, message
            )
        finally:
            os.close(fd)

    def commit(
        self, workspace: Workspace, agent: str, text: str, who: Mapping[str, str] | None = None
    ) -> str:
        """Commit everything that is not committed, except ignored files, and return HEAD. The
        author is the agent, unless `who` has environment variables for another one (GIT_AUTHOR_NAME
        and similar). The caller holds the workdir's lock.

        Raises UsageError without git, Conflict while a merge or rebase is in progress,
        WorkspaceError.
        """
        from perdure.workspace.merge import join
        from perdure.workspace.merge.apply import Message

        self._ready()
        message = Message(text=text, env=self._identity(workspace, agent) | dict(who or {}))
        return join.commit(self._places, workspace, self._git(), message)

    def changed(self, workspace: Workspace, began: str, head: str, most: int) -> tuple[str, ...]:
        """Return the names of at most `most` files that differ between two commits of the workdir.
        The names are untrusted text. Raises GitFailed."""
        from perdure.workspace.merge import join

        self._ready()
        return join.changed(self._places, workspace, self._git(), began, head, most)

    def merge(self, workspace: Workspace, agent: str, commit: str, text: str) -> MergedCommit:
        """Merge a commit of the same repository into the workdir's HEAD, as the agent. Conflicts
        stay marked in the files. The caller holds the workdir's lock. Raises the errors of
        `commit`, and WorkspaceError where a file cannot be put in place."""
        from perdure.workspace.merge import join
        from perdure.workspace.merge.apply import Message

        self._ready()
        message = Message(text=text, env=self._identity(workspace, agent))
        return join.merge(self._places, workspace, self._git(), commit, message)

    def outgoing(
        self,
        workspace: Workspace,
        ready: AbstractContextManager[None],
        credentials: Credentials | None = None,
    ) -> AbstractContextManager[Outgoing]:
        """Yield the workdir's branch, ready to be pushed to the repository that it was cloned from.

        `ready` is a context manager that holds the workdir's lock. It is left before the push, so
        the push does not hold the lock. `credentials` replace those used for fetching. Raises
        UsageError for a workdir without a repository of its own, Diverged, WorkspaceError, and any
        error of `ready`.
        """
        from perdure.workspace.merge.push import outgoing

        self._ready()
        source = self._source(workspace.repo)
        return outgoing(
            self._places,
            workspace,
            replace(source, credentials=credentials or source.credentials),
            self._git(),
            ready,
        )

    def try_checkpoint(self, cwd: Path) -> str:
        """Try the one step of a checkpoint that writes into the repository at `cwd`. Return the
        path of that repository, or an empty string if there is none.

        Leaves nothing behind. The root need not exist yet. Raises GitFailed or OSError where no
        checkpoint could be taken.
        """
        import tempfile

        repository = layout.find_repository(cwd, self._environ)
        if repository is None:
            return ""
        above = self._places.root
        while not above.is_dir():
            above = above.parent
        with tempfile.TemporaryDirectory(dir=above, prefix=".perdure-doctor-") as scratch:
            checkpoint_repository.check_can_store(
                Path(scratch), repository, Git(cwd=above, environ=self._environ)
            )
        return str(repository)

    def _open_checkpoint_repository(
        self, workspace: Workspace
    ) -> AbstractContextManager[CheckpointRepository]:
        self._ready()
        if workspace.backend is Backend.ISOLATED:
            cache = self._places.cache(self._source(workspace.repo).id)
        else:
            cache = None
        if cache is not None:
            pinned = self._pinned(workspace)
        else:
            pinned = workspace.base
        return checkpoint_repository.open_checkpoint_repository(
            self._places,
            workspace,
            self._git(),
            cache=cache,
            pinned=pinned,
            most_files=self._most_files,
        )

    def _git_at_root(self) -> Git:
        self._ready()
        return self._git()

    def unsaved(self, workspace: Workspace) -> list[str]:
        """Return a sentence for each part of the workdir that would be lost if it were removed.
        Empty if everything is proven to be saved elsewhere."""
        from perdure.workspace import removal

        self._ready()
        return removal.unsaved(
            self._places, workspace, self._git(), lambda: self._upstream_repository(workspace)
        )

    def check_removal(
        self, workspace: Workspace, checkpoint: int = 0, commit: str = "", *, ignored: str = ""
    ) -> RemovalCheck:
        """Find the content that would be lost if the workdir were removed. `checkpoint` and
        `commit` identify a kept checkpoint, whose content counts as saved. `ignored`: which ignored
        files checkpoints include (see `WorkdirCheckpoints.save`). Never raises."""
        from perdure.workspace import removal

        self._ready()
        git = self._git()
        alone = removal.check_removal(
            self._places, workspace, git, lambda: self._upstream_repository(workspace)
        )
        if alone.saved or not commit:
            return alone
        try:
            held = self.checkpoints.coverage(workspace, checkpoint, commit, ignored=ignored)
        except (PerdureError, OSError):
            return alone
        if held is None:
            return alone
        found = removal.check_removal(
            self._places, workspace, git, lambda: self._upstream_repository(workspace), held
        )
        return replace(found, checkpoint=checkpoint)

    def restore_from_trash(self, workspace: Workspace, run: str) -> bool:
        """Move the workdir back from the trash, if this run's clean-up moved it there. Return
        whether it was moved back. If something else is at the original path, the workdir stays in
        the trash. The caller holds the workdir's lock. Raises WorkspaceError."""
        from perdure.workspace import trash

        self._ready()
        if os.path.lexists(workspace.path):
            return False
        for entry in reversed(trash.entries(self.trash)):
            if trash.is_cleaned(entry, workspace.path, run):
                trash.restore(entry)
                return True
        return False

    def ahead(self, workspace: Workspace, base: str, since: str = "") -> NewBaseCommits | None:
        """Return the new commits on the branch that the work is based on, counted from the commit
        `since` (default: from the beginning of the work). None if there are no new commits.

        Raises NotFound where the branch is gone, GitFailed where it cannot be fetched.
        """
        from perdure.workspace.merge.join import ahead, is_followed

        if not is_followed(workspace):
            return None
        self._ready()
        if workspace.backend is Backend.ISOLATED:
            source = self._source(workspace.repo)
        else:
            source = None
        return ahead(self._places, workspace, source, self._git(), base, since)

    def keep_remote_ref(self, workspace: Workspace, ref: str) -> None:
        """Fetch a ref from the remote into the clone cache and keep it there, so that its commits
        count as saved. Does nothing for a local repository. Raises NotFound where the remote has no
        such ref, and GitFailed."""
        from perdure.workspace.isolated import fetch_ref

        if workspace.backend is Backend.ISOLATED and is_remote(workspace.repo):
            self._ready()
            fetch_ref(
                self._places,
                self._source(workspace.repo),
                self._git(),
                f"+{ref}:refs/perdure/rescue/{workspace.id}/{ref}",
            )

    def trash_workdir(self, workspace: Workspace, about: Mapping[str, Any]) -> Path | None:
        """Move the workdir into the trash and return its new path; None if there is no workdir. The
        caller holds the workdir's lock. `about` is stored with the entry: `why`, `verb`, `runs`,
        and `unsaved` (content that exists nowhere else). If `about` has no `unsaved`, the entry is
        never purged automatically."""
        from perdure.workspace import removal

        self._ready()
        return removal.trash_workdir(self._places, workspace, self._git(), about)

    def discard_new(self, workspace: Workspace, why: str) -> Path | None:
        """Move a directory that perdure has just made (see `plan_new`) into the trash, because the
        import into it failed. Return its new path; None if there is no directory."""
        from perdure.workspace import removal

        self._ready()
        about = {"why": why, "verb": "import", "unsaved": []}
        if workspace.backend is not Backend.HERE:
            return removal.trash_workdir(self._places, workspace, self._git(), about)
        return removal.move_workdir(self._places, workspace, Path(workspace.path), about, None)

    def flush(self, workspace: Workspace) -> None:
        """Make everything that was written in the workdir durable. If an outcome is reported after
        that, the files survive a power cut as the outcome does. Never raises."""
        with suppress(OSError):
            if workspace.backend is Backend.WORKTREE:
                common = [worktree.common_directory(workspace.repo)]
            else:
                common = []
            locks.flush_each(Path(workspace.path), *common)

    @property
    def root(self) -> Path:
        return self._places.root

    @property
    def trash(self) -> Path:
        """Return the directory of the trash, which has one subdirectory for each entry (see
        `trash`)."""
        return self._places.trash("")

    def contents(self) -> list[RootItem]:
        """Return everything below the root, recognized or not. Raises WorkspaceError where a
        directory cannot be listed."""
        from perdure.workspace import contents

        return list(contents.contents(self._places))

    def root_volume_id(self, fresh: str) -> str:
        """Return the id of the root's volume, which is stored in a file. If there is no such file,
        store `fresh` as the id."""
        from perdure.workspace import contents

        self._ready()
        return contents.root_volume_id(self._places, fresh)

    def move_to_trash(self, thing: RootItem, about: Mapping[str, Any]) -> Path:
        """Move an item of `contents` into the trash, and return its new path. Workdirs are
        excluded: see `trash_workdir`. Raises Conflict while the item is in use, WorkspaceError."""
        from perdure.workspace import trash

        names = {
            "view": f"{thing.id}.view",
            "shelf": f"{thing.id}.shelf",
            "cache": thing.id,
            "scratch": f"{thing.id}.making" if thing.id else "",
        }
        with locks.hold_lock(self._places.lock(names.get(thing.kind) or "scratch"), timeout_s=0.5):
            return trash.move_to_trash(
                self.trash,
                thing.id or thing.kind,
                [(thing.kind, thing.path)],
                {"kind": thing.kind, **about},
            )

    def _pinned(self, workspace: Workspace) -> str:
        """Return the commit that the workdir began at; empty for the backends `here` and `task`."""
        if workspace.backend is Backend.ISOLATED:
            cache = self._places.cache(self._source(workspace.repo).id)
            return (
                self._git().at(self._places.root, cache).commit(f"refs/perdure/pin/{workspace.id}")
            )
        return workspace.base

    def _upstream_repository(self, workspace: Workspace) -> Git:
        """Return git for the repository in which an isolated workdir's commits count as saved. For
        a local repository, this is the repository itself. For a remote repository it is the cache,
        which is fetched first."""
        from perdure.workspace.isolated import open_cache

        git = self._git()
        if not is_remote(workspace.repo):
            common = worktree.common_directory(workspace.repo)
            if not (common / "HEAD").is_file():
                raise WorkspaceError(
                    f"The repository {workspace.repo} does not exist.",
                    "Restore it, or mount its volume.",
                )
            return git.at(common, common)
        with open_cache(self._places, self._source(workspace.repo), git) as (cache, trouble):
            if trouble is not None:
                raise trouble
            return git.at(cache.cwd, cache.git_dir)

    def _ready(self) -> None:
        locks.make_directory(self._places.root)
        locks.make_private(self._places.own)

    def _git(self) -> Git:
        return Git(
            cwd=self._places.root,
            ceiling=self._places.root,
            environ=self._environ,
            memory=self._places.git,
        )

    def _source(self, repo: str) -> RemoteSource:
        from perdure.workspace.transport import RemoteSource

        if is_remote(repo):
            remote = parse_remote(repo, self._transports)
            return RemoteSource(
                key=remote.key,
                url=remote.url,
                scheme=remote.scheme,
                credentials=self._credentials,
                helpers=self._helpers,
                ca_file=self._ca_file,
                hosts=self._hosts,
                ssh=self._ssh,
                relay=self._relay(),
            )
        return RemoteSource(key=repo, url=str(worktree.common_directory(repo)), scheme="file")

    def _make_task(self, path: Path) -> bool:
        """Make the directory of a service's task; return whether it is new. mkdir is atomic, so a
        kill leaves nothing half-made. Raises WorkspaceError for a symbolic link in the path,
        because it could lead out of the root."""
        created = not path.is_dir()
        for part in (path.parents[1], path.parent, path):
            locks.make_directory(part)
            if not locks.is_real_directory(part):
                raise WorkspaceError(
                    f"{part} is a link, not a directory.", "Move it away and try again."
                )
        return created

    def _identity(self, workspace: Workspace, agent: str) -> dict[str, str]:
        """Return the environment variables that name the author and the committer of commits. The
        author is the agent. The committer is the user, so that a person is accountable for each
        commit. If the user has no git identity, the agent is also the committer."""
        git = self._git()
        if workspace.backend is Backend.WORKTREE:
            git = git.at(Path(workspace.path), worktree.common_directory(workspace.repo))
        elif workspace.backend is Backend.HERE:
            git = git.at(Path(workspace.path))
        user = git.user()
        name, email = f"{agent} (perdure)", f"{agent}@perdure.invalid"
        own = user if {"user.name", "user.email"} <= user.keys() else {}
        return {
            "GIT_AUTHOR_NAME": name,
            "GIT_AUTHOR_EMAIL": email,
            "GIT_COMMITTER_NAME": own.get("user.name", name),
            "GIT_COMMITTER_EMAIL": own.get("user.email", email),
        }


def _locks(workspace: Workspace) -> list[Path]:
    """Return the paths of git lock files that only this workspace's agent creates. The files need
    not exist."""
    path = Path(workspace.path)
    admin = worktree.git_directory(path) or path / ".git"
    if workspace.backend is Backend.WORKTREE:
        common = worktree.common_directory(workspace.repo)
    else:
        common = admin
    return [
        admin / "index.lock",
        admin / "HEAD.lock",
        common / "refs/heads" / f"{workspace.branch}.lock",
    ]
