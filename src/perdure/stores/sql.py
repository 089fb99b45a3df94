"""The store of runs, conversations and the journal, in SQL: `perdure.protocols.RunStore` and `SessionStore`.

Every public method is one transaction. A write under a claim first passes the fence (`_held`): the run is running, at the
claim's attempt, with the claim's worker; otherwise LostLease, and nothing is stored. The store itself writes the Record of
every change of state, in the same transaction; a caller's copy of such an event is dropped, so that each stands there once.
What no program error may break (two writers, two ends of an attempt, a move outside the machine) the schema refuses as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from perdure.errors import Conflict, LostLease
from perdure.lifecycle import FINAL
from perdure.model import (
    NOTHING_GIVEN,
    Attempt,
    Checkpoint,
    Claim,
    Condition,
    Context,
    Given,
    RunState,
    Session,
    SessionKey,
    SessionState,
    TaskRun,
    TaskSpec,
    Workspace,
)
from perdure.stores.reading import Reading
from perdure.stores.rows import MAX_TIME, attempt_values, claim_of, given_of, key_values, noun_of, run_of, scope_of
from perdure.stores.sqlite import Sqlite
from perdure.stores.writing import Write

if TYPE_CHECKING:
    from perdure.events import AnyEvent, CheckpointRestored, RunTakenBack
    from perdure.protocols import Arrival, Begun, Ending, Observer


class SqlStore(Reading):
    """`RunStore` and `SessionStore` over one database. Threads may share it; processes open their own."""

    def __init__(self, database: Sqlite, observers: Sequence[Observer] = ()) -> None:
        super().__init__(database)
        self._observers = tuple(observers)

    def add(self, spec: TaskSpec, run_id: str, name: str, workspace: Workspace, given: Given = NOTHING_GIVEN) -> TaskRun:
        from perdure.codec import encode
        from perdure.events import RunSubmitted

        scope = scope_of(spec, run_id)
        with self._write() as write:
            there = _same_task(write, spec, given)
            if there is not None:
                return there
            if write.one("run_by_name", ref=name):
                raise Conflict(f"The name {name!r} is taken by another run", f"perdure logs -f {name}, or choose another name")
            _refuse_beside(write, run_id, workspace.id, spec.agent, scope)
            row = write.one(
                "add_run", id=run_id, name=name, key=spec.key or None, agent=spec.agent, scope=scope, workspace_id=workspace.id,
                place=workspace.path, attempts_allowed=spec.attempts, now=write.now, spec=encode(spec), workspace=encode(workspace),
            )  # fmt: skip
            write.put_context(run_id, Context(1, spec.prompt, write.now, given))
            write.note(run_id, 0, [RunSubmitted()])
            return run_of(row)

    def claim(self, worker: str, lease_s: float, ref: str = "") -> Claim | None:
        from perdure.events import AttemptClaimed

        with self._write() as write:
            values = {"worker": worker, "now": write.now, "lease_until": write.now + int(lease_s * 1000)}
            row = write.one("claim_one", id=ref, **values) if ref else write.one("claim_next", **values)
            if row is None:
                return None
            claim = claim_of(row)
            attempt = Attempt(
                run=claim.run.id, number=claim.attempt, context_version=claim.run.context_version, worker=worker, started=write.now
            )
            write.do("add_attempt", **attempt_values(attempt))
            write.note(claim.run.id, claim.attempt, [AttemptClaimed(worker=worker)])
            return claim

    def adopt(self, claim: Claim, worker: str, lease_s: float) -> Claim:
        from perdure.events import AttemptAdopted

        with self._write() as write:
            row = write.one(
                "adopt", id=claim.run.id, attempt=claim.attempt, worker=claim.worker, lease_until=claim.run.lease_until,
                new_worker=worker, new_lease=write.now + int(lease_s * 1000), now=write.now,
            )  # fmt: skip
            if row is None:
                raise _lost(claim)
            write.put_attempt(replace(write.attempt(claim), worker=worker))
            write.note(claim.run.id, claim.attempt, [AttemptAdopted(worker=worker)])
            return claim_of(row)

    def renew(self, claim: Claim, lease_s: float) -> TaskRun:
        with self._write() as write:
            until = write.now + int(lease_s * 1000)
            row = write.one("renew", id=claim.run.id, attempt=claim.attempt, worker=claim.worker, lease_until=until)
            if row is None:
                raise _lost(claim)
            return run_of(row)

    def begin(self, claim: Claim, begun: Begun) -> Attempt:
        from perdure.codec import encode
        from perdure.events import AttemptStarted

        with self._write() as write:
            run = _held(write, claim)
            attempt = write.attempt(claim)
            if attempt.continuation is not None:
                raise Conflict(f"Attempt {claim.attempt} of {run.name} has begun already", f"perdure why {run.name}")
            place = begun.workspace
            _refuse_beside(write, run.id, place.id, run.spec.agent, run.scope)
            attempt = replace(
                attempt, directory=begun.directory, continuation=begun.continuation, flags=begun.flags, agent_version=begun.agent_version,
                prompt_sha256=begun.prompt_sha256, before=begun.before, session_id=begun.session.id if begun.session else "",
            )  # fmt: skip
            write.put_attempt(attempt)
            write.do("place_run", id=run.id, workspace_id=place.id, place=place.path, workspace=encode(place), now=write.now)
            if begun.session is not None:
                write.put_session(begun.session)
            write.note(run.id, claim.attempt, [AttemptStarted(continuation=begun.continuation)])
            return attempt

    def record(self, claim: Claim, events: Sequence[AnyEvent], session: Session | None = None) -> None:
        with self._write() as write:
            run = _held(write, claim)
            write.note(run.id, claim.attempt, write.told_by_callers(events))
            if session is not None:
                write.put_session(session)
                if session.state is not SessionState.RETIRED:
                    write.put_attempt(replace(write.attempt(claim), session_id=session.id))
                write.do("touch_run", id=run.id, now=write.now)

    def finish(self, claim: Claim, ending: Ending) -> TaskRun:
        from perdure.events import AttemptEnded

        with self._write() as write:
            run = _held(write, claim)
            attempt = write.attempt(claim)
            for session in ending.sessions:
                write.put_session(session)
            live = [session.id for session in ending.sessions if session.state is not SessionState.RETIRED]
            attempt = replace(
                attempt, ended=write.now, outcome=ending.outcome, receipt=ending.receipt, usage=ending.usage,
                agent_version=ending.agent_version or attempt.agent_version, session_id=live[-1] if live else attempt.session_id,
            )  # fmt: skip
            write.put_attempt(attempt)
            ended = AttemptEnded(outcome=ending.outcome, receipt=ending.receipt)
            write.note(run.id, claim.attempt, [*write.told_by_callers(ending.events), ended])
            return _settle(write, run, *_next(run, attempt, ending, write.now), ending.decision.condition)

    def update(self, run_id: str, text: str, given: Given = NOTHING_GIVEN) -> TaskRun:
        from perdure.events import ContextAdded

        with self._write() as write:
            run = run_of(write.named(run_id))
            version = run.context_version + 1
            write.put_context(run.id, Context(version, text, write.now, given))
            write.note(run.id, 0, [ContextAdded(version=version)])
            row = write.one("instruct", id=run.id, context_version=version, attempts_allowed=_one_more(run), now=write.now)
            return _reopen(write, run, "new instructions") if run.state in FINAL else run_of(row)

    def requeue(self, run_id: str, reason: str) -> TaskRun:
        with self._write() as write:
            run = run_of(write.named(run_id))
            if run.state is RunState.RUNNING:
                raise Conflict(f"{run.name} is running (attempt {run.attempt})", f"perdure logs -f {run.name}")
            if run.state is RunState.SUCCEEDED:
                raise Conflict(f"{run.name} has succeeded: there is nothing to retry", f'perdure update {run.name} "new instructions"')
            if run.state is RunState.PENDING:
                raise Conflict(f"{run.name} waits for what it needs", f"perdure show {run.name}")
            return _reopen(write, run, reason)

    def reassign(self, run_id: str, spec: TaskSpec) -> TaskRun:
        from perdure.codec import encode
        from perdure.events import RunReassigned

        with self._write() as write:
            run = run_of(write.named(run_id))
            row = write.one("reassign", id=run.id, agent=spec.agent, spec=encode(spec), now=write.now)
            if row is None:
                raise Conflict(f"{run.name} is running (attempt {run.attempt})", f"perdure stop {run.name}")
            write.note(run.id, 0, [RunReassigned(before=run.spec.agent, after=spec.agent)])
            return run_of(row)

    def request_cancel(self, run_id: str) -> TaskRun:
        from perdure.events import CancelRequested

        with self._write() as write:
            run = run_of(write.named(run_id))
            if run.state in FINAL or run.cancel_requested:
                return run
            write.note(run.id, 0, [CancelRequested()])
            if run.state is RunState.RUNNING:
                return run_of(write.one("ask_to_stop", id=run.id, now=write.now))
            return _settle(write, run, RunState.CANCELLED, run.run_after, "stopped on request")

    def open_run(self, run_id: str, condition: Condition, session: Session) -> TaskRun:
        from perdure.codec import encode
        from perdure.events import RunOpened

        with self._write() as write:
            run = run_of(write.named(run_id))
            assert run.workspace is not None
            _refuse_beside(write, run.id, run.workspace.id, run.spec.agent, run.scope)
            values = {"workspace_id": run.workspace.id, "agent": run.spec.agent, "scope": run.scope}
            if (other := write.one("opened_beside", **values)) is not None:
                raise Conflict(f"{other['name']} is open in the agent's own program", f"perdure take-back {other['name']}")
            conditions = encode(_conditions(run, run.state, condition))
            row = write.one("open_run", id=run.id, conditions=conditions, now=write.now)
            if row is None:
                raise Conflict(f"{run.name} is running (attempt {run.attempt})", f"perdure stop {run.name}")
            write.put_session(session)
            write.note(run.id, 0, [RunOpened(session_id=session.id)])
            return run_of(row)

    def take_back(self, run_id: str, sessions: Sequence[Session], event: RunTakenBack) -> TaskRun:
        from perdure.codec import encode

        with self._write() as write:
            run = run_of(write.named(run_id))
            if run.state is RunState.RUNNING:
                raise Conflict(f"{run.name} is running (attempt {run.attempt})", f"perdure stop {run.name}")
            for session in sessions:
                write.put_session(session)
            left = tuple(condition for condition in run.conditions if condition.type != "open")
            row = write.one("take_back", id=run.id, conditions=encode(left), now=write.now)
            write.note(run.id, 0, [event])
            return run_of(row) if row is not None else run

    def add_checkpoint(self, checkpoint: Checkpoint, claim: Claim | None = None) -> None:
        with self._write() as write:
            run = _held(write, claim) if claim is not None else _at_rest(write, checkpoint.run)
            write.put_checkpoint(run, checkpoint)

    def forget_checkpoints(self, run_id: str, numbers: Sequence[int]) -> None:
        with self._write() as write:
            for number in numbers:
                write.do("forget_checkpoint", run=run_id, number=number)

    def restored(self, run_id: str, sessions: Sequence[Session], event: CheckpointRestored) -> TaskRun:
        with self._write() as write:
            run = _at_rest(write, run_id)
            for session in sessions:
                write.put_session(session)
            write.note(run.id, 0, [event])
            return run

    def take_in(self, arrival: Arrival) -> TaskRun:
        with self._write() as write:
            if write.one("run_by_name", ref=arrival.run.name):
                raise Conflict(f"The name {arrival.run.name!r} is taken by another run", "choose another --name")
            return write.take_in(arrival)

    def remove(self, run_id: str) -> None:
        with self._write() as write:
            run = run_of(write.named(run_id))
            if write.one("remove_run", id=run.id, now=write.now) is None:
                raise Conflict(f"{run.name} is {run.state}, and not finished", f"perdure stop {run.name}")

    def put_back(self, run_id: str, name: str = "", key: str = "") -> TaskRun:
        from perdure.events import RunPutBack

        with self._write() as write:
            row = write.one("put_back_run", id=run_id, name=name, key=key, now=write.now)
            if row is None:
                raise Conflict(f"The run {run_id} is not off the list", "perdure ls")
            write.note(run_id, 0, [RunPutBack()])
            return run_of(row)

    def reset(self, run_ids: Sequence[str], cause: str) -> Sequence[str]:
        from perdure.events import RunReset

        retired: dict[str, None] = {}
        with self._write() as write:
            for run_id in run_ids:
                row = write.named(run_id)
                run = run_of(row)
                if run.state is RunState.RUNNING or row["opened"]:
                    raise Conflict(f"{run.name} is {'open' if row['opened'] else 'running'}", f"perdure show {run.name}")
                if run.state not in FINAL:
                    run = _settle(write, run, RunState.CANCELLED, run.run_after, cause)
                key = SessionKey(run.spec.agent, run.scope)
                live = write.one("live_session", **key_values(key))
                if live is not None:
                    session = noun_of(live["body"], Session)
                    write.put_session(replace(session, state=SessionState.RETIRED, cause=cause, updated=write.now))
                    retired[session.id] = None
                write.note(run.id, 0, [RunReset(sessions=tuple(retired), cause=cause)])
        return tuple(retired)

    def undo_reset(self, run_ids: Sequence[str]) -> Sequence[str]:
        from perdure.events import RunReset, RunResetUndone

        back: dict[str, None] = {}
        for run_id in run_ids:
            resets = [record.event for record in self.history(run_id, limit=1_000_000) if isinstance(record.event, RunReset)]
            run = self.get(run_id)
            key = SessionKey(run.spec.agent, run.scope)
            lineage = self.lineage(key) if resets else ()
            with self._write() as write:
                for session in lineage:
                    if session.id in resets[-1].sessions and write.one("live_session", **key_values(key)) is None:
                        state = SessionState.CONFIRMED if session.snapshot is not None else SessionState.PINNED
                        write.put_session(replace(session, state=state, cause="", updated=write.now))
                        back[session.id] = None
                write.note(run.id, 0, [RunResetUndone(sessions=tuple(back))])
        return tuple(back)

    def put_session(self, session: Session) -> None:
        with self._write() as write:
            write.put_session(session)

    @contextmanager
    def _write(self) -> Iterator[Write]:
        with self._database.writing() as cursor:
            write = Write(cursor, self.now())
            yield write
        for record in write.records:
            for observer in self._observers:
                with suppress(Exception):
                    observer(record)


def _held(write: Write, claim: Claim) -> TaskRun:
    """The fence of every claimed write."""
    row = write.one("held", id=claim.run.id, attempt=claim.attempt, worker=claim.worker)
    if row is None:
        raise _lost(claim)
    return run_of(row)


def _at_rest(write: Write, run_id: str) -> TaskRun:
    run = run_of(write.named(run_id))
    if run.state is RunState.RUNNING:
        raise Conflict(f"{run.name} is running (attempt {run.attempt})", f"perdure stop {run.name}")
    return run


def _lost(claim: Claim) -> LostLease:
    name = claim.run.name
    return LostLease(f"Attempt {claim.attempt} of {name} is no longer this worker's; nothing was stored", f"perdure show {name}")


def _same_task(write: Write, spec: TaskSpec, given: Given) -> TaskRun | None:
    """The run with the same key, if its spec and its files are equal. Raises Conflict if they are not."""
    row = write.one("run_by_key", ref=spec.key) if spec.key else None
    if row is None:
        return None
    run = run_of(row)
    if run.spec != spec:
        raise Conflict(f"The key {spec.key!r} belongs to {run.name}, which was asked for something else", f"perdure show {run.name}")
    if given_of(write.one("first_context", run=run.id)) != given:
        raise Conflict(f"The key {spec.key!r} belongs to {run.name}, which was given other files", f"perdure show {run.name} --json")
    return run


def _refuse_beside(write: Write, run_id: str, workspace_id: str, agent: str, scope: str) -> None:
    row = write.one("running_beside", id=run_id, workspace_id=workspace_id, agent=agent, scope=scope)
    if row is not None:
        shared = f"the workdir {row['place']}" if row["workspace_id"] == workspace_id else f"the conversation {agent}/{scope}"
        raise Conflict(f"{row['name']} is running in {shared} (attempt {row['attempt']})", f"perdure logs -f {row['name']}")


def _one_more(run: TaskRun) -> int:
    """The cap of attempts when a person allows another try."""
    return max(run.attempts_allowed, run.attempt + 1)


def _next(run: TaskRun, attempt: Attempt, ending: Ending, now: int) -> tuple[RunState, int, str]:
    """State, run_after and reason after an attempt. What a person said while it ran has the last word."""
    decision = ending.decision
    if run.cancel_requested and decision.state is RunState.QUEUED:
        return RunState.CANCELLED, now, "stopped on request"
    if run.context_version > attempt.context_version and decision.state in FINAL and decision.state is not RunState.CANCELLED:
        return RunState.QUEUED, now, "new instructions came while it ran"
    return decision.state, decision.run_after, decision.reason


def _settle(write: Write, run: TaskRun, state: RunState, run_after: int, reason: str, condition: Condition | None = None) -> TaskRun:
    """Leaves a run in a state that nobody works in, and says so in the journal."""
    from perdure.codec import encode
    from perdure.events import RunFinished, RunQueued

    run_after = min(run_after, MAX_TIME)
    row = write.one(
        "settle", id=run.id, state=str(state), run_after=run_after, reason=reason, now=write.now,
        conditions=encode(_conditions(run, state, condition)), finished=write.now if state in FINAL else None,
    )  # fmt: skip
    write.note(run.id, 0, [RunFinished(state=state, reason=reason) if state in FINAL else RunQueued(reason=reason, run_after=run_after)])
    return run_of(row)


def _reopen(write: Write, run: TaskRun, reason: str) -> TaskRun:
    """Queues a run that nobody works on: due now, one more attempt allowed."""
    from perdure.codec import encode
    from perdure.events import RunQueued

    conditions = encode(_conditions(run, RunState.QUEUED, None))
    row = write.one("reopen", id=run.id, reason=reason, conditions=conditions, attempts_allowed=_one_more(run), now=write.now)
    write.note(run.id, 0, [RunQueued(reason=reason, run_after=write.now)])
    return run_of(row)


def _conditions(run: TaskRun, state: RunState, new: Condition | None) -> tuple[Condition, ...]:
    """One of each type. Nobody needs a person any more once the run goes on or has succeeded."""
    merged = {condition.type: condition for condition in (*run.conditions, *([new] if new else []))}
    if state in (RunState.QUEUED, RunState.SUCCEEDED):
        merged.pop("needs_person", None)
    return tuple(merged.values())
