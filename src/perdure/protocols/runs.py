"""The interface of the store of runs. Every change of state is one call, and every call is one
transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from perdure.model import (
    NO_COSTS,
    NO_USAGE,
    NOTHING_GIVEN,
    AccountSlot,
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
    """The data that is stored when an attempt begins, before the agent is launched."""

    continuation: Continuation
    directory: str
    prompt_sha256: str
    flags: dict[str, str]
    agent_version: str
    before: Snapshot | None
    session: Session | None
    workspace: Workspace
    answers: tuple[AgentRequest, ...] = ()
    """Requests whose answers are passed to the attempt."""


class Ending(Struct, frozen=True, kw_only=True):
    """The data about an attempt's end that `RunStore.finish` stores in one transaction."""

    outcome: Outcome
    decision: Decision
    receipt: Receipt | None = None
    usage: Usage = NO_USAGE
    costs: ReplyCosts = NO_COSTS
    fill: Fill | None = None
    work: str = ""
    """Verdict on the attempt's work, as in `WorkReport.verdict`; empty if there is none."""
    agent_version: str = ""
    sessions: tuple[Session, ...] = ()
    """The changed sessions. Retired ones come first, because only one session of a key may be live.
    """
    events: tuple[AnyEvent, ...] = ()
    requests: tuple[AgentRequest, ...] = ()
    """New requests to a person. The run waits for the answers."""
    parkings: tuple[Parking, ...] = ()
    """Accounts and agents to be parked because of limits or failures in this attempt."""


class RunRow(Struct, frozen=True):
    """The fields of a run that a list shows. They are read from plain columns, without decoding
    JSON."""

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
    """Size in tokens of the conversation's newest request to the model; 0 if unknown."""
    fill_window: int = 0
    """Maximum size in tokens of a request that the model accepts; 0 if unknown."""
    lease_until: int = 0
    """Time (ms) at which the supervisor's lease expires; 0 if the run has no supervisor."""
    host: str = ""
    """Id of the host that has the run's files; empty if the database is not shared."""
    role: str = ""
    """Name of the rule that the run works under; empty if none."""
    ordinal: int = 0
    """Number of the run in the order of creation, for paging through a list."""


class Arrival(Struct, frozen=True, kw_only=True):
    """A run that was moved here from another machine, and can now be stored. It was checked, has a
    workspace of this machine, and is in a final state."""

    run: TaskRun
    contexts: tuple[Context, ...]
    attempts: tuple[Attempt, ...]
    """All attempts of the run. Each of them has ended."""
    sessions: tuple[Session, ...]
    records: tuple[Record, ...]
    """The journal of the run. The store ignores the fields `run` and `seq` of each record, and sets
    its own."""
    checkpoint: Checkpoint
    event: RunTakenIn
    requests: tuple[AgentRequest, ...] = ()
    waits: Decision | None = None
    """The decision to wait for a person's answer, if the run has an open request; otherwise None.
    """


class PlacedRun(Struct, frozen=True):
    """A run and its workdir, as a clean-up needs them. `removed` is the time (ms) at which the run
    was removed from the list."""

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
    """Name of the rule that the run works under; empty if none."""


