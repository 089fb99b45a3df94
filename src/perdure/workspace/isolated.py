"""The `isolated` backend: the workdir has its own repository, which borrows objects from the cache.

No other workspace shares its git directory. So what an agent writes into hooks, configuration or
refs affects only that workspace. perdure never runs git with that configuration. A workdir is built
in a stage directory and renamed to its final path, so a workdir at its final path is always
complete. An interrupted stage directory never contains anybody's work, and is removed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from perdure.errors import WorkspaceError
from perdure.host.git import Git
from perdure.host.system.files import walk
from perdure.model import Workspace
from perdure.workspace import clone_cache as caches
from perdure.workspace.identity import Places, is_oid
from perdure.workspace.locks import (
    flush,
    hold_lock,
    is_real_directory,
    make_private,
    quote_alternate,
    read,
    sync,
    write,
)
from perdure.workspace.transport import RemoteSource


def prepare(
    places: Places, workspace: Workspace, source: RemoteSource, git: Git
) -> tuple[bool, list[str]]:
    """Make or reuse the workdir. Return whether it was made, and notes for a person. The network is
    needed only to make a workdir, and only for objects that are not in the cache."""
    path = Path(workspace.path)
    if _is_workdir(path):
        return False, []
    with hold_lock(places.lock(f"{workspace.id}.making"), timeout_s=3600.0) as fd:
        if _is_workdir(path):
            return False, []
        git = Git(
            cwd=places.root,
            ceiling=places.root,
            keep=(*git.keep, fd),
            environ=git.environ,
            memory=git.memory,
        )
        notes: list[str] = []
        with caches.open_cache(places, source, git) as (cache, fault):
            oid = cache.commit(f"refs/remotes/origin/{workspace.branch}")
            if oid:
                notes.append(f"The branch {workspace.branch} existed already and is used as it is.")
            else:
                oid = caches.resolve_base(places, source, cache, workspace.base, fault)
            if fault:
                notes.append(
                    f"{source.url} could not be reached: this starts from the commit fetched "
                    f"last, {oid[:12]}."
                )
            cache.set_ref(f"refs/perdure/pin/{workspace.id}", oid, "perdure: start of a workspace")
            packed = _packed_refs(cache)
        stage = places.stage(workspace.id)
        shutil.rmtree(stage, ignore_errors=True)
        make_private(path.parent)
        _build(stage, workspace, places.cache(source.id), source, oid, packed, git)
        flush(stage)
        stage.rename(path)
        sync(path.parent)
    return True, notes


def check_objects(objects: Path, cache: Path) -> None:
    """Raise WorkspaceError unless all objects of a clone are its own, or borrowed from the cache
    that it was made from.

    Called before objects are copied elsewhere. Through a link or an alternate, an agent could
    include objects of another repository.
    """
    borrowed = read(objects / "info/alternates")
    linked = next((path for path in _entries(objects) if path.is_symlink()), None)
    if linked is not None or borrowed not in ("", f"{quote_alternate(cache)}\n"):
        if linked is not None:
            what = f"{linked} is a link"
        else:
            what = "info/alternates was changed"
        raise WorkspaceError(
            f"The git objects in {objects} cannot be trusted: {what}.",
            "Inspect the directory. No object was copied from it.",
        )


def _entries(objects: Path) -> Iterator[Path]:
    for directory, folders, files in walk(objects):
        for name in (*folders, *files):
            yield Path(directory, name)


def _is_workdir(path: Path) -> bool:
    """Return whether the workdir exists. Raises WorkspaceError if its path has anything else with
    content. Changes nothing."""
    if is_real_directory(path / ".git") and is_real_directory(path):
        return True
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise WorkspaceError(
            f"{path} has files, but its git directory is missing. Nothing was changed.",
            "Move the directory away and try again.",
        )
    return False


def _packed_refs(cache: Git) -> str:
    refs = sorted(cache.refs("refs/remotes/origin", "refs/tags").items())
    return "".join(f"{oid} {name}\n" for name, oid in refs)


def _build(
    stage: Path,
    workspace: Workspace,
    cache: Path,
    source: RemoteSource,
    oid: str,
    packed: str,
    git: Git,
) -> None:
    form = "sha256" if is_oid(oid) and len(oid) == 64 else "sha1"
    git.run(
        "init",
        "--quiet",
        "--template=",
        f"--object-format={form}",
        f"--initial-branch={workspace.branch}",
        "--",
        str(stage),
    )
    own = stage / ".git"
    made = git.at(stage, own, stage)
    (own / "objects/info").mkdir(exist_ok=True)
    write(own / "objects/info/alternates", f"{quote_alternate(cache / 'objects')}\n")
    write(own / "packed-refs", packed)
    for key, value in (
        ("remote.origin.url", source.url),
        ("remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*"),
        ("gc.auto", "0"),
    ):
        made.run("config", "--", key, value)
    made.set_ref(f"refs/heads/{workspace.branch}", oid, "perdure: new branch")
    made.run("read-tree", "-m", "-u", oid, timeout_s=1800.0)
