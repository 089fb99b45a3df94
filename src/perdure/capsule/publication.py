"""Brings published checkpoints into the checkpoint store while the agent works, and notices when
the run is another machine's.

The attempt tells `Publishing` of each checkpoint (`published`); a thread of its own brings the
newest one out, with only those parts that are not there yet, and the manifest last. A machine that
lost its place says so once (`lost`), publishes nothing more, and its attempt is stopped: two agents
never work on for long. A store that cannot be reached stops nobody; what was missed is told.
"""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import field
from itertools import chain
from pathlib import Path

from perdure.capsule.assembly import Gathering, gather
from perdure.capsule.export import Packing, redactor_of, refuse_secrets
from perdure.capsule.manifest import Manifest
from perdure.capsule.objects import CheckpointStore, Term, open_store
from perdure.capsule.scan import Scan
from perdure.engine.attempt import Engine
from perdure.errors import Conflict, NotFound, PerdureError
from perdure.host import process
from perdure.lateclass import dataclass
from perdure.model import Checkpoint, Claim, TaskRun
from perdure.model.events import PUBLISH, AnyEvent, CheckpointMissed, PlaceLost

AT_ONCE = 4
"""So many parts travel at the same time."""
LOOK_S = 15.0
"""So often it is looked whether a run is still this machine's."""
MOST_PACKS = 24
"""Then all of the workdir goes into one pack again."""


@dataclass(frozen=True, slots=True)
class Ways:
    """What is done with secrets: replaced, left out, or taken as they are. What is not said is
    refused."""

    redact: bool = False
    leave_out: bool = False
    allow: bool = False


class TakenUp(Conflict):
    """The run is another machine's by now."""

    def __init__(self, term: Term, name: str) -> None:
        who = (
            f"taken up by {term.host or 'another machine'}"
            if term.owner
            else "let go of, for another machine"
        )
        super().__init__(f"{name} was {who}", f"perdure move {name} --from URL brings it back")
        self.term = term


def machine(engine: Engine) -> str:
    """This machine's own id."""
    return process.machine(engine.state)


def place_of(engine: Engine, store: CheckpointStore, run: TaskRun) -> Term:
    """The run's term, which is this machine's; begun if there is none. Raises TakenUp."""
    key, mine = run.origin or run.id, machine(engine)
    term = store.term(key)
    if term is None:
        term = Term(number=1, owner=mine, host=socket.gethostname(), at=engine.store.now())
        store.begin(key, term)
    if term.owner != mine:
        raise TakenUp(term, run.name)
    return term


def publish(
    engine: Engine, store: CheckpointStore, run: TaskRun, checkpoint: Checkpoint, ways: Ways
) -> Manifest:
    """Brings one checkpoint out: the parts that are new, then its manifest. Raises TakenUp,
    SecretsFound, CapsuleError."""
    key = run.origin or run.id
    term = place_of(engine, store, run)
    earlier: Manifest | None = None
    number = 1
    with suppress(NotFound):
        name, earlier = store.newest(key)
        number = int(name[7:15]) + 1 if int(name[:6]) == term.number else 1
    known = (
        {part.sha256 for part in chain.from_iterable(file.parts for file in earlier.files())}
        if earlier is not None
        else set[str]()
    )
    engine.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix=".publish-", dir=engine.state) as directory:
        before = (
            earlier.workdir
            if earlier is not None and earlier.workdir and len(earlier.workdir.packs) < MOST_PACKS
            else None
        )
        packing = Packing(engine, run, checkpoint, leave_out=ways.leave_out, earlier=before)
        gathering = Gathering(
            Path(directory), Scan(redactor_of(engine, run), keep=not ways.redact), known
        )
        manifest = gather(engine, run, checkpoint, gathering, packing)
        if not ways.allow:
            refuse_secrets(gathering.scan.findings, redacts=ways.redact, leaves_out=ways.leave_out)
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="upload") as threads:
            for put in [
                threads.submit(store.put, part, packed)
                for part, packed in gathering.fresh(manifest)
            ]:
                put.result()
    place_of(engine, store, run)
    store.publish(key, term.number, number, manifest)
    # Who took the run up in this moment may not have seen the manifest: it counts only if the place
    # is still this machine's.
    place_of(engine, store, run)
    return manifest


