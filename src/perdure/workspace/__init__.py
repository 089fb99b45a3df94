"""Working directories: where a task's agent works, the same place every time, and nobody else's.

The attempt calls `plan` once, when the run is accepted, then for each attempt `lock`, `prepare`,
and `state` as often as it likes. The path is a function of (repository, agent, branch), or of
(service, task), and of nothing else. `prepare` makes the workdir, finishes or clears away what a
kill left half-made, or hands it back as it is: uncommitted work is kept, and what has to move is
moved to the trash or under a rescue ref, never deleted.

`layout` says where, `identity` names, `locks` locks and renames, `worktree` and `isolated` make,
`clone_cache` fetches, `askpass` gives one git call one secret, `view` looks and rescues, `changes`
compares, `apply` brings changes home, `join` commits and merges for plans, `push` pushes,
`removal` takes workdirs away, `trash` keeps them, `contents` lists what is there.

`checkpoints`: files of checkpoints lie on a `shelf`, named by the refs of `refs`, as `trees`:
`capture` saves them (`scan` reads files, `index` the index, `cache` remembers both),
`restore` and `files` put them back, `pack` takes them elsewhere, `work` tells what an
attempt changed. What each backend protects
from is in docs/reference/trust.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.errors import NotFound, PerdureError, WorkspaceError
from perdure.host.git import Git, on_disk
from perdure.host.git.servers import ANYWHERE, Hosts
from perdure.host.git.ssh import OWN, Ssh
from perdure.lateclass import dataclass
from perdure.model import Backend, TaskSpec, Workspace
from perdure.workspace import layout, locks, worktree
from perdure.workspace.identity import Places, check_name, is_remote, parse_remote
from perdure.workspace.snapshot import shelf as shelves
from perdure.workspace.snapshot.checkpoints import WorkdirCheckpoints

if TYPE_CHECKING:
    from perdure.workspace.askpass import Credentials
    from perdure.workspace.contents import Thing
    from perdure.workspace.merge.ahead import Ahead
    from perdure.workspace.merge.apply import Applied
    from perdure.workspace.merge.join import Joined
    from perdure.workspace.merge.push import Outgoing
    from perdure.workspace.removal import Proof
    from perdure.workspace.snapshot.pack import Packed, PackedFacts
    from perdure.workspace.snapshot.restore import RestoredWorkdir
    from perdure.workspace.snapshot.shelf import Shelf
    from perdure.workspace.transport import RemoteSource
    from perdure.workspace.view import WorkdirState
    from perdure.workspace.work import Against

__all__ = [
    "Against",
    "Ahead",
    "Applied",
    "Credentials",
    "Joined",
    "Outgoing",
    "Packed",
    "PackedFacts",
    "Prepared",
    "Proof",
    "RestoredWorkdir",
    "Thing",
    "WorkdirState",
    "Workspaces",
]


_ROOMS = {
    "Against": "work",
    "Ahead": "merge.ahead",
    "Applied": "merge.apply",
    "Credentials": "askpass",
    "Joined": "merge.join",
    "Outgoing": "merge.push",
    "Packed": "snapshot.pack",
    "PackedFacts": "snapshot.pack",
    "Proof": "removal",
    "RestoredWorkdir": "snapshot.restore",
    "Thing": "contents",
    "WorkdirState": "view",
}
"""Where the nouns are whose rooms no start of an agent needs."""

PATCH_BYTES = 1 << 30
"""Largest patch that is read, in bytes."""


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A workdir that is ready. `head` is empty without git; `env` is for the agent: who its commits
    are by."""

    created: bool
    head: str = ""
    notes: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)


