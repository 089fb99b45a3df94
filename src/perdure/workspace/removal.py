"""Moves workdirs to the trash, and proves which of their content is saved elsewhere.

`prove` reports what would be lost, in sentences. Content that cannot be checked counts as lost. A
checkpoint counts only for content that is byte for byte the same now (`HeldFiles`). Build output
that git ignores may go to the trash. If it is not saved elsewhere, it stays there until a person
purges it. `trash_workdir` moves and never deletes. It renames the directory and moves git's admin
directory of a worktree into the same entry. Commits that only that worktree's reflog has are saved
under a rescue ref.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from perdure.errors import PerdureError, UsageError
from perdure.host import system
from perdure.host.git import Git
from perdure.model import Backend, Workspace
from perdure.model.checkpoints import BUILT_AGAIN, NO_WORK
from perdure.patterns import late_pattern
from perdure.workspace import trash
from perdure.workspace.changes import comparison_repository, entries
from perdure.workspace.identity import Places
from perdure.workspace.locks import held, is_real_directory, read, read_all
from perdure.workspace.snapshot.differences import CACHE_TAG, REBUILDABLE
from perdure.workspace.view import Looker, again, looking_alone
from perdure.workspace.worktree import (
    LOCKED,
    admins,
    common_directory,
    git_directory,
    repository_lock,
)

NAMED = 5
TIPS = 20
"""Maximum number of branches, newest first, that are searched for a workdir's uncommitted files."""
OTHERS = ("--branches", "--tags", "--remotes", "--glob=refs/perdure/rescue/*")
"""Options of rev-list for the refs that remain when a workdir is removed. A worktree's own HEAD
does not remain. Checkpoints are left out because they expire separately."""

OUTPUT = tuple(
    """dist build target out bin obj coverage htmlcov .coverage .coverage.* .nyc_output .cache
    .vite .output *.egg-info *.egg *.pyc *.pyo *.o *.class *.tsbuildinfo""".split()
)
"""Patterns of ignored names that builds and tests write. Such files may go to the trash. They are
deleted from it only if they are also saved elsewhere, because other tools use these names for all
kinds of directories."""

_OID = late_pattern(r"[0-9a-f]{40,64}")


class HeldFiles(Struct, frozen=True, kw_only=True):
    """The part of a workdir's current content that a checkpoint also holds. Names are relative to
    the workdir, as on disk."""

    number: int
    commit: str
    keepers: tuple[Git, ...]
    """The repositories that hold the checkpoint."""
    apart: tuple[str, ...] = ()
    """Files whose current content is not in the checkpoint, and files that exist only in the
    checkpoint."""
    left_out: tuple[tuple[str, str], ...] = ()
    """Files and directories that checkpoints never include, each with the reason. A directory's
    name ends in a slash."""
    staged: bool = True
    """Whether all staged content is in the checkpoint or in HEAD."""

    def has(self, oid: str) -> bool:
        """Return whether the checkpoint contains the commit."""
        words = ("merge-base", "--is-ancestor", oid, self.commit)
        return any(keeper.run(*words, good=(0, 1, 128)).code == 0 for keeper in self.keepers)

    def differing(self) -> frozenset[str]:
        """Return the names in `apart` and all directories above them."""
        found = set[str]()
        for name in self.apart:
            while name and name not in found:
                found.add(name)
                name = name.rpartition("/")[0]
        return frozenset(found)


class Proof(Struct, frozen=True, kw_only=True):
    """Result of the check for content that would be lost with a workdir. The texts are sentences
    for a person."""

    lost: tuple[str, ...] = ()
    """Content that is not known to be saved elsewhere. A workdir with such content is not removed.
    """
    built: tuple[str, ...] = ()
    """Build output that is saved nowhere else: it stays in the trash until a person purges it."""
    logged: tuple[str, ...] = ()
    """Commits that only the reflog of an isolated workdir has. They have to be saved before the
    workdir is removed."""
    checkpoint: int = 0
    """Number of the checkpoint that the proof relies on, because some content has no other copy; 0
    if no checkpoint is needed."""

    @property
    def saved(self) -> bool:
        """Return whether nothing would be lost with the workdir, not even build output."""
        return not (self.lost or self.built or self.logged)


