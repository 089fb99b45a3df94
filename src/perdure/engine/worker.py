"""Works on one run until it is final or its next try lies in the future: claim, perform, wait,
again.

Called by the verbs that follow a run (`run`, `retry`, `update`) and by the detached supervisor. The
store's claim decides who works; a second perdure on the same task is refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from perdure.engine.attempt import Engine, perform, seat_of, take_over, wait_for
from perdure.errors import Conflict, LostLease, PerdureError, StoreError
from perdure.host import process
from perdure.model import Claim, RunState, Seat, TaskRun
from perdure.rules.lifecycle import FINAL
from perdure.rules.text import tell

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from perdure.model.events import Record

NAP_S = 0.2
FEW, MANY = 50, 1000
"""So many due runs are looked at; more only where all of the first ones have to wait for their
accounts."""
POOL_NAP_S = 1.0
"""So often a pool looks, even if nothing rang: for what becomes due by the clock, and for
supervisors that died."""
TELL_S = 60.0
MARGIN = 0.25
"""Of a lease: so much later than at its end an attempt of another host is taken over. Its shim has
ended the agent long before."""
LEFT_ALONE_MS = 5_000
"""A run that was due so long ago has no supervisor that would take it."""


def drive(engine: Engine, run_id: str) -> TaskRun:
    """Performs attempts until the run is final, or until perdure is asked to stop: then a waiting
    run stays queued.

    Raises Conflict if another supervisor, or another run on the same workdir or conversation, is at
    work, and DiskFull where there is no room to begin: the run stays queued.
    """
    while True:
        run = engine.store.get(run_id)
        if run.state in FINAL or engine.stopping():
            return run
        if run.state is RunState.QUEUED and run.run_after > engine.store.now():
            time.sleep(min(NAP_S, (run.run_after - engine.store.now()) / 1000 + 0.001))
            continue
        if why := engine.kept_from(run):
            raise Conflict(
                f"{run.name} cannot go on here: {why}",
                f"go on with it on {run.host_name}, or set checkpoint_store on all hosts",
            )
        engine.volumes.check([_home(engine, run)])
        seat = seat_of(engine, run)
        if run.state is RunState.QUEUED and wait_for(engine, run, seat):
            _free_seats(engine, seat)
            time.sleep(NAP_S)
            continue
        claim = engine.store.claim(engine.worker, engine.lease_s, ref=run.id, seat=seat)
        if claim is None and run.state is RunState.QUEUED and wait_for(engine, run, seat):
            continue
        if claim is None:
            raise _in_use(engine, run_id)
        perform(engine, claim)


def _free_seats(engine: Engine, seat: Seat) -> None:
    """Ends what holds a seat of the account although nobody is at work on it: its supervisor is
    dead, and so is its agent."""
    for claim in engine.store.claims():
        if (
            claim.run.account == seat.account
            and is_orphaned(engine, claim)
            and not _agent_lives(engine, claim)
        ):
            with suppress(LostLease):
                take_over(engine, claim)


def _agent_lives(engine: Engine, claim: Claim) -> bool:
    if engine.elsewhere(claim.run):
        return False
    found = process.find(engine.attempt_directory(claim))
    return found is not None and found.alive()


def rescue(engine: Engine, run: TaskRun) -> TaskRun | None:
    """Takes over the running attempt of a run whose supervisor is gone. None if that supervisor is
    alive and well."""
    claim = next((claim for claim in engine.store.claims() if claim.run.id == run.id), None)
    if claim is None:
        return engine.store.get(run.id)
    if not is_orphaned(engine, claim):
        return None
    return take_over(engine, claim)


def follow(engine: Engine, run_id: str, show: Callable[[Record], None]) -> TaskRun:
    """Follows a run that another supervisor works on, to its end; `show` gets each new record.
    Takes over if that one dies."""
    seen = engine.store.history(run_id, limit=1_000_000)[-1].seq
    while True:
        run = engine.store.get(run_id)
        for record in engine.store.history(run_id, after=seen):
            seen = record.seq
            show(record)
        if run.state in FINAL or engine.stopping():
            return run
        left_alone = (
            run.state is RunState.QUEUED
            and not engine.elsewhere(run)
            and engine.store.now() - run.run_after > LEFT_ALONE_MS
        )
        if left_alone or (run.state is RunState.RUNNING and rescue(engine, run) is not None):
            return drive(engine, run_id)
        time.sleep(NAP_S)


def work(
    engine: Engine,
    jobs: int,
    *,
    once: bool = False,
    draining: Callable[[], bool] = lambda: False,
    nap_s: float = POOL_NAP_S,
    patient: bool = False,
) -> int:
    """Performs due attempts of all runs, `jobs` at a time, in threads, and takes over those whose
    supervisor died.

    `once`: returns when nothing is due and nothing at work. `draining`: nothing new is begun, and
    it returns when what is at work has ended; `engine.stopping` ends that too. `patient`: a
    database that cannot be used for a while is waited for, as one that is shared always is. Returns
    how many attempts it has worked on.
    """
    # Neither is of use to those who follow one run.
    from concurrent.futures import ThreadPoolExecutor

    from perdure.host.wakeup import Bell

    done, told = 0, _Told()
    patient = patient or bool(engine.host.id)
    bell = Bell(engine.state)
    with closing(bell), ThreadPoolExecutor(jobs, thread_name_prefix="attempt") as threads:
        at_work: dict[Future[TaskRun], str] = {}
        while True:
            for ended in [future for future in at_work if future.done()]:
                del at_work[ended]
                done += _ended_well(ended)
            closed = draining() or engine.stopping()
            while (
                not closed
                and len(at_work) < jobs
                and (job := _looked(engine, set(at_work.values()), told if patient else None))
                is not None
            ):
                claim, step = job
                begun = threads.submit(step, engine, claim)
                at_work[begun] = claim.run.id
                begun.add_done_callback(lambda _: bell.ring())
            if not at_work and (closed or once):
                return done
            bell.wait(nap_s)


class _Told:
    """Says of a trouble that lasts that it does, and no more often than somebody would read it."""

    def __init__(self) -> None:
        self._words, self._at = "", 0.0

    def tell(self, words: str) -> None:
        now = time.monotonic()
        if words != self._words or now - self._at >= TELL_S:
            self._words, self._at = words, now
            tell(f"perdure: {words}")


def _looked(
    engine: Engine, mine: set[str], told: _Told | None
) -> tuple[Claim, Callable[[Engine, Claim], TaskRun]] | None:
    """The next job. With somebody to be `told`, a database that time may mend is waited for, as
    long as it takes."""
    try:
        return _next_job(engine, mine)
    except StoreError as error:
        if told is None or not error.transient:
            raise
        told.tell(str(error))
        return None


def _next_job(
    engine: Engine, mine: set[str]
) -> tuple[Claim, Callable[[Engine, Claim], TaskRun]] | None:
    """An attempt whose supervisor died goes before a new one."""
    for claim in engine.store.claims():
        if claim.run.id not in mine and (
            is_orphaned(engine, claim) or claim.worker == engine.worker
        ):
            return claim, take_over
    if engine.volumes.crowded():
        return None
    for limit in (FEW, MANY):
        due = engine.store.due(limit)
        for run in due:
            if (taken := _claimed(engine, run)) is not None:
                return taken, perform
        if len(due) < limit:
            break
    return None


def _claimed(engine: Engine, run: TaskRun) -> Claim | None:
    """The claim on a due run, unless its files cannot come here, its agent's home is full or its
    account has to wait; the others go on."""
    seat = None
    with suppress(PerdureError):
        if engine.kept_from(run):
            return None
        if engine.volumes.crowded([_home(engine, run)]):
            return None
        seat = seat_of(engine, run)
    if seat is not None and wait_for(engine, run, seat):
        return None
    return engine.store.claim(engine.worker, engine.lease_s, ref=run.id, seat=seat)


def _home(engine: Engine, run: TaskRun) -> Path:
    return engine.driver(run.spec.agent).home({**engine.environ, **run.spec.env})


def _ended_well(ended: Future[TaskRun]) -> bool:
    """Whether an attempt was this pool's to the end. A claim that another one took, or a store that
    failed, is not its end."""
    try:
        ended.result()
    except LostLease:
        return False
    except (PerdureError, OSError) as error:
        tell(f"perdure: {error}")
        return False
    return True


def is_orphaned(engine: Engine, claim: Claim) -> bool:
    """Whether the supervisor of a running attempt is dead: seen to be so on this host, by its lease
    on another."""
    alive = process.worker_alive(claim.worker, engine.host)
    if alive is None:
        return claim.run.lease_until + engine.lease_s * 1000 * MARGIN < engine.store.now()
    return not alive


def _in_use(engine: Engine, run_id: str) -> Conflict:
    run = engine.store.get(run_id)
    if run.state is RunState.RUNNING:
        return Conflict(
            f"{run.name} is already running (attempt {run.attempt})", f"perdure logs -f {run.name}"
        )
    if (other := engine.store.opened_beside(run)) is not None:
        return Conflict(
            f"{other.name} is open in the agent's own program", f"perdure take-back {other.name}"
        )
    return Conflict(
        f"{run.name} cannot start: another run is at work in the same workdir or conversation",
        f"perdure ls --state running, then perdure retry {run.name}",
    )
