"""Moves workdirs to the trash, and proves which of their content is saved elsewhere.

`check_removal` reports what would be lost, in sentences. Content that cannot be checked counts as
lost. A checkpoint counts only for content that is byte for byte the same now
(`CheckpointCoverage`). Build output that git ignores may go to the trash. If it is not saved
elsewhere, it stays there until a person purges it. `trash_workdir` moves and never deletes. It
renames the directory and moves git's admin directory of a worktree into the same entry. Commits
that exist only in the reflog of that worktree are saved under a rescue ref.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from itertools import islice, product
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from perdure.errors import PerdureError, UsageError
from perdure.host import system
from perdure.host.git import Git
from perdure.host.git.output import split_names
from perdure.host.system.files import walk
from perdure.model import Backend, Workspace
from perdure.model.checkpoints import BUILT_AGAIN, NO_WORK
from perdure.patterns import late_pattern
from perdure.workspace import trash
from perdure.workspace.changes import comparison_repository, entries
from perdure.workspace.identity import Places
from perdure.workspace.locks import hold_lock, is_real_directory, read, read_all
from perdure.workspace.snapshot.differences import CACHE_TAG, REBUILDABLE
from perdure.workspace.view import WorkdirGit, open_through_view, retry_with_new_view
from perdure.workspace.worktree import (
    LOCKED,
    admin_directories,
    common_directory,
    git_directory,
    repository_lock,
)

NAMED = 5
TIPS = 20
"""Maximum number of branches, newest first, that are searched for a workdir's uncommitted files."""
PERMANENT_REFS = ("--branches", "--tags", "--remotes", "--glob=refs/perdure/rescue/*")
"""Options of rev-list for the refs that remain when a workdir is removed. A worktree's own HEAD
does not remain. Checkpoints are left out because they expire separately."""

OUTPUT = tuple(
    """dist build target out bin obj coverage htmlcov .coverage .coverage.* .nyc_output .cache
    .vite .output *.egg-info *.egg *.pyc *.pyo *.o *.class *.tsbuildinfo""".split()
)
"""Patterns of ignored names that builds and tests write. Such files may go to the trash. They are
deleted from the trash only if they are also saved elsewhere, because other tools use these names
for all kinds of directories."""

_OID = late_pattern(r"[0-9a-f]{40,64}")


class CheckpointCoverage(Struct, frozen=True, kw_only=True):
    """The part of a workdir's current content that a checkpoint also holds. Names are relative to
    the workdir, as on disk."""

    number: int
    commit: str
    repositories: tuple[Git, ...]
    """The repositories that hold the checkpoint."""
    differing_files: tuple[str, ...] = ()
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
        return any(keeper.run(*words, good=(0, 1, 128)).code == 0 for keeper in self.repositories)

    def differing_paths(self) -> frozenset[str]:
        """Return the names in `differing_files` and all directories above them."""
        found = set[str]()
        for name in self.differing_files:
            while name and name not in found:
                found.add(name)
                name = name.rpartition("/")[0]
        return frozenset(found)


class RemovalCheck(Struct, frozen=True, kw_only=True):
    """Result of the check for content that would be lost with a workdir. The texts are sentences
    for a person."""

    lost: tuple[str, ...] = ()
    """Content that is not known to be saved elsewhere. A workdir with such content is not removed.
    """
    build_output: tuple[str, ...] = ()
    """Build output that is saved nowhere else: it stays in the trash until a person purges it."""
    reflog_commits: tuple[str, ...] = ()
    """Commits that only the reflog of an isolated workdir has. They have to be saved before the
    workdir is removed."""
    checkpoint: int = 0
    """Number of the checkpoint that the proof relies on, because some content has no other copy; 0
    if no checkpoint is needed."""

    @property
    def saved(self) -> bool:
        """Return whether nothing would be lost with the workdir, not even build output."""
        return not (self.lost or self.build_output or self.reflog_commits)


def unsaved(
    places: Places, workspace: Workspace, git: Git, elsewhere: Callable[[], Git]
) -> list[str]:
    """Return a sentence for each part of the workdir that is saved nowhere else. A copy in a
    checkpoint does not count as saved. Empty if everything is saved. Never raises."""
    found = check_removal(places, workspace, git, elsewhere)
    return [*found.lost, *found.build_output]


