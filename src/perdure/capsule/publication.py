"""Uploads the checkpoints of a run to a checkpoint store while the agent is running, and fetches a
run from another host.

Uploads: an attempt calls `CheckpointPublisher.published` for each checkpoint. A thread uploads the
newest one: first the parts that the store lacks, then the manifest.

A machine that has lost its term reports this once (`PlaceLost`) and publishes nothing more. Its
attempt is stopped, so that two agents never work on one run for long. If the store does not answer,
the attempt continues, and failed uploads are reported.

Fetching (`fetch`): if several hosts share a database, a run can continue on this host. Its workdir
and conversation are then fetched from the checkpoint store.

The run itself (spec, instructions, attempts, journal) is taken from the database. Only the files
are taken from the checkpoint store. They are verified like those of a capsule (`verification`).
Files that were already in the workdir are saved first, as a restore does.

The caller of `fetch` holds a claim, so no other process works on the run. The last transaction
records in the database that the files are on this host. If the process is killed before that
transaction, the next process that claims the run fetches everything again.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from msgspec import Struct, field
from msgspec.structs import replace

from perdure.capsule.assembly import FrameCollector, gather
from perdure.capsule.export import Packing, redactor_of, refuse_secrets
from perdure.capsule.imports import (
    all_copies_of,
    checkpoint_of,
    keep_given,
    make_workdir,
    plan_on_this_host,
)
from perdure.capsule.manifest import Manifest
from perdure.capsule.objects import CheckpointStore, Term, open_store
from perdure.capsule.secret_search import Scan
from perdure.capsule.verification import verified
from perdure.engine.attempt import Engine
from perdure.engine.checkpoints import restore_transcript, sessions_of
from perdure.errors import CapsuleError, Conflict, NotFound, PerdureError
from perdure.host import process
from perdure.model import Checkpoint, Claim, TaskRun
from perdure.model.events import PUBLISH, AnyEvent, CheckpointMissed, CheckpointRestored, PlaceLost
from perdure.protocols import RunStore

AT_ONCE = 4
"""Number of parts that are uploaded at the same time."""
TERM_CHECK_S = 15.0
"""Interval in seconds between two checks of the store for the machine that holds a run's term."""
MOST_PACKS = 24
"""Maximum number of packs of a workdir. After that, the whole workdir is packed again as one pack.
"""


class SecretOptions(Struct, frozen=True):
    """The ways to treat secrets: redact them, leave out the files that contain them, or upload
    everything unchanged. A checkpoint is not uploaded if it has a secret that none of the chosen
    ways covers."""

    redact: bool = False
    leave_out: bool = False
    allow: bool = False


class OwnedElsewhere(Conflict):
    """Raised if another machine holds the run's term, or if the run was released for another
    machine."""

    def __init__(self, term: Term, name: str) -> None:
        if term.owner:
            who = f"taken over by {term.host or 'another machine'}"
        else:
            who = "given up for another machine"
        super().__init__(f"{name} was {who}", f"perdure move {name} --from URL takes it back")
        self.term = term


def machine(state: Path) -> str:
    """Return this machine's id."""
    return process.machine(state)


def held_term(runs: RunStore, state: Path, store: CheckpointStore, run: TaskRun) -> Term:
    """Return the run's term if this machine holds it. If the run has no term yet, begin one. Raises
    OwnedElsewhere if another machine holds the term or the run was released."""
    key, mine = run.origin or run.id, machine(state)
    term = store.term(key)
    if term is None:
        term = Term(number=1, owner=mine, host=socket.gethostname(), at=runs.now())
        store.begin(key, term)
    if term.owner != mine:
        raise OwnedElsewhere(term, run.name)
    return term


