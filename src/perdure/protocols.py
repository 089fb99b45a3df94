"""The seams, on one page. Who implements them is chosen in `perdure.cli.compose` and nowhere else.

Each protocol says what its callers may rely on; `perdure.testing` has the conformance suite that proves it, for
drivers and stores from outside as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from perdure.model import (
    NOTHING_GIVEN,
    Attempt,
    Checkpoint,
    Claim,
    Command,
    Condition,
    Context,
    Continuation,
    Conversation,
    Decision,
    Exit,
    Fill,
    Given,
    Launch,
    Outcome,
    Parking,
    Program,
    Receipt,
    RunState,
    Seat,
    Session,
    SessionKey,
    Snapshot,
    TaskRun,
    TaskSpec,
    Usage,
    Workspace,
)

if TYPE_CHECKING:
    from perdure.events import AgentEvent, AnyEvent, CheckpointRestored, Record, RunTakenBack, RunTakenIn
    from perdure.forges import Accepted, Arrived, Delivery, DeliveryState, Reading
    from perdure.forges.postings import Posting
    from perdure.mending import Mended
    from perdure.plan import PlannedRun, PlanRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a CLI can do; perdure asks before it relies on it."""

    choose_id: bool
    """The caller may choose the id of a new conversation, before the launch."""
    fork: bool
    name_fork: bool = False
    """The caller may choose the id of a fork, before the launch."""
    fork_at: bool = False
    """A fork may leave out what came after a turn."""
    fork_bound: bool = False
    """A fork can only be made in the directory of its parent."""
    resume_by_path: bool
    """A transcript can be resumed by naming its file."""
    cwd_bound: bool
    """A conversation can only be resumed from the directory in which it began."""
    cumulative_usage: bool
    """Its token counts run on over the whole conversation."""
    max_prompt_bytes: int
    """Longer prompts are refused before the launch; 0 means no limit is known."""
    retries_in_a_row: int = 0
    """An attempt is ended when the agent has asked again so often without an answer; 0: the CLI gives up by itself."""
    compacts: bool = False
    """A launch can say at which fill the CLI is to compact the conversation (see `perdure.context_size`)."""
    rewinds: bool = False
    """Its records can take earlier ones back: that the bytes are still there does not say that the conversation goes on from them,
    and `prompts` needs the file from its beginning."""
    sessions: bool = True
    """A conversation can be gone on with by a later process. Without, each attempt begins a new one and is given the project map."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """One directory of an agent's home. It lies at `{variable's value, else HOME/usual}/inner`; see `at`."""

    name: str
    """Below `homes/` on a volume: what the variable is set to there."""
    variable: str
    usual: str
    """Below HOME, where the variable is not set."""
    inner: str = ""
    own: bool = True
    """The variable is the agent's own: it moves this directory and nothing else, so perdure may set it."""
    beside: tuple[str, ...] = ()
    """Files in HOME that belong to the directory, and lie inside of it where the variable is set."""
    stays: tuple[str, ...] = ()
    """Patterns (fnmatch, of paths below the directory) of what must never travel: locks, sockets."""
    index: tuple[str, ...] = ()
    """Patterns of what names the directory's own place, and is made anew by the agent where it is missing."""

    def root(self, environ: Mapping[str, str]) -> Path:
        """What the variable is, or stands for, in this environment."""
        return Path(environ.get(self.variable) or Path(environ.get("HOME") or "/", self.usual))

    def at(self, environ: Mapping[str, str]) -> Path:
        """Where it lies for a program with this environment."""
        return self.root(environ) / self.inner


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """What belongs to an agent's home, so that it can be kept on a volume."""

    folders: tuple[Folder, ...]
    programs: tuple[str, ...]
    """How the agent's process is called: the name of its file, or of the script that it is."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a person (or of perdure) as it stands in a transcript."""

    text: str


@dataclass(frozen=True, slots=True)
class Spoken:
    """One thing said in a conversation, by a person (or perdure) or by the agent."""

    by_agent: bool
    text: str


@dataclass(frozen=True, slots=True)
class Retention:
    """A CLI's own clean-up, where perdure does not start it."""

    days: float
    """Older conversations are removed, counted from the last write."""
    setting: str
    """What switches it off, and where."""


class Archive(Protocol):
    """Where a CLI keeps all conversations together (a database), so that none of them is a file. Reads, and never writes."""

    def read(self, home: Path, session_id: str) -> bytes | None:
        """One conversation as lines, or None. While it only goes on, what was read before is the beginning of what is read
        now; `AgentDriver.prompts` understands it, and `restore` can make it whole again."""
        ...

    def find(self, home: Path, mark: str) -> str:
        """The id of the conversation that the launch with this mark opened, or empty: for an agent that was killed before it
        had told its id."""
        ...

    def unheard(self, piece: bytes) -> Sequence[AgentEvent]:
        """What a piece of a conversation, read after the agent's end, tells of its work and its output did not: tools that it
        began and that never ended."""
        ...

    def moved(self, copy: bytes, directory: Path) -> bytes:
        """An own copy from elsewhere as `read` will tell it after a `restore` in this directory."""
        ...

    def restore(self, program: Program, session_id: str, copy: bytes) -> Command:
        """The process that puts an own copy back, to be run in the workdir. It touches no other conversation. Raises
        ValueError for a bad id, and for a copy of something else."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What the lines of a kept agent add up to, since it was given its turn."""

    over: bool = False
    """Its turn has come to its end."""
    busy: bool = False
    """Something goes on in the background, which may begin a turn by itself."""
    mark: str = ""
    """Words that stand in the transcript as soon as all that was said does; empty where the prompt alone tells."""


class Warm(Protocol):
    """How one process of a CLI serves several attempts. Pure."""

    def command(self, launch: Launch) -> Command | None:
        """The process that carries out the launch, goes on reading prompts, and ends by itself when its input is closed and its turn is
        over. `stdin` is its first prompt; a later turn is given that of its own launch. None where this launch needs a process for
        itself. Raises ValueError for a bad id."""
        ...

    def hear(self, line: bytes, so_far: Heard) -> Heard:
        """One more line of stdout. Never raises."""
        ...


class AgentDriver(Protocol):
    """Translates between perdure and one agent CLI. It starts nothing, decides nothing and keeps nothing.

    It may read the file system where it says so; all else is a pure function of its arguments.
    """

    name: str
    abilities: Abilities
    variables: tuple[str, ...]
    """Patterns (fnmatch) of the user's environment variables that are this agent's own and are passed to it."""
    archive: Archive | None
    """None where each conversation is a file of its own; else `transcript` and `place` find nothing, and this does."""
    warm: Warm | None
    """None where a process has one turn."""

    def locate(self, environ: Mapping[str, str]) -> Program:
        """The native program (never its wrapper). Reads PATH. Raises AgentMissing with how to install it."""
        ...

    def home(self, environ: Mapping[str, str]) -> Path:
        """Where the CLI keeps its conversations, by the CLI's own variable or its default."""
        ...

    def refuse(self, launch: Launch) -> str:
        """One sentence if this launch cannot work (a prompt that the CLI would take for a command), else empty."""
        ...

    def command(self, launch: Launch) -> Command:
        """The process that carries out the launch. All flags that the CLI forgets on resume are set again."""
        ...

    def parse(self, line: bytes) -> Sequence[AgentEvent]:
        """One line of stdout (no newline) as events. Never raises: what it does not know is Unrecognised."""
        ...

    def outcome(self, exit: Exit, events: Sequence[AgentEvent]) -> Outcome:
        """How the attempt ended, from the events that matter (`Said` and tool events may be left out) and the exit."""
        ...

    def transcript(self, home: Path, session_id: str) -> Path | None:
        """The file in which the conversation lies, or None. Reads the file system."""
        ...

    def place(self, home: Path, session_id: str, cwd: Path, copy: Path) -> Path:
        """Where an own copy must be put so that a resume by id finds it."""
        ...

    def belongings(self, transcript: Path) -> Sequence[Path]:
        """Directories beside the transcript that belong to the same conversation. Reads the file system."""
        ...

    def prompts(self, transcript: bytes) -> Sequence[Prompt]:
        """The prompts in a transcript (or in a piece of one that begins at a line), without the CLI's own additions.
        Unreadable lines are passed over."""
        ...

    def conversations(self, home: Path, limit: int, only: str = "") -> Sequence[Conversation]:
        """The conversations that lie on disk, also those that perdure knows nothing of: the newest `limit` by their last write, or
        the one with this id. Cheap: long transcripts are not read whole. Reads the file system; never raises."""
        ...

    def spoken(self, transcript: bytes) -> Sequence[Spoken]:
        """What was said in a transcript (or in a piece of one), in order, for a person who looks for it. Tools are left out."""
        ...

    def parent(self, transcript: bytes) -> str:
        """The conversation that a fork goes on from, where the fork's transcript does not repeat it; else empty."""
        ...

    def mend(self, copy: bytes, session_id: str, name: str = "", complaint: str = "") -> Mended:
        """What is wrong with a transcript and, where it can be mended, new bytes with a log of every change. Pure. `name`: the
        file's name, which may tell what its content lost; `complaint`: what the agent said when it refused the conversation."""
        ...

    def remains(self, home: Path, session_id: str) -> Sequence[Path]:
        """Every file that by its name belongs to the conversation, the one that a resume takes first, also those that are too
        damaged for `transcript` to know them. Reads the file system."""
        ...

    def retention(self, home: Path) -> Retention | None:
        """The CLI's own clean-up in launches that are not perdure's; None where it has none. Reads the user's settings."""
        ...

    def total(self, transcript: bytes) -> Usage:
        """The CLI's own running total as the transcript has it; zero where its counts are not cumulative."""
        ...

    def fill(self, transcript: bytes) -> Fill:
        """What the newest request in a transcript carried, with the model and its window where the CLI writes them down, and how often
        the conversation was compacted. Unreadable lines are passed over."""
        ...

    def by_hand(self, launch: Launch) -> Command:
        """What a person types to go on with the conversation in the agent's own program, in the launch's directory."""
        ...

    def writers(self, home: Path, session_id: str) -> Sequence[int]:
        """Live processes that have this conversation open, by the CLI's own register. Reads the file system."""
        ...


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


NO_USAGE = Usage()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What `finish` stores, all or nothing."""

    outcome: Outcome
    decision: Decision
    receipt: Receipt | None = None
    usage: Usage = NO_USAGE
    fill: Fill | None = None
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A run from another machine, as it is to be stored: checked, with a workspace of this machine, and in a final state."""

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
    """A run and where it works, for those who clean up. `removed`: it is off the list since then (ms)."""

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

    Times are the store's own clock. A write under a claim raises LostLease unless the run is running, its attempt number
    and its worker are those of the claim.
    """

    def now(self) -> int:
        """The store's clock, in ms."""
        ...

    def add(self, spec: TaskSpec, run_id: str, name: str, workspace: Workspace, given: Given = NOTHING_GIVEN, delivery: int = 0) -> TaskRun:
        """Accepts a run as `queued`. The same key with an equal spec and equal files returns the run that is there; with others,
        or a taken name, raises Conflict. A workspace or scope on which another run is running raises Conflict.
        `delivery`: the number of the one that asks for it, handled in the same transaction; Conflict if it was settled already."""
        ...

    def get(self, ref: str) -> TaskRun:
        """By id, name, key or unique prefix of the id (at least 4). Raises NotFound, with near names in the hint."""
        ...

    def find(self, states: Sequence[RunState] = (), limit: int = 50) -> Sequence[RunRow]:
        """Newest first."""
        ...

    def claim(self, worker: str, lease_s: float, ref: str = "", seat: Seat | None = None) -> Claim | None:
        """Takes the next due run (or the one named by id): `running`, attempt + 1 and a row for the attempt, in one step.
        None if nothing is due, or its session or workspace is in use by another running run; with a seat also if its account or
        agent is parked, or as many of the account's runs are at work as the seat allows."""
        ...

    def parked(self) -> Sequence[Parking]:
        """What is parked now."""
        ...

    def park(self, parking: Parking) -> None:
        """Nothing is claimed with a seat there until its time; what is parked already gets the new time."""
        ...

    def unpark(self, *what: str) -> None:
        """The accounts or agents are free again, for all models."""
        ...

    def defer(self, run_id: str, until: int, reason: str) -> TaskRun | None:
        """A queued run waits until then, and uses up no attempt. None if it is not queued any more."""
        ...

    def seats_taken(self, account: str) -> int:
        """How many runs are at work on an account."""
        ...

    def latest_attempts(self, agent: str, limit: int = 20) -> Sequence[Attempt]:
        """The ended attempts of an agent that began last, of all runs, the newest first."""
        ...

    def due(self, limit: int = 50) -> Sequence[TaskRun]:
        """The runs that `claim` would take now, in its order."""
        ...

    def adopt(self, claim: Claim, worker: str, lease_s: float) -> Claim:
        """Takes over the *same* attempt from the worker named in the claim. Raises LostLease if another was quicker."""
        ...

    def renew(self, claim: Claim, lease_s: float) -> TaskRun:
        """Extends the lease; returns the run, so that the caller sees `cancel_requested`."""
        ...

    def begin(self, claim: Claim, begun: Begun) -> Attempt:
        """Stores how the attempt starts. Called once an attempt, before the launch."""
        ...

    def record(self, claim: Claim, events: Sequence[AnyEvent], session: Session | None = None) -> None:
        """Appends events (and stores the session, where one is given) under the claim."""
        ...

    def finish(self, claim: Claim, ending: Ending) -> TaskRun:
        """The attempt's one outcome, its receipt, usage, sessions, last events and the run's next state, together.
        A newer context version than the attempt's makes a final state `queued` again, except `cancelled`."""
        ...

    def update(self, run_id: str, text: str, given: Given = NOTHING_GIVEN, delivery: int = 0) -> TaskRun:
        """Appends a context version, with the files that came with it. A run in a final state becomes `queued` and may try once more.
        `delivery` as in `add`."""
        ...

    def requeue(self, run_id: str, reason: str) -> TaskRun:
        """A person's retry: `queued`, due now, one more attempt allowed. Conflict while it runs or after success."""
        ...

    def reassign(self, run_id: str, spec: TaskSpec) -> TaskRun:
        """Changes what is asked of a run, but for its prompt, or hands it over to the spec's agent; workdir and history stay. Conflict
        while it runs."""
        ...

    def open_run(self, run_id: str, condition: Condition, session: Session) -> TaskRun:
        """Gives the run to a person: no attempt of it, nor of any run on its workdir or conversation, is claimed until `take_back`.
        Raises Conflict while one of them runs, or is open already."""
        ...

    def take_back(self, run_id: str, sessions: Sequence[Session], event: RunTakenBack) -> TaskRun:
        """Ends what `open_run` began (if it did), and stores what became of the conversations, retired ones first."""
        ...

    def opened_beside(self, run: TaskRun) -> TaskRun | None:
        """The run that a person has open, if it is this one, or one on the same workdir or conversation."""
        ...

    def request_cancel(self, run_id: str) -> TaskRun:
        """Marks a running run; a pending or queued one becomes `cancelled` at once."""
        ...

    def remove(self, run_id: str) -> None:
        """Takes a run in a final state off the list: its name and key are free, no verb finds it any more, and what is known of it
        (attempts, instructions, journal) stays readable by its full id. Conflict for any other run, NotFound for one that is gone."""
        ...

    def put_back(self, run_id: str, name: str = "", key: str = "") -> TaskRun:
        """Puts a removed run on the list again, by its full id; under its old name and key where they are still free."""
        ...

    def reset(self, run_ids: Sequence[str], cause: str) -> Sequence[str]:
        """Makes the runs begin anew: what waits becomes `cancelled`, their live conversations are retired with this cause. All or
        nothing; returns the ids of the conversations. Raises Conflict while one of the runs is at work or open."""
        ...

    def undo_reset(self, run_ids: Sequence[str]) -> Sequence[str]:
        """Brings back the conversations that the latest `reset` of the runs retired, where none has taken their place since; returns
        their ids."""
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
        """Stores a run from another machine with all that it brings, or nothing. Its state is final, so nothing claims it before a
        person asks. Raises Conflict for a name or an id that is taken."""
        ...

    def next_checkpoint(self, workspace_id: str) -> int:
        """The number of the next checkpoint of this workspace, whichever run takes it."""
        ...

    def add_checkpoint(self, checkpoint: Checkpoint, claim: Claim | None = None) -> None:
        """Publishes a checkpoint, whose halves are durable, and tells the journal. Without a claim (by the holder of the
        workdir's lock) it raises Conflict while an attempt that has begun is at work, and always for a number of the workspace that is
        taken."""
        ...

    def checkpoints(self, run_id: str = "") -> Sequence[Checkpoint]:
        """Of the run, or of all runs, removed ones included; oldest first."""
        ...

    def forget_checkpoints(self, run_id: str, numbers: Sequence[int]) -> None:
        """Takes rows away; the halves are the caller's to remove, afterwards. Numbers that are not there are passed over."""
        ...

    def restored(self, run_id: str, sessions: Sequence[Session], event: CheckpointRestored) -> TaskRun:
        """Stores what a restore made of the conversations, retired ones first, with its event. The caller holds the
        workdir's lock: a run that is only claimed does not hinder it; while an attempt that has begun is at work it raises Conflict."""
        ...

    def fetched(
        self, claim: Claim, place: Workspace, sessions: Sequence[Session], checkpoint: Checkpoint, event: CheckpointRestored
    ) -> TaskRun:
        """The claimed run's workdir and conversation are on this host now: stores where, what the conversations are, retired ones
        first, and the checkpoint that came, all or nothing."""
        ...

    def attempts(self, run_id: str) -> Sequence[Attempt]: ...

    def contexts(self, run_id: str) -> Sequence[Context]: ...

    def history(self, run_id: str, after: int = 0, limit: int = 1000) -> Sequence[Record]:
        """Records of the run with `seq` greater than `after`, oldest first."""
        ...

    def close(self) -> None:
        """Lets go of the database."""
        ...


class SessionStore(Protocol):
    """Conversations by (agent, scope). At most one that is not retired exists for each key."""

    def session(self, key: SessionKey) -> Session | None:
        """The live one, or None."""
        ...

    def look_up(self, key: SessionKey) -> Session | None:
        """The live one, or None, for those who only look: it may come from a cache and be a little late."""
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

    def runs_of(self, key: SessionKey) -> Sequence[TaskRun]:
        """All runs with this agent and scope, removed ones too, oldest first."""
        ...

    def ended(self, since: int, until: int, agent: str = "", scope: str = "") -> Sequence[tuple[SessionKey, Attempt]]:
        """The attempts that ended in this span (ms, `until` not included), with their runs' keys, oldest first; of one agent, of one
        scope, where these are given."""
        ...

    def put_session(self, session: Session) -> None:
        """Inserts or replaces the session with this (key, id). Conflict if another one of the key is live."""
        ...

    def amend_sessions(self, sessions: Sequence[Session]) -> None:
        """Stores sessions that were read before (`revision` 0: that are new), retired ones first, all or nothing. Raises Conflict where
        one was stored by somebody else since, or an attempt is at work in its scope."""
        ...

    def identity(self) -> tuple[str, bytes]:
        """What tells this store from every other one, and a secret that all of its users share and nobody else knows."""
        ...


class PlanStore(Protocol):
    """Plans that were begun, and what became of their tasks. The runs of the tasks are the `RunStore`'s.

    A write under a plan's lease raises LostLease unless the worker of the given `PlanRun` still holds it.
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
        """Takes the plan, if its worker and lease are still as in `plan`: who saw that nobody is at work, or that its worker died,
        is sure that nobody was quicker. None if somebody was."""
        ...

    def renew_plan(self, plan: PlanRun, lease_s: float) -> PlanRun:
        """Extends the lease."""
        ...

    def put_plan(self, plan: PlanRun) -> PlanRun:
        """Stores the plan's tasks, state, reason and `verified` as they are given, under the lease."""
        ...

    def release_plan(self, plan: PlanRun) -> None:
        """Nobody is at work on it any more; nothing happens where somebody else is by now."""
        ...

    def put_planned(self, plan: PlanRun, planned: PlannedRun) -> None:
        """Inserts or replaces what is known of one task, under the plan's lease."""
        ...

    def planned(self, plan_id: str) -> Sequence[PlannedRun]:
        """The tasks that were begun, in the order in which they were."""
        ...


class InboxStore(Protocol):
    """What forges delivered. A delivery is known by its source with the forge's id, and by its source with the digest of its body."""

    def accept(self, arrived: Sequence[Arrived]) -> Sequence[Accepted]:
        """Keeps the deliveries, all in one durable transaction: `received`, or `ignored` where nothing follows from them. One that is
        there already, by either key, is only counted."""
        ...

    def inbox(self, state: DeliveryState | None = None, source: str = "", limit: int = 50, before: int = 0) -> Sequence[Delivery]:
        """Newest first; `before`: only those with smaller numbers."""
        ...

    def waiting_deliveries(self, limit: int = 50) -> Sequence[Delivery]:
        """The `received` ones, oldest first."""
        ...

    def delivery(self, ref: str) -> tuple[Delivery, str]:
        """A delivery and its body (empty once it was thinned out), by number, id, or the beginning of an id (at least 4). Raises NotFound,
        and Conflict where several begin so."""
        ...

    def settle_delivery(self, number: int, state: DeliveryState, reason: str) -> bool:
        """Ends a `received` delivery; False where somebody was quicker."""
        ...

    def replay_delivery(self, number: int, reading: Reading) -> Delivery:
        """Makes a delivery what it would be if it came now and were read so, whatever became of it. Raises NotFound."""
        ...

    def thin_inbox(self, bodies_before: int, rows_before: int) -> tuple[int, int]:
        """Empties the bodies, and forgets the rows, of what was settled before these times (ms). What still waits, or failed, stays whole.
        Returns how many of each. A forgotten delivery that comes again is new."""
        ...


class PostingStore(Protocol):
    """What forges were told of the runs that their deliveries began. `add` with a delivery begins a posting with its run."""

    def posting(self, run_id: str) -> Posting | None:
        """None for a run that no delivery began."""
        ...

    def postings_due(self, limit: int = 50) -> Sequence[Posting]:
        """Those whose run changed after `seen`, or that wait (`tries`) and are due, of runs on the list whose files are on this host or
        nowhere yet, and that nobody else holds."""
        ...

    def postings_waiting(self, limit: int = 50) -> Sequence[Posting]:
        """Those of which a part could not be done, the next one to be tried first."""
        ...

    def hold_posting(self, run_id: str, lease_s: float) -> Posting | None:
        """Takes a posting for this host, before anything is told; None while another one has it, or where there is none."""
        ...

    def put_posting(self, posting: Posting) -> None:
        """Stores how far it has come. Raises LostLease unless this host holds it."""
        ...

    def hurry_posting(self, run_id: str) -> bool:
        """Makes a posting due now; False where there is none."""
        ...

    def tell_run(self, run_id: str, events: Sequence[AnyEvent], condition: Condition | None = None, solved: str = "") -> TaskRun:
        """Appends to the journal what happened to a run beside its attempts, and gives it a condition, or takes away the one of the type
        `solved`. The state stays."""
        ...


class Publisher(Protocol):
    """Brings checkpoints to where another machine finds them, and knows when a run is another machine's by now."""

    def refused(self, run: TaskRun) -> str:
        """Why no attempt may start here, in a sentence; empty if one may, and where that cannot be known."""
        ...

    def available(self, run: TaskRun) -> str:
        """Why a run whose files lie on another host cannot be brought here, in a sentence; empty if it can."""
        ...

    def fetch(self, claim: Claim) -> TaskRun:
        """Brings workdir and conversation of a claimed run here, from where another host has published them. Raises PerdureError."""
        ...

    def published(self, checkpoint: Checkpoint) -> None:
        """A checkpoint is in the store. Returns at once; of several the newest is brought out."""
        ...

    def told(self, run_id: str) -> Sequence[AnyEvent]:
        """What is to be told of the run since this was last asked; after `PlaceLost` its attempt must end."""
        ...

    def settle(self, run_id: str) -> str:
        """Brings out how the run stands after an attempt, and waits for it. Returns what went wrong in a sentence, or nothing."""
        ...


class Observer(Protocol):
    """Called with each committed Record. It may not raise: what it raises is dropped."""

    def __call__(self, record: Record) -> None: ...