def check_removal(
    places: Places,
    workspace: Workspace,
    git: Git,
    elsewhere: Callable[[], Git],
    coverage: CheckpointCoverage | None = None,
) -> RemovalCheck:
    """Find the content of the workdir that is not proven to be saved elsewhere. Never raises.
    `elsewhere` returns the repository that must contain the commits of an isolated workdir.
    `coverage`: the content of a checkpoint that counts as a copy."""
    path = Path(workspace.path)
    if path.is_symlink():
        return RemovalCheck(lost=("it is a link, not a directory",))
    if not os.path.lexists(path):
        return RemovalCheck(lost=tuple(_unmounted(workspace, path)))
    busy = tuple(f"process {pid} works in it" for pid in processes_inside(path))
    try:
        if workspace.backend is Backend.TASK:
            found = _check_plain_directory(path, coverage)
        else:
            found = retry_with_new_view(
                places,
                workspace,
                lambda: _check_repository(places, workspace, git, elsewhere, coverage),
                alone=True,
            )
    except (PerdureError, OSError) as error:
        found = RemovalCheck(lost=(f"its contents cannot be read: {error}",))
    return replace(found, lost=(*busy, *found.lost))


def _check_plain_directory(path: Path, coverage: CheckpointCoverage | None) -> RemovalCheck:
    """Find the unsaved files of a directory without a repository. Only a checkpoint can have a copy
    of them."""
    if coverage is None:
        found = list(islice(_all_files(path), NAMED + 1))
        return RemovalCheck(
            lost=(f"it has no repository, and has {_join_names(found)}",) if found else ()
        )
    left, built = _check_left_out(path, coverage)
    if coverage.differing_files:
        lost = [
            f"checkpoint {coverage.number} does not have {_join_names(coverage.differing_files)}"
        ]
    else:
        lost = []
    return RemovalCheck(lost=(*lost, *left), build_output=tuple(built))


def _unmounted(workspace: Workspace, path: Path) -> list[str]:
    """Return a sentence that asks to check the volume, if the directory is missing but git still
    lists it as a worktree. Either the directory was removed manually, or its volume is not mounted.
    Empty in all other cases."""
    if workspace.backend is Backend.WORKTREE and admin_directories(
        common_directory(workspace.repo), path
    ):
        return [
            "its directory is missing, but git still lists it: check whether its volume is mounted"
        ]
    return []


def _all_files(top: Path) -> Iterator[str]:
    """Yield the names of all files, including git's own files; directories are not listed. Raises
    OSError for a directory that cannot be read, because its content is unknown."""
    for directory, folders, names in walk(top, onerror=_raise):
        linked = [folder for folder in folders if Path(directory, folder).is_symlink()]
        for name in sorted({*names, *linked}):
            yield str(Path(directory, name).relative_to(top))


def _raise(error: OSError) -> None:
    raise error


def _check_repository(
    places: Places,
    workspace: Workspace,
    git: Git,
    elsewhere: Callable[[], Git],
    coverage: CheckpointCoverage | None,
) -> RemovalCheck:
    with open_through_view(places, workspace, git) as workdir_git:
        if workdir_git is None:
            return RemovalCheck(lost=("it is no longer in a git repository",))
        lost, logged = [], list[str]()
        if workdir_git.in_progress:
            lost.append(f"a {workdir_git.in_progress} is in progress")
        if (reason := read(workdir_git.git_dir / "locked").strip()) and reason != LOCKED:
            lost.append(f"it is locked: {reason[:80]}")
        lost += _uncommitted(places, workdir_git, workspace, elsewhere, coverage)
        ignored, built = _check_ignored(workdir_git, coverage)
        lost += ignored
        filled = []
        for name in _submodules(workdir_git):
            if any((workdir_git.top / name).iterdir()):
                filled.append(name)
        if filled:
            lost.append(f"submodules with files: {_join_names(filled)}")
        if workspace.backend is Backend.ISOLATED:
            refs, logged = _unsaved_refs(workdir_git, elsewhere, coverage)
            lost += refs
        else:
            lost += _unsaved_heads(workdir_git, _main_repository(workdir_git, workspace), coverage)
        return RemovalCheck(
            lost=tuple(lost), build_output=tuple(built), reflog_commits=tuple(logged)
        )