def publish(
    engine: Engine,
    store: CheckpointStore,
    run: TaskRun,
    checkpoint: Checkpoint,
    ways: SecretOptions,
) -> Manifest:
    """Upload the new parts of one checkpoint, then its manifest. Return the manifest. Raises
    OwnedElsewhere, SecretsFound, CapsuleError."""
    key = run.origin or run.id
    term = held_term(engine.store, engine.state, store, run)
    earlier: Manifest | None = None
    number = 1
    with suppress(NotFound):
        name, earlier = store.newest(key)
        number = int(name[7:15]) + 1 if int(name[:6]) == term.number else 1
    known: set[str] = set()
    if earlier is not None:
        for file in earlier.files():
            known.update(part.sha256 for part in file.parts)
    engine.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix=".publish-", dir=engine.state) as directory:
        if earlier is not None and earlier.workdir and len(earlier.workdir.packs) < MOST_PACKS:
            before = earlier.workdir
        else:
            before = None
        packing = Packing(engine, run, checkpoint, leave_out=ways.leave_out, earlier=before)
        gathering = FrameCollector(
            Path(directory),
            Scan(redactor_of(engine.environ, engine.redactor, run), keep=not ways.redact),
            known,
        )
        manifest = gather(engine, run, checkpoint, gathering, packing)
        if not ways.allow:
            refuse_secrets(gathering.scan.findings, redacts=ways.redact, leaves_out=ways.leave_out)
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="upload") as threads:
            puts = []
            for part, packed in gathering.fresh(manifest):
                puts.append(threads.submit(store.put, part, packed))
            for put in puts:
                put.result()
    held_term(engine.store, engine.state, store, run)
    store.publish(key, term.number, number, manifest)
    # Check the term again. If another machine has just taken the run over, it may not have seen
    # this manifest. Publishing succeeded only if this machine still holds the term.
    held_term(engine.store, engine.state, store, run)
    return manifest