class RunStore(Protocol):
    """Stores runs, attempts, instructions and the journal. Every method is one durable transaction.

    Times are by the store's own clock. A write under a claim raises LostLease unless the run is
    running with the attempt number and worker of the claim.
    """

    def now(self) -> int:
        """Return the time by the store's clock, in ms since 1970."""
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
        """Add a run as `queued`, and return it. If a run with the same key, an equal spec and equal
        files exists, return that run instead. Raises Conflict if the key exists with a different
        spec or files, if the name is taken, or if another run is running on the workspace or scope.

        `deliveries` are the numbers of the deliveries that ask for the run. The same transaction
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
        """Return runs, newest first. `before`: only runs with a smaller ordinal (for the next
        page)."""
        ...

    def last_changed(self, states: Sequence[RunState] = (), limit: int = 50) -> Sequence[RunRow]:
        """Return runs for a list. The run whose last change is latest comes first."""
        ...

    def claim(
        self, worker: str, lease_s: float, ref: str = "", seat: AccountSlot | None = None
    ) -> Claim | None:
        """Claim the next due run, or the one with this id. In one transaction the run becomes
        `running`, its attempt number grows by one, and the attempt is stored.

        Returns None if no run is due, or if another running run uses the run's session or
        workspace. With `seat`, also returns None while the seat's account or agent is parked, or
        while its account or rule already has the maximum number of running runs.
        """
        ...

    def parked(self) -> Sequence[Parking]:
        """Return the parked accounts and agents. No run is launched with a parked one until its
        time is over."""
        ...

    def park(self, parking: Parking) -> None:
        """Park an account or agent. Until the given time, `claim` returns None for a `seat` with
        this account or agent. If it is parked already, the new time replaces the old one."""
        ...

    def unpark(self, *what: str) -> None:
        """End the parking of these accounts or agents now, for all models."""
        ...

    def defer(self, run_id: str, until: int, reason: str) -> TaskRun | None:
        """Postpone a queued run until a given time, without using up an attempt. Returns None if
        the run is no longer queued."""
        ...

    def seats_taken(self, account: str) -> int:
        """Return the number of running runs of an account."""
        ...

    def seats_taken_under(self, rule: str) -> int:
        """Return the number of running runs under a rule."""
        ...

    def latest_attempts(self, agent: str, limit: int = 20) -> Sequence[Attempt]:
        """Return the newest ended attempts of an agent, from all its runs. The attempt that began
        last comes first."""
        ...

    def due(self, limit: int = 50) -> Sequence[TaskRun]:
        """Return the runs that `claim` would take now, in the same order."""
        ...

    def adopt(self, claim: Claim, worker: str, lease_s: float) -> Claim:
        """Take over the claim's attempt from the worker that the claim names, without starting a
        new attempt. Raises LostLease if another worker took it over first."""
        ...

    def renew(self, claim: Claim, lease_s: float) -> TaskRun:
        """Extend the lease and return the run. The caller can then check `cancel_requested`."""
        ...

    def begin(self, claim: Claim, begun: Begun) -> Attempt:
        """Store the data of an attempt's start, and return the attempt. Called once for each
        attempt, before the launch."""
        ...

    def record(
        self,
        claim: Claim,
        events: Sequence[AnyEvent],
        session: Session | None = None,
        usage: Usage | None = None,
        received: int = 0,
    ) -> None:
        """Append events under the claim. Also stores the session and the attempt's usage so far, if
        given. `received` is the version of the newest message that the running turn has received.
        That version becomes the attempt's context version."""
        ...

    def finish(self, claim: Claim, ending: Ending) -> TaskRun:
        """Store the outcome, receipt, usage, sessions and last events of the attempt, and the run's
        next state, in one transaction. Return the run. If the run has a newer context version than
        the attempt, a final state other than `cancelled` becomes `queued` instead."""
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
        """Append a version of the instructions with its files, and the given events. Return the
        run. A run in a final state becomes `queued` and gets one more attempt. `deliveries`: as in
        `add`. `message`: the key of a message for the running attempt; a message with the same key
        and text is appended only once. Raises Conflict if the key was used with another text."""
        ...

    def requeue(
        self, run_id: str, reason: str, more: int = 1, *, after_success: bool = False
    ) -> TaskRun:
        """Queue a run again because a person retries it, and return the run. It is due now, and
        gets `more` attempts in addition to those made. Raises Conflict while the run is running.
        Also raises Conflict if the run has succeeded, unless `after_success` is set."""
        ...

    def reassign(self, run_id: str, spec: TaskSpec) -> TaskRun:
        """Change the spec of a run, except its prompt, and return the run. If the spec names
        another agent, the run is handed over to that agent. Workdir and history are kept. Raises
        Conflict while the run is running."""
        ...

    def open_run(self, run_id: str, condition: Condition, session: Session) -> TaskRun:
        """Record that a person has opened the run in the agent's own program, and return the run.
        Until `take_back`, `claim` takes neither this run nor any other run on its workdir or
        conversation. Raises Conflict while one of these runs is running, or is already open."""
        ...

    def take_back(self, run_id: str, sessions: Sequence[Session], event: RunTakenBack) -> TaskRun:
        """Record that the person no longer has the run open, if `open_run` was called. Also stores
        the new states of the conversations, retired ones first. Returns the run."""
        ...

    def opened_beside(self, run: TaskRun) -> TaskRun | None:
        """Return the run on this run's workdir or conversation that a person has open. The result
        may be the given run itself; None if no such run is open."""
        ...

    def retitle(self, run_id: str, title: str) -> None:
        """Change the title of a run, for example because its issue was renamed. Allowed in every
        state."""
        ...

    def request_cancel(self, run_id: str) -> TaskRun:
        """Request the cancellation of a running run, and return the run. A pending or queued run
        becomes `cancelled` immediately."""
        ...

    def remove(self, run_id: str) -> None:
        """Remove a run in a final state from the list. Its name and key become free, and no command
        finds it any more. Its attempts, instructions and journal can still be read by its full id.
        Raises Conflict for a run in any other state, NotFound for one that does not exist."""
        ...

    def put_back(self, run_id: str, name: str = "", key: str = "") -> TaskRun:
        """Put a removed run, given by its full id, back in the list, and return the run. It gets
        this name and key if they are still free."""
        ...

    def reset(self, run_ids: Sequence[str], cause: str) -> Sequence[str]:
        """Reset runs, all or none of them. Runs that are not in a final state become `cancelled`,
        and live conversations are retired with this cause. Returns the ids of the retired
        conversations. Raises Conflict if one of the runs is running or open."""
        ...

    def undo_reset(self, run_ids: Sequence[str]) -> Sequence[str]:
        """Make the conversations live again that the latest `reset` of the runs retired. A
        conversation that was replaced meanwhile stays retired. Returns the ids of the conversations
        that are live again."""
        ...

    def placed(self) -> Sequence[PlacedRun]:
        """Return every run that was ever added, including removed ones, oldest first."""
        ...

    def lapsed(self) -> Sequence[Claim]:
        """Return the claims of all running runs whose lease has expired."""
        ...

    def claims(self) -> Sequence[Claim]:
        """Return the claims of all running runs."""
        ...

    def take_in(self, arrival: Arrival) -> TaskRun:
        """Store a run from another machine with everything that belongs to it, in one transaction,
        and return the run. Its state is final, so it is not claimed until a person continues it.
        Raises Conflict if its name or id is taken."""
        ...

    def next_checkpoint(self, workspace_id: str, run_id: str) -> int:
        """Return the number for the run's next checkpoint in this workspace. It is greater than all
        numbers of the workspace, which several runs may share, and than all numbers of the run,
        which may have had a workspace on another host before."""
        ...

    def add_checkpoint(self, checkpoint: Checkpoint, claim: Claim | None = None) -> None:
        """Store a checkpoint, and add it to the journal. Its files and conversation must be durable
        already. Raises LostLease if the attempt of the claim has ended or another worker took it
        over. Without a claim, the caller must hold the workdir's lock; then Conflict is raised
        while an attempt that has begun is running. Conflict is always raised if the workspace
        already has this number."""
        ...

    def checkpoints(self, run_id: str = "") -> Sequence[Checkpoint]:
        """Return the checkpoints of the run, oldest first. Without a run, return those of all runs,
        including removed ones."""
        ...

    def forget_checkpoints(self, run_id: str, numbers: Sequence[int]) -> None:
        """Delete the records of these checkpoints. The caller must delete their files and
        conversations afterwards. Unknown numbers are ignored."""
        ...

    def restored(
        self, run_id: str, sessions: Sequence[Session], event: CheckpointRestored
    ) -> TaskRun:
        """Store the conversations as they are after a restore, retired ones first, together with
        the event of the restore. Return the run. The caller must hold the workdir's lock. Raises
        Conflict if an attempt has begun and is still running. A run that is claimed, but whose
        attempt has not begun, raises no Conflict."""
        ...

    def fetched(
        self,
        claim: Claim,
        place: Workspace,
        sessions: Sequence[Session],
        checkpoint: Checkpoint,
        event: CheckpointRestored,
    ) -> TaskRun:
        """Record that the claimed run's workdir and conversation were downloaded to this host, and
        return the run. Stores the workspace, the conversations (retired ones first) and the fetched
        checkpoint, in one transaction."""
        ...

    def attempts(self, run_id: str) -> Sequence[Attempt]: ...

    def contexts(self, run_id: str) -> Sequence[Context]: ...

    def latest(self, run_id: str, limit: int = 1000, before: int = ...) -> Sequence[Record]:
        """Return the newest Records of the run whose `seq` is less than `before`, oldest first."""
        ...

    def history(self, run_id: str, after: int = 0, limit: int = 1000) -> Sequence[Record]:
        """Return the Records of the run whose `seq` is greater than `after`, oldest first."""
        ...

    def run_events(self, run_id: str) -> Sequence[Record]:
        """Return all Records of the run whose event is a `RunEvent`, oldest first. A long run has
        few of them: most events are what the agent said and did."""
        ...

    def attempt_history(self, run_id: str, number: int, limit: int = ...) -> Sequence[Record]:
        """Return the newest Records of one attempt, oldest first."""
        ...

    def journal(self, after: int = 0, limit: int = 1000) -> Sequence[Record]:
        """Return the Records of all runs whose `seq` is greater than `after`, in the order of
        `seq`. If several hosts write at the same time, a Record with a smaller `seq` may appear
        later."""
        ...

    def newest_record(self) -> int:
        """Return the greatest `seq` in the journal; 0 if the journal is empty."""
        ...

    def close(self) -> None:
        """Close the database."""
        ...
