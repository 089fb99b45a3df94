"""The other parts of a store: conversations, plans, the inbox, postings, tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from perdure.model import Attempt, Condition, Session, SessionKey, TaskRun, Token

if TYPE_CHECKING:
    from perdure.model.events import AnyEvent
    from perdure.model.forge.deliveries import (
        Accepted,
        Arrived,
        Delivery,
        DeliveryState,
        PayloadReading,
    )
    from perdure.model.forge.postings import Posting
    from perdure.model.notices import Notice
    from perdure.model.requests import AgentRequest, AnswerKind
    from perdure.rules.audit_chain import AuditLine
    from perdure.rules.plan import PlannedRun, PlanRun


class SessionStore(Protocol):
    """Conversations by (agent, scope). At most one that is not retired exists for each key."""

    def session(self, key: SessionKey) -> Session | None:
        """Return the live session, or None."""
        ...

    def look_up(self, key: SessionKey) -> Session | None:
        """Return the live session, or None. Only for display: the answer may come from a cache and
        be slightly out of date."""
        ...

    def lineage(self, key: SessionKey) -> Sequence[Session]:
        """Return all sessions of the key, oldest first, including retired ones."""
        ...

    def sessions(self, session_id: str = "", limit: int = 1000) -> Sequence[Session]:
        """Return all sessions of every key, or those with this id, newest first, including retired
        ones."""
        ...

    def run_of(self, key: SessionKey) -> TaskRun | None:
        """Return the newest run with this agent and scope, or None."""
        ...

    def run_under(self, rule: str, scope: str) -> TaskRun | None:
        """Return the newest run with this scope under a rule of the configuration, or None. The run
        may have been handed over to another agent."""
        ...

    def runs_of(self, key: SessionKey) -> Sequence[TaskRun]:
        """Return all runs with this agent and scope, including removed ones, oldest first."""
        ...

    def ended(
        self, since: int, until: int, agent: str = "", scope: str = ""
    ) -> Sequence[tuple[SessionKey, Attempt]]:
        """Return the attempts that ended in this span (ms, `until` excluded), with their runs'
        keys, oldest first. If an agent or a scope is given, only its attempts."""
        ...

    def put_session(self, session: Session) -> None:
        """Insert or replace the session with this (key, id). Raises Conflict if another one of the
        key is live."""
        ...

    def amend_sessions(self, sessions: Sequence[Session]) -> None:
        """Store sessions that were read before (or new ones, with `revision` 0), retired ones
        first, all or nothing. Raises Conflict if one of them was changed since it was read, or if
        an attempt is running in its scope."""
        ...

    def identity(self) -> tuple[str, bytes]:
        """Return the id of this store, which no other store has, and a secret that is known only to
        the users of this store."""
        ...


class PlanStore(Protocol):
    """Plans that were begun, and the results of their tasks. The runs of the tasks are in the
    `RunStore`.

    A write under a plan's lease raises LostLease unless the worker of the given `PlanRun` still
    holds it.
    """

    def add_plan(self, plan: PlanRun) -> PlanRun:
        """Store a new plan, which no worker holds yet. Raises Conflict for a name that is taken."""
        ...

    def plan(self, ref: str) -> PlanRun:
        """Return a plan by name or id. Raises NotFound, with similar names in the hint."""
        ...

    def plans(self, limit: int = 50) -> Sequence[PlanRun]:
        """Return plans, newest first."""
        ...

    def claim_plan(self, plan: PlanRun, worker: str, lease_s: float) -> PlanRun | None:
        """Claim the plan, if its worker and lease are still those in `plan`. So if two callers see
        the plan without a worker, or with a dead one, only one of them can claim it. Returns None
        if another worker was faster."""
        ...

    def renew_plan(self, plan: PlanRun, lease_s: float) -> PlanRun:
        """Extend the lease."""
        ...

    def put_plan(self, plan: PlanRun, told: Mapping[str, str] = ...) -> PlanRun:
        """Store the plan's tasks, state, reason and `verified` as given, under the lease. In the
        same transaction the runs in `told`, by id, get new instructions as in `RunStore.update`, so
        that after a kill either all of them have them or none."""
        ...

    def release_plan(self, plan: PlanRun) -> None:
        """Release the plan, so that no worker holds it. Does nothing if another worker holds it by
        now."""
        ...

    def put_planned(self, plan: PlanRun, planned: PlannedRun, told: str = "") -> None:
        """Insert or replace the record of one task, under the plan's lease. In the same transaction
        its run gets the instructions in `told`, if any."""
        ...

    def planned(self, plan_id: str) -> Sequence[PlannedRun]:
        """Return the tasks that were begun, in the order in which they began."""
        ...


class InboxStore(Protocol):
    """Deliveries from forges. A delivery is identified by its source and the forge's id, and also
    by its source and the digest of its body."""

    def accept(self, arrived: Sequence[Arrived]) -> Sequence[Accepted]:
        """Store the deliveries, all in one durable transaction, as `received`, or as `ignored` if
        nothing follows from them. A delivery that is already stored, by either identification, is
        only counted."""
        ...

    def inbox(
        self, state: DeliveryState | None = None, source: str = "", limit: int = 50, before: int = 0
    ) -> Sequence[Delivery]:
        """Return deliveries, newest first. `before`: only those with smaller numbers."""
        ...

    def waiting_deliveries(self, limit: int = 50) -> Sequence[Delivery]:
        """Return the `received` deliveries, oldest first."""
        ...

    def delivery(self, ref: str) -> tuple[Delivery, str]:
        """Return a delivery and its body (empty if that was deleted), by number, id, or the
        beginning of an id (at least 4 characters). Raises NotFound, and Conflict if the beginning
        is ambiguous."""
        ...

    def settle_delivery(self, number: int, state: DeliveryState, reason: str) -> bool:
        """Settle a `received` delivery. Returns False if it was already settled."""
        ...

    def delay_delivery(self, number: int, reason: str) -> None:
        """Store why a `received` delivery waits. Does nothing to a settled delivery."""
        ...

    def replay_delivery(self, number: int, reading: PayloadReading) -> Delivery:
        """Treat a delivery as if it arrived now with this reading, whatever its state. Raises
        NotFound."""
        ...

    def thin_inbox(self, bodies_before: int, rows_before: int) -> tuple[int, int]:
        """Delete bodies and whole rows of deliveries that were settled before these times (ms).
        Deliveries that still wait, or failed, are kept whole. Returns the number of deleted bodies
        and that of deleted rows. A deleted delivery that arrives again counts as new."""
        ...


class PostingStore(Protocol):
    """Postings: the records of what was reported to forges about the runs that their deliveries
    began. `add` with a delivery creates the posting together with the run."""

    def posting(self, run_id: str) -> Posting | None:
        """Return the posting of a run; None if no delivery began the run."""
        ...

    def postings_due(self, limit: int = 50) -> Sequence[Posting]:
        """Return the postings that need work: the run changed after `seen`, or a failed step
        (`tries`) is due for a retry. Only postings that no other host holds, of runs on the list
        whose files are on this host or nowhere yet."""
        ...

    def postings_waiting(self, limit: int = 50) -> Sequence[Posting]:
        """Return the postings with a step that could not be done, the next one to be retried
        first."""
        ...

    def hold_posting(self, run_id: str, lease_s: float) -> Posting | None:
        """Reserve a posting for this host, before anything is sent to the forge. Returns None while
        another host holds the posting, or if there is none."""
        ...

    def put_posting(self, posting: Posting) -> None:
        """Store the progress of a posting. Raises LostLease unless this host holds it."""
        ...

    def hurry_posting(self, run_id: str) -> bool:
        """Make a posting due now. Returns False if there is none."""
        ...

    def final_words(self, run_id: str) -> str:
        """Return the agent's text at the end of its newest turn; empty if it said nothing."""
        ...

    def tell_run(
        self,
        run_id: str,
        events: Sequence[AnyEvent],
        condition: Condition | None = None,
        solved: str = "",
    ) -> TaskRun:
        """Append events of a run that are not part of an attempt to the journal, and set a
        condition, or remove the one of the type `solved`. The run's state does not change."""
        ...


