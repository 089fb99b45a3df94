"""Keeps one cache per repository: a bare, full clone that only grows. Isolated workdirs borrow
their objects from it.

The cache is made by init and fetch, never by clone, with the address and the refspecs on the
command line. So neither a server nor a configuration can choose what runs or where it is written.
Objects are never pruned: with extensions.preciousObjects git itself refuses to. For each workspace,
a ref keeps the commit that its work began at. The clone is full because git 2.39 cannot borrow from
a partial clone ("invalid object" in every borrower).

All callers hold the cache's lock. Processes that wait for the lock share one fetch: if another
process began and finished a fetch meanwhile, its result is used. If the server cannot be reached,
work starts from the commits fetched before. If the server refuses, the start fails.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from perdure.errors import GitFailed, NotFound, WorkspaceError
from perdure.host.git import Git, unreachable
from perdure.workspace.identity import Places, is_oid
from perdure.workspace.locks import hold_lock, make_private, read, sync, write
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
    cannot be reached, yields the unchanged cache and the error.

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
