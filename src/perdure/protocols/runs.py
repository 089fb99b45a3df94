"""The store of runs: every change of state is one call, and every call is one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from perdure.lateclass import dataclass
from perdure.model import (
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What is stored before anything is launched."""

    continuation: Continuation
    directory: str
    prompt_sha256: str
    flags: dict[str, str]
    agent_version: str
    before: Snapshot | None
    session: Session | None
    workspace: Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What `finish` stores, all or nothing."""

    outcome: Outcome
    decision: Decision
    receipt: Receipt | None = None
    usage: Usage = NO_USAGE
    fill: Fill | None = None
    work: str = ""
    """The verdict on the attempt's work."""
    agent_version: str = ""
    sessions: tuple[Session, ...] = ()
    """The sessions as they are now, retired ones first."""
    events: tuple[AnyEvent, ...] = ()
    parkings: tuple[Parking, ...] = ()
    """What nobody is to be launched on for a while, after what this attempt met with."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as a list shows it: read from plain columns, nothing decoded."""

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
    """What the conversation's newest request carried; 0: not known."""
    fill_window: int = 0
    """What its model takes; 0: not known."""
    lease_until: int = 0
    """When (ms) its supervisor must have been heard of again; 0: it has none."""
    host: str = ""
    """Where its files lie, among hosts that share the database."""
    ordinal: int = 0
    """Runs are numbered in the order in which they came; with this a list goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A run from another machine, as it is to be stored: checked, with a workspace of this machine,
    and in a final state."""

    run: TaskRun
    contexts: tuple[Context, ...]
    attempts: tuple[Attempt, ...]
    """All of them ended."""
    sessions: tuple[Session, ...]
    records: tuple[Record, ...]
    """`run` and `seq` of these are ignored."""
    checkpoint: Checkpoint
    event: RunTakenIn


@dataclass(frozen=True, slots=True)
class PlacedRun:
    """A run and where it works, for those who clean up. `removed`: it is off the list since then
    (ms)."""

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


