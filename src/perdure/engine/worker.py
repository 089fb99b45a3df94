"""Runs attempts: of one run until it is final (`drive`), or of all due runs (`work`).

Called by the commands that follow a run (`run`, `retry`, `update`), by the detached supervisor and
by pools (`perdure work`). A claim in the store decides which process runs an attempt. A second
perdure process that tries the same run is refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from typing import TYPE_CHECKING, TypeVar

from perdure.engine.attempt import Engine, account_slot, perform, take_over, wait_for
from perdure.engine.attempt.engine import unavailable_reason
from perdure.errors import Conflict, LostLease, PerdureError, StoreError
from perdure.host import process
from perdure.model import AccountSlot, Claim, Host, RunState, TaskRun
from perdure.protocols import AgentDriver, RunStore
from perdure.rules.lifecycle import FINAL
from perdure.rules.requests import WAITING
from perdure.rules.text import write_stderr

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from perdure.model.events import Record

NAP_S = 0.2
FEW, MANY = 50, 1000
"""Number of due runs that a pool examines first, and number that it examines if none of those can
start."""
POOL_NAP_S = 1.0
"""Poll interval of an idle pool, in seconds. Each poll looks for runs that have become due and for
supervisors that died."""
TELL_S = 60.0
MARGIN = 0.25
"""Time to wait after the lease of another host has expired, as a fraction of the lease's duration.
In this time, that host's shim can still end the agent before the attempt is taken over."""
LEFT_ALONE_MS = 5_000
"""Time in milliseconds after which `follow` assumes that a due run has no supervisor, because the
run is still queued."""
Found = TypeVar("Found")


def drive(engine: Engine, run_id: str) -> TaskRun:
    """Perform attempts of the run until it is final, it waits for a person, or perdure is asked to
    stop. Return the run.

    Raises Conflict if another supervisor is active, or another run uses the same workdir or
    conversation. Raises DiskFull if there is not enough space; the run then stays queued.
    """
    while True:
        run = engine.store.get(run_id)
        if run.state in FINAL or engine.stopping() or waits_for_person(run, engine.store.now()):
            return run
        if run.state is RunState.QUEUED and run.run_after > engine.store.now():
            time.sleep(min(NAP_S, (run.run_after - engine.store.now()) / 1000 + 0.001))
            continue
        if why := unavailable_reason(engine.host, engine.publisher, run):
            raise Conflict(
                f"{run.name} cannot continue here: {why}",
                f"continue it on {run.host_name}, or set checkpoint_store on all hosts",
            )
        engine.volumes.check([_home(engine.driver, engine.environ, run)])
        seat = account_slot(engine.driver, engine.environ, engine.rules, engine.account_jobs, run)
        if run.state is RunState.QUEUED and wait_for(engine.store, run, seat):
            _end_dead_attempts(engine, seat)
            time.sleep(NAP_S)
            continue
        claim = engine.store.claim(engine.worker, engine.lease_s, ref=run.id, seat=seat)
        if claim is None and run.state is RunState.QUEUED and wait_for(engine.store, run, seat):
            continue
        if claim is None:
            raise _in_use(engine.store, run_id)
        perform(engine, claim)


def waits_for_person(run: TaskRun, now: int) -> bool:
    """Return whether the run waits for answers to its agent's requests. Until the answers come, no
    process needs to follow the run."""
    waits = any(each.type == WAITING for each in run.conditions)
    return waits and run.state is RunState.QUEUED and run.run_after > now


def _end_dead_attempts(engine: Engine, seat: AccountSlot) -> None:
    """Free slots of the account (`AccountSlot`). A slot is freed by ending an attempt whose
    supervisor and agent are both dead."""
    for claim in engine.store.claims():
        if (
            claim.run.account == seat.account
            and is_orphaned(engine.store, engine.host, engine.lease_s, claim)
            and not _agent_lives(engine.host, engine.attempt_directory(claim), claim)
        ):
            with suppress(LostLease):
                take_over(engine, claim)


def _agent_lives(host: Host, directory: Path, claim: Claim) -> bool:
    if host.elsewhere(claim.run):
        return False
    found = process.find(directory)
    return found is not None and found.alive()


def rescue(engine: Engine, run: TaskRun) -> TaskRun | None:
    """Take over the running attempt of a run whose supervisor is dead, and return the run; None if
    the supervisor is alive."""
    claim = next((claim for claim in engine.store.claims() if claim.run.id == run.id), None)
    if claim is None:
        return engine.store.get(run.id)
    if not is_orphaned(engine.store, engine.host, engine.lease_s, claim):
        return None
    return take_over(engine, claim)