def unsaved(
    places: Places, workspace: Workspace, git: Git, elsewhere: Callable[[], Git]
) -> list[str]:
    """Return a sentence for each part of the workdir that is saved nowhere else. A copy in a
    checkpoint does not count as saved. Empty if everything is saved. Never raises."""
    found = prove(places, workspace, git, elsewhere)
    return [*found.lost, *found.built]


def prove(
    places: Places,
    workspace: Workspace,
    git: Git,
    elsewhere: Callable[[], Git],
    held: HeldFiles | None = None,
) -> Proof:
    """Find the content of the workdir that is not proven to be saved elsewhere. Never raises.
    `elsewhere` returns the repository that must contain the commits of an isolated workdir. `held`:
    the content of a checkpoint that counts as a copy."""
    path = Path(workspace.path)
    if path.is_symlink():
        return Proof(lost=("it is a link, not a directory",))
    if not os.path.lexists(path):
        return Proof(lost=tuple(_unmounted(workspace, path)))
    busy = tuple(f"process {pid} works in it" for pid in inside(path))
    try:
        if workspace.backend is Backend.TASK:
            found = _prove_plain(path, held)
        else:
            found = again(
                places,
                workspace,
                lambda: _prove(places, workspace, git, elsewhere, held),
                alone=True,
            )
    except (PerdureError, OSError) as error:
        found = Proof(lost=(f"its contents cannot be read: {error}",))
    return replace(found, lost=(*busy, *found.lost))


def _prove_plain(path: Path, held: HeldFiles | None) -> Proof:
    """Find the unsaved files of a directory without a repository. Only a checkpoint can have a copy
    of them."""
    if held is None:
        found = [name for _, name in zip(range(NAMED + 1), _everything(path), strict=False)]
        return Proof(lost=(f"it has no repository, and has {_named(found)}",) if found else ())
    left, built = _judge_left_out(path, held)
    if held.apart:
        lost = [f"checkpoint {held.number} does not have {_named(held.apart)}"]
    else:
        lost = []
    return Proof(lost=(*lost, *left), built=tuple(built))


def _unmounted(workspace: Workspace, path: Path) -> list[str]:
    """Return a sentence that asks to check the volume, if the directory is missing but git still
    lists it as a worktree. Either the directory was removed manually, or its volume is not mounted.
    Empty in all other cases."""
    if workspace.backend is Backend.WORKTREE and admins(common_directory(workspace.repo), path):
        return [
            "its directory is missing, but git still lists it: check whether its volume is mounted"
        ]
    return []


def _everything(top: Path) -> Iterator[str]:
    """Yield the names of all files, including git's own files; directories are not listed. Raises
    OSError for a directory that cannot be read, because its content is unknown."""
    for directory, folders, names in os.walk(top, onerror=_raise):
        linked = [folder for folder in folders if Path(directory, folder).is_symlink()]
        yield from (
            str(Path(directory, name).relative_to(top)) for name in sorted({*names, *linked})
        )


def _raise(error: OSError) -> None:
    raise error


def _prove(
    places: Places,
    workspace: Workspace,
    git: Git,
    elsewhere: Callable[[], Git],
    held: HeldFiles | None,
) -> Proof:
    with looking_alone(places, workspace, git) as looker:
        if looker is None:
            return Proof(lost=("it is no longer in a git repository",))
        lost, logged = [], list[str]()
        if looker.in_progress:
            lost.append(f"a {looker.in_progress} is in progress")
        if (reason := read(looker.git_dir / "locked").strip()) and reason != LOCKED:
            lost.append(f"it is locked: {reason[:80]}")
        lost += _uncommitted(places, looker, workspace, elsewhere, held)
        ignored, built = _judge_ignored(looker, held)
        lost += ignored
        if filled := [name for name in _submodules(looker) if any((looker.top / name).iterdir())]:
            lost.append(f"submodules with files: {_named(filled)}")
        if workspace.backend is Backend.ISOLATED:
            refs, logged = _unsaved_refs(looker, elsewhere, held)
            lost += refs
        else:
            lost += _unsaved_heads(looker, _common(looker, workspace), held)
        return Proof(lost=tuple(lost), built=tuple(built), logged=tuple(logged))


