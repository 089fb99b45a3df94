"""The interfaces of the other parts of a store: conversations, plans, the inbox, postings, notices,
devices, the audit trail, tokens and requests."""

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
        Intent,
        PayloadReading,
    )
    from perdure.model.forge.postings import Posting
    from perdure.model.notices import Notice, PushDevice
    from perdure.model.requests import AgentRequest, AnswerKind
    from perdure.rules.audit_chain import AuditLine
    from perdure.rules.plan import PlannedRun, PlanRun


class SessionStore(Protocol):
    """Stores conversations by (agent, scope). Each key has at most one conversation that is not
    retired."""

    def session(self, key: SessionKey) -> Session | None:
        """Return the live session of a key, or None."""
        ...

    def look_up(self, key: SessionKey) -> Session | None:
        """Return the live session of a key, or None. Only for display: the answer may come from a
        cache and be slightly outdated."""
        ...

    def lineage(self, key: SessionKey) -> Sequence[Session]:
        """Return all sessions that the key has had, oldest first, including retired ones."""
        ...

    def sessions(self, session_id: str = "", limit: int = 1000) -> Sequence[Session]:
        """Return the sessions of every key, newest first, including retired ones. `session_id`:
        only sessions with this id."""
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
        """Return the attempts that ended in this span (ms, `until` excluded), each with its run's
        key, oldest first. If an agent or a scope is given, return only its attempts."""
        ...

    def put_session(self, session: Session) -> None:
        """Insert or replace the session with this key and id. Raises Conflict if another session of
        the key is live."""
        ...

    def amend_sessions(self, sessions: Sequence[Session]) -> None:
        """Store changed sessions, retired ones first, in one transaction. A new session has
        `revision` 0. Raises Conflict if a stored session was changed since the caller read it, or
        if an attempt is running in its scope."""
        ...

    def identity(self) -> tuple[str, bytes]:
        """Return the unique id of this store, and a secret that only the store's users can read."""
        ...


class PlanStore(Protocol):
    """Stores the plans that were begun, and the results of their tasks. The runs of the tasks are
    in the `RunStore`.

    Some writes need the plan's lease. They raise LostLease unless the worker of the given `PlanRun`
    still holds that lease.
    """

    def add_plan(self, plan: PlanRun) -> PlanRun:
        """Store a new plan that no worker holds yet. Raises Conflict if the name is taken."""
        ...

    def plan(self, ref: str) -> PlanRun:
        """Return a plan by name or id. Raises NotFound, with similar names in the hint."""
        ...

    def plans(self, limit: int = 50) -> Sequence[PlanRun]:
        """Return plans, newest first."""
        ...

    def claim_plan(self, plan: PlanRun, worker: str, lease_s: float) -> PlanRun | None:
        """Claim the plan, if its worker and lease are still those in `plan`. If two callers see the
        plan without a worker, or with a dead one, only one of them can claim it. Returns None if
        another worker claimed it first."""
        ...

    def renew_plan(self, plan: PlanRun, lease_s: float) -> PlanRun:
        """Extend the worker's lease on the plan, and return the plan."""
        ...

    def put_plan(self, plan: PlanRun, instructions: Mapping[str, str] = ...) -> PlanRun:
        """Store the plan's tasks, state, reason and `verified` as given, under the lease.
        `instructions` maps the id of a run to new instructions, which are appended as by
        `RunStore.update`. All of this is one transaction."""
        ...

    def release_plan(self, plan: PlanRun) -> None:
        """End the worker's lease on the plan. Does nothing if another worker has claimed the
        plan."""
        ...

    def put_planned(self, plan: PlanRun, planned: PlannedRun, instructions: str = "") -> None:
        """Insert or replace the record of one task, under the plan's lease. If `instructions` is
        not empty, it is appended to the instructions of the task's run, in the same transaction."""
        ...

    def planned(self, plan_id: str) -> Sequence[PlannedRun]:
        """Return the plan's tasks that were begun, in the order in which they began."""
        ...