def _uncommitted(
    places: Places,
    workdir_git: WorkdirGit,
    workspace: Workspace,
    elsewhere: Callable[[], Git],
    coverage: CheckpointCoverage | None,
) -> Iterator[str]:
    """Yield a sentence for each change that is neither committed nor in the checkpoint."""
    status = workdir_git.status()
    changed, untracked = status.changed, status.untracked
    if coverage is not None:
        differing = coverage.differing_paths()
        changed = _those_in(changed, differing)
        untracked = _those_in(untracked, differing)
        if not coverage.staged:
            yield f"what is staged is not in checkpoint {coverage.number}"
    # git lists a nested repository as a directory. Besides its files, such a repository has its own
    # history, which no commit of this repository contains.
    nested = any(name.endswith("/") for name in untracked)
    if not (changed or untracked) or (
        not nested and _exists_elsewhere(places, workdir_git, workspace, elsewhere)
    ):
        return
    if coverage is not None:
        since = f", and not in checkpoint {coverage.number}"
    else:
        since = ""
    if changed:
        yield f"changes that are not committed{since}: {_join_names(changed)}"
    if untracked:
        yield f"untracked files{since}: {_join_names(untracked)}"


def _those_in(names: Iterable[str], differing: Container[str]) -> tuple[str, ...]:
    """Return the names of files and directories that differ from the checkpoint."""
    return tuple(name for name in names if name.rstrip("/") in differing)


def _check_ignored(
    workdir_git: WorkdirGit, coverage: CheckpointCoverage | None
) -> tuple[list[str], list[str]]:
    """Return sentences on ignored files that are saved nowhere else, in two lists: files that
    prevent the removal of the workdir, and build output."""
    names = [name for name in _ignored(workdir_git) if not _rebuildable(workdir_git.top, name)]
    lost, built = list[str](), list[str]()
    if coverage is not None:
        lost, built = _check_left_out(workdir_git.top, coverage)
        differing = coverage.differing_paths()
        # If an ignored directory differs, name the files in it. They tell a person more than the
        # directory's name.
        inner = _those_in(names, differing)
        folders = tuple(name for name in inner if name.endswith("/"))
        files = set(inner) - set(folders)
        names = []
        for name in coverage.differing_files:
            if name in files or name.startswith(folders):
                names.append(name)
    output = [name for name in names if _is_output(workdir_git.top, name)]
    if rest := [name for name in names if name not in output]:
        lost.append(f"ignored files: {_join_names(rest)}")
    if output:
        built.append(f"ignored build output: {_join_names(output)}")
    return lost, built


def _check_left_out(top: Path, coverage: CheckpointCoverage) -> tuple[list[str], list[str]]:
    """Return sentences on files and directories that checkpoints never include, in two lists: those
    that prevent the removal of the workdir, and build output. A pipe or a socket holds no data, so
    it is skipped."""
    lost, built = list[str](), list[str]()
    for name, why in coverage.left_out:
        if why in NO_WORK - {BUILT_AGAIN} or _rebuildable(top, name):
            continue
        kind = built if _is_output(top, name) else lost
        kind.append(f"{name} ({why})")
    return (
        [f"checkpoint {coverage.number} does not have {_join_names(lost)}"] if lost else [],
        [f"checkpoint {coverage.number} does not have {_join_names(built)}"] if built else [],
    )


def _unsaved_heads(
    workdir_git: WorkdirGit, common: Git, coverage: CheckpointCoverage | None
) -> Iterator[str]:
    """Yield a sentence for each commit of a worktree that no branch of its repository has."""
    if (
        not workdir_git.branch
        and _is_unsaved(common, workdir_git.head)
        and not _has(coverage, workdir_git.head)
    ):
        yield f"commits on a detached HEAD ({workdir_git.head[:12]}) that no branch has"
    for name, oid in workdir_git.repository.refs("refs/worktree").items():
        if _is_unsaved(common, oid) and not _has(coverage, oid):
            yield f"commits on {name} ({oid[:12]}) that no branch has"


def _has(coverage: CheckpointCoverage | None, oid: str) -> bool:
    return coverage is not None and coverage.has(oid)