class NoticeStore(Protocol):
    """The outbox of notices to people. A follower of the audit trail fills it."""

    def notices_seen(self) -> int | None:
        """Return the last line of the audit trail that was considered; None if none ever was."""
        ...

    def put_notices(self, before: int | None, after: int, notices: Sequence[Notice]) -> bool:
        """Store the notices for the lines of the audit trail from `before` (excluded) to `after`
        (included), and `after` as the new position. Returns False, and stores nothing, if another
        host has moved the position."""
        ...

    def notices_due(self, limit: int = 50) -> Sequence[Notice]:
        """Return the notices that have to be sent now, the longest due first."""
        ...

    def notices(self, limit: int = 50) -> Sequence[Notice]:
        """Return notices of every state, newest first."""
        ...

    def hold_notice(self, notice: str, lease_s: float) -> Notice | None:
        """Reserve a due notice, given by its id, for this host. None if another host holds it, or
        if it was sent."""
        ...

    def settle_notice(self, notice: Notice) -> bool:
        """Store the state, due time, tries and reason of a notice that this host holds. Returns
        False if this host no longer holds it."""
        ...

    def thin_notices(self, before: int) -> int:
        """Delete notices that were sent or given up before a time (ms). Returns their number."""
        ...


class AuditStore(Protocol):
    """The audit trail: a line for each change of a run's state, and for everything that a person or
    a program did, in a chain of hashes."""

    def audit(
        self, *, since: int = 0, actor: str = "", run: str = "", after: int = 0, limit: int = 1000
    ) -> Sequence[AuditLine]:
        """Return lines in their order. The filters: since a time (ms), of actors that contain a
        text, about a run (its full id), after a line number."""
        ...

    def audit_head(self) -> tuple[int, str]:
        """Return the number of lines, and the hash of the last one; 0 and empty for none."""
        ...

    def audit_problems(self) -> Iterator[str]:
        """Check all lines and the journal records that they cover. Yields a sentence for each line
        that was changed, is missing, or does not fit its record."""
        ...