def is_all(run: TaskRun, checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint has all that the run's newest attempt left: it was taken at its end, and
    left no work out."""
    return (checkpoint.attempt, checkpoint.why) == (run.attempt, "end") and checkpoint.workdir.whole


@dataclass(slots=True)
class Publishing:
    """A `Publisher` for one checkpoint store. One thread works for all runs of this process."""

    engine: Engine
    url: str
    ways: Ways
    _store: CheckpointStore | None = None
    _pool: ThreadPoolExecutor | None = None
    _newest: dict[str, Checkpoint] = field(default_factory=dict)
    _settled: set[str] = field(default_factory=set)
    _told: dict[str, list[AnyEvent]] = field(default_factory=dict)
    _lost: dict[str, PlaceLost] = field(default_factory=dict)
    _available: dict[str, tuple[float, str]] = field(default_factory=dict)
    _looked: dict[str, float] = field(default_factory=dict)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def refused(self, run: TaskRun) -> str:
        """Why no attempt may start here, in a sentence; empty if one may. A store that does not
        answer refuses nobody."""
        try:
            if self.engine.host.id:
                self._take_place(run)
            place_of(self.engine, self._opened(), run)
        except TakenUp as taken:
            return f"{taken}; {taken.hint.replace('URL', self.url)}"
        except PerdureError:
            return ""
        return ""

    def available(self, run: TaskRun) -> str:
        """Why a run of another host cannot be brought here; asked again after a while only."""
        asked = self._available.get(run.id)
        if asked is None or time.monotonic() - asked[0] >= LOOK_S:
            why = ""
            try:
                self._opened().newest(run.origin or run.id)
            except PerdureError as error:
                why = str(error)
            asked = self._available[run.id] = (time.monotonic(), why)
        return asked[1]

    def fetch(self, claim: Claim) -> TaskRun:
        """Takes the run's place in the store, so that the other host publishes no more of it, then
        brings its files here."""
        from perdure.capsule.fetch import fetch

        store = self._opened()
        self._take_place(claim.run)
        return fetch(self.engine, claim, store, store.newest(claim.run.origin or claim.run.id)[1])

    def _take_place(self, run: TaskRun) -> None:
        """Whose run it is, a shared database says: the store's term follows."""
        store, key, mine = self._opened(), run.origin or run.id, machine(self.engine)
        term = store.term(key)
        if term is None or term.owner == mine:
            return
        with suppress(NotFound):
            store.newest(
                key
            )  # The place of a run of which nothing is there is left to whoever has it.
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
        """A checkpoint is there: it is brought out as soon as the one before it is. Returns at
        once."""
        with self._turn:
            waiting = checkpoint.run in self._newest
            self._newest[checkpoint.run] = checkpoint
            self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="publish")
            if not waiting:
                self._pool.submit(self._bring, checkpoint.run)

    def told(self, run_id: str) -> tuple[AnyEvent, ...]:
        """What is to be told of the run since this was last asked: `PlaceLost`, after which the
        attempt must end, or what failed."""
        now = time.monotonic()
        with self._turn:
            if self._pool is not None and now - self._looked.setdefault(run_id, now) >= LOOK_S:
                self._looked[run_id] = now
                self._pool.submit(self._look, run_id)
            return tuple(self._told.pop(run_id, ()))

    def settle(self, run_id: str) -> str:
        """Brings out how the run stands at an attempt's end, and waits for it. Returns what went
        wrong, in a sentence, or nothing."""
        with self._turn:
            self._newest.pop(run_id, None)
            self._settled.discard(run_id)
            # Other runs go on with the same thread: when this is its turn, what it had begun of
            # this run is done.
            ahead = self._pool.submit(lambda: None) if self._pool is not None else None
        if ahead is not None:
            ahead.result()
        checkpoints = self.engine.store.checkpoints(run_id)
        if run_id in self._lost or not checkpoints:
            return ""
        try:
            run = self.engine.store.get(run_id)
            manifest = publish(self.engine, self._opened(), run, checkpoints[-1], self.ways)
        except PerdureError as error:
            return str(error)
        if not manifest.left_out and is_all(run, checkpoints[-1]):
            self._settled.add(run_id)
        return ""

    def settled(self, run_id: str) -> bool:
        """Whether all of the run was brought out when it was settled last, with no file left
        out."""
        return run_id in self._settled

    def _opened(self) -> CheckpointStore:
        self._store = self._store or open_store(self.url)
        return self._store

    def _look(self, run_id: str) -> None:
        """Whether the run is still this machine's: between two checkpoints too."""
        if run_id not in self._lost:
            self._try(run_id, lambda run: place_of(self.engine, self._opened(), run))

    def _bring(self, run_id: str) -> None:
        with self._turn:
            checkpoint = self._newest.pop(run_id, None)
        if checkpoint is None or run_id in self._lost:
            return
        self._try(
            run_id, lambda run: publish(self.engine, self._opened(), run, checkpoint, self.ways)
        )

    def _try(self, run_id: str, step: Callable[[TaskRun], object]) -> None:
        event: AnyEvent | None = None
        try:
            step(self.engine.store.get(run_id))
        except TakenUp as taken:
            event = self._lost[run_id] = PlaceLost(owner=taken.term.host, term=taken.term.number)
        except Exception as error:
            event = CheckpointMissed(
                why=PUBLISH, reason=self.engine.redactor.text(str(error) or type(error).__name__)
            )
        if event is not None:
            with self._turn:
                self._told.setdefault(run_id, []).append(event)
