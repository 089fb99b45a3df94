"""The store of runs. Every change of state is one call, and every call is one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from perdure.model import (
    NO_COSTS,
    NO_USAGE,
    NOTHING_GIVEN,
    Attempt,
    Checkpoint,
    Claim,
    Condition,
    Context,
    Continuation,
    Decision,
    Fill,
    Given,
    Outcome,
    Parking,
    Receipt,
    ReplyCosts,
    RunState,
    Seat,
    Session,
    Snapshot,
    TaskRun,
    TaskSpec,
    Usage,
    Workspace,
)

if TYPE_CHECKING:
    from perdure.model.events import AnyEvent, CheckpointRestored, Record, RunTakenBack, RunTakenIn
    from perdure.model.requests import AgentRequest


class Begun(Struct, frozen=True, kw_only=True):
    """The data that is stored before the launch of an attempt."""

    continuation: Continuation
    directory: str
    prompt_sha256: str
    flags: dict[str, str]
    agent_version: str
    before: Snapshot | None
    session: Session | None
    workspace: Workspace
    answers: tuple[AgentRequest, ...] = ()
    """Requests whose answers the attempt is given."""


class Ending(Struct, frozen=True, kw_only=True):
    """The data that `finish` stores, all or nothing."""

    outcome: Outcome
    decision: Decision
    receipt: Receipt | None = None
    usage: Usage = NO_USAGE
    costs: ReplyCosts = NO_COSTS
    fill: Fill | None = None
    work: str = ""
    """The verdict on the attempt's work."""
    agent_version: str = ""
    sessions: tuple[Session, ...] = ()
    """The sessions in their new state, retired ones first."""
    events: tuple[AnyEvent, ...] = ()
    requests: tuple[AgentRequest, ...] = ()
    """Requests to a person, for which the run waits."""
    parkings: tuple[Parking, ...] = ()
    """Accounts and agents to be parked because of limits or failures in this attempt."""


class RunRow(Struct, frozen=True):
    """A run as a list shows it, read from plain columns without decoding JSON."""

    id: str
    name: str
    state: RunState
    agent: str
    attempt: int
    reason: str
    updated: int
    created: int
    place: str
    worker: str
    run_after: int = 0
    fill_tokens: int = 0
    """Tokens of the conversation's newest request; 0: unknown."""
    fill_window: int = 0
    """Tokens that the model can take; 0: unknown."""
    lease_until: int = 0
    """Time (ms) at which the supervisor's lease ends; 0: the run has no supervisor."""
    host: str = ""
    """The host that has the run's files, if several share the database."""
    role: str = ""
    """The rule that the run works under; empty if none."""
    ordinal: int = 0
    """The run's number in the order of arrival, for paging through a list."""


class Arrival(Struct, frozen=True, kw_only=True):
    """A run from another machine, ready to be stored: checked, with a workspace of this machine,
    and in a final state."""

    run: TaskRun
    contexts: tuple[Context, ...]
    attempts: tuple[Attempt, ...]
    """All attempts of the run, all ended."""
    sessions: tuple[Session, ...]
    records: tuple[Record, ...]
    """The journal of the run; `run` and `seq` are ignored."""
    checkpoint: Checkpoint
    event: RunTakenIn
    requests: tuple[AgentRequest, ...] = ()
    waits: Decision | None = None
    """How the run waits for a person's answer, if its agent asked something."""


class PlacedRun(Struct, frozen=True):
    """A run and its workdir, for clean-ups. `removed`: when (ms) it was removed from the list."""

    id: str
    name: str
    state: RunState
    agent: str
    scope: str
    updated: int
    finished: int | None
    removed: int | None
    opened: bool
    workspace: Workspace
    role: str = ""
    """The rule that the run works under; empty if none."""


