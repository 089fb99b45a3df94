"""The store of runs, conversations and the journal, in SQL: `perdure.protocols.RunStore` and
`SessionStore`.

Every public method is one transaction. A write under a claim first passes the fence
(`fence.require_claim`): the run must be running, at the claim's attempt, with the claim's worker.
Otherwise LostLease is raised and nothing is stored. The store itself writes the Record of every
change of state, in the same transaction. If a caller passes such an event too, it is dropped, so
that each is stored once. The schema enforces the most important rules again, against bugs: no two
writers, no two ends of an attempt, and no transition that the state machine does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from perdure.errors import Conflict
from perdure.model import (
    NOTHING_GIVEN,
    AccountSlot,
    Attempt,
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
    Usage,
    Workspace,
)
from perdure.rules.lifecycle import FINAL
from perdure.rules.requests import WAITING
from perdure.store import requests as stored_requests
from perdure.store.accounts import Accounts, no_seat, put
from perdure.store.answers import StoredRequests
from perdure.store.audit import AuditTrail
from perdure.store.board import Boards, StoreCounts
from perdure.store.fence import (
    instruct,
    lost_lease,
    next_state,
    refuse_beside,
    reopen,
    require_claim,
    same_task,
    settle,
    updated_conditions,
)
from perdure.store.inbox import settle_deliveries
from perdure.store.rows import attempt_values, claim_of, host_values, key_values, run_of, scope_of
from perdure.store.tokens import StoredTokens

if TYPE_CHECKING:
    from perdure.model.events import AnyEvent, RunTakenBack
    from perdure.protocols import Begun, Ending


class SqlStore(StoredTokens, StoredRequests, Accounts, Boards, StoreCounts, AuditTrail):
    """The store over one database: implements `perdure.engine.attempt.engine.EngineStore`. Threads
    may share it; each process opens its own."""

    def add(
        self,
        spec: TaskSpec,
        run_id: str,
        name: str,
        workspace: Workspace,
        given: Given = NOTHING_GIVEN,
        deliveries: Sequence[int] = (),
    ) -> TaskRun:
        from perdure.model.codec import encode
        from perdure.model.events import RunSubmitted

        scope = scope_of(spec, run_id)
        with self._write() as write:
            there = same_task(write, spec, given)
            settle_deliveries(write, deliveries, there.name if there else name)
            if there is not None:
                return there
            if write.one("run_by_name", ref=name):
                raise Conflict(
                    f"The name {name!r} is taken by another run",
                    f"perdure logs -f {name}, or choose another name",
                )
            refuse_beside(write, run_id, workspace.id, spec.agent, scope)
            row = write.one(
                "add_run",
                id=run_id,
                name=name,
                key=spec.key or None,
                agent=spec.agent,
                scope=scope,
                workspace_id=workspace.id,
                place=workspace.path,
                attempts_allowed=spec.attempts,
                now=write.now,
                spec=encode(spec),
                workspace=encode(workspace),
                rule=spec.rule,
                title=spec.title,
                link=spec.link,
                **write.host_of(spec, scope, workspace, given),
            )
            write.put_context(run_id, Context(1, spec.prompt, write.now, given))
            write.note(run_id, 0, [RunSubmitted()])
            if deliveries:
                write.do("add_posting", run=run_id, now=write.now)
            return run_of(row)

    def claim(
        self, worker: str, lease_s: float, ref: str = "", seat: AccountSlot | None = None
    ) -> Claim | None:
        from perdure.model.events import AttemptClaimed

        with self._write(by_itself=True) as write:
            if seat is not None and no_seat(write, seat):
                return None
            values = {
                "worker": worker,
                "now": write.now,
                "lease_until": write.now + int(lease_s * 1000),
            }
            here = host_values(self._host, write.now)
            if ref:
                row = write.one("claim_one", id=ref, **values)
            else:
                row = write.one("claim_next", **values, **here)
            if row is None:
                return None
            if seat is not None:
                row = write.one("take_seat", id=row["id"], account=seat.account)
            claim = claim_of(row)
            attempt = Attempt(
                run=claim.run.id,
                number=claim.attempt,
                context_version=claim.run.context_version,
                worker=worker,
                started=write.now,
            )
            write.do("add_attempt", **attempt_values(attempt))
            write.note(claim.run.id, claim.attempt, [AttemptClaimed(worker=worker)])
            return claim

    def adopt(self, claim: Claim, worker: str, lease_s: float) -> Claim:
        from perdure.model.events import AttemptAdopted

        with self._write(by_itself=True) as write:
            row = write.one(
                "adopt",
                id=claim.run.id,
                attempt=claim.attempt,
                worker=claim.worker,
                lease_until=claim.run.lease_until,
                new_worker=worker,
                new_lease=write.now + int(lease_s * 1000),
                now=write.now,
            )
            if row is None:
                raise lost_lease(claim)
            write.put_attempt(replace(write.attempt(claim), worker=worker))
            write.note(claim.run.id, claim.attempt, [AttemptAdopted(worker=worker)])
            return claim_of(row)

    def renew(self, claim: Claim, lease_s: float) -> TaskRun:
        with self._write(claim) as write:
            until = write.now + int(lease_s * 1000)
            row = write.one(
                "renew",
                id=claim.run.id,
                attempt=claim.attempt,
                worker=claim.worker,
                lease_until=until,
            )
            if row is None:
                raise lost_lease(claim)
            return run_of(row)

    def begin(self, claim: Claim, begun: Begun) -> Attempt:
        from perdure.model.codec import encode
        from perdure.model.events import AttemptStarted

        with self._write(by_itself=True) as write:
            run = require_claim(write, claim)
            attempt = write.attempt(claim)
            if attempt.continuation is not None:
                raise Conflict(
                    f"Attempt {claim.attempt} of {run.name} has already started",
                    f"perdure why {run.name}",
                )
            place = begun.workspace
            refuse_beside(write, run.id, place.id, run.spec.agent, run.scope)
            attempt = replace(
                attempt,
                directory=begun.directory,
                continuation=begun.continuation,
                flags=begun.flags,
                agent_version=begun.agent_version,
                prompt_sha256=begun.prompt_sha256,
                before=begun.before,
                session_id=begun.session.id if begun.session else "",
            )
            write.put_attempt(attempt)
            write.do(
                "place_run",
                id=run.id,
                workspace_id=place.id,
                place=place.path,
                workspace=encode(place),
                now=write.now,
            )
            write.bind(place.id, SessionKey(run.spec.agent, run.scope))
            if begun.session is not None:
                write.put_session(begun.session)
            write.note(run.id, claim.attempt, [AttemptStarted(continuation=begun.continuation)])
            stored_requests.give(write, begun.answers, claim.attempt)
            kept = stored_requests.other_conditions(run, WAITING)
            if kept != run.conditions:
                # The request expired without an answer, so the run no longer waits.
                write.do("tell_run", id=run.id, conditions=encode(kept), now=write.now)
            return attempt

    def record(
        self,
        claim: Claim,
        events: Sequence[AnyEvent],
        session: Session | None = None,
        usage: Usage | None = None,
        received: int = 0,
    ) -> None:
        with self._write(claim) as write:
            run = require_claim(write, claim)
            write.note(run.id, claim.attempt, write.without_state_changes(events))
            if received:
                write.receive(claim, received)
            if usage is not None:
                write.put_attempt(replace(write.attempt(claim), usage=usage))
            if session is not None:
                write.put_session(session)
                if session.state is not SessionState.RETIRED:
                    write.put_attempt(replace(write.attempt(claim), session_id=session.id))
                write.do("touch_run", id=run.id, now=write.now)

    def finish(self, claim: Claim, ending: Ending) -> TaskRun:
        from perdure.model.events import AttemptEnded

        with self._write(claim) as write:
            run = require_claim(write, claim)
            attempt = write.attempt(claim)
            for session in ending.sessions:
                write.put_session(session)
            live = []
            for session in ending.sessions:
                if session.state is not SessionState.RETIRED:
                    live.append(session.id)
            attempt = replace(
                attempt,
                ended=write.now,
                outcome=ending.outcome,
                receipt=ending.receipt,
                usage=ending.usage,
                costs=ending.costs,
                fill=ending.fill,
                work=ending.work,
                agent_version=ending.agent_version or attempt.agent_version,
                session_id=live[-1] if live else attempt.session_id,
            )
            write.put_attempt(attempt)
            ended = AttemptEnded(outcome=ending.outcome, receipt=ending.receipt)
            write.note(run.id, claim.attempt, [*write.without_state_changes(ending.events), ended])
            if ending.fill is not None:
                write.do(
                    "fill_run",
                    id=run.id,
                    fill_tokens=ending.fill.tokens,
                    fill_window=ending.fill.window,
                )
            for parking in ending.parkings:
                put(write, parking)
            state, run_after, reason = next_state(run, attempt, ending, write.now)
            waits = state is RunState.QUEUED and run_after == ending.decision.run_after
            if ending.requests and waits:
                stored_requests.add(write, claim.attempt, ending.requests)
            condition = ending.decision.condition
            if state is RunState.CANCELLED:
                condition = None
            return settle(write, run, state, run_after, reason, condition)

    def update(
        self,
        run_id: str,
        text: str,
        given: Given = NOTHING_GIVEN,
        deliveries: Sequence[int] = (),
        events: Sequence[AnyEvent] = (),
        message: str = "",
    ) -> TaskRun:
        with self._write() as write:
            settle_deliveries(write, deliveries, run_of(write.named(run_id)).name)
            run = instruct(write, run_id, text, given, message)
            write.note(run.id, 0, events)
            return run

    def requeue(
        self, run_id: str, reason: str, more: int = 1, *, after_success: bool = False
    ) -> TaskRun:
        with self._write() as write:
            run = run_of(write.named(run_id))
            if run.state is RunState.RUNNING:
                raise Conflict(
                    f"{run.name} is running (attempt {run.attempt})", f"perdure logs -f {run.name}"
                )
            if run.state is RunState.SUCCEEDED and not after_success:
                raise Conflict(
                    f"{run.name} has succeeded: there is nothing to retry",
                    f'perdure update {run.name} "new instructions"',
                )
            if run.state is RunState.PENDING:
                raise Conflict(
                    f"{run.name} waits for other tasks of its plan", f"perdure show {run.name}"
                )
            return reopen(write, run, reason, more)

    def reassign(self, run_id: str, spec: TaskSpec) -> TaskRun:
        from perdure.model.codec import encode
        from perdure.model.events import RunReassigned, SettingsChanged

        with self._write() as write:
            run = run_of(write.named(run_id))
            row = write.one(
                "reassign", id=run.id, agent=spec.agent, spec=encode(spec), now=write.now
            )
            if row is None:
                raise Conflict(
                    f"{run.name} is running (attempt {run.attempt})", f"perdure stop {run.name}"
                )
            if spec.agent != run.spec.agent:
                stored_requests.release(write, run, "the run was handed over to another agent")
                write.note(run.id, 0, [RunReassigned(before=run.spec.agent, after=spec.agent)])
            else:
                names = []
                for each in spec.__struct_fields__:
                    if getattr(spec, each) != getattr(run.spec, each):
                        names.append(each)
                write.note(run.id, 0, [SettingsChanged(names=tuple(names))])
            return run_of(row)

    def retitle(self, run_id: str, title: str) -> None:
        from perdure.model.codec import encode

        with self._write() as write:
            run = run_of(write.named(run_id))
            if run.spec.title != title:
                spec = encode(replace(run.spec, title=title))
                write.do("retitle", id=run.id, title=title, spec=spec, now=write.now)
                write.audit_action("retitled", title, run=run.id)

    def request_cancel(self, run_id: str) -> TaskRun:
        from perdure.model.events import CancelRequested

        with self._write() as write:
            run = run_of(write.named(run_id))
            if run.state in FINAL or run.cancel_requested:
                return run
            write.note(run.id, 0, [CancelRequested()])
            if run.state is RunState.RUNNING:
                return run_of(write.one("ask_to_stop", id=run.id, now=write.now))
            return settle(write, run, RunState.CANCELLED, run.run_after, "stopped on request")

    def open_run(self, run_id: str, condition: Condition, session: Session) -> TaskRun:
        from perdure.model.codec import encode
        from perdure.model.events import RunOpened

        with self._write() as write:
            run = run_of(write.named(run_id))
            assert run.workspace is not None
            refuse_beside(write, run.id, run.workspace.id, run.spec.agent, run.scope)
            stored_requests.release(write, run, "a person took the conversation over")
            values = {"workspace_id": run.workspace.id, "agent": run.spec.agent, "scope": run.scope}
            if (other := write.one("opened_beside", **values)) is not None:
                raise Conflict(
                    f"{other['name']} is open in the agent's own program",
                    f"perdure take-back {other['name']}",
                )
            conditions = encode(updated_conditions(run, run.state, condition))
            row = write.one("open_run", id=run.id, conditions=conditions, now=write.now)
            if row is None:
                raise Conflict(
                    f"{run.name} is running (attempt {run.attempt})", f"perdure stop {run.name}"
                )
            write.put_session(session)
            write.note(run.id, 0, [RunOpened(session_id=session.id)])
            return run_of(row)

    def take_back(self, run_id: str, sessions: Sequence[Session], event: RunTakenBack) -> TaskRun:
        from perdure.model.codec import encode

        with self._write() as write:
            run = run_of(write.named(run_id))
            if run.state is RunState.RUNNING:
                raise Conflict(
                    f"{run.name} is running (attempt {run.attempt})", f"perdure stop {run.name}"
                )
            for session in sessions:
                write.put_session(session)
            left = stored_requests.other_conditions(run, "open")
            row = write.one("take_back", id=run.id, conditions=encode(left), now=write.now)
            write.note(run.id, 0, [event])
            if row is not None:
                return run_of(row)
            return run

    def put_session(self, session: Session) -> None:
        with self._write() as write:
            write.put_session(session)

    def amend_sessions(self, sessions: Sequence[Session]) -> None:
        with self._write() as write:
            for session in sessions:
                beside = write.one("running_in_scope", **key_values(session.key))
                if beside is not None:
                    raise Conflict(
                        f"{beside['name']} is using that conversation",
                        f"perdure stop {beside['name']}",
                    )
                row = write.one("session_revision", **key_values(session.key), id=session.id)
                if (row["revision"] if row is not None else 0) != session.revision:
                    raise Conflict(
                        f"The record of conversation {session.id} was changed in the meantime",
                        "read it again, then change it",
                    )
                write.put_session(session)

    def identity(self) -> tuple[str, bytes]:
        import secrets

        with self._write() as write:
            write.do("be_identified", id=secrets.token_hex(8), secret=secrets.token_hex(32))
            row = write.one("identity")
            return row["id"], bytes.fromhex(row["secret"])