class InboxStore(Protocol):
    """Stores the deliveries of forges. Two deliveries of a source are the same if they have the
    same id from the forge, or the same digest of their bodies."""

    def accept(self, arrived: Sequence[Arrived]) -> Sequence[Accepted]:
        """Store the deliveries in one durable transaction: as `received`, or as `ignored` if they
        have no intent. If a delivery is already stored, only its count is increased. Return the
        number of each delivery, and whether it is new."""
        ...

    def inbox(
        self, state: DeliveryState | None = None, source: str = "", limit: int = 50, before: int = 0
    ) -> Sequence[Delivery]:
        """Return deliveries, newest first. `before`: only deliveries with smaller numbers."""
        ...

    def deliveries_about(
        self,
        source: str,
        intent: Intent,
        *,
        whole_repository: bool = False,
        before: int = 0,
    ) -> Sequence[Delivery]:
        """Return the newest deliveries of a source, in any state, about the issue or pull request
        of `intent`, newest first and at most 1,000. `whole_repository`: return those about its
        whole repository. `before`: only deliveries with smaller numbers."""
        ...

    def deliveries_with_reason(
        self, source: str, reason: str, limit: int = ...
    ) -> Sequence[Delivery]:
        """Return the `handled` and `ignored` deliveries of a source that have an intent and exactly
        this reason, newest first."""
        ...

    def waiting_deliveries(self, limit: int = 50) -> Sequence[Delivery]:
        """Return the `received` deliveries, oldest first."""
        ...

    def delivery(self, ref: str) -> tuple[Delivery, str]:
        """Return a delivery and its body (empty if the body was deleted). `ref` is its number, its
        id, or the beginning of an id (at least 4 characters). Raises NotFound, and Conflict if the
        beginning is ambiguous."""
        ...

    def settle_delivery(self, number: int, state: DeliveryState, reason: str) -> bool:
        """Settle a `received` delivery: set its state and reason. Returns False if it was settled
        already."""
        ...

    def delay_delivery(self, number: int, reason: str) -> None:
        """Store the reason why a `received` delivery waits. Does nothing to a settled delivery."""
        ...

    def replay_delivery(self, number: int, reading: PayloadReading) -> Delivery:
        """Replace what was read from a stored delivery (its intent, or the reason why there is
        none). Returns the delivery, which becomes `received`, or `ignored` if it has no intent. Any
        earlier state is allowed. Raises NotFound."""
        ...

    def thin_inbox(self, bodies_before: int, rows_before: int) -> tuple[int, int]:
        """Delete the bodies of deliveries that were settled before `bodies_before` (ms), and the
        whole rows of those settled before `rows_before`. Deliveries that still wait or that failed
        are kept completely. Returns the numbers of deleted bodies and of deleted rows. A deleted
        delivery that arrives again counts as new."""
        ...


class PostingStore(Protocol):
    """Stores postings: what was reported to a forge about a run that a delivery began.
    `RunStore.add` with a delivery creates the posting together with the run."""

    def posting(self, run_id: str) -> Posting | None:
        """Return the posting of a run; None if no delivery began the run."""
        ...

    def postings_due(self, limit: int = 50) -> Sequence[Posting]:
        """Return the postings that need work, because the run changed after `seen`, or because a
        failed step is due for a retry. Excludes postings that another host holds. Also excludes
        runs that were removed or whose files are on another host."""
        ...

    def postings_waiting(self, limit: int = 50) -> Sequence[Posting]:
        """Return the postings with a step that failed and will be retried, the next one to be
        retried first."""
        ...

    def hold_posting(self, run_id: str, lease_s: float) -> Posting | None:
        """Reserve a posting for this host, before anything is sent to the forge. Returns None if
        another host holds the posting, or if the run has none."""
        ...

    def put_posting(self, posting: Posting) -> None:
        """Store what was posted so far. Raises LostLease unless this host holds the posting."""
        ...

    def hurry_posting(self, run_id: str) -> bool:
        """Make a posting due now. Returns False if the run has none."""
        ...

    def final_words(self, run_id: str) -> str:
        """Return the text with which the run's agent ended its newest turn; empty if there is
        none."""
        ...

    def record_outside_attempt(
        self,
        run_id: str,
        events: Sequence[AnyEvent],
        condition: Condition | None = None,
        solved: str = "",
    ) -> TaskRun:
        """Append events that are not part of an attempt to the journal of a run, and return the
        run. Also sets `condition`, and removes the condition of the type `solved`, if they are
        given. The condition's time 0 stands for the present time. The run's state does not
        change."""
        ...


class NoticeStore(Protocol):
    """Stores notices to people until they are sent. The component that reads the audit trail adds
    them."""

    def notices_seen(self) -> int | None:
        """Return the number of the last line of the audit trail that was checked for notices; None
        if no line was checked yet."""
        ...

    def put_notices(self, before: int | None, after: int, notices: Sequence[Notice]) -> bool:
        """Store the notices for the lines of the audit trail after `before`, up to and including
        `after`. Also stores `after` as the new position. Returns False and stores nothing if
        another host has moved the position meanwhile."""
        ...

    def notices_due(self, limit: int = 50) -> Sequence[Notice]:
        """Return the notices that are to be sent now, the one that has been due longest first."""
        ...

    def notices(self, limit: int = 50) -> Sequence[Notice]:
        """Return notices of every state, newest first."""
        ...

    def hold_notice(self, notice: str, lease_s: float) -> Notice | None:
        """Reserve a due notice, given by its id, for this host. Returns None if another host holds
        the notice, or if it was sent already."""
        ...

    def settle_notice(self, notice: Notice) -> bool:
        """Store the state, due time, tries and reason of a notice that this host holds. Returns
        False if this host does not hold it any more."""
        ...

    def thin_notices(self, before: int) -> int:
        """Delete notices that were sent or given up before a time (ms). Returns the number of
        deleted notices."""
        ...


