"""Takes a workdir away: only into the trash, and only when all that it holds is proven to be saved elsewhere.

`unsaved` tells what would be lost, in sentences; what cannot be known counts as lost. `put_away` moves, and never deletes:
the directory by a rename, what git knows of a worktree beside it, commits that only its reflog knows under a rescue ref.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from perdure.errors import PerdureError, UsageError
from perdure.git import Git
from perdure.model import Backend, Workspace
from perdure.workspace import trash
from perdure.workspace.changes import desk, entries
from perdure.workspace.identity import Places
from perdure.workspace.places import held, is_real_directory, read, read_all
from perdure.workspace.view import Looker, again, looking_alone
from perdure.workspace.worktree import LOCKED, admins, common_directory, git_directory, repository_lock

NAMED = 5
TIPS = 20
"""The newest branches are looked at for what is not committed in a workdir."""
OTHERS = ("--branches", "--tags", "--remotes", "--glob=refs/perdure/rescue/*")
"""Refs that stay when a workdir goes: a worktree's own HEAD is not among them, nor are checkpoints, which have their own time."""

REBUILDABLE = frozenset(
    """node_modules __pycache__ .venv .tox .nox .mypy_cache .ruff_cache .pytest_cache .hypothesis .gradle .next .nuxt .turbo
    .parcel-cache .svelte-kit .eggs .DS_Store""".split()
)
"""Ignored names that a build makes again. A directory with a cache tag (bford.info/cachedir) counts as well."""

CACHE_TAG = "Signature: 8a477f597d28d172789f06886806bc55"
_OID = re.compile(r"[0-9a-f]{40,64}")


def unsaved(places: Places, workspace: Workspace, git: Git, elsewhere: Callable[[], Git]) -> list[str]:
    """What would be lost with the workdir, a sentence each; empty if all of it is saved. Never raises.

    `elsewhere` gives the repository in which the commits of an isolated workdir must be found.
    """
    path = Path(workspace.path)
    if path.is_symlink():
        return ["it is a link, and not a directory"]
    if not os.path.lexists(path):
        return _unmounted(workspace, path)
    lost = [f"process {pid} works in it" for pid in inside(path)]
    try:
        if workspace.backend is Backend.TASK:
            found = [name for _, name in zip(range(NAMED + 1), _everything(path), strict=False)]
            return lost + ([f"it has no repository, and holds {_named(found)}"] if found else [])
        return lost + again(places, workspace, lambda: _unsaved(places, workspace, git, elsewhere), alone=True)
    except (PerdureError, OSError) as error:
        return [*lost, f"what it holds cannot be known: {error}"]


def _unmounted(workspace: Workspace, path: Path) -> list[str]:
    """A directory that is not there, and of which git has still an index and a HEAD: gone by hand, or not mounted just now."""
    if workspace.backend is Backend.WORKTREE and admins(common_directory(workspace.repo), path):
        return ["its directory is not there, but git still knows it: is its volume mounted?"]
    return []


def _everything(top: Path) -> Iterator[str]:
    """All but directories, git's own files included. Raises OSError for what cannot be listed: it may hold anything."""
    for directory, folders, names in os.walk(top, onerror=_raise):
        linked = [folder for folder in folders if Path(directory, folder).is_symlink()]
        yield from (str(Path(directory, name).relative_to(top)) for name in sorted({*names, *linked}))


def _raise(error: OSError) -> None:
    raise error