def _exists_elsewhere(
    places: Places, workdir_git: WorkdirGit, workspace: Workspace, elsewhere: Callable[[], Git]
) -> bool:
    """Return whether a single commit of the repository contains all uncommitted changes, file by
    file. `apply --commit` makes such a commit, for example. Only the newest `TIPS` branches are
    searched."""
    if workspace.backend is Backend.ISOLATED:
        repository = elsewhere()
    else:
        repository = _main_repository(workdir_git, workspace)
    refs = repository.run(
        "for-each-ref",
        "--sort=-committerdate",
        f"--count={TIPS}",
        "--format=%(objectname)",
        "refs/heads",
        "refs/remotes",
    )
    with comparison_repository(places, workdir_git) as made:
        before, now = (
            made.entries(f"{workdir_git.head}^{{tree}}"),
            made.entries(made.write_workdir_tree(workdir_git)),
        )
    wanted = {}
    for name in before.keys() | now.keys():
        if before.get(name) != now.get(name):
            wanted[name] = now.get(name)
    for tip in dict.fromkeys(refs.text.split()):
        there = entries(repository.run("ls-tree", "-r", "-z", "--full-tree", tip).stdout)
        if all(there.get(name) == entry for name, entry in wanted.items()):
            return True
    return False


def _unsaved_refs(
    workdir_git: WorkdirGit, elsewhere: Callable[[], Git], coverage: CheckpointCoverage | None
) -> tuple[list[str], list[str]]:
    """Return two lists. The first has sentences on commits of an isolated workdir (its HEAD, refs
    and stashes) that are saved nowhere else. The second has the ids of commits that only the reflog
    has.

    With a checkpoint, the commits in the reflog can be saved beside it. Without one, they are
    reported in the first list and the second is empty. The other repository is asked only for
    commits that the checkpoint lacks.
    """
    tips = {"HEAD": workdir_git.head, **workdir_git.repository.refs("refs")}
    stashes = _OID.findall(read(workdir_git.git_dir / "logs/refs/stash"))
    for oid in stashes:
        if oid.strip("0"):
            tips[f"a stash ({oid[:12]})"] = oid
    known = {oid for oid in set(tips.values()) if _has(coverage, oid)}
    earlier = []
    for oid in _commits_in_reflog(workdir_git.git_dir):
        if oid not in known and workdir_git.repository.commit(oid) and not _has(coverage, oid):
            earlier.append(oid)
    asked = {name: oid for name, oid in tips.items() if oid not in known}
    if not (asked or earlier):
        return [], []
    if coverage is not None and not asked:
        return [], earlier
    repository, missing = elsewhere(), dict[str, list[str]]()
    for name, oid in asked.items():
        if _is_unsaved(repository, oid):
            missing.setdefault(oid, []).append(name.removeprefix("refs/heads/"))
    logged = []
    for oid in earlier:
        if (
            oid in missing
            or not _is_unsaved(repository, oid)
            or _is_ancestor(workdir_git.repository, oid, missing)
        ):
            continue
        if coverage is not None:
            logged.append(oid)
        else:
            missing.setdefault(oid, []).append("an earlier HEAD")
    sentences = []
    for oid, names in missing.items():
        sentences.append(
            f"commits on {' and '.join(sorted(names))} ({oid[:12]}) that exist nowhere else"
        )
    return sentences, logged


def _commits_in_reflog(admin: Path) -> list[str]:
    """Return the commits that HEAD has named according to its reflog, newest first."""
    tips = []
    for line in read_all(admin / "logs/HEAD").splitlines():
        if line.count(" ") > 1:
            tips.append(line.split(" ", 2)[1])
    return [oid for oid in dict.fromkeys(reversed(tips)) if _OID.fullmatch(oid) and oid.strip("0")]


def _is_ancestor(repository: Git, oid: str, tips: Mapping[str, object]) -> bool:
    """Return whether this commit is an ancestor of one of the commits in `tips`."""
    for tip in tips:
        asked = repository.run("merge-base", "--is-ancestor", oid, tip, good=(0, 1, 128))
        if asked.code == 0:
            return True
    return False


def _is_unsaved(repository: Git, oid: str) -> bool:
    """Return whether the commit is not saved in this repository. A commit is saved if a permanent
    ref (see `PERMANENT_REFS`) reaches it."""
    if not repository.commit(oid):
        return True
    return repository.run("rev-list", "--max-count=1", oid, "--not", *PERMANENT_REFS).stdout != b""