class Workspaces:
    """All workdirs below one root. One root is one trust domain: its caches are shared by all its
    workspaces.

    `transports`: the URL schemes that may be fetched from. `credentials` is asked for each call by
    https, `helpers` where it has no answer and the server wants one. `ca_file`: the certificates
    that a forge of one's own is checked against; `ssh`: the keys and known hosts of calls by ssh;
    `hosts`: which servers may be fetched from. `most_files`: a directory without git that holds
    more is not saved. `empty` ends what only waits in a workdir; it is called with the lock held,
    and may raise Conflict.
    """

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
        most_files: int = shelves.MOST_FILES,
        empty: Callable[[Workspace], None] = lambda _: None,
    ) -> None:
        self._places = Places(root.resolve())
        self._environ = os.environ if environ is None else environ
        self._transports = transports
        self._credentials = credentials
        self._helpers = helpers
        self._ca_file = ca_file
        self._ssh = ssh
        self._hosts = hosts
        self._most_files = most_files
        self._empty = empty
        self.checkpoints = WorkdirCheckpoints(self._places, self._git_at_root, self._shelf)

    def ask_also(self, credentials: Credentials) -> None:
        """Who is asked for a fetch where the others have nothing to say."""
        before = self._credentials
        self._credentials = lambda url: (
            (before(url) if before is not None else None) or credentials(url)
        )

    def plan(self, spec: TaskSpec, run_name: str, cwd: Path) -> Workspace:
        """Where this task works. Looks, and changes nothing.

        `cwd` is where the user stands: relative paths start there, and its repository is meant
        where none is named. Raises UsageError for names and combinations that cannot be meant,
        NotFound for a missing repository or base, WorkspaceError for a repository without a commit
        or a branch that is checked out elsewhere.
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
        """Ask the server of a repository by URL whether it is there, unless perdure has fetched
        from it before: then a workdir can begin without it. Raises NotFound, WorkspaceError,
        UsageError."""
        source = self._source(repo)
        if not self._places.cache(source.id).is_dir():
            self._ready()
            source.reach(self._git(), locks.make_private(self._places.scratch))

    def plan_here(self, path: Path) -> Workspace:
        """A directory of the user's own, as it is. Raises NotFound. Looks, and changes nothing."""
        return layout.plan_here(path)

    def plan_new(self, path: Path) -> Workspace:
        """A directory of the user's own that is yet to be made. Looks, and changes nothing."""
        return layout.plan_new(path)

    def taken(self, workspace: Workspace, branches: Iterable[str]) -> list[str]:
        """Which of these branches the repository has already; of one that is elsewhere, as far as
        it was fetched. Looks only."""
        if workspace.backend is Backend.WORKTREE:
            common, below = worktree.common_directory(workspace.repo), "refs/heads"
        elif workspace.backend is Backend.ISOLATED:
            common, below = (
                self._places.cache(self._source(workspace.repo).id),
                "refs/remotes/origin",
            )
        else:
            return []
        there = (
            Git(cwd=common, git_dir=common, environ=self._environ).refs(f"{below}/")
            if common.is_dir()
            else {}
        )
        return [branch for branch in branches if f"{below}/{branch}" in there]

    def resolve(self, workspace: Workspace) -> str:
        """Return the commit at which the workdir begins, or would begin now. Fetches for an
        isolated one. Raises NotFound, GitFailed."""
        from perdure.workspace.clone_cache import find, opened

        if workspace.backend is not Backend.ISOLATED:
            return workspace.base
        self._ready()
        source = self._source(workspace.repo)
        with opened(self._places, source, self._git()) as (cache, fault):
            return find(self._places, source, cache, workspace.base, fault)

    def lock(
        self, workspace: Workspace, holder: str = "", *, at_work: bool = False, brief: bool = False
    ) -> int:
        """The exclusive lock on a workspace: a descriptor (close-on-exec) that is to be passed on
        to whoever keeps it.

        `holder` is how the next one is told who has it, `brief` that it is for a moment only. What
        only waits in the workdir is ended, unless `at_work` says that the caller sees to that.
        Raises InUse while somebody has it.
        """
        self._ready()
        fd = locks.take(self._places, workspace, holder, brief=brief)
        try:
            if not at_work:
                self._empty(workspace)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def prepare(self, workspace: Workspace, agent: str) -> Prepared:
        """Makes, recovers or reuses the workdir. Idempotent; the caller holds its lock. Raises
        WorkspaceError and its kin."""
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
                        f"The directory {path} is not there.",
                        "Make it, or name another one with --here.",
                    )
            case Backend.WORKTREE:
                created, notes = worktree.prepare(self._places, workspace, git)
            case Backend.ISOLATED:
                from perdure.workspace import isolated

                created, notes = isolated.prepare(
                    self._places, workspace, self._source(workspace.repo), git
                )
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

    def state(self, workspace: Workspace) -> WorkdirState:
        """The workdir as it is now. Raises WorkspaceError where that cannot be known."""
        from perdure.workspace import view

        self._ready()
        return view.state(self._places, workspace, self._git())

    def head(self, workspace: Workspace) -> str:
        """Return the commit that the workdir stands at; empty without one. Raises WorkspaceError
        where that cannot be known."""
        if workspace.backend in (Backend.WORKTREE, Backend.ISOLATED):
            known = on_disk.head(Path(workspace.path) / ".git")
            if known is not None:
                return known[0]
        return self.state(workspace).head

    def rescue(self, workspace: Workspace, why: str) -> str:
        """Saves all tracked and untracked files under a ref, and returns its name. Changes nothing
        else."""
        from perdure.workspace import view

        self._ready()
        return view.rescue(self._places, workspace, why, self._git())

    def sources(self, workspace: Workspace) -> list[str]:
        """The names of the files that are the project's own: tracked, or new and not ignored.
        Hostile text. Raises WorkspaceError."""
        from perdure.workspace import sources

        self._ready()
        return sources.sources(self._places, workspace, self._git())

    def began(self, workspace: Workspace) -> str:
        """The commit, or the name of one, that the workdir began at here; empty where nobody
        said."""
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
        """What was changed since the workdir began, untracked files too, as git's patch: hostile
        bytes, to be cleaned before they are shown. `stat`: the summary instead, in so many columns.
        `binary`: a patch that git apply takes whole. Raises UsageError where that is more than
        `most` bytes."""
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
        """Brings the workdir's changes into the checkout at `to`, all or nothing; with a `text`
        also as a commit by the agent.

        Raises NotFound or UsageError where that cannot be meant, Conflict if somebody works there,
        WorkspaceError.
        """
        from perdure.workspace.merge import apply
        from perdure.workspace.merge.apply import Message

        here = layout.plan_here(to)
        self._ready()
        message = Message(text=text, env=self._identity(here, agent)) if text else None
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
        """Commits, by the agent (or `who`, as GIT_AUTHOR_NAME and the like), what is not committed,
        ignored files left out; returns HEAD. The caller holds its lock.

        Raises UsageError without git, Conflict while a merge or rebase is in progress,
        WorkspaceError."""
        from perdure.workspace.merge import join
        from perdure.workspace.merge.apply import Message

        self._ready()
        message = Message(text=text, env=self._identity(workspace, agent) | dict(who or {}))
        return join.commit(self._places, workspace, self._git(), message)

    def changed(self, workspace: Workspace, began: str, head: str, most: int) -> tuple[str, ...]:
        """The names of the first files that differ between two commits of the workdir: hostile
        text. Raises GitFailed."""
        from perdure.workspace.merge import join

        self._ready()
        return join.changed(self._places, workspace, self._git(), began, head, most)

    def merge(self, workspace: Workspace, agent: str, commit: str, text: str) -> Joined:
        """Merges a commit of the same repository into the workdir's HEAD, by the agent; conflicts
        stay marked in the files. The caller holds its lock. Raises as `commit`, and WorkspaceError
        where a file cannot be put in place."""
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
        """The workdir's branch as it is to be pushed to where it was cloned from. `ready` holds its
        lock, and is left before the push. `credentials`: whose, if not those for fetching. Raises
        UsageError for a workdir that is no repository of its own, Diverged, WorkspaceError, and
        what `ready` raises."""
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
        """Try the one step of a checkpoint that touches the repository at `cwd`; return that
        repository, empty where there is none.

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
            shelves.try_hand_over(Path(scratch), repository, Git(cwd=above, environ=self._environ))
        return str(repository)

    def _shelf(self, workspace: Workspace) -> AbstractContextManager[Shelf]:
        self._ready()
        cache = (
            self._places.cache(self._source(workspace.repo).id)
            if workspace.backend is Backend.ISOLATED
            else None
        )
        pinned = self._pinned(workspace) if cache is not None else workspace.base
        return shelves.shelf(
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
        """What would be lost with the workdir, a sentence each; empty if everything in it is proven
        to be saved elsewhere."""
        from perdure.workspace import removal

        self._ready()
        return removal.unsaved(
            self._places, workspace, self._git(), lambda: self._elsewhere(workspace)
        )

    def prove(
        self, workspace: Workspace, checkpoint: int = 0, commit: str = "", *, ignored: str = "small"
    ) -> Proof:
        """What becomes of the workdir's content if it goes. `checkpoint` and `commit`: the
        checkpoint that may count as its copy, which must be one that stays; `ignored`: which
        ignored files checkpoints take. Never raises."""
        from perdure.workspace import removal

        self._ready()
        git = self._git()
        alone = removal.prove(self._places, workspace, git, lambda: self._elsewhere(workspace))
        if alone.saved or not commit:
            return alone
        try:
            held = self.checkpoints.held(workspace, checkpoint, commit, ignored=ignored)
        except (PerdureError, OSError):
            return alone
        if held is None:
            return alone
        found = removal.prove(
            self._places, workspace, git, lambda: self._elsewhere(workspace), held
        )
        return replace(found, checkpoint=checkpoint)

    def take_back(self, workspace: Workspace, run: str) -> bool:
        """Moves the workdir back from the trash, if a clean-up of this run moved it there and
        nothing is in its place. The caller holds its lock. Raises WorkspaceError."""
        from perdure.workspace import trash

        self._ready()
        if os.path.lexists(workspace.path):
            return False
        entry = next(
            (
                each
                for each in reversed(trash.entries(self.trash))
                if trash.is_cleaned(each, workspace.path, run)
            ),
            None,
        )
        if entry is None:
            return False
        trash.restore(entry)
        return True

    def ahead(self, workspace: Workspace, base: str, since: str = "") -> Ahead | None:
        """How far the branch that the work began at has gone on since a commit (empty: since it
        began). None for not at all.

        Raises NotFound where that branch is gone, GitFailed where it cannot be fetched."""
        from perdure.workspace.merge.ahead import ahead, is_followed

        if not is_followed(workspace):
            return None
        self._ready()
        source = self._source(workspace.repo) if workspace.backend is Backend.ISOLATED else None
        return ahead(self._places, workspace, source, self._git(), base, since)

    def keep_of_remote(self, workspace: Workspace, ref: str) -> None:
        """Fetches what the remote has under a ref of its own, and keeps it: what it leads to counts
        as saved. Nothing happens where the repository is not elsewhere. Raises GitFailed, NotFound
        where the remote has no such ref."""
        from perdure.workspace.clone_cache import fetched

        if workspace.backend is Backend.ISOLATED and is_remote(workspace.repo):
            self._ready()
            fetched(
                self._places,
                self._source(workspace.repo),
                self._git(),
                f"+{ref}:refs/perdure/rescue/{workspace.id}/{ref}",
            )

    def put_away(self, workspace: Workspace, about: Mapping[str, Any]) -> Path | None:
        """Moves the workdir into the trash, and returns where; None if there is none. The caller
        holds its lock.

        `about` is kept with it: `why`, `verb`, `runs`, and `unsaved` (what is nowhere else),
        without which it is never purged."""
        from perdure.workspace import removal

        self._ready()
        return removal.put_away(self._places, workspace, self._git(), about)

    def discard_new(self, workspace: Workspace, why: str) -> Path | None:
        """Moves a directory that perdure has just made (see `plan_new`) into the trash: what it was
        made for did not come to be."""
        from perdure.workspace import removal

        self._ready()
        about = {"why": why, "verb": "import", "unsaved": []}
        if workspace.backend is not Backend.HERE:
            return removal.put_away(self._places, workspace, self._git(), about)
        return removal.move(self._places, workspace, Path(workspace.path), about, None)

    def flush(self, workspace: Workspace) -> None:
        """Makes what was written in the workdir durable: an outcome that is told stands for files
        that are there. Never raises."""
        with suppress(OSError):
            common = (
                [worktree.common_directory(workspace.repo)]
                if workspace.backend is Backend.WORKTREE
                else []
            )
            locks.flush_each(Path(workspace.path), *common)

    @property
    def root(self) -> Path:
        return self._places.root

    @property
    def trash(self) -> Path:
        """Where what was taken away lies, an entry each: see `trash`."""
        return self._places.trash("")

    def contents(self) -> list[Thing]:
        """What lies below the root, recognised or not. Raises WorkspaceError where that cannot be
        listed."""
        from perdure.workspace import contents

        return list(contents.contents(self._places))

    def root_mark(self, fresh: str) -> str:
        """The mark of the root's volume; `fresh` becomes it where there is none."""
        from perdure.workspace import contents

        self._ready()
        return contents.root_mark(self._places, fresh)

    def put_aside(self, thing: Thing, about: Mapping[str, Any]) -> Path:
        """Moves one of `contents` that is no workdir into the trash. Raises Conflict while somebody
        uses it, WorkspaceError."""
        from perdure.workspace import trash

        names = {
            "view": f"{thing.id}.view",
            "shelf": f"{thing.id}.shelf",
            "cache": thing.id,
            "scratch": f"{thing.id}.making" if thing.id else "",
        }
        with locks.held(self._places.lock(names.get(thing.kind) or "scratch"), timeout_s=0.5):
            return trash.put(
                self.trash,
                thing.id or thing.kind,
                [(thing.kind, thing.path)],
                {"kind": thing.kind, **about},
            )

    def _pinned(self, workspace: Workspace) -> str:
        """The commit that the workdir began at; empty for a directory of the user's own."""
        if workspace.backend is Backend.ISOLATED:
            cache = self._places.cache(self._source(workspace.repo).id)
            return (
                self._git().at(self._places.root, cache).commit(f"refs/perdure/pin/{workspace.id}")
            )
        return workspace.base

    def _elsewhere(self, workspace: Workspace) -> Git:
        """Where the commits of an isolated workdir must be found: the repository itself, or what
        has just been fetched of it."""
        from perdure.workspace.clone_cache import opened

        git = self._git()
        if not is_remote(workspace.repo):
            common = worktree.common_directory(workspace.repo)
            if not (common / "HEAD").is_file():
                raise WorkspaceError(
                    f"The repository {workspace.repo} is not there.",
                    "Bring it back, or mount its volume.",
                )
            return git.at(common, common)
        with opened(self._places, self._source(workspace.repo), git) as (cache, trouble):
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
            )
        return RemoteSource(key=repo, url=str(worktree.common_directory(repo)), scheme="file")

    def _make_task(self, path: Path) -> bool:
        """mkdir is one step, so nothing can be half-made; a link in the way would lead out of the
        root."""
        created = not path.is_dir()
        for part in (path.parents[1], path.parent, path):
            locks.make_directory(part)
            if not locks.is_real_directory(part):
                raise WorkspaceError(
                    f"{part} is a link, and not a directory.", "Move it away and try again."
                )
        return created

    def _identity(self, workspace: Workspace, agent: str) -> dict[str, str]:
        """Commits are authored by the agent, and committed by the user where the user has an
        identity: both are visible, and somebody answers for them."""
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
    """The locks that a git of this workspace's agent takes, and nobody else's."""
    path = Path(workspace.path)
    admin = worktree.git_directory(path) or path / ".git"
    common = (
        worktree.common_directory(workspace.repo)
        if workspace.backend is Backend.WORKTREE
        else admin
    )
    return [
        admin / "index.lock",
        admin / "HEAD.lock",
        common / "refs/heads" / f"{workspace.branch}.lock",
    ]