def _unsaved(places: Places, workspace: Workspace, git: Git, elsewhere: Callable[[], Git]) -> list[str]:
    with looking_alone(places, workspace, git) as looker:
        if looker is None:
            return ["it is in no git repository any more"]
        lost = []
        if looker.in_progress:
            lost.append(f"a {looker.in_progress} is in progress")
        if (reason := read(looker.git_dir / "locked").strip()) and reason != LOCKED:
            lost.append(f"somebody has locked it: {reason[:80]}")
        status = looker.status()
        # A nested repository (git lists it as a directory) has a history of its own besides its files.
        nested = any(name.endswith("/") for name in status.untracked)
        if (status.changed or status.untracked) and (nested or not _stands_elsewhere(places, looker, workspace, elsewhere)):
            if status.changed:
                lost.append(f"changes that are not committed: {_named(status.changed)}")
            if status.untracked:
                lost.append(f"untracked files: {_named(status.untracked)}")
        if ignored := [name for name in _ignored(looker) if not _rebuildable(looker.top / name)]:
            lost.append(f"ignored files: {_named(ignored)}")
        if filled := [name for name in _submodules(looker) if any((looker.top / name).iterdir())]:
            lost.append(f"submodules with files: {_named(filled)}")
        if workspace.backend is Backend.ISOLATED:
            lost += _unsaved_refs(looker, elsewhere())
        else:
            common = _common(looker, workspace)
            if not looker.branch and _only_here(common, looker.head):
                lost.append(f"commits on a detached HEAD ({looker.head[:12]}) that no branch has")
            own = looker.repository.refs("refs/worktree")
            lost += [f"commits on {name} ({oid[:12]}) that no branch has" for name, oid in own.items() if _only_here(common, oid)]
        return lost