def follow(engine: Engine, run_id: str, show: Callable[[Record], None]) -> TaskRun:
    """Wait until a run that another supervisor performs has ended, and return the run. `show` is
    called with each new record. If that supervisor dies, take the run over."""
    seen = engine.store.latest(run_id, 1)[-1].seq
    while True:
        run = engine.store.get(run_id)
        for record in engine.store.history(run_id, after=seen):
            seen = record.seq
            show(record)
        if run.state in FINAL or engine.stopping() or waits_for_person(run, engine.store.now()):
            return run
        left_alone = (
            run.state is RunState.QUEUED
            and not engine.host.elsewhere(run)
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
    """Perform due attempts of all runs in threads, `jobs` at a time, and take over attempts whose
    supervisor died. Return the number of attempts that were performed.

    `once`: return when nothing is due and nothing is running. `draining`: begin nothing new, and
    return when the running attempts have ended. `engine.stopping` also stops running attempts.
    `patient`: wait while the database is temporarily unusable; with a shared database, a pool
    always waits.
    """
    # Imported here because commands that follow one run do not need these modules.
    from concurrent.futures import ThreadPoolExecutor

    from perdure.host.wakeup import Bell

    done, told = 0, _ThrottledReport()
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
                and (
                    job := _unless_unusable(
                        lambda: _next_job(engine, set(at_work.values())), told if patient else None
                    )
                )
                is not None
            ):
                claim, step = job
                begun = threads.submit(step, engine, claim)
                at_work[begun] = claim.run.id
                begun.add_done_callback(lambda _: bell.ring())
            if not at_work and (closed or once):
                return done
            bell.wait(nap_s)


class _ThrottledReport:
    """Reports a problem on stderr when it first occurs. While the problem lasts, it is reported
    again every `TELL_S` seconds."""

    def __init__(self) -> None:
        self._words, self._at = "", 0.0

    def tell(self, words: str) -> None:
        now = time.monotonic()
        if words != self._words or now - self._at >= TELL_S:
            self._words, self._at = words, now
            write_stderr(f"perdure: {words}")


def _unless_unusable(find: Callable[[], Found], told: _ThrottledReport | None) -> Found | None:
    """Return what `find` returns. If `told` is given, it reports a transient error of the database,
    and None is returned so that the caller tries again. All other errors are raised."""
    try:
        return find()
    except StoreError as error:
        if told is None or not error.transient:
            raise
        told.tell(str(error))
        return None


def _next_job(
    engine: Engine, mine: set[str]
) -> tuple[Claim, Callable[[Engine, Claim], TaskRun]] | None:
    """Return the next claim and the function that performs it; None if nothing can start. An
    attempt whose supervisor died comes before a new one."""
    for claim in engine.store.claims():
        if claim.run.id not in mine and (
            is_orphaned(engine.store, engine.host, engine.lease_s, claim)
            or claim.worker == engine.worker
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
    """Claim a due run, and return the claim; None if the run cannot start now. The reason may be
    that its files cannot be moved here, the volume of its agent's home is full, its account must
    wait, or another process claimed it."""
    seat = None
    with suppress(PerdureError):
        if unavailable_reason(engine.host, engine.publisher, run):
            return None
        if engine.volumes.crowded([_home(engine.driver, engine.environ, run)]):
            return None
        seat = account_slot(engine.driver, engine.environ, engine.rules, engine.account_jobs, run)
    if seat is not None and wait_for(engine.store, run, seat):
        return None
    return engine.store.claim(engine.worker, engine.lease_s, ref=run.id, seat=seat)


def _home(driver: Callable[[str], AgentDriver], environ: Mapping[str, str], run: TaskRun) -> Path:
    return driver(run.spec.agent).home({**environ, **run.spec.env})


def _ended_well(ended: Future[TaskRun]) -> bool:
    """Return whether this pool performed the attempt to its end. Return False if it lost the claim,
    or if an error occurred. Errors are reported on stderr."""
    try:
        ended.result()
    except LostLease:
        return False
    except (PerdureError, OSError) as error:
        write_stderr(f"perdure: {error}")
        return False
    return True


def is_orphaned(store: RunStore, host: Host, lease_s: float, claim: Claim) -> bool:
    """Return whether the supervisor of a running attempt is dead. For an attempt of this host, the
    supervisor's process is checked; for one of another host, its lease."""
    alive = process.worker_alive(claim.worker, host)
    if alive is None:
        return claim.run.lease_until + lease_s * 1000 * MARGIN < store.now()
    return not alive


def _in_use(store: RunStore, run_id: str) -> Conflict:
    run = store.get(run_id)
    if run.state is RunState.RUNNING:
        return Conflict(
            f"{run.name} is already running (attempt {run.attempt})", f"perdure logs -f {run.name}"
        )
    if (other := store.opened_beside(run)) is not None:
        return Conflict(
            f"{other.name} is open in the agent's own program", f"perdure take-back {other.name}"
        )
    return Conflict(
        f"{run.name} cannot start: another run uses the same workdir or conversation",
        f"perdure ls --state running, then perdure retry {run.name}",
    )
