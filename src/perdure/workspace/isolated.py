"""The `isolated` backend: the workdir has its own repository, which borrows objects from the cache.
Makes these workdirs (`prepare`), and keeps the caches (`open_cache`).

No workspace shares its git directory with another. So what an agent writes into hooks,
configuration or refs affects only its own workspace. perdure never runs git with that
configuration. A workdir is built in a stage directory and renamed to its final path, so a workdir
at its final path is always complete. An interrupted stage directory never contains anybody's work,
and is removed.

There is one cache for each repository: a bare, full clone that only grows.

The cache is made by init and fetch, never by clone, with the address and the refspecs on the
command line. So neither a server nor a configuration can choose what runs or where it is written.
Objects are never pruned: git itself refuses that, because extensions.preciousObjects is set. For
each workspace, a ref in the cache keeps the commit that the work began at. The clone is full
because git 2.39 cannot borrow from a partial clone ("invalid object" in every borrower).

The cache is only used under its lock. Processes that wait for the lock share one fetch: if another
process began and finished a fetch meanwhile, the result of that fetch is used. If the server cannot
be reached, work starts from the commits fetched before. If the server refuses, the start fails.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from perdure.errors import GitFailed, NotFound, WorkspaceError
from perdure.host.git import Git, unreachable
from perdure.host.system.files import flush, walk
from perdure.model import Workspace
from perdure.workspace.identity import Places, is_oid
from perdure.workspace.locks import (
    hold_lock,
    is_real_directory,
    make_private,
    quote_alternate,
    read,
    sync,
    write,
)
from perdure.workspace.transport import RemoteSource, repository_is_missing

REFSPECS = ("+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
HEAD = "refs/perdure/head"

_HONEST_OLD_FAULTS = (
    "zeroPaddedFilemode badDate badDateOverflow zeroPaddedDate badEmail missingEmail badName "
    "missingNameBeforeEmail missingSpaceBeforeDate missingSpaceBeforeEmail badTimezone "
    "missingTaggerEntry"
).split()
"""Kinds of fsck errors that are allowed. Errors in dates, modes and authors are common in harmless
old history (pallets/flask: zeroPaddedFilemode). Errors in paths must never be listed here."""


@contextlib.contextmanager
def open_cache(
    places: Places, source: RemoteSource, git: Git
) -> Iterator[tuple[Git, GitFailed | None]]:
    """Lock the cache, create it if necessary, and fetch. Yields the cache and None. If the server
    cannot be reached, but was reached before, yields the unchanged cache and the error.

    Raises NotFound, GitFailed or WorkspaceError.
    """
    started, finished = (
        places.lock(source.id).with_suffix(".started"),
        places.lock(source.id).with_suffix(".finished"),
    )
    began, ended = read(started), read(finished)
    with _locked(places, source, git) as cache:
        shared, fault = read(finished), None
        if shared in ("", began, ended):
            ticket = secrets.token_hex(8)
            write(started, ticket)
            try:
                _fetch_all(places, source, cache)
            except GitFailed as error:
                if not shared or not unreachable(error):
                    raise
                fault = error
            else:
                write(finished, ticket)
        yield cache, fault


def fetch_ref(places: Places, source: RemoteSource, git: Git, refspec: str) -> None:
    """Fetch one more ref into the cache."""
    with _locked(places, source, git) as cache:
        _fetch(places, source, cache, (refspec,))


@contextlib.contextmanager
def _locked(places: Places, source: RemoteSource, git: Git) -> Iterator[Git]:
    """Lock the cache for writing and yield git for it. A mark file exists while the cache is in
    use, and remains after a failure or a kill. The next caller that finds the mark file removes
    what a killed git left."""
    mark = places.making(source.id)
    with hold_lock(places.lock(source.id), timeout_s=3600.0) as fd:
        if mark.exists():
            _sweep(places.cache(source.id))
        write(mark, source.url)
        yield _make_cache(
            places,
            source,
            Git(
                cwd=places.root,
                ceiling=places.root,
                keep=(*git.keep, fd),
                environ=git.environ,
                memory=git.memory,
            ),
        )
        mark.unlink(missing_ok=True)


def resolve_base(
    places: Places, source: RemoteSource, cache: Git, base: str, fault: GitFailed | None
) -> str:
    """Return the commit that `base` names: a branch, a tag or a full id. An empty `base` means the
    remote's HEAD.

    If there is no such commit, raises NotFound. If the preceding fetch failed with the error
    `fault`, raises that error instead.
    """
    if not base:
        if oid := cache.commit(HEAD):
            return oid
        raise fault or NotFound(
            f"{source.url} has no default branch: its HEAD names a branch that does not exist.",
            "Name a branch with --base.",
        )
    for name in (f"refs/remotes/origin/{base.removeprefix('origin/')}", f"refs/tags/{base}"):
        if oid := cache.commit(name):
            return oid
    if is_oid(base):
        if not fault and not cache.commit(base):
            with contextlib.suppress(GitFailed):
                _fetch(places, source, cache, (f"+{base}:refs/perdure/wanted/{base}",))
        if oid := cache.commit(base):
            return oid
    raise fault or NotFound(
        f"{source.url} has no branch, tag or commit {base!r}.", "Name one that has been pushed."
    )


def _make_cache(places: Places, source: RemoteSource, git: Git) -> Git:
    directory = places.cache(source.id)
    if not directory.is_dir():
        stage = directory.with_suffix(".stage")
        shutil.rmtree(stage, ignore_errors=True)
        make_private(directory.parent)
        git.run("init", "--quiet", "--bare", "--template=", "--", str(stage))
        made = git.at(places.root, stage)
        made.run("config", "--", "core.repositoryFormatVersion", "1")
        made.run("config", "--", "extensions.preciousObjects", "true")
        stage.rename(directory)
        sync(directory.parent)
    return git.at(places.root, directory)


def _sweep(directory: Path) -> None:
    """Remove the files that a killed git left. The children of git inherit the lock, so none of
    them is running while this process holds the lock."""
    for pattern in (
        "**/*.lock",
        "objects/pack/tmp_*",
        "objects/pack/.tmp-*",
        "objects/??/tmp_obj_*",
        "objects/tmp_objdir-*",
    ):
        for leftover in list(directory.glob(pattern)):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def _fetch_all(places: Places, source: RemoteSource, cache: Git) -> None:
    """Fetch all branches and tags, and the commit of the server's HEAD. If the server's HEAD names
    a branch that was never pushed, the cache gets no HEAD."""
    try:
        _fetch(places, source, cache, (*REFSPECS, f"+HEAD:{HEAD}"))
    except GitFailed as error:
        if "couldn't find remote ref HEAD" not in error.stderr:
            raise
        _fetch(places, source, cache, REFSPECS)
        cache.run("update-ref", "-d", "--", HEAD)
        if not cache.refs(*(spec.partition(":")[2].removesuffix("/*") for spec in REFSPECS)):
            raise WorkspaceError(
                f"{source.url} has no commit yet.", "Push a first commit, then try again."
            ) from error


def _fetch(places: Places, source: RemoteSource, cache: Git, refspecs: tuple[str, ...]) -> None:
    settings = tuple((f"fetch.fsck.{fault}", "warn") for fault in _HONEST_OLD_FAULTS)
    options = (
        "--quiet",
        "--prune",
        "--no-tags",
        "--no-recurse-submodules",
        "--no-write-fetch-head",
        "--no-auto-maintenance",
    )
    operands = ("--upload-pack=git-upload-pack", "--", source.address, *refspecs)
    scratch = make_private(places.scratch)
    try:
        source.call(
            cache, scratch, "fetch", *options, *operands, settings=settings, timeout_s=3600.0
        )
    except GitFailed as error:
        if repository_is_missing(error):
            raise source.not_found() from error
        raise


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
        with open_cache(places, source, git) as (cache, fault):
            oid = cache.commit(f"refs/remotes/origin/{workspace.branch}")
            if oid:
                notes.append(f"The branch {workspace.branch} existed already and is used as it is.")
            else:
                oid = resolve_base(places, source, cache, workspace.base, fault)
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
        if places.spares.is_dir():
            from perdure.workspace import spares

            common = places.cache(source.id)
            spares.take(places, source.id, git, common, oid, stage, stage / ".git/index")
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
    made.run("read-tree", "--reset", "-u", oid, timeout_s=1800.0)