class RunStore(Protocol):
    """Runs, attempts, contexts and the journal. Every method is one durable transaction.

    Times are the store's own clock. A write under a claim raises LostLease unless the run is
    running, its attempt number and its worker are those of the claim.
    """

    def now(self) -> int:
        """The store's clock, in ms."""
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
        """Accepts a run as `queued`. The same key with an equal spec and equal files returns the
        run that is there; with others, or a taken name, raises Conflict. A workspace or scope on
        which another run is running raises Conflict. `deliveries`: the numbers of those that ask
        for it, handled in the same transaction; Conflict if one was settled already."""
        ...

    def get(self, ref: str) -> TaskRun:
        """By id, name, key or unique prefix of the id (at least 4). Raises NotFound, with near
        names in the hint."""
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
        """Newest first. `before`: only those with smaller ordinals, the next page."""
        ...

    def last_changed(self, states: Sequence[RunState] = (), limit: int = 50) -> Sequence[RunRow]:
        """The same by the time of the last change, the latest first."""
        ...

    def claim(
        self, worker: str, lease_s: float, ref: str = "", seat: Seat | None = None
    ) -> Claim | None:
        """Takes the next due run (or the one named by id): `running`, attempt + 1 and a row for the
        attempt, in one step. None if nothing is due, or its session or workspace is in use by
        another running run; with a seat also if its account or agent is parked, or as many of the
        account's runs are at work as the seat allows."""
        ...

    def parked(self) -> Sequence[Parking]:
        """What is parked now."""
        ...

    def park(self, parking: Parking) -> None:
        """Nothing is claimed with a seat there until its time; what is parked already gets the new
        time."""
        ...

    def unpark(self, *what: str) -> None:
        """The accounts or agents are free again, for all models."""
        ...

    def defer(self, run_id: str, until: int, reason: str) -> TaskRun | None:
        """A queued run waits until then, and uses up no attempt. None if it is not queued any
        more."""
        ...

    def seats_taken(self, account: str) -> int:
        """How many runs are at work on an account."""
        ...

    def seats_taken_under(self, rule: str) -> int:
        """How many runs are at work under a rule."""
        ...

    def latest_attempts(self, agent: str, limit: int = 20) -> Sequence[Attempt]:
        """The ended attempts of an agent that began last, of all runs, the newest first."""
        ...

    def due(self, limit: int = 50) -> Sequence[TaskRun]:
        """The runs that `claim` would take now, in its order."""
        ...

    def adopt(self, claim: Claim, worker: str, lease_s: float) -> Claim:
        """Takes over the *same* attempt from the worker named in the claim. Raises LostLease if
        another was quicker."""
        ...

    def renew(self, claim: Claim, lease_s: float) -> TaskRun:
        """Extends the lease; returns the run, so that the caller sees `cancel_requested`."""
        ...

    def begin(self, claim: Claim, begun: Begun) -> Attempt:
        """Stores how the attempt starts. Called once an attempt, before the launch."""
        ...

    def record(
        self,
        claim: Claim,
        events: Sequence[AnyEvent],
        session: Session | None = None,
        usage: Usage | None = None,
    ) -> None:
        """Appends events under the claim, and stores the session and what the attempt has used so
        far, where they are given."""
        ...

    def finish(self, claim: Claim, ending: Ending) -> TaskRun:
        """The attempt's one outcome, its receipt, usage, sessions, last events and the run's next
        state, together. A newer context version than the attempt's makes a final state `queued`
        again, except `cancelled`."""
        ...

    def update(
        self,
        run_id: str,
        text: str,
        given: Given = NOTHING_GIVEN,
        deliveries: Sequence[int] = (),
        events: Sequence[AnyEvent] = (),
    ) -> TaskRun:
        """Appends a context version, with the files that came with it, and what else the text
        tells. A run in a final state becomes `queued` and may try once more. `deliveries` as in
        `add`."""
        ...

    def requeue(self, run_id: str, reason: str, more: int = 1) -> TaskRun:
        """A person's retry: `queued`, due now, `more` attempts allowed besides those that were
        made. Conflict while it runs or after success."""
        ...

    def reassign(self, run_id: str, spec: TaskSpec) -> TaskRun:
        """Changes what is asked of a run, but for its prompt, or hands it over to the spec's agent;
        workdir and history stay. Conflict while it runs."""
        ...

    def open_run(self, run_id: str, condition: Condition, session: Session) -> TaskRun:
        """Gives the run to a person: no attempt of it, nor of any run on its workdir or
        conversation, is claimed until `take_back`. Raises Conflict while one of them runs, or is
        open already."""
        ...

    def take_back(self, run_id: str, sessions: Sequence[Session], event: RunTakenBack) -> TaskRun:
        """Ends what `open_run` began (if it did), and stores what became of the conversations,
        retired ones first."""
        ...

    def opened_beside(self, run: TaskRun) -> TaskRun | None:
        """The run that a person has open, if it is this one, or one on the same workdir or
        conversation."""
        ...

    def request_cancel(self, run_id: str) -> TaskRun:
        """Marks a running run; a pending or queued one becomes `cancelled` at once."""
        ...

    def remove(self, run_id: str) -> None:
        """Takes a run in a final state off the list: its name and key are free, no verb finds it
        any more, and what is known of it (attempts, instructions, journal) stays readable by its
        full id. Conflict for any other run, NotFound for one that is gone."""
        ...

    def put_back(self, run_id: str, name: str = "", key: str = "") -> TaskRun:
        """Puts a removed run on the list again, by its full id; under its old name and key where
        they are still free."""
        ...

    def reset(self, run_ids: Sequence[str], cause: str) -> Sequence[str]:
        """Makes the runs begin anew: what waits becomes `cancelled`, their live conversations are
        retired with this cause. All or nothing; returns the ids of the conversations. Raises
        Conflict while one of the runs is at work or open."""
        ...

    def undo_reset(self, run_ids: Sequence[str]) -> Sequence[str]:
        """Brings back the conversations that the latest `reset` of the runs retired, where none has
        taken their place since; returns their ids."""
        ...

    def placed(self) -> Sequence[PlacedRun]:
        """Every run that was ever accepted, removed ones too, oldest first."""
        ...

    def lapsed(self) -> Sequence[Claim]:
        """The claims of all running runs whose lease has run out."""
        ...

    def claims(self) -> Sequence[Claim]:
        """The claims of all running runs."""
        ...

    def take_in(self, arrival: Arrival) -> TaskRun:
        """Stores a run from another machine with all that it brings, or nothing. Its state is
        final, so nothing claims it before a person asks. Raises Conflict for a name or an id that
        is taken."""
        ...

    def next_checkpoint(self, workspace_id: str) -> int:
        """The number of the next checkpoint of this workspace, whichever run takes it."""
        ...

    def add_checkpoint(self, checkpoint: Checkpoint, claim: Claim | None = None) -> None:
        """Publishes a checkpoint, whose halves are durable, and tells the journal. Without a claim
        (by the holder of the workdir's lock) it raises Conflict while an attempt that has begun is
        at work, and always for a number of the workspace that is taken."""
        ...

    def checkpoints(self, run_id: str = "") -> Sequence[Checkpoint]:
        """Of the run, or of all runs, removed ones included; oldest first."""
        ...

    def forget_checkpoints(self, run_id: str, numbers: Sequence[int]) -> None:
        """Takes rows away; the halves are the caller's to remove, afterwards. Numbers that are not
        there are passed over."""
        ...

    def restored(
        self, run_id: str, sessions: Sequence[Session], event: CheckpointRestored
    ) -> TaskRun:
        """Stores what a restore made of the conversations, retired ones first, with its event. The
        caller holds the workdir's lock: a run that is only claimed does not hinder it; while an
        attempt that has begun is at work it raises Conflict."""
        ...

    def fetched(
        self,
        claim: Claim,
        place: Workspace,
        sessions: Sequence[Session],
        checkpoint: Checkpoint,
        event: CheckpointRestored,
    ) -> TaskRun:
        """The claimed run's workdir and conversation are on this host now: stores where, what the
        conversations are, retired ones first, and the checkpoint that came, all or nothing."""
        ...

    def attempts(self, run_id: str) -> Sequence[Attempt]: ...

    def contexts(self, run_id: str) -> Sequence[Context]: ...

    def latest(self, run_id: str, limit: int = 1000, before: int = ...) -> Sequence[Record]:
        """The newest Records of the run with `seq` less than `before`, oldest first."""
        ...

    def history(self, run_id: str, after: int = 0, limit: int = 1000) -> Sequence[Record]:
        """Records of the run with `seq` greater than `after`, oldest first."""
        ...

    def journal(self, after: int = 0, limit: int = 1000) -> Sequence[Record]:
        """Records of all runs with `seq` greater than `after`, in the order of their numbers. Where
        several hosts write at once, one with a smaller number may appear later."""
        ...

    def newest_record(self) -> int:
        """The greatest `seq` there is; 0 without a record."""
        ...

    def close(self) -> None:
        """Lets go of the database."""
        ...
