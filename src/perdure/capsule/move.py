"""`perdure move`: moves a run to a checkpoint store, or from one to this machine.

The newest manifest of a run in the store is the run's state. The run's newest term says which
machine holds the run. Any machine may take a released run. A run that another machine still holds
is taken over only if that machine has published nothing for a while, or if a person insists. The
other machine notices the new term and stops (`publication`).
"""

from __future__ import annotations

import socket
from contextlib import suppress

from msgspec import Struct
from msgspec.structs import replace

from perdure.capsule.export import chosen
from perdure.capsule.imports import ImportRequest, ImportResult, import_run
from perdure.capsule.manifest import Manifest
from perdure.capsule.objects import CheckpointStore, Term, open_store
from perdure.capsule.publication import SecretOptions, machine, publish
from perdure.engine.attempt import Engine
from perdure.engine.attempt.engine import EngineStore, moved_to, require_here
from perdure.errors import Conflict, NotFound, PerdureError
from perdure.model import RunState, TaskRun
from perdure.rules.lifecycle import FINAL
from perdure.workspace import Workspaces

QUIET_MS = 90_000
"""Time in ms after which a machine that published nothing counts as idle or unreachable."""

__all__ = ["SecretOptions", "list_stored_runs", "move_from", "move_to"]


class StoredRun(Struct, frozen=True):
    """A run in a checkpoint store. `owner` is the id of the machine that holds it, or empty if the
    run was released."""

    manifest: Manifest
    owner: str
    host: str


def list_stored_runs(url: str) -> list[StoredRun]:
    """Return the runs of a checkpoint store, newest first. Runs that cannot be read are omitted."""
    store = open_store(url)
    found = []
    for run in store.runs():
        try:
            manifest, term = store.newest(run)[1], store.term(run)
        except PerdureError:
            continue
        found.append(StoredRun(manifest, term.owner if term else "", term.host if term else ""))
    return sorted(found, key=lambda each: -each.manifest.at)


def move_to(engine: Engine, ref: str, url: str, ways: SecretOptions) -> Manifest:
    """Publish the run's newest checkpoint and release the run. After that, no attempt starts on
    this machine. Return the manifest. Raises Conflict while the run is running, or if another
    machine has taken it over."""
    run = engine.store.get(ref)
    require_here(engine.host, run, "it cannot be moved")
    if run.state is RunState.RUNNING:
        raise Conflict(f"{run.name} is running (attempt {run.attempt})", f"perdure stop {run.name}")
    store = open_store(url)
    manifest = publish(engine, store, run, chosen(engine.store, run, 0), ways)
    key = run.origin or run.id
    term = store.term(key)
    store.begin(
        key,
        Term(
            number=(term.number if term else 0) + 1,
            owner="",
            host=socket.gethostname(),
            at=engine.store.now(),
        ),
    )
    mark = moved_to(engine.state, run.id)
    mark.parent.mkdir(mode=0o700, exist_ok=True)
    mark.write_text(f"{url}\n", encoding="utf-8")
    return manifest


def move_from(
    engine: Engine, ref: str, url: str, wish: ImportRequest, *, over: bool = False
) -> ImportResult:
    """Import a run from a checkpoint store, and return it. This machine then holds the run's term.
    Raises NotFound, Conflict, CapsuleError.

    The new term is stored first, then the newest manifest is read. Therefore the import includes
    everything that the other machine published before. If that machine tries to publish later, it
    gets an error, which it reports. If the import fails, the term is given back. After a kill
    during the import, this machine keeps the term and may try again. If `over` is true, the run is
    taken over even if another machine seems to be running it.
    """
    store = open_store(url)
    key = find(store, ref)
    manifest = store.newest(key)[1]
    term = store.term(key)
    mine = machine(engine.state)
    now = engine.store.now()
    if term is not None:
        quiet_ms = now - max(term.at, manifest.at)
    else:
        quiet_ms = QUIET_MS
    if term is not None and term.owner not in ("", mine) and not over and quiet_ms < QUIET_MS:
        raise Conflict(
            f"{manifest.name} was published by {term.host or 'another machine'} "
            f"{max(0, quiet_ms) // 1000} s ago: it may be running there",
            "wait, or stop it there; perdure move --take-over stops that machine's run",
        )
    place = Term(
        number=(term.number if term else 0) + 1, owner=mine, host=socket.gethostname(), at=now
    )
    store.begin(key, place)
    try:
        taken = import_run(engine, store.newest(key)[1], store, wish)
        _keep(engine.store, engine.workspaces, store, key, place, taken.run)
    except BaseException:
        if term is None or term.owner != mine:
            _give_back(store, key, place, term)
        raise
    return taken


def _keep(
    runs: EngineStore,
    workspaces: Workspaces,
    store: CheckpointStore,
    key: str,
    place: Term,
    run: TaskRun,
) -> None:
    """Check that this machine still holds the run's term. If it does not, or if the store does not
    answer, remove the imported run and raise the error. Raises Conflict if another machine has
    taken the run over."""
    try:
        newest = store.term(key)
        if newest is None or newest.number != place.number:
            raise Conflict(
                f"another machine took {run.name} over first",
                f"perdure move {run.name} --from URL --take-over",
            )
    except BaseException:
        if run.state not in FINAL:
            runs.request_cancel(run.id)
        runs.remove(run.id)
        assert run.workspace is not None
        workspaces.discard_new(
            run.workspace, f"another machine took {run.name} over at the same moment"
        )
        raise


def _give_back(store: CheckpointStore, key: str, place: Term, before: Term | None) -> None:
    """Begin one more term, for the run's former owner, so that this machine no longer holds the
    run. If the run had no term before, it is released. Do nothing if another machine has begun a
    newer term. If the store does not answer, this machine keeps the term."""
    with suppress(PerdureError):
        newest = store.term(key)
        if newest is not None and newest.number == place.number:
            if before is not None:
                whose = before
            else:
                whose = replace(place, owner="")
            store.begin(key, replace(whose, number=place.number + 1))


def find(store: CheckpointStore, ref: str) -> str:
    """Return the id of the stored run that has `ref` as its id or name. Raises NotFound if there is
    none, and Conflict if several runs have the name."""
    runs = store.runs()
    if ref in runs:
        return ref
    named = []
    for run in runs:
        try:
            if store.newest(run)[1].name == ref:
                named.append(run)
        except PerdureError:
            continue
    if not named:
        raise NotFound(
            f"the checkpoint store {store.url} has no run {ref!r}",
            f"perdure move --from {store.url}",
        )
    if len(named) > 1:
        raise Conflict(
            f"{len(named)} runs in {store.url} are called {ref!r}",
            f"give its id: {', '.join(named)}",
        )
    return named[0]