def _uncommitted(
    places: Places,
    looker: Looker,
    workspace: Workspace,
    elsewhere: Callable[[], Git],
    held: HeldFiles | None,
) -> Iterator[str]:
    """Yield a sentence for each change that is neither committed nor in the checkpoint."""
    status = looker.status()
    changed, untracked = status.changed, status.untracked
    if held is not None:
        differing = held.differing()
        changed = tuple(name for name in changed if name.rstrip("/") in differing)
        untracked = tuple(name for name in untracked if name.rstrip("/") in differing)
        if not held.staged:
            yield f"what is staged is not in checkpoint {held.number}"
    # git lists a nested repository as a directory. Besides its files, such a repository has its own
    # history, which no commit of this repository contains.
    nested = any(name.endswith("/") for name in untracked)
    if not (changed or untracked) or (
        not nested and _exists_elsewhere(places, looker, workspace, elsewhere)
    ):
        return
    if held is not None:
        since = f", and not in checkpoint {held.number}"
    else:
        since = ""
    if changed:
        yield f"changes that are not committed{since}: {_named(changed)}"
    if untracked:
        yield f"untracked files{since}: {_named(untracked)}"


def _judge_ignored(looker: Looker, held: HeldFiles | None) -> tuple[list[str], list[str]]:
    """Return sentences on ignored files that are saved nowhere else, in two lists: files that
    prevent the removal of the workdir, and build output."""
    names = [name for name in _ignored(looker) if not _rebuildable(looker.top, name)]
    lost, built = list[str](), list[str]()
    if held is not None:
        lost, built = _judge_left_out(looker.top, held)
        differing = held.differing()
        # If an ignored directory differs, name the files in it. They tell a person more than the
        # directory's name.
        inner = [name for name in names if name.rstrip("/") in differing]
        files, folders = (
            {name for name in inner if not name.endswith("/")},
            tuple(name for name in inner if name.endswith("/")),
        )
        names = [name for name in held.apart if name in files or name.startswith(folders)]
    output = [name for name in names if _is_output(looker.top, name)]
    if rest := [name for name in names if name not in output]:
        lost.append(f"ignored files: {_named(rest)}")
    if output:
        built.append(f"ignored build output: {_named(output)}")
    return lost, built


def _judge_left_out(top: Path, held: HeldFiles) -> tuple[list[str], list[str]]:
    """Return sentences on files and directories that checkpoints never include, in two lists: those
    that prevent the removal of the workdir, and build output. A pipe or a socket holds no data, so
    it is skipped."""
    lost, built = list[str](), list[str]()
    for name, why in held.left_out:
        if why in NO_WORK - {BUILT_AGAIN} or _rebuildable(top, name):
            continue
        kind = built if _is_output(top, name) else lost
        kind.append(f"{name} ({why})")
    return (
        [f"checkpoint {held.number} does not have {_named(lost)}"] if lost else [],
        [f"checkpoint {held.number} does not have {_named(built)}"] if built else [],
    )


def _unsaved_heads(looker: Looker, common: Git, held: HeldFiles | None) -> Iterator[str]:
    """Yield a sentence for each commit of a worktree that no branch of its repository has."""
    if not looker.branch and _only_here(common, looker.head) and not _has(held, looker.head):
        yield f"commits on a detached HEAD ({looker.head[:12]}) that no branch has"
    for name, oid in looker.repository.refs("refs/worktree").items():
        if _only_here(common, oid) and not _has(held, oid):
            yield f"commits on {name} ({oid[:12]}) that no branch has"


def _has(held: HeldFiles | None, oid: str) -> bool:
    return held is not None and held.has(oid)