def _stands_elsewhere(places: Places, looker: Looker, workspace: Workspace, elsewhere: Callable[[], Git]) -> bool:
    """Whether one commit of the repository has all that is not committed here, file by file: after `apply --commit` it does."""
    repository = elsewhere() if workspace.backend is Backend.ISOLATED else _common(looker, workspace)
    refs = repository.run(
        "for-each-ref", "--sort=-committerdate", f"--count={TIPS}", "--format=%(objectname)", "refs/heads", "refs/remotes"
    )
    with desk(places, looker) as made:
        before, now = made.entries(f"{looker.head}^{{tree}}"), made.entries(made.photograph(looker))
    wanted = {name: now.get(name) for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
    for tip in dict.fromkeys(refs.text.split()):
        there = entries(repository.run("ls-tree", "-r", "-z", "--full-tree", tip).stdout)
        if all(there.get(name) == entry for name, entry in wanted.items()):
            return True
    return False


def _unsaved_refs(looker: Looker, elsewhere: Git) -> list[str]:
    """The refs, HEAD and stashes of an isolated workdir whose commits are nowhere else."""
    tips = {"HEAD": looker.head, **looker.repository.refs("refs")}
    stashes = _OID.findall(read(looker.git_dir / "logs/refs/stash"))
    tips |= {f"a stash ({oid[:12]})": oid for oid in stashes if oid.strip("0")}
    missing: dict[str, list[str]] = {}
    for name, oid in tips.items():
        if _only_here(elsewhere, oid):
            missing.setdefault(oid, []).append(name.removeprefix("refs/heads/"))
    for oid in _logged(looker.git_dir):
        if (
            oid not in missing
            and looker.repository.commit(oid)
            and _only_here(elsewhere, oid)
            and not _below(looker.repository, oid, missing)
        ):
            missing.setdefault(oid, []).append("an earlier HEAD")
    return [f"commits on {' and '.join(sorted(names))} ({oid[:12]}) that are nowhere else" for oid, names in missing.items()]


def _logged(admin: Path) -> list[str]:
    """The commits that a HEAD has stood at, the newest first."""
    tips = [line.split(" ", 2)[1] for line in read_all(admin / "logs/HEAD").splitlines() if line.count(" ") > 1]
    return [oid for oid in dict.fromkeys(reversed(tips)) if _OID.fullmatch(oid) and oid.strip("0")]


def _below(repository: Git, oid: str, tips: Mapping[str, object]) -> bool:
    """Whether the commit is part of what was named already."""
    return any(repository.run("merge-base", "--is-ancestor", oid, tip, good=(0, 1, 128)).code == 0 for tip in tips)


def _only_here(repository: Git, oid: str) -> bool:
    """Whether no ref of the repository, one that stays, leads to the commit."""
    if not repository.commit(oid):
        return True
    return repository.run("rev-list", "--max-count=1", oid, "--not", *OTHERS).stdout != b""


def _ignored(looker: Looker) -> list[str]:
    found = looker.eye.run("ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory").stdout
    return [name for name in os.fsdecode(found).split("\0") if name]


def _submodules(looker: Looker) -> Iterator[str]:
    for line in os.fsdecode(looker.eye.run("ls-files", "-z", "--stage").stdout).split("\0"):
        if line.startswith("160000 "):
            name = line.partition("\t")[2]
            if is_real_directory(looker.top / name):
                yield name


def _rebuildable(path: Path) -> bool:
    if path.name not in REBUILDABLE and not read(path / "CACHEDIR.TAG").startswith(CACHE_TAG):
        return False
    # A repository in it, bare or not, is somebody's work, whatever the directory is called.
    return not any(
        ".git" in folders or ".git" in names or ("HEAD" in names and {"objects", "refs"} <= set(folders))
        for _, folders, names in os.walk(path, onerror=_raise)
    )


def inside(path: Path) -> list[int]:
    """Processes that stand in the directory: it would be pulled from under them."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and int(process.name) != os.getpid():
            with suppress(OSError):
                if (process / "cwd").readlink().is_relative_to(path):
                    found.append(int(process.name))
    return found


def _named(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def put_away(places: Places, workspace: Workspace, git: Git, about: Mapping[str, Any]) -> Path | None:
    """Moves the workdir into the trash and returns where; None if there is none. `about` is kept beside it; where it has no
    `unsaved`, nothing is known to be saved, and the entry stays until a person purges it."""
    if workspace.backend is Backend.HERE:
        raise UsageError(f"{workspace.path} is your own directory and is not taken away.")
    path = Path(workspace.path)
    if workspace.backend is not Backend.WORKTREE:
        return move(places, workspace, path, about, None)
    common = common_directory(workspace.repo)
    if not common.is_dir():
        return move(places, workspace, path, about, None)
    with held(repository_lock(places, workspace.repo)) as fd:
        git = Git(cwd=common, git_dir=common, ceiling=places.root, keep=(*git.keep, fd), environ=git.environ)
        known = git_directory(path)
        for admin in [known] if known is not None else admins(common, path):
            _keep_reflog(git, admin, workspace)
        return move(places, workspace, path, about, lambda: [known] if known is not None else admins(common, path))


def _keep_reflog(git: Git, admin: Path, workspace: Workspace) -> None:
    """Commits that only the worktree's HEAD or its reflog knows (amended, reset away) get a ref: newest first, so that few do."""
    head = read(admin / "HEAD").strip()
    for oid in dict.fromkeys([*([head] if _OID.fullmatch(head) else []), *_logged(admin)]):
        if git.commit(oid) and _only_here(git, oid):
            git.set_ref(f"refs/perdure/rescue/{workspace.id}/{time.time_ns()}", oid, "perdure: reflog of a worktree that went to the trash")


def move(
    places: Places, workspace: Workspace, path: Path, about: Mapping[str, Any], admins_of: Callable[[], list[Path]] | None
) -> Path | None:
    """Moves a workdir, and what git knows of it, into the trash. `put_away` is for all who may not know what it is."""
    leftovers = [*([("workdir", path)] if os.path.lexists(path) else [])]
    leftovers += [(f"admin-{number}", admin) for number, admin in enumerate(admins_of() if admins_of else [])]
    if not leftovers:
        return None
    said = {"kind": "workdir", **about, "path": workspace.path, "repo": workspace.repo, "branch": workspace.branch}
    return trash.put(places.trash(""), workspace.id, leftovers, said)


def _common(looker: Looker, workspace: Workspace) -> Git:
    common = common_directory(workspace.repo)
    return looker.repository.at(common, common)
