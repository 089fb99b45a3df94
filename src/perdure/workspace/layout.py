"""Decides where a task works: the workdir's path, and the repository, branch and commit that it
begins at (`plan`, which changes nothing). Also claims the names of workdirs (`claim`).

`Workspaces` calls `plan` when a run is accepted. It refuses names that are invalid, or that look
like an existing name.

The workdirs of repositories are below `{root}/.perdure/work`. The name of such a workdir is chosen
by `plan`, and claimed when the workdir is first locked.

A name depends only on (repository, agent, branch), unless another task already has the same short
hash. A file beside the locks stores the identity that owns a name. Like a lock file it is never
removed, so two tasks never share a directory. perdure up to 0.1 named workdirs by the whole
identity. Conversations are bound to those paths, so an identity that had such a workdir keeps it.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from perdure.errors import NotFound, UsageError, WorkspaceError
from perdure.host.git import Git, on_disk
from perdure.host.git.servers import Hosts
from perdure.model import Backend, TaskSpec, Workspace
from perdure.workspace import locks, worktree
from perdure.workspace.identity import (
    Places,
    check_base,
    check_branch,
    check_name,
    identify,
    is_remote,
    local_path,
    parse_remote,
    workdir_name,
)
from perdure.workspace.locks import hold_lock, make_private, read, write

_CHARS = (6, 12, 26)
"""Lengths of the hash in a name, in characters. A longer hash is used only where another task owns
the shorter name."""


def choose_directory(places: Places, repo: str, branch: str, identity: str) -> Path:
    """Return the path of a workdir. Changes nothing. Raises WorkspaceError if no name is free."""
    # Look for the lock before the claims. A claim is durable before its workdir is locked. A lock
    # without a claim was therefore taken by perdure 0.1, which named workdirs by the whole
    # identity.
    locked = places.lock(identity).exists()
    names = [workdir_name(repo, branch, identity, chars) for chars in _CHARS]
    owners = [_owner(places, name) for name in names]
    if identity in owners:
        return places.work(names[owners.index(identity)])
    old = places.work(identity)
    if locked or os.path.lexists(old):
        return old
    if "" not in owners:
        raise WorkspaceError(
            f"No name is free for the workdir: {places.owner(names[-1])} does not belong to "
            f"{identity}.",
            "If perdure did not write that file, remove it.",
        )
    return places.work(names[owners.index("")])


def claim(places: Places, workspace: Workspace) -> None:
    """Record that the name of a workdir below `work` belongs to this workspace. Does nothing for
    other directories. Raises WorkspaceError if the name belongs to another task, if the workspace
    has another workdir, or if the record cannot be written."""
    path, identity = Path(workspace.path), workspace.id
    if not _is_workdir(places, workspace):
        return
    if path.name != identity and not _owner(places, path.name):
        file = places.owner(path.name)
        make_private(file.parent)
        with hold_lock(places.lock("names")):
            if not _owner(places, path.name):
                try:
                    write(file, identity)
                except OSError as error:
                    raise WorkspaceError(
                        f"{file} cannot be written: {error.strerror}.",
                        "Check the free space and the permissions of the root directory.",
                    ) from error
    if reason := conflict(places, workspace):
        raise WorkspaceError(reason, "Remove this run and start it again: perdure rm NAME")


def conflict(places: Places, workspace: Workspace) -> str:
    """Return the reason why the workspace may not use its path; empty if it may. There are two
    reasons: the path belongs to another task, or this workspace has another workdir."""
    path, identity = Path(workspace.path), workspace.id
    if not _is_workdir(places, workspace):
        return ""
    if path.name != identity:
        if _owner(places, path.name) in ("", identity):
            return ""
        return f"{path} belongs to another task of the same name."
    pattern = f"*-{identity[: _CHARS[0]]}*.owner"
    for file in sorted(places.owner("").parent.glob(pattern)):
        name = file.name.removesuffix(".owner")
        if _owner(places, name) == identity:
            return f"{path} is not used any more: the task's workdir is {places.work(name)}."
    return ""


def _is_workdir(places: Places, workspace: Workspace) -> bool:
    parent = Path(workspace.path).parent
    return bool(workspace.repo) and parent.resolve() == places.work("").resolve()


def _owner(places: Places, name: str) -> str:
    """Return the identity that owns a name; empty if the name is free."""
    return read(places.owner(name)).strip()


def plan(
    places: Places,
    spec: TaskSpec,
    run_name: str,
    cwd: Path,
    *,
    transports: frozenset[str],
    hosts: Hosts,
    environ: Mapping[str, str],
) -> Workspace:
    """Return the workspace of a task; see `Workspaces.plan`."""
    check_name("run", run_name)
    if "file" not in transports:
        spec = replace(spec, repo=local_path(spec.repo))
    _check_combination(spec)
    if spec.here:
        return plan_here(cwd / Path(spec.here).expanduser())
    if spec.service and not spec.repo:
        return _of_service(
            places, check_name("service", spec.service), check_name("task", spec.task or run_name)
        )
    branch = check_branch(spec.branch or f"perdure/{run_name}")
    base = check_base(spec.base) if spec.base else ""
    if is_remote(spec.repo):
        if spec.backend == Backend.WORKTREE:
            raise UsageError(
                "A worktree needs a repository on this machine.",
                "Leave --backend out, or use a local path.",
            )
        key = parse_remote(spec.repo, transports)
        hosts.check(key.url)
        return _of_repository(places, spec, Backend.ISOLATED, key.url, key.key, branch, base)
    return _plan_local(places, spec, cwd, branch, base, environ)


def plan_here(path: Path) -> Workspace:
    """Return the workspace of an existing directory that belongs to the user; see
    `Workspaces.plan_here`."""
    path = path.resolve()
    if not path.is_dir():
        raise NotFound(f"There is no directory {path}.", "Create it first, or give another.")
    return Workspace(id=identify("here", str(path)), path=str(path), backend=Backend.HERE)


def plan_new(path: Path) -> Workspace:
    """Return the workspace of a directory that does not exist yet; see `Workspaces.plan_new`."""
    path = path.parent.resolve() / path.name
    return Workspace(id=identify("here", str(path)), path=str(path), backend=Backend.HERE)


def _of_repository(
    places: Places, spec: TaskSpec, backend: Backend, repo: str, key: str, branch: str, base: str
) -> Workspace:
    identity = identify("workspace", key, check_name("agent", spec.agent), branch)
    return Workspace(
        id=identity,
        path=str(choose_directory(places, key, branch, identity)),
        backend=backend,
        repo=repo,
        branch=branch,
        base=base,
    )


def _of_service(places: Places, service: str, task: str) -> Workspace:
    path = places.task(service, task)
    _refuse_look_alike("service", service, places.root)
    _refuse_look_alike("task", task, path.parent)
    return Workspace(id=identify("task", service, task), path=str(path), backend=Backend.TASK)


def _plan_local(
    places: Places, spec: TaskSpec, cwd: Path, branch: str, base: str, environ: Mapping[str, str]
) -> Workspace:
    start = (cwd / Path(spec.repo).expanduser()).resolve()
    if not start.is_dir():
        raise NotFound(
            f"{spec.repo!r} is neither a directory nor the address of a repository.",
            "Give a path or https://host/owner/name.",
        )
    git, common = _found(start, environ, places.git)
    if common is None:
        raise NotFound(
            f"{start} is not in a git repository.",
            "Use --repo PATH, or --here to work in this directory as it is.",
        )
    repo = str(common.parent if common.name == ".git" else common)
    known = on_disk.head(common)
    head = known[0] if known is not None else git.commit("HEAD")
    if not head and not base:
        if not _is_unborn(git, common):
            raise WorkspaceError(
                f"{repo} is damaged: its HEAD names no commit.", f"Try: git -C {repo} fsck"
            )
        raise WorkspaceError(
            f"{repo} has no commit yet, so there is no commit to start from.",
            "Make a first commit: git commit --allow-empty",
        )
    if not (oid := git.commit(base) if base else head):
        raise NotFound(f"{repo} has no branch, tag or commit {base!r}.", "See: git branch --all")
    backend = Backend(spec.backend or Backend.WORKTREE)
    workspace = _of_repository(places, spec, backend, repo, repo, branch, oid)
    if backend is Backend.WORKTREE:
        own = git.at(common, common)
        worktree.check_branch_free(own, branch, Path(workspace.path))
    return workspace


def _is_unborn(git: Git, common: Path) -> bool:
    """Return whether HEAD names a branch that does not exist yet, as in a new repository. This does
    not include a damaged branch, which exists but names no commit."""
    found = git.run("symbolic-ref", "--quiet", "HEAD", good=(0, 1, 128))
    branch = found.text.strip()
    if found.code or not branch:
        return False
    packed = locks.read_all(common / "packed-refs").split()
    return not os.path.lexists(common / branch) and branch not in packed


def find_repository(start: Path, environ: Mapping[str, str]) -> Path | None:
    """Return the git directory that all worktrees of the repository at `start` share; None if
    `start` is not in a repository. Raises GitFailed."""
    return _found(start.resolve(), environ)[1]


def _found(
    start: Path, environ: Mapping[str, str], memory: Path | None = None
) -> tuple[Git, Path | None]:
    if (known := on_disk.repository(start)) is not None:
        return Git(cwd=known, git_dir=known, environ=environ, memory=memory), known
    bare = (start / "HEAD").is_file() and (start / "objects").is_dir()
    git = Git(cwd=start, git_dir=start if bare else None, environ=environ, memory=memory)
    found = git.run("rev-parse", "--path-format=absolute", "--git-common-dir", good=(0, 128))
    if not found.code:
        return git, Path(found.text).resolve()
    if b"not a git repository" not in found.stderr:
        git.run("rev-parse", "--git-common-dir")
    return git, None


def _check_combination(spec: TaskSpec) -> None:
    """Raise UsageError if fields of the spec exclude each other."""
    if spec.here and (
        spec.repo
        or spec.service
        or spec.branch
        or spec.base
        or spec.backend not in ("", Backend.HERE)
    ):
        raise UsageError(
            "--here works in the directory as it is, without repository, service, branch or base.",
            "Leave one of them out.",
        )
    if spec.task and not spec.service:
        raise UsageError("A task name needs a service.", "Add --service NAME.")
    if (
        spec.service
        and not spec.repo
        and (spec.branch or spec.base or spec.backend not in ("", Backend.TASK))
    ):
        raise UsageError(
            "A task of a service has a plain directory, without branch or base.",
            "Add --repo, or leave them out.",
        )
    if spec.repo or not (spec.here or spec.service):
        allowed = {"", Backend.WORKTREE, Backend.ISOLATED}
    else:
        allowed = {"", Backend.HERE, Backend.TASK}
    if spec.backend not in allowed:
        raise UsageError(
            f"There is no backend {spec.backend!r} for this task.", "Use worktree or isolated."
        )


def _refuse_look_alike(kind: str, name: str, directory: Path) -> None:
    """Raise UsageError for a name that differs from an existing name only by case or Unicode form.
    Some file systems, and most people, confuse such names."""
    if not directory.is_dir():
        return
    for entry in directory.iterdir():
        if entry.name != name and _case_folded(entry.name) == _case_folded(name):
            raise UsageError(
                f"The {kind} {name!r} looks like {entry.name!r}, which already exists.",
                f"Use {entry.name!r}, or another name.",
            )


def _case_folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