def _exists_elsewhere(
    places: Places, looker: Looker, workspace: Workspace, elsewhere: Callable[[], Git]
) -> bool:
    """Return whether a single commit of the repository contains all uncommitted changes, file by
    file. `apply --commit` makes such a commit, for example. Only the newest `TIPS` branches are
    searched."""
    if workspace.backend is Backend.ISOLATED:
        repository = elsewhere()
    else:
        repository = _common(looker, workspace)
    refs = repository.run(
        "for-each-ref",
        "--sort=-committerdate",
        f"--count={TIPS}",
        "--format=%(objectname)",
        "refs/heads",
        "refs/remotes",
    )
    with comparison_repository(places, looker) as made:
        before, now = made.entries(f"{looker.head}^{{tree}}"), made.entries(made.photograph(looker))
    wanted = {
        name: now.get(name)
        for name in before.keys() | now.keys()
        if before.get(name) != now.get(name)
    }
    for tip in dict.fromkeys(refs.text.split()):
        there = entries(repository.run("ls-tree", "-r", "-z", "--full-tree", tip).stdout)
        if all(there.get(name) == entry for name, entry in wanted.items()):
            return True
    return False


def _unsaved_refs(
    looker: Looker, elsewhere: Callable[[], Git], held: HeldFiles | None
) -> tuple[list[str], list[str]]:
    """Return two lists. The first has sentences on commits of an isolated workdir (its HEAD, refs
    and stashes) that are saved nowhere else. The second has the ids of commits that only the reflog
    has.

    With a checkpoint, the commits in the reflog can be saved beside it. Without one, they are
    reported in the first list and the second is empty. The other repository is asked only for
    commits that the checkpoint lacks.
    """
    tips = {"HEAD": looker.head, **looker.repository.refs("refs")}
    stashes = _OID.findall(read(looker.git_dir / "logs/refs/stash"))
    tips |= {f"a stash ({oid[:12]})": oid for oid in stashes if oid.strip("0")}
    known = {oid for oid in set(tips.values()) if _has(held, oid)}
    earlier = [
        oid
        for oid in _logged(looker.git_dir)
        if oid not in known and looker.repository.commit(oid) and not _has(held, oid)
    ]
    asked = {name: oid for name, oid in tips.items() if oid not in known}
    if not (asked or earlier):
        return [], []
    if held is not None and not asked:
        return [], earlier
    repository, missing = elsewhere(), dict[str, list[str]]()
    for name, oid in asked.items():
        if _only_here(repository, oid):
            missing.setdefault(oid, []).append(name.removeprefix("refs/heads/"))
    logged = []
    for oid in earlier:
        if (
            oid in missing
            or not _only_here(repository, oid)
            or _below(looker.repository, oid, missing)
        ):
            continue
        if held is not None:
            logged.append(oid)
        else:
            missing.setdefault(oid, []).append("an earlier HEAD")
    sentences = [
        f"commits on {' and '.join(sorted(names))} ({oid[:12]}) that exist nowhere else"
        for oid, names in missing.items()
    ]
    return sentences, logged


def _logged(admin: Path) -> list[str]:
    """Return the commits that HEAD has named according to its reflog, newest first."""
    tips = [
        line.split(" ", 2)[1]
        for line in read_all(admin / "logs/HEAD").splitlines()
        if line.count(" ") > 1
    ]
    return [oid for oid in dict.fromkeys(reversed(tips)) if _OID.fullmatch(oid) and oid.strip("0")]


def _below(repository: Git, oid: str, tips: Mapping[str, object]) -> bool:
    """Return whether this commit is an ancestor of one of the commits in `tips`."""
    return any(
        repository.run("merge-base", "--is-ancestor", oid, tip, good=(0, 1, 128)).code == 0
        for tip in tips
    )


def _only_here(repository: Git, oid: str) -> bool:
    """Return whether the commit is not saved in this repository. A commit is saved if a permanent
    ref (see `OTHERS`) reaches it."""
    if not repository.commit(oid):
        return True
    return repository.run("rev-list", "--max-count=1", oid, "--not", *OTHERS).stdout != b""


def _ignored(looker: Looker) -> list[str]:
    found = looker.eye.run(
        "ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory"
    ).stdout
    return [name for name in os.fsdecode(found).split("\0") if name]


def _submodules(looker: Looker) -> Iterator[str]:
    for line in os.fsdecode(looker.eye.run("ls-files", "-z", "--stage").stdout).split("\0"):
        if line.startswith("160000 "):
            name = line.partition("\t")[2]
            if is_real_directory(looker.top / name):
                yield name


