"""The other things that a store keeps: conversations, plans, the inbox, what was answered,
tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    from perdure.rules.plan import PlannedRun, PlanRun


class SessionStore(Protocol):
    """Conversations by (agent, scope). At most one that is not retired exists for each key."""

    def session(self, key: SessionKey) -> Session | None:
        """The live one, or None."""
        ...

    def look_up(self, key: SessionKey) -> Session | None:
        """The live one, or None, for those who only look: it may come from a cache and be a little
        late."""
        ...

    def lineage(self, key: SessionKey) -> Sequence[Session]:
        """All of the key, oldest first, retired ones included."""
        ...

    def sessions(self, session_id: str = "", limit: int = 1000) -> Sequence[Session]:
        """All of every key, or those with this id, the newest first, retired ones included."""
        ...

    def run_of(self, key: SessionKey) -> TaskRun | None:
        """The newest run with this agent and scope, or None."""
        ...

    def run_under(self, rule: str, scope: str) -> TaskRun | None:
        """The newest run under a rule of the configuration with this scope, whichever agent has it
        now; or None."""
        ...

    def runs_of(self, key: SessionKey) -> Sequence[TaskRun]:
        """All runs with this agent and scope, removed ones too, oldest first."""
        ...

    def ended(
        self, since: int, until: int, agent: str = "", scope: str = ""
    ) -> Sequence[tuple[SessionKey, Attempt]]:
        """The attempts that ended in this span (ms, `until` not included), with their runs' keys,
        oldest first; of one agent, of one scope, where these are given."""
        ...

    def put_session(self, session: Session) -> None:
        """Inserts or replaces the session with this (key, id). Conflict if another one of the key
        is live."""
        ...

    def amend_sessions(self, sessions: Sequence[Session]) -> None:
        """Stores sessions that were read before (`revision` 0: that are new), retired ones first,
        all or nothing. Raises Conflict where one was stored by somebody else since, or an attempt
        is at work in its scope."""
        ...

    def identity(self) -> tuple[str, bytes]:
        """What tells this store from every other one, and a secret that all of its users share and
        nobody else knows."""
        ...


class PlanStore(Protocol):
    """Plans that were begun, and what became of their tasks. The runs of the tasks are the
    `RunStore`'s.

    A write under a plan's lease raises LostLease unless the worker of the given `PlanRun` still
    holds it.
    """

    def add_plan(self, plan: PlanRun) -> PlanRun:
        """Keeps a new plan, with nobody at work on it. Raises Conflict for a name that is taken."""
        ...

    def plan(self, ref: str) -> PlanRun:
        """By name or id. Raises NotFound, with near names in the hint."""
        ...

    def plans(self, limit: int = 50) -> Sequence[PlanRun]:
        """Newest first."""
        ...

    def claim_plan(self, plan: PlanRun, worker: str, lease_s: float) -> PlanRun | None:
        """Takes the plan, if its worker and lease are still as in `plan`: who saw that nobody is at
        work, or that its worker died, is sure that nobody was quicker. None if somebody was."""
        ...

    def renew_plan(self, plan: PlanRun, lease_s: float) -> PlanRun:
        """Extends the lease."""
        ...

    def put_plan(self, plan: PlanRun, told: Mapping[str, str] = ...) -> PlanRun:
        """Stores the plan's tasks, state, reason and `verified` as they are given, under the lease;
        in the same transaction the runs of `told`, by id, get new instructions as by
        `RunStore.update`, so that a kill gives all of them once, or none yet."""
        ...

    def release_plan(self, plan: PlanRun) -> None:
        """Nobody is at work on it any more; nothing happens where somebody else is by now."""
        ...

    def put_planned(self, plan: PlanRun, planned: PlannedRun, told: str = "") -> None:
        """Inserts or replaces what is known of one task, under the plan's lease; in the same
        transaction its run gets new instructions where any are `told`."""
        ...

    def planned(self, plan_id: str) -> Sequence[PlannedRun]:
        """The tasks that were begun, in the order in which they were."""
        ...


class InboxStore(Protocol):
    """What forges delivered. A delivery is known by its source with the forge's id, and by its
    source with the digest of its body."""

    def accept(self, arrived: Sequence[Arrived]) -> Sequence[Accepted]:
        """Keeps the deliveries, all in one durable transaction: `received`, or `ignored` where
        nothing follows from them. One that is there already, by either key, is only counted."""
        ...

    def inbox(
        self, state: DeliveryState | None = None, source: str = "", limit: int = 50, before: int = 0
    ) -> Sequence[Delivery]:
        """Newest first; `before`: only those with smaller numbers."""
        ...

    def waiting_deliveries(self, limit: int = 50) -> Sequence[Delivery]:
        """The `received` ones, oldest first."""
        ...

    def delivery(self, ref: str) -> tuple[Delivery, str]:
        """A delivery and its body (empty once it was thinned out), by number, id, or the beginning
        of an id (at least 4). Raises NotFound, and Conflict where several begin so."""
        ...

    def settle_delivery(self, number: int, state: DeliveryState, reason: str) -> bool:
        """Ends a `received` delivery; False where somebody was quicker."""
        ...

    def delay_delivery(self, number: int, reason: str) -> None:
        """Says why a `received` delivery waits. Nothing happens to one that is settled."""
        ...

    def replay_delivery(self, number: int, reading: PayloadReading) -> Delivery:
        """Makes a delivery what it would be if it came now and were read so, whatever became of it.
        Raises NotFound."""
        ...

    def thin_inbox(self, bodies_before: int, rows_before: int) -> tuple[int, int]:
        """Empties the bodies, and forgets the rows, of what was settled before these times (ms).
        What still waits, or failed, stays whole. Returns how many of each. A forgotten delivery
        that comes again is new."""
        ...


class PostingStore(Protocol):
    """What forges were told of the runs that their deliveries began. `add` with a delivery begins a
    posting with its run."""

    def posting(self, run_id: str) -> Posting | None:
        """None for a run that no delivery began."""
        ...

    def postings_due(self, limit: int = 50) -> Sequence[Posting]:
        """Those whose run changed after `seen`, or that wait (`tries`) and are due, of runs on the
        list whose files are on this host or nowhere yet, and that nobody else holds."""
        ...

    def postings_waiting(self, limit: int = 50) -> Sequence[Posting]:
        """Those of which a part could not be done, the next one to be tried first."""
        ...

    def hold_posting(self, run_id: str, lease_s: float) -> Posting | None:
        """Takes a posting for this host, before anything is told; None while another one has it, or
        where there is none."""
        ...

    def put_posting(self, posting: Posting) -> None:
        """Stores how far it has come. Raises LostLease unless this host holds it."""
        ...

    def hurry_posting(self, run_id: str) -> bool:
        """Makes a posting due now; False where there is none."""
        ...

    def final_words(self, run_id: str) -> str:
        """What the agent said at the end of its newest turn; empty where it said nothing."""
        ...

    def tell_run(
        self,
        run_id: str,
        events: Sequence[AnyEvent],
        condition: Condition | None = None,
        solved: str = "",
    ) -> TaskRun:
        """Appends to the journal what happened to a run beside its attempts, and gives it a
        condition, or takes away the one of the type `solved`. The state stays."""
        ...


class TokenStore(Protocol):
    """Who may ask the service. Whoever holds a secret is known by its SHA-256 (64 hexadecimal
    digits), and the secret is nowhere."""

    def add_token(self, token: Token, sha256: str) -> Token:
        """Keeps a new token; the store sets `created`. Raises Conflict for a name that is taken."""
        ...

    def tokens(self) -> Sequence[Token]:
        """Oldest first, those that have expired too."""
        ...

    def token_of(self, sha256: str) -> Token | None:
        """The token with this digest, unless it has expired."""
        ...

    def use_token(self, name: str) -> None:
        """Writes down that it was used now, unless that was done within the hour. Nothing happens
        for a name that is gone."""
        ...

    def remove_token(self, name: str) -> Token:
        """Takes a token away, and signs out all who signed in with it. Raises NotFound."""
        ...

    def sign_in(self, name: str, sha256: str, lasts_s: float) -> None:
        """Keeps a sign-in with a token, under the digest of the browser's own secret."""
        ...

    def signed_in(self, sha256: str) -> Token | None:
        """The token of a sign-in, unless either has expired, or the token was taken away."""
        ...

    def sign_out(self, sha256: str) -> None:
        """Forgets a sign-in, if it is there."""
        ...