def is_complete(run: TaskRun, checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint contains all work of the run's newest attempt: it was taken at
    the end of that attempt, and no file was left out of it."""
    return (checkpoint.attempt, checkpoint.why) == (run.attempt, "end") and checkpoint.workdir.whole


class CheckpointPublisher(Struct):
    """A `Publisher` for one checkpoint store. One upload thread serves all runs of this process."""

    engine: Engine
    url: str
    ways: SecretOptions
    _store: CheckpointStore | None = None
    _pool: ThreadPoolExecutor | None = None
    _newest: dict[str, Checkpoint] = field(default_factory=dict)
    _settled: set[str] = field(default_factory=set)
    _events: dict[str, list[AnyEvent]] = field(default_factory=dict)
    _lost: dict[str, PlaceLost] = field(default_factory=dict)
    _available: dict[str, tuple[float, str]] = field(default_factory=dict)
    _looked: dict[str, float] = field(default_factory=dict)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def refused(self, run: TaskRun) -> str:
        """Return the reason why no attempt of the run may start on this machine, as a sentence.
        Return an empty string if an attempt may start, or if the store does not answer."""
        try:
            if self.engine.host.id:
                self._take_over_term(run)
            held_term(self.engine.store, self.engine.state, self._open(), run)
        except OwnedElsewhere as taken:
            return f"{taken}; {taken.hint.replace('URL', self.url)}"
        except PerdureError:
            return ""
        return ""

    def available(self, run: TaskRun) -> str:
        """Return the reason why the files of a run on another host cannot be fetched. Return an
        empty string if they can be fetched. The result is cached for `TERM_CHECK_S` seconds."""
        asked = self._available.get(run.id)
        if asked is None or time.monotonic() - asked[0] >= TERM_CHECK_S:
            why = ""
            try:
                self._open().newest(run.origin or run.id)
            except PerdureError as error:
                why = str(error)
            asked = self._available[run.id] = (time.monotonic(), why)
        return asked[1]

    def fetch(self, claim: Claim) -> TaskRun:
        """Take over the run's term, so that the other host stops publishing. Then fetch the run's
        files, and return the run."""

        store = self._open()
        self._take_over_term(claim.run)
        return fetch(self.engine, claim, store, store.newest(claim.run.origin or claim.run.id)[1])

    def _take_over_term(self, run: TaskRun) -> None:
        """Take over the run's term if another machine holds it. The hosts share a database, which
        has already decided that this host owns the run. This method only makes the term agree with
        that decision.
        """
        store, key, mine = self._open(), run.origin or run.id, machine(self.engine.state)
        term = store.term(key)
        if term is None or term.owner == mine:
            return
        with suppress(NotFound):
            # `newest` raises NotFound if the store has no checkpoint of the run. In that case the
            # term is not taken over.
            store.newest(key)
            store.begin(
                key,
                Term(
                    number=term.number + 1,
                    owner=mine,
                    host=socket.gethostname(),
                    at=self.engine.store.now(),
                ),
            )

    def published(self, checkpoint: Checkpoint) -> None:
        """Queue a checkpoint for upload, and return immediately. It replaces an older checkpoint of
        the same run that is still in the queue."""
        with self._turn:
            waiting = checkpoint.run in self._newest
            self._newest[checkpoint.run] = checkpoint
            self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="publish")
            if not waiting:
                self._pool.submit(self._upload, checkpoint.run)

    def take_events(self, run_id: str) -> tuple[AnyEvent, ...]:
        """Return the run's events since the last call. An event is a failed upload, or a
        `PlaceLost`, after which the attempt must end. This call also starts a check of the term if
        a check is due."""
        now = time.monotonic()
        with self._turn:
            if (
                self._pool is not None
                and now - self._looked.setdefault(run_id, now) >= TERM_CHECK_S
            ):
                self._looked[run_id] = now
                self._pool.submit(self._check_term, run_id)
            return tuple(self._events.pop(run_id, ()))

    def settle(self, run_id: str) -> str:
        """Upload the run's newest checkpoint at the end of an attempt, and wait for the upload.
        Return the error as a sentence, or an empty string if there was none."""
        with self._turn:
            self._newest.pop(run_id, None)
            self._settled.discard(run_id)
            # All uploads use one thread, one after the other. When this empty job has run, earlier
            # uploads of the run are done.
            if self._pool is not None:
                ahead = self._pool.submit(lambda: None)
            else:
                ahead = None
        if ahead is not None:
            ahead.result()
        checkpoints = self.engine.store.checkpoints(run_id)
        if run_id in self._lost or not checkpoints:
            return ""
        try:
            run = self.engine.store.get(run_id)
            manifest = publish(self.engine, self._open(), run, checkpoints[-1], self.ways)
        except PerdureError as error:
            return str(error)
        if not manifest.left_out and is_complete(run, checkpoints[-1]):
            self._settled.add(run_id)
        return ""

    def settled(self, run_id: str) -> bool:
        """Return whether the last `settle` uploaded all work of the run and left no file out."""
        return run_id in self._settled

    def _open(self) -> CheckpointStore:
        self._store = self._store or open_store(self.url)
        return self._store

    def _check_term(self, run_id: str) -> None:
        """Check whether this machine still holds the run's term. This check is needed only while no
        checkpoint is uploaded: each upload checks the term itself."""
        if run_id not in self._lost:
            self._try(
                run_id,
                lambda run: held_term(self.engine.store, self.engine.state, self._open(), run),
            )

    def _upload(self, run_id: str) -> None:
        with self._turn:
            checkpoint = self._newest.pop(run_id, None)
        if checkpoint is None or run_id in self._lost:
            return
        self._try(
            run_id, lambda run: publish(self.engine, self._open(), run, checkpoint, self.ways)
        )

    def _try(self, run_id: str, step: Callable[[TaskRun], object]) -> None:
        event: AnyEvent | None = None
        try:
            step(self.engine.store.get(run_id))
        except OwnedElsewhere as taken:
            event = self._lost[run_id] = PlaceLost(owner=taken.term.host, term=taken.term.number)
        except Exception as error:
            event = CheckpointMissed(
                why=PUBLISH, reason=self.engine.redactor.text(str(error) or type(error).__name__)
            )
        if event is not None:
            with self._turn:
                self._events.setdefault(run_id, []).append(event)


WHY = "fetch"


def fetch(engine: Engine, claim: Claim, store: CheckpointStore, manifest: Manifest) -> TaskRun:
    """Fetch the files of the checkpoint to this host. Return the run with its new workspace on this
    host. Raises CapsuleError, Conflict, LostLease, NotFound, WorkspaceError."""
    run = claim.run
    driver = engine.driver(run.spec.agent)
    if manifest.agent != run.spec.agent:
        raise CapsuleError(
            f"the published checkpoint of {run.name} was made with the agent {manifest.agent}, but "
            f"the run has the agent {run.spec.agent}",
            f"perdure show {run.name}",
        )
    home = driver.home({**engine.environ, **run.spec.env})
    engine.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with verified(manifest, store, engine.state) as files:
        place = plan_on_this_host(engine.workspaces, engine.state, run)
        fd = engine.workspaces.lock(place, f"perdure fetches {run.name}")
        try:
            number, saved, _ = make_workdir(
                engine.store,
                engine.workspaces,
                manifest,
                files,
                place,
                run.spec.agent,
                run.id,
            )
            parts = all_copies_of(
                engine.driver, engine.copies, manifest, files, Path(place.path), []
            )
            keep_given(engine.state, manifest, files)
            here = replace(run, workspace=place)
            checkpoint = replace(
                checkpoint_of(engine.store, manifest, here, parts, number, saved), why=WHY
            )
            transcript = restore_transcript(engine, here, driver, home, checkpoint)
            sessions = sessions_of(engine.store, driver, here, checkpoint, transcript, home)
            event = CheckpointRestored(
                number=number,
                attempt=manifest.attempt,
                attempts=run.attempt - 1,
                moved_from=run.host_name or "?",
            )
            return engine.store.fetched(claim, place, sessions, checkpoint, event)
        finally:
            os.close(fd)
