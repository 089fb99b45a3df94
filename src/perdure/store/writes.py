"""Writes outside of an attempt: checkpoints, removal from the list and return to it, runs from
other machines, resets.

This is the half of `SqlStore` that a running attempt does not call, except for `add_checkpoint`.
`RunStore` documents the methods.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from msgspec.structs import replace

from perdure.errors import Conflict
from perdure.host.actors import PERDURE, current
from perdure.model import (
    UNSAVED,
    UNSHARED_HOST,
    Checkpoint,
    Claim,
    Host,
    RunState,
    Session,
    SessionKey,
    SessionState,
    TaskRun,
    Workspace,
)
from perdure.rules.lifecycle import FINAL
from perdure.store.dialect import Database
from perdure.store.fence import refuse_beside, require_claim, require_not_running, settle
from perdure.store.reads import StoreReads
from perdure.store.requests import release
from perdure.store.rows import key_values, run_of, session_of
from perdure.store.transaction import Write

if TYPE_CHECKING:
    from perdure.model.events import CheckpointRestored
    from perdure.protocols import Arrival, Observer
    from perdure.store.session_cache import CachedLookups


OF_WORKDIR = (UNSAVED, "half_back")
"""Types of conditions that describe a run's workdir and are dropped with it."""


class StoreWrites(StoreReads):
    """A `StoreReads` that can also write. `_write` opens one transaction. After its commit, the
    Records that it wrote are passed to the observers."""

    def __init__(
        self, database: Database, observers: Sequence[Observer] = (), host: Host = UNSHARED_HOST
    ) -> None:
        super().__init__(database, host)
        self._observers = tuple(observers)
        self.actor = PERDURE
        """Actor that is recorded for a write outside of an `acting` block."""
        self.cache: CachedLookups | None = None
        """Cache for `look_up`, or None if no cache is configured. It is updated whenever sessions
        are stored."""

    def close(self) -> None:
        if self.cache is not None:
            self.cache.close()
        super().close()

    def look_up(self, key: SessionKey) -> Session | None:
        if self.cache is not None:
            return self.cache.session(key, self.session)
        return self.session(key)

    def add_checkpoint(self, checkpoint: Checkpoint, claim: Claim | None = None) -> None:
        with self._write(claim) as write:
            if claim is not None:
                run = require_claim(write, claim)
            else:
                run = require_not_running(write, checkpoint.run)
            write.put_checkpoint(run, checkpoint)

    def forget_checkpoints(self, run_id: str, numbers: Sequence[int]) -> None:
        with self._write() as write:
            for number in numbers:
                write.do("forget_checkpoint", run=run_id, number=number)

    def restored(
        self, run_id: str, sessions: Sequence[Session], event: CheckpointRestored
    ) -> TaskRun:
        with self._write() as write:
            run = require_not_running(write, run_id)
            for session in sessions:
                write.put_session(session)
            if not event.files_only:
                # The restored conversation is older than the requests. An answer is only valid in
                # the conversation in which the agent asked, so the requests are superseded.
                release(write, run, "an earlier checkpoint was restored")
            write.note(run.id, 0, [event])
            return run

    def fetched(
        self,
        claim: Claim,
        place: Workspace,
        sessions: Sequence[Session],
        checkpoint: Checkpoint,
        event: CheckpointRestored,
    ) -> TaskRun:
        from perdure.model.codec import encode

        with self._write(by_itself=True) as write:
            run = require_claim(write, claim)
            refuse_beside(write, run.id, place.id, run.spec.agent, run.scope)
            write.do(
                "place_run",
                id=run.id,
                workspace_id=place.id,
                place=place.path,
                workspace=encode(place),
                now=write.now,
            )
            write.bind(place.id, SessionKey(run.spec.agent, run.scope))
            for session in sessions:
                write.put_session(session)
            run = run_of(write.named(run.id))
            write.put_checkpoint(run, checkpoint)
            write.note(run.id, claim.attempt, [event])
            return run

    def take_in(self, arrival: Arrival) -> TaskRun:
        with self._write() as write:
            if write.one("run_by_name", ref=arrival.run.name):
                raise Conflict(
                    f"The name {arrival.run.name!r} is taken by another run",
                    "choose another --name",
                )
            return write.take_in(arrival)

    def remove(self, run_id: str) -> None:
        with self._write() as write:
            run = run_of(write.named(run_id))
            if write.one("remove_run", id=run.id, now=write.now) is None:
                raise Conflict(
                    f"{run.name} is {run.state}, and not finished", f"perdure stop {run.name}"
                )

    def put_back(self, run_id: str, name: str = "", key: str = "") -> TaskRun:
        from perdure.model.events import RunPutBack

        with self._write() as write:
            row = write.one("put_back_run", id=run_id, name=name, key=key, now=write.now)
            if row is None:
                raise Conflict(f"The run {run_id} is not removed", "perdure ls")
            write.note(run_id, 0, [RunPutBack()])
            return run_of(row)

    def reset(self, run_ids: Sequence[str], cause: str) -> Sequence[str]:
        from perdure.model.codec import encode
        from perdure.model.events import RunReset

        retired: dict[str, None] = {}
        with self._write() as write:
            for run_id in run_ids:
                row = write.named(run_id)
                run = run_of(row)
                if run.state is RunState.RUNNING or row["opened"]:
                    state = "open" if row["opened"] else "running"
                    raise Conflict(f"{run.name} is {state}", f"perdure show {run.name}")
                if run.state in FINAL:
                    release(write, run, cause)
                else:
                    run = settle(write, run, RunState.CANCELLED, run.run_after, cause)
                kept = [each for each in run.conditions if each.type not in OF_WORKDIR]
                if len(kept) < len(run.conditions):
                    # The next workdir begins empty, so conditions that describe the old one are
                    # dropped.
                    run = run_of(
                        write.one(
                            "tell_run", id=run.id, conditions=encode(tuple(kept)), now=write.now
                        )
                    )
                key = SessionKey(run.spec.agent, run.scope)
                live = write.one("live_session", **key_values(key))
                if live is not None:
                    session = session_of(live)
                    write.put_session(
                        replace(session, state=SessionState.RETIRED, cause=cause, updated=write.now)
                    )
                    retired[session.id] = None
                write.note(run.id, 0, [RunReset(sessions=tuple(retired), cause=cause)])
        return tuple(retired)

    def undo_reset(self, run_ids: Sequence[str]) -> Sequence[str]:
        from perdure.model.events import RunReset, RunResetUndone

        back: dict[str, None] = {}
        for run_id in run_ids:
            resets = []
            for record in self.history(run_id, limit=1_000_000):
                if isinstance(record.event, RunReset):
                    resets.append(record.event)
            run = self.get(run_id)
            key = SessionKey(run.spec.agent, run.scope)
            lineage = self.lineage(key) if resets else ()
            with self._write() as write:
                for session in lineage:
                    if (
                        session.id in resets[-1].sessions
                        and write.one("live_session", **key_values(key)) is None
                    ):
                        if session.snapshot is not None:
                            state = SessionState.CONFIRMED
                        else:
                            state = SessionState.PINNED
                        write.put_session(
                            replace(session, state=state, cause="", updated=write.now)
                        )
                        back[session.id] = None
                write.note(run.id, 0, [RunResetUndone(sessions=tuple(back))])
        return tuple(back)

    @contextmanager
    def _write(self, claim: Claim | None = None, *, by_itself: bool = False) -> Iterator[Write]:
        """Open a write transaction. Under a claim it must only touch the claim's own run, workdir
        and conversation, because other writes may happen at the same time.

        Under a claim, or with `by_itself`, the recorded actor is perdure, even in a process that a
        person started.
        """
        claimed = claim is not None
        actor = PERDURE if claimed or by_itself else current(self.actor)
        with self._database.writing(claimed=claimed) as (cursor, now):
            write = Write(cursor, now, self._host, actor, claimed=claimed)
            yield write
            write.seal()
        if write.sessions and self.cache is not None:
            with suppress(Exception):
                self.cache.stored(write.sessions)
        for record in write.records:
            for observer in self._observers:
                try:
                    observer(record)
                except Exception:
                    _log_failed(observer)


def _log_failed(observer: Observer) -> None:
    """Log the exception of an observer. It is not raised, because the transaction is already
    committed, and observers may be code of other packages."""
    import logging

    logging.getLogger("perdure").warning("the observer %r raised", observer, exc_info=True)