class TokenStore(Protocol):
    """The tokens for the service. The store has only the SHA-256 of each secret (64 hexadecimal
    digits), never the secret."""

    def add_token(self, token: Token, sha256: str) -> Token:
        """Store a new token and set its `created`. Raises Conflict for a name that is taken."""
        ...

    def tokens(self) -> Sequence[Token]:
        """Return all tokens, oldest first, including expired ones."""
        ...

    def token_of(self, sha256: str) -> Token | None:
        """Return the token with this digest; None if there is none or it has expired."""
        ...

    def use_token(self, name: str) -> None:
        """Record that the token was used now, unless that was already done within the hour. Does
        nothing for an unknown name."""
        ...

    def remove_token(self, name: str) -> Token:
        """Remove a token and end all sign-ins with it. Raises NotFound."""
        ...

    def note_refusal(self, actor: str, what: str) -> None:
        """Add to the audit trail that a request of this actor was refused."""
        ...

    def sign_in(self, name: str, sha256: str, lasts_s: float) -> None:
        """Store a sign-in with a token, under the digest of the browser's own secret."""
        ...

    def sign_in_person(self, person: Token, sha256: str, lasts_s: float) -> None:
        """Store the sign-in of a person (`kind` is `openid`) under the digest of the browser's own
        secret, with the person's scope and limits."""
        ...

    def signed_in(self, sha256: str) -> Token | None:
        """Return the token or person of a sign-in; None if the sign-in or the token has expired, or
        the token was removed."""
        ...

    def sign_out_person(self, person: str) -> int:
        """End all sign-ins of a person, and return their number."""
        ...

    def sign_out(self, sha256: str) -> None:
        """End a sign-in, if it exists."""
        ...


class RequestStore(Protocol):
    """The requests of agents to people. They are stored by `RunStore.finish`. Every step that
    continues or ends a run without their answers supersedes them."""

    def requests(self, run_id: str) -> Sequence[AgentRequest]:
        """Return all requests of a run, oldest first."""
        ...

    def open_requests(self, limit: int = 1000) -> Sequence[AgentRequest]:
        """Return the open requests of all runs, the one that expires next first."""
        ...

    def answer(
        self,
        run_id: str,
        number: int,
        answer: AnswerKind,
        words: str,
        by: str = "",
        *,
        via: str = "",
    ) -> tuple[TaskRun, AgentRequest]:
        """Answer a request. When the last open one of a run is answered, the run is due. `via` is
        the comment on a forge that answers. Raises NotFound, and Conflict for a request that is
        not open any more."""
        ...