def _ignored(workdir_git: WorkdirGit) -> list[str]:
    found = workdir_git.inspector.run(
        "ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory"
    ).stdout
    return split_names(found)


def _submodules(workdir_git: WorkdirGit) -> Iterator[str]:
    for line in os.fsdecode(workdir_git.inspector.run("ls-files", "-z", "--stage").stdout).split(
        "\0"
    ):
        if line.startswith("160000 "):
            name = line.partition("\t")[2]
            if is_real_directory(workdir_git.top / name):
                yield name


def _rebuildable(top: Path, name: str) -> bool:
    """Return whether a build can recreate the file or directory. This is so if its own name or that
    of a parent directory is in `REBUILDABLE`, or if the directory contains a cache tag. A directory
    that contains a repository cannot be recreated."""
    path = top / name
    named = not REBUILDABLE.isdisjoint(Path(name).parts)
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
    if not is_real_directory(path):
        return False
    for _, folders, names in walk(path, onerror=_raise):
        is_bare = "HEAD" in names and {"objects", "refs"} <= set(folders)
        if is_bare or ".git" in folders or ".git" in names:
            return True
    return False


def processes_inside(path: Path) -> list[int]:
    """Return the processes whose current directory is at or below the path. They would lose their
    directory if it were removed."""
    found = []
    for pid in system.pids():
        with suppress(OSError):
            if pid != os.getpid() and Path(system.current_directory(pid)).is_relative_to(path):
                found.append(pid)
    return found


def _join_names(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def trash_workdir(
    places: Places, workspace: Workspace, git: Git, about: Mapping[str, Any]
) -> Path | None:
    """Move the workdir into the trash and return its new path; None if there is no workdir. `about`
    is stored with the entry. If `about` has no `unsaved`, nothing counts as saved, and the entry
    stays until a person purges it. Raises UsageError for a directory that belongs to the user."""
    if workspace.backend is Backend.HERE:
        raise UsageError(f"{workspace.path} is your own directory and is not removed.")
    path = Path(workspace.path)
    if workspace.backend is not Backend.WORKTREE:
        return move_workdir(places, workspace, path, about, None)
    common = common_directory(workspace.repo)
    if not common.is_dir():
        return move_workdir(places, workspace, path, about, None)
    with hold_lock(repository_lock(places, workspace.repo)) as fd:
        git = Git(
            cwd=common,
            git_dir=common,
            ceiling=places.root,
            keep=(*git.keep, fd),
            environ=git.environ,
            memory=git.memory,
        )
        known = git_directory(path)
        for admin in [known] if known is not None else admin_directories(common, path):
            _keep_reflog(git, admin, workspace)
        return move_workdir(
            places,
            workspace,
            path,
            about,
            lambda: [known] if known is not None else admin_directories(common, path),
        )


def _keep_reflog(git: Git, admin: Path, workspace: Workspace) -> None:
    """Save commits that only the worktree's HEAD or reflog has (after an amend or a reset) under
    rescue refs. The newest commits are saved first. They may contain the older ones, so few refs
    are needed."""
    head = read(admin / "HEAD").strip()
    for oid in dict.fromkeys(
        [*([head] if _OID.fullmatch(head) else []), *_commits_in_reflog(admin)]
    ):
        if git.commit(oid) and _is_unsaved(git, oid):
            git.set_ref(
                f"refs/perdure/rescue/{workspace.id}/{time.time_ns()}",
                oid,
                "perdure: reflog of a worktree that went to the trash",
            )


def move_workdir(
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
    for number, admin in enumerate(admins_of() if admins_of else []):
        leftovers.append((f"admin-{number}", admin))
    if not leftovers:
        return None
    said = {
        "kind": "workdir",
        **about,
        "path": workspace.path,
        "repo": workspace.repo,
        "branch": workspace.branch,
    }
    return trash.move_to_trash(places.trash(""), workspace.id, leftovers, said)


def _main_repository(workdir_git: WorkdirGit, workspace: Workspace) -> Git:
    common = common_directory(workspace.repo)
    return workdir_git.repository.at(common, common)
