"""One open write transaction, used by `sql`. It executes statements by name, reads the clock once,
and collects the Records that are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from perdure.errors import Conflict
from perdure.host.actors import PERDURE
from perdure.model import (
    NOTHING_GIVEN,
    UNSHARED_HOST,
    Attempt,
    Backend,
    Checkpoint,
    Claim,
    Context,
    Given,
    Host,
    Session,
    SessionKey,
    SessionState,
    TaskRun,
    TaskSpec,
    Workspace,
)
from perdure.store.dialect import SQL
from perdure.store.reads import named
from perdure.store.rows import Row, attempt_values, key_values, noun_of, run_of, session_values

if TYPE_CHECKING:
    from perdure.model.events import AnyEvent, Record
    from perdure.protocols import Arrival
    from perdure.rules.audit_chain import AuditLine


STATE_KINDS = frozenset(
    {
        "run_submitted",
        "context_added",
        "attempt_claimed",
        "attempt_started",
        "attempt_adopted",
        "attempt_ended",
        "run_queued",
        "cancel_requested",
        "run_finished",
    }
)
"""Kinds of records that change a run's state. All of them are added to the audit trail."""


class Write:
    """One write transaction. It cannot be used after its end. `records` and `sessions` collect what
    it writes. After the commit they are passed to the observers and to the cache."""

    def __init__(
        self,
        cursor: Any,
        now: int,
        host: Host = UNSHARED_HOST,
        actor: str = PERDURE,
        *,
        claimed: bool,
    ) -> None:
        self._cursor = cursor
        self._host = host
        self._claimed = claimed
        self._audited: list[AuditLine] = []
        self.now = now
        self.actor = actor
        self.records: list[Record] = []
        self.sessions: list[Session] = []

    def one(self, statement: str, **values: Any) -> Row:
        """Execute a statement and return its first row, or None."""
        return self._cursor.execute(SQL[statement], values).fetchone()

    def all(self, statement: str, **values: Any) -> list[Row]:
        """Execute a statement and return all rows."""
        return list(self._cursor.execute(SQL[statement], values).fetchall())

    def do(self, statement: str, **values: Any) -> None:
        """Execute a statement that returns no rows."""
        self._cursor.execute(SQL[statement], values)

    def named(self, ref: str) -> Row:
        """Return the row of the run that `ref` names. Raises NotFound."""
        return named(self._cursor, ref)

    def attempt(self, claim: Claim) -> Attempt:
        """Return the attempt that a claim is for."""
        return noun_of(self.one("attempt", run=claim.run.id, number=claim.attempt)["body"], Attempt)

    def host_of(
        self, spec: TaskSpec, scope: str, workspace: Workspace, given: Given
    ) -> dict[str, str]:
        """Return the host to which a new run is bound, as parameters of a statement.

        If another run has the same workdir or conversation, the result is that run's host.
        Otherwise it is this host if the new run needs local files, and no host if it does not.
        """
        values = {"workspace_id": workspace.id, "agent": spec.agent, "scope": scope}
        if self._host.id:
            beside = self.one("host_beside", **values)
        else:
            beside = None
        if beside is not None:
            return {"host": beside["host"], "host_name": beside["host_name"]}
        local = workspace.backend in (Backend.WORKTREE, Backend.HERE) or (
            workspace.repo and "://" not in workspace.repo
        )
        bound = bool(local or spec.forks or given != NOTHING_GIVEN)
        return {
            "host": self._host.id if bound else "",
            "host_name": self._host.name if bound else "",
        }

    def bind(self, workspace_id: str, key: SessionKey) -> None:
        """Bind all runs with this workdir or conversation to this host. Does nothing if no other
        host shares the database."""
        if self._host.id:
            self.do(
                "bind_to_host",
                host=self._host.id,
                host_name=self._host.name,
                workspace_id=workspace_id,
                **key_values(key),
            )

    def put_attempt(self, attempt: Attempt) -> None:
        """Replace the stored data of an attempt that has not ended."""
        values = dict(attempt_values(attempt))
        del values["started"]
        self.do("put_attempt", **values)

    def receive(self, claim: Claim, version: int) -> None:
        """Store that the running turn has received the instructions up to this version as
        messages."""
        attempt = self.attempt(claim)
        more = version - attempt.context_version
        if more > 0:
            changed = replace(attempt, context_version=version, messages=attempt.messages + more)
            self.put_attempt(changed)

    def put_context(self, run_id: str, context: Context) -> None:
        """Append a version of the instructions to a run."""
        from perdure.model.codec import encode

        if context.given != NOTHING_GIVEN:
            given = encode(context.given)
        else:
            given = ""
        self.do(
            "add_context",
            run=run_id,
            version=context.version,
            at=context.at,
            text=context.text,
            given=given,
            message=context.message,
        )

    def put_session(self, session: Session) -> None:
        """Insert or replace a session. Raises Conflict if another session with the same key is
        live."""
        live = self.one("live_session", **key_values(session.key))
        if (
            session.state is not SessionState.RETIRED
            and live is not None
            and live["id"] != session.id
        ):
            key = f"{session.key.agent}/{session.key.scope}"
            raise Conflict(
                f"{key} already has the conversation {live['id']}, so {session.id} cannot be added",
                f"retire {live['id']} first",
            )
        row = self.one("put_session", **session_values(session))
        self.sessions.append(replace(session, revision=row["revision"]))

    def put_checkpoint(self, run: TaskRun, checkpoint: Checkpoint) -> None:
        """Store a checkpoint of the run, and record it in the journal."""
        from perdure.model.codec import encode
        from perdure.model.events import CheckpointTaken

        assert run.workspace is not None
        self.do(
            "add_checkpoint",
            workspace_id=run.workspace.id,
            number=checkpoint.number,
            run=run.id,
            attempt=checkpoint.attempt,
            at=checkpoint.at,
            body=encode(checkpoint),
        )
        saved = checkpoint.workdir
        taken = CheckpointTaken(
            number=checkpoint.number,
            why=checkpoint.why,
            commit=saved.commit,
            changed=saved.changed,
            untracked=saved.untracked,
            left_out=len(saved.left_out),
        )
        self.note(run.id, checkpoint.attempt, [taken])

    def take_in(self, arrival: Arrival) -> TaskRun:
        """Store a run from another machine, and return it. Its records keep their times and get new
        numbers."""
        from perdure.model.codec import encode

        run = arrival.run
        assert run.workspace is not None
        row = self.one(
            "take_in_run",
            id=run.id,
            name=run.name,
            state=run.state.value,
            agent=run.spec.agent,
            scope=run.scope,
            workspace_id=run.workspace.id,
            place=run.workspace.path,
            context_version=run.context_version,
            attempt=run.attempt,
            attempts_allowed=run.attempts_allowed,
            reason=run.reason,
            created=run.created,
            now=self.now,
            spec=encode(run.spec),
            workspace=encode(run.workspace),
            conditions=encode(run.conditions),
            origin=run.origin,
            rule=run.spec.rule,
            title=run.spec.title,
            link=run.spec.link,
        )
        self.bind(run.workspace.id, SessionKey(run.spec.agent, run.scope))
        for context in arrival.contexts:
            self.put_context(run.id, context)
        for attempt in arrival.attempts:
            self.do("add_attempt", **attempt_values(attempt))
            self.put_attempt(attempt)
        for session in arrival.sessions:
            self.put_session(session)
        for record in arrival.records:
            kind = str(record.event.__struct_config__.tag)
            self.do(
                "take_in_record",
                run=run.id,
                attempt=record.attempt,
                at=record.at,
                kind=kind,
                event=encode(record.event),
            )
        for request in arrival.requests:
            self.do(
                "add_request",
                run=run.id,
                number=request.number,
                state=request.state.value,
                expires=request.expires,
                body=encode(request),
            )
        self.note(run.id, 0, [arrival.event])
        self.put_checkpoint(run, arrival.checkpoint)
        if arrival.waits is not None:
            condition = arrival.waits.condition
            row = self.one(
                "settle",
                id=run.id,
                state=arrival.waits.state.value,
                run_after=arrival.waits.run_after,
                reason=arrival.waits.reason,
                conditions=encode((condition,) if condition is not None else ()),
                finished=None,
                now=self.now,
            )
        return run_of(row)

    def note(self, run_id: str, attempt: int, events: Sequence[AnyEvent]) -> None:
        """Append events to the journal, as Records."""
        from perdure.model.codec import encode
        from perdure.model.events import Record

        for event in events:
            kind = str(event.__struct_config__.tag)
            text = encode(event)
            seq = self.one(
                "add_record",
                run=run_id,
                attempt=attempt,
                at=self.now,
                kind=kind,
                event=text,
                actor=self.actor,
            )["seq"]
            self.records.append(Record(run_id, seq, attempt, self.now, event, self.actor))
            # Events of agents do not get a line in the audit trail. All writers share this chain of
            # lines, and these events are too many for it.
            if not self._claimed or kind in STATE_KINDS:
                self._audit(kind, text, run=run_id, attempt=attempt, record=seq)

    def audit_action(self, kind: str, about: str, actor: str = "", run: str = "") -> None:
        """Add a line to the audit trail for an action that has no record in the journal."""
        self._audit(kind, "", about=about, actor=actor or self.actor, run=run)

    def _audit(
        self, kind: str, text: str, *, run: str = "", attempt: int = 0, record: int = 0,
        about: str = "", actor: str = "",
    ) -> None:  # fmt: skip
        from perdure.rules.audit_chain import AuditLine, digest

        self._audited.append(
            AuditLine(
                number=0,
                at=self.now,
                actor=actor or self.actor,
                kind=kind,
                run=run,
                attempt=attempt,
                record=record,
                about=about,
                sha256=digest(text),
                previous="",
                hash="",
            )
        )

    def seal(self) -> None:
        """Write the collected lines to the audit trail. This locks the head of the trail until the
        commit, so call it last."""
        if not self._audited:
            return
        from msgspec.structs import asdict
        from msgspec.structs import replace as changed

        from perdure.rules.audit_chain import sealed

        head = self.one("held_audit_head")
        number, previous = head["number"], head["hash"]
        for each in self._audited:
            number += 1
            line = sealed(changed(each, number=number, previous=previous))
            self.do("add_audit", **asdict(line))
            previous = line.hash
        self.do("put_audit_head", number=number, hash=previous)

    def without_state_changes(self, events: Sequence[AnyEvent]) -> list[AnyEvent]:
        """Return only those events that do not record a change of the run's state. The store itself
        writes the others, each exactly once."""
        from perdure.model import events as e

        own = (
            e.RunSubmitted,
            e.ContextAdded,
            e.AttemptClaimed,
            e.AttemptStarted,
            e.AttemptAdopted,
            e.AttemptEnded,
            e.RunQueued,
            e.CancelRequested,
            e.RunFinished,
            e.CheckpointTaken,
        )
        return [event for event in events if not isinstance(event, own)]