def _rebuildable(top: Path, name: str) -> bool:
    """Return whether a build can recreate the file or directory. This is so if its own name or that
    of a parent directory is in `REBUILDABLE`, or if it has a cache tag in it. A directory that
    contains a repository cannot be recreated."""
    path = top / name
    named = any(part in REBUILDABLE for part in Path(name).parts)
    return (named or read(path / "CACHEDIR.TAG").startswith(CACHE_TAG)) and not _has_repository(
        path
    )


def _is_output(top: Path, name: str) -> bool:
    """Return whether builds and tests usually write files of this name. Always False for a
    directory that contains a repository."""
    pairs = product(Path(name).parts, (*OUTPUT, *REBUILDABLE))
    written = any(fnmatchcase(part, pattern) for part, pattern in pairs)
    return written and not _has_repository(top / name)


def _has_repository(path: Path) -> bool:
    """Return whether there is a repository at or below the path, bare or not. A repository counts
    as work even in a directory that is named like build output."""
    return is_real_directory(path) and any(
        ".git" in folders
        or ".git" in names
        or ("HEAD" in names and {"objects", "refs"} <= set(folders))
        for _, folders, names in os.walk(path, onerror=_raise)
    )


def inside(path: Path) -> list[int]:
    """Return the processes whose current directory is at or below the path. They would lose their
    directory if it were removed."""
    found = []
    for pid in system.pids():
        with suppress(OSError):
            if pid != os.getpid() and Path(system.current_directory(pid)).is_relative_to(path):
                found.append(pid)
    return found


def _named(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def trash_workdir(
    places: Places, workspace: Workspace, git: Git, about: Mapping[str, Any]
) -> Path | None:
    """Move the workdir into the trash and return its new path; None if there is no workdir. `about`
    is stored with the entry. If `about` has no `unsaved`, nothing counts as saved, and the entry
    stays until a person purges it. Raises UsageError for a directory of the user's."""
    if workspace.backend is Backend.HERE:
        raise UsageError(f"{workspace.path} is your own directory and is not removed.")
    path = Path(workspace.path)
    if workspace.backend is not Backend.WORKTREE:
        return move(places, workspace, path, about, None)
    common = common_directory(workspace.repo)
    if not common.is_dir():
        return move(places, workspace, path, about, None)
    with held(repository_lock(places, workspace.repo)) as fd:
        git = Git(
            cwd=common,
            git_dir=common,
            ceiling=places.root,
            keep=(*git.keep, fd),
            environ=git.environ,
            memory=git.memory,
        )
        known = git_directory(path)
        for admin in [known] if known is not None else admins(common, path):
            _keep_reflog(git, admin, workspace)
        return move(
            places,
            workspace,
            path,
            about,
            lambda: [known] if known is not None else admins(common, path),
        )


def _keep_reflog(git: Git, admin: Path, workspace: Workspace) -> None:
    """Save commits that only the worktree's HEAD or reflog has (after an amend or a reset) under
    rescue refs. The newest commits are saved first. They may contain the older ones, so few refs
    are needed."""
    head = read(admin / "HEAD").strip()
    for oid in dict.fromkeys([*([head] if _OID.fullmatch(head) else []), *_logged(admin)]):
        if git.commit(oid) and _only_here(git, oid):
            git.set_ref(
                f"refs/perdure/rescue/{workspace.id}/{time.time_ns()}",
                oid,
                "perdure: reflog of a worktree that went to the trash",
            )


def move(
    places: Places,
    workspace: Workspace,
    path: Path,
    about: Mapping[str, Any],
    admins_of: Callable[[], list[Path]] | None,
) -> Path | None:
    """Move a workdir and git's admin directories for it into the trash. Return the entry's path;
    None if there is nothing to move. `admins_of` returns the admin directories of a worktree; it is
    None for other backends."""
    leftovers = [*([("workdir", path)] if os.path.lexists(path) else [])]
    leftovers += [
        (f"admin-{number}", admin) for number, admin in enumerate(admins_of() if admins_of else [])
    ]
    if not leftovers:
        return None
    said = {
        "kind": "workdir",
        **about,
        "path": workspace.path,
        "repo": workspace.repo,
        "branch": workspace.branch,
    }
    return trash.put(places.trash(""), workspace.id, leftovers, said)


def _common(looker: Looker, workspace: Workspace) -> Git:
    common = common_directory(workspace.repo)
    return looker.repository.at(common, common)