class DeviceStore(Protocol):
    """Stores the browsers that get push messages. A browser is removed when its person's token is
    removed, when the person signs out in the browser, and when the browser expires."""

    def put_device(self, device: PushDevice) -> None:
        """Add a browser, or store new choices of its person. The store itself sets `added`. If
        another person has a browser with the same endpoint, that entry is removed. Raises Conflict
        if the sign-in has ended, or if the person has too many browsers already."""
        ...

    def renew_device(self, device: PushDevice) -> bool:
        """Update the sign-in, the limits and the expiry of a browser that is in the store. Return
        False if the browser is not there or has expired."""
        ...

    def devices(self) -> Sequence[PushDevice]:
        """Return all people's browsers that have not expired, oldest first."""
        ...

    def remove_device(self, device: str) -> bool:
        """Remove the browser with this id. Return False if it is not in the store."""
        ...


class AuditStore(Protocol):
    """Reads the audit trail: a line for each change of a run's state, and for each action of a
    person or program, in a chain of hashes."""

    def audit(
        self, *, since: int = 0, actor: str = "", run: str = "", after: int = 0, limit: int = 1000
    ) -> Sequence[AuditLine]:
        """Return lines in their order. All filters are optional: lines since a time (ms), of actors
        whose name contains a text, about a run (its full id), and after a line number."""
        ...

    def audit_head(self) -> tuple[int, str]:
        """Return the number of lines, and the hash of the last line; 0 and an empty text if there
        are none."""
        ...

    def audit_problems(self) -> Iterator[str]:
        """Check all lines and the journal records that they refer to. Yields a sentence for each
        line that was changed, is missing, or contradicts its record."""
        ...


class TokenStore(Protocol):
    """Stores the tokens of the HTTP service. Only the SHA-256 of each secret is stored (64
    hexadecimal digits), never the secret."""

    def add_token(self, token: Token, sha256: str) -> Token:
        """Store a new token, set its `created`, and return it. Raises Conflict if the name is
        taken."""
        ...

    def tokens(self) -> Sequence[Token]:
        """Return all tokens, oldest first, including expired ones."""
        ...

    def token_of(self, sha256: str) -> Token | None:
        """Return the token with this digest; None if there is none, or if it has expired."""
        ...

    def use_token(self, name: str) -> None:
        """Record that the token is used now, unless a use within the last hour is recorded already.
        Does nothing for an unknown name."""
        ...

    def remove_token(self, name: str) -> Token:
        """Remove a token and end all sign-ins that were made with it. Raises NotFound."""
        ...

    def note_refusal(self, actor: str, what: str) -> None:
        """Add a line to the audit trail that says that a request of this actor was refused. `what`
        describes the request."""
        ...

    def sign_in(self, name: str, sha256: str, lasts_s: float) -> None:
        """Store a sign-in with the token of this name, under the digest of the browser's own
        secret. The sign-in lasts `lasts_s` seconds."""
        ...

    def sign_in_person(self, person: Token, sha256: str, lasts_s: float) -> None:
        """Store the sign-in of a person (`kind` is `openid`) under the digest of the browser's own
        secret, with the person's scope and limits."""
        ...

    def signed_in(self, sha256: str) -> Token | None:
        """Return the token or person of a sign-in. Returns None if the sign-in or the token has
        expired, or if the token was removed."""
        ...

    def sign_out_person(self, person: str) -> int:
        """End all sign-ins of a person, and remove the person's devices. Return how many sign-ins
        and devices these were in total."""
        ...

    def sign_out(self, sha256: str) -> None:
        """End a sign-in, if it exists."""
        ...


class RequestStore(Protocol):
    """Stores the requests of agents to people. `RunStore.finish` adds them. If a run continues or
    ends without the answer to a request, the request becomes superseded."""

    def requests(self, run_id: str) -> Sequence[AgentRequest]:
        """Return all requests of a run, oldest first."""
        ...

    def open_requests(self, limit: int = 1000) -> Sequence[AgentRequest]:
        """Return the open requests of all runs. The request that expires first comes first."""
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
        """Answer a request, and return the run and the answered request. When no other request of
        the run is open, the run becomes due. `via` identifies the comment on a forge that contains
        the answer. Raises NotFound, and Conflict if the request is not open any more."""
        ...