class RunStore(Protocol):
    """Runs, attempts, contexts and the journal. Every method is one durable transaction.

    Times are by the store's own clock. A write under a claim raises LostLease unless the run is
    running with the attempt number and worker of the claim.
    """

    def now(self) -> int:
        """Return the time by the store's clock, in ms."""
        ...

    def add(
        self,
        spec: TaskSpec,
        run_id: str,
        name: str,
        workspace: Workspace,
        given: Given = NOTHING_GIVEN,
        deliveries: Sequence[int] = (),
    ) -> TaskRun:
        """Add a run as `queued`. If a run with the same key, an equal spec and equal files exists,
        return that one. Raises Conflict if the key exists with other content, if the name is taken,
        or if another run is running on the workspace or scope.

        `deliveries` are the numbers of the deliveries that ask for the run; the same transaction
        marks them as handled. Raises Conflict if one of them was settled already.
        """
        ...

    def get(self, ref: str) -> TaskRun:
        """Return a run by id, name, key or unique prefix of the id (at least 4 characters). Raises
        NotFound, with similar names in the hint."""
        ...

    def find(
        self,
        states: Sequence[RunState] = (),
        limit: int = 50,
        *,
        before: int = 0,
        agent: str = "",
        scope: str = "",
    ) -> Sequence[RunRow]:
        """Return runs, newest first. `before`: only those with smaller ordinals, for the next
        page."""
        ...

    def last_changed(self, states: Sequence[RunState] = (), limit: int = 50) -> Sequence[RunRow]:
        """Return runs by the time of the last change, latest first."""
        ...

    def claim(
        self, worker: str, lease_s: float, ref: str = "", seat: Seat | None = None
    ) -> Claim | None:
        """Claim the next due run, or the one with this id. In one step the run becomes `running`,
        its attempt number grows by one, and the attempt is stored.

        Returns None if nothing is due, or if another running run uses the run's session or
        workspace. With a seat, also returns None if the run's account or agent is parked, or if the
        account has as many running runs as the seat allows.
        """
        ...

    def parked(self) -> Sequence[Parking]:
        """Return the accounts and agents that are parked now."""
        ...

    def park(self, parking: Parking) -> None:
        """Park an account or agent: nothing is claimed with a seat there until the given time. An
        account or agent that is parked already gets the new time."""
        ...

    def unpark(self, *what: str) -> None:
        """Free these accounts or agents again, for all models."""
        ...

    def defer(self, run_id: str, until: int, reason: str) -> TaskRun | None:
        """Let a queued run wait until a time, without using up an attempt. Returns None if the run
        is no longer queued."""
        ...

    def seats_taken(self, account: str) -> int:
        """Return the number of running runs of an account."""
        ...

    def seats_taken_under(self, rule: str) -> int:
        """Return the number of running runs under a rule."""
        ...

    def latest_attempts(self, agent: str, limit: int = 20) -> Sequence[Attempt]:
        """Return the ended attempts of an agent that began last, over all runs; newest first."""
        ...

    def due(self, limit: int = 50) -> Sequence[TaskRun]:
        """Return the runs that `claim` would take now, in its order."""
        ...

    def adopt(self, claim: Claim, worker: str, lease_s: float) -> Claim:
        """Take over the *same* attempt from the worker named in the claim. Raises LostLease if
        another worker was faster."""
        ...

    def renew(self, claim: Claim, lease_s: float) -> TaskRun:
        """Extend the lease and return the run, so that the caller sees `cancel_requested`."""
        ...

    def begin(self, claim: Claim, begun: Begun) -> Attempt:
        """Store how the attempt starts. Called once an attempt, before the launch."""
        ...

    def record(
        self,
        claim: Claim,
        events: Sequence[AnyEvent],
        session: Session | None = None,
        usage: Usage | None = None,
        received: int = 0,
    ) -> None:
        """Append events under the claim, and store the session and the attempt's usage so far if
        they are given. `received`: the running turn took the messages up to this version, which is
        then the attempt's context version."""
        ...

    def finish(self, claim: Claim, ending: Ending) -> TaskRun:
        """Store the attempt's outcome, receipt, usage, sessions and last events and the run's next
        state, together. If the run has a newer context version than the attempt, a final state
        other than `cancelled` becomes `queued` instead."""
        ...

    def update(
        self,
        run_id: str,
        text: str,
        given: Given = NOTHING_GIVEN,
        deliveries: Sequence[int] = (),
        events: Sequence[AnyEvent] = (),
        message: str = "",
    ) -> TaskRun:
        """Append a context version with its files, and the given events. A run in a final state
        becomes `queued` and may try once more. `deliveries` as in `add`. `message`: the key of a
        message for the running attempt; one with the same key and text is appended once. Raises
        Conflict for the same key with another text."""
        ...

    def requeue(
        self, run_id: str, reason: str, more: int = 1, *, after_success: bool = False
    ) -> TaskRun:
        """Queue a run again for a person's retry: due now, with `more` attempts allowed in addition
        to those made. Raises Conflict while the run is running, and after success unless
        `after_success` is set."""
        ...

    def reassign(self, run_id: str, spec: TaskSpec) -> TaskRun:
        """Change the spec of a run, except its prompt, or hand the run over to the spec's agent.
        Workdir and history are kept. Raises Conflict while the run is running."""
        ...

    def open_run(self, run_id: str, condition: Condition, session: Session) -> TaskRun:
        """Give the run to a person: until `take_back`, no attempt of it, or of any run on its
        workdir or conversation, is claimed. Raises Conflict while one of them runs, or is already
        open."""
        ...

    def take_back(self, run_id: str, sessions: Sequence[Session], event: RunTakenBack) -> TaskRun:
        """End a person's use of the run, if `open_run` began one, and store the conversations' new
        states, retired ones first."""
        ...

    def opened_beside(self, run: TaskRun) -> TaskRun | None:
        """Return the open run that conflicts with this one: the run itself, or a run on its workdir
        or conversation. None if no person has such a run open."""
        ...

    def retitle(self, run_id: str, title: str) -> None:
        """Change the title of a run, for example because its issue was renamed. Allowed in every
        state."""
        ...

    def request_cancel(self, run_id: str) -> TaskRun:
        """Request the cancellation of a running run. A pending or queued one becomes `cancelled` at
        once."""
        ...

    def remove(self, run_id: str) -> None:
        """Remove a run in a final state from the list. Its name and key become free, and no command
        finds it any more, but its attempts, instructions and journal can still be read by its full
        id. Raises Conflict for any other run, NotFound for one that does not exist."""
        ...

    def put_back(self, run_id: str, name: str = "", key: str = "") -> TaskRun:
        """Put a removed run, given by its full id, back on the list. It gets its old name and key
        if they are still free."""
        ...

    def reset(self, run_ids: Sequence[str], cause: str) -> Sequence[str]:
        """Reset runs, all or nothing: waiting ones become `cancelled`, and their live conversations
        are retired with this cause. Returns the ids of the conversations. Raises Conflict while one
        of the runs is running or open."""
        ...

    def undo_reset(self, run_ids: Sequence[str]) -> Sequence[str]:
        """Restore the conversations that the latest `reset` of the runs retired, unless other
        conversations have replaced them since. Returns the ids of those restored."""
        ...

    def placed(self) -> Sequence[PlacedRun]:
        """Return every run that was ever accepted, including removed ones, oldest first."""
        ...

    def lapsed(self) -> Sequence[Claim]:
        """Return the claims of all running runs whose lease has expired."""
        ...

    def claims(self) -> Sequence[Claim]:
        """Return the claims of all running runs."""
        ...

    def take_in(self, arrival: Arrival) -> TaskRun:
        """Store a run from another machine with everything that belongs to it, all or nothing. Its
        state is final, so it is not claimed until a person continues it. Raises Conflict if its
        name or id is taken."""
        ...

    def next_checkpoint(self, workspace_id: str) -> int:
        """Return the number of the next checkpoint of this workspace. The runs of a workspace share
        the numbers."""
        ...

    def add_checkpoint(self, checkpoint: Checkpoint, claim: Claim | None = None) -> None:
        """Store a checkpoint whose files and conversation are durable, and add it to the journal.
        Without a claim (by the holder of the workdir's lock) it raises Conflict while an attempt
        that has begun is running. It always raises Conflict if the workspace already has this
        number."""
        ...

    def checkpoints(self, run_id: str = "") -> Sequence[Checkpoint]:
        """Return the checkpoints of the run, or of all runs including removed ones, oldest
        first."""
        ...

    def forget_checkpoints(self, run_id: str, numbers: Sequence[int]) -> None:
        """Delete the records of these checkpoints. The caller deletes their files and
        conversations afterwards. Unknown numbers are ignored."""
        ...

    def restored(
        self, run_id: str, sessions: Sequence[Session], event: CheckpointRestored
    ) -> TaskRun:
        """Store the conversations after a restore, retired ones first, with its event. The caller
        holds the workdir's lock. Raises Conflict while an attempt that has begun is running; a run
        that is only claimed is no conflict."""
        ...

    def fetched(
        self,
        claim: Claim,
        place: Workspace,
        sessions: Sequence[Session],
        checkpoint: Checkpoint,
        event: CheckpointRestored,
    ) -> TaskRun:
        """Store that the claimed run's workdir and conversation are now on this host: the
        workspace, the conversations (retired ones first) and the fetched checkpoint, all or
        nothing."""
        ...

    def attempts(self, run_id: str) -> Sequence[Attempt]: ...

    def contexts(self, run_id: str) -> Sequence[Context]: ...

    def latest(self, run_id: str, limit: int = 1000, before: int = ...) -> Sequence[Record]:
        """Return the newest Records of the run with `seq` less than `before`, oldest first."""
        ...

    def history(self, run_id: str, after: int = 0, limit: int = 1000) -> Sequence[Record]:
        """Return Records of the run with `seq` greater than `after`, oldest first."""
        ...

    def journal(self, after: int = 0, limit: int = 1000) -> Sequence[Record]:
        """Return Records of all runs with `seq` greater than `after`, in the order of `seq`. If
        several hosts write at once, a Record with a smaller `seq` may appear later."""
        ...

    def newest_record(self) -> int:
        """Return the greatest `seq`; 0 if there is no record."""
        ...

    def close(self) -> None:
        """Close the database."""
        ...
