"""The nouns. Everything that perdure keeps, decides on or shows is one of these.

They are frozen standard-library dataclasses, so that the cheapest verbs (`perdure ls`) pay for nothing else; their JSON
form is made and read by `codec`. Times are integer milliseconds since 1970 (UTC), durations are seconds, money is US
dollars. A new value comes from `dataclasses.replace`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum


class RunState(StrEnum):
    """The six states of a run. Backoff and waiting for a usage limit are `queued` with a later `run_after`."""

    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class OutcomeKind(StrEnum):
    """How an attempt ended. `lifecycle.decide` has an answer to each."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    VERIFY_FAILED = "verify_failed"
    TIMED_OUT = "timed_out"
    STALLED = "stalled"
    CANCELLED = "cancelled"
    LOST = "lost"
    SESSION_MISSING = "session_missing"
    SESSION_BROKEN = "session_broken"
    CONTINUITY_LOST = "continuity_lost"
    CONTEXT_EXHAUSTED = "context_exhausted"
    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    AUTH_FAILED = "auth_failed"
    CONFIG_ERROR = "config_error"
    BUDGET_SPENT = "budget_spent"
    MAX_TURNS = "max_turns"
    NEEDS_INPUT = "needs_input"
    WRITER_CONFLICT = "writer_conflict"


class Verdict(StrEnum):
    """What the receipt says of the conversation."""

    NATIVE = "native"
    FORKED = "forked"
    REPAIRED = "repaired"
    REBUILT = "rebuilt"
    FRESH = "fresh"
    BROKEN = "broken"


class ContinuityPolicy(StrEnum):
    """What may happen when the conversation is lost: stop, go on with a brief and say so, or simply start anew."""

    STRICT = "strict"
    DISCLOSE = "disclose"
    FRESH_OK = "fresh-ok"


class WhenFull(StrEnum):
    """What happens to a conversation that is nearly too long for its model: what its CLI does by itself; it is compacted, by the CLI's
    own means; a new one goes on with a summary; nothing, until a person looks."""

    CLI = "cli"
    COMPACT = "compact"
    ROLL_OVER = "roll-over"
    STOP = "stop"


class Measure(StrEnum):
    """What comes before a conversation goes on, that is nearly too long or was refused as too long."""

    NONE = "none"
    COMPACT = "compact"
    ROLL_OVER = "roll-over"
    STOP = "stop"


class Permissions(StrEnum):
    """What the agent may do without asking: look; change the workdir and run commands; anything."""

    READ = "read"
    EDIT = "edit"
    FULL = "full"


class MapWhen(StrEnum):
    """Which prompts get the project map: none; those of an agent that has no conversation to know the files from, or has lost it; also
    the first of each conversation; all."""

    OFF = "off"
    FALLBACK = "fallback"
    FIRST = "first"
    ALWAYS = "always"


class Backend(StrEnum):
    """How a workdir is made. `task`: a plain directory of a service; `here`: the directory the user stands in."""

    WORKTREE = "worktree"
    ISOLATED = "isolated"
    TASK = "task"
    HERE = "here"


class Start(StrEnum):
    """The kinds of continuation; the last two start nothing."""

    FRESH = "fresh"
    RESUME = "resume"
    FORK = "fork"
    REBUILD = "rebuild"
    WAIT = "wait"
    REFUSE = "refuse"


class Rung(StrEnum):
    """The ladder when a conversation is to go on: each rung is tried once, from the top."""

    NATIVE = "native"
    PATH = "path"
    COPY = "copy"
    REPAIRED = "repaired"
    CHECKPOINT = "checkpoint"
    REBUILT = "rebuilt"
    FRESH = "fresh"


PUT_BACK = frozenset({Rung.COPY, Rung.REPAIRED, Rung.CHECKPOINT})
"""Rungs on which something of perdure's own takes the place of the agent's transcript."""


class OnExpiry(StrEnum):
    """What follows when a session's lifetime has passed and its transcript is there: the conversation goes on all the same, or a new one
    begins with a brief."""

    RESUME = "resume"
    REBUILD = "rebuild"


class ColdCache(StrEnum):
    """What follows when a conversation was left alone for so long that the model's service has to read all of it anew: it goes on all the
    same; it is compacted where that costs less; whatever costs least; a person is asked where something else would cost less."""

    RESUME = "resume"
    COMPACT = "compact"
    CHEAPEST = "cheapest"
    ASK = "ask"


class OnEdit(StrEnum):
    """What happens to a task file that the agent has edited when a newer version of it is given: the agent's stays; the given one
    takes its place, after a backup; or both are merged."""

    KEEP = "keep"
    REPLACE = "replace"
    MERGE = "merge"


class FileAction(StrEnum):
    """What was done with a task file. `conflict`: both sides changed it, and a person or the agent has to look; `dropped`: it is given
    no more, and stays in the workdir."""

    WRITTEN = "written"
    SAME = "same"
    KEPT = "kept"
    REPLACED = "replaced"
    MERGED = "merged"
    CONFLICT = "conflict"
    DROPPED = "dropped"


class SessionState(StrEnum):
    """`pinned`: the id is known; `confirmed`: the transcript on disk holds a turn; `retired`: never chosen again."""

    PINNED = "pinned"
    CONFIRMED = "confirmed"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """What is asked for. Immutable; the same struct is the command's input and, later, the HTTP body and CRD spec."""

    prompt: str
    agent: str = "claude"
    name: str = ""
    key: str = ""
    repo: str = ""
    """A local path or a URL; empty for a task of a service and for `here`."""
    base: str = ""
    branch: str = ""
    here: str = ""
    """The directory to work in as it is; no worktree is made."""
    service: str = ""
    task: str = ""
    scope: str = ""
    """Runs of one agent with the same scope share one conversation. Empty: the run's own."""
    forks: str = ""
    """The conversation that the first attempt is a fork of."""
    fork_at: int = 0
    """The fork leaves out what came after this turn (counted from 1); 0: it leaves out nothing."""
    backend: str = ""
    model: str = ""
    permissions: Permissions = Permissions.EDIT
    agent_args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    """Variables for the agent, given with --env NAME=VALUE."""
    pass_env: tuple[str, ...] = ()
    """Names of the user's variables that the agent gets besides its own, given with --env NAME; no value is stored."""
    timeout_s: float = 3600.0
    """An attempt that takes longer is ended; 0 means no limit."""
    stall_s: float = 600.0
    """An attempt that is silent for longer is ended (five times as long inside a tool); 0 means no limit."""
    attempts: int = 3
    budget_usd: float = 0.0
    """All attempts together; 0 means no limit."""
    continuity: ContinuityPolicy = ContinuityPolicy.DISCLOSE
    when_full: str = ""
    """What happens when the conversation is nearly full (`WhenFull`); empty: what the user's settings say."""
    verify: str = ""
    """A shell command, run in the workdir after the agent's success; a non-zero exit is a failure."""
    files: tuple[str, ...] = ()
    """What is to be there after the agent's success, relative to the workdir; what is missing fails the attempt."""
    conflicts: tuple[str, ...] = ()
    """Files in which a merge left its marks; a mark that is still there after the agent's success fails the attempt."""
    verify_rounds: int = 3
    """So often a failed check goes back to the agent, for each version of the instructions; it uses up none of the attempts."""
    verify_timeout_s: float = 1800.0
    """A check that takes longer is ended and has failed; 0 means no limit."""
    labels: dict[str, str] = field(default_factory=dict)
    map: str = ""
    """Which prompts get the project map (see MapWhen); empty: as the settings say."""


@dataclass(frozen=True, slots=True)
class TaskFile:
    """A file that a person gave for the workdir. Its bytes are kept below `{state}/given`."""

    name: str
    """Relative to the workdir, with slashes."""
    sha256: str
    size: int
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Given:
    """The task files that came with one version of the instructions."""

    files: tuple[TaskFile, ...] = ()
    whole: bool = False
    """They are all of the task's files: a name given before and missing here is given no more."""
    on_edit: OnEdit = OnEdit.MERGE


NOTHING_GIVEN = Given()


@dataclass(frozen=True, slots=True)
class Context:
    """One version of the instructions of a run. Version 1 is the prompt; each update appends one."""

    version: int
    text: str
    at: int
    given: Given = NOTHING_GIVEN
    """The task files that came with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """What was done with one task file in the workdir. Contents stand as SHA-256, with `+x` where the file is executable; empty: no
    such file."""

    name: str
    action: FileAction
    version: int
    """Of the instructions that it was given with."""
    given: str
    base: str = ""
    """As it was given before."""
    before: str = ""
    """What lay in the workdir; `?` for something that is no ordinary file, which is never touched."""
    after: str = ""
    """What lies there now."""
    backup: str = ""
    """Where the copy of what lay there is."""
    why: str = ""
    """For a conflict: a word on it."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and dollars. `cached` and `cache_write` are parts of the input as the model's service reports them."""

    input: int = 0
    output: int = 0
    cached: int = 0
    cache_write: int = 0
    cost_usd: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input + other.input,
            self.output + other.output,
            self.cached + other.cached,
            self.cache_write + other.cache_write,
            round(self.cost_usd + other.cost_usd, 6),
        )

    def since(self, before: Usage) -> Usage:
        """What was added since `before`, never negative: a counter that fell back has started anew."""
        if self.input < before.input or self.output < before.output:
            return self
        return Usage(
            self.input - before.input,
            self.output - before.output,
            max(0, self.cached - before.cached),
            max(0, self.cache_write - before.cache_write),
            round(max(0.0, self.cost_usd - before.cost_usd), 6),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """How full a conversation is: what its newest request carried, and what its model can take, in tokens."""

    tokens: int = 0
    """Input, cached parts included; after a compaction what the CLI says is left. 0: no request has been made, or nothing tells."""
    window: int = 0
    """0: nobody knows."""
    model: str = ""
    source: str = ""
    """Who says what the window is: `agent`, `setting` or `table`."""
    compactions: int = 0
    """How often it was made shorter, as its transcript has it."""
    held: int = 0
    """What it held before it was made shorter last, and then; both in tokens."""
    left: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactAt:
    """The fill at which a CLI is told to compact its conversation, in tokens; 0: not known, then `percent` of the window holds."""

    tokens: int = 0
    window: int = 0
    percent: int = 0
    given: bool = False
    """The window is the user's own word: the CLI has to be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended, for certain. `until` (ms) is when a usage limit ends, where the agent said so."""

    kind: OutcomeKind
    detail: str = ""
    until: int | None = None
    code: int | None = None
    signal: int | None = None

    @property
    def ok(self) -> bool:
        return self.kind is OutcomeKind.SUCCEEDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """How an attempt starts, and why. `session_id` is the conversation asked for (chosen, resumed or forked from)."""

    kind: Start
    session_id: str = ""
    rung: Rung = Rung.NATIVE
    reason: str = ""
    until: int | None = None
    lost_session_id: str = ""
    """The conversation that could not go on, where this attempt stands in for it."""
    fork_id: str = ""
    """The id that a fork is to have, where the CLI lets the caller choose."""
    fork_at: int = 0
    """The last turn of the parent that the fork keeps; 0: all of them."""
    edits: tuple[str, ...] = ()
    """What perdure changed in the transcript before the agent goes on from it, for the rung `repaired`."""
    checkpoint: int = 0
    """The checkpoint whose conversation is put back, on the rung `checkpoint`."""
    compact: bool = False
    """The CLI is told to compact the conversation before it goes on."""
    rolls_over: bool = False
    """The conversation before is whole, and too long: it is asked for a summary, and this one goes on in its place."""
    expired: int = 0
    """When (ms) the conversation's lifetime had ended; 0: it had not."""
    prices: tuple[tuple[str, float], ...] = ()
    """What each way to go on was reckoned to cost over the attempt, in dollars; empty where nothing is known of the price."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a transcript was at one moment: enough to prove later that it only grew."""

    path: str
    size: int
    sha256: str
    turns: int
    """Prompts that stand in it, whoever wrote them."""


@dataclass(frozen=True, slots=True)
class CopyPart:
    """The first `size` bytes of an own copy: what a checkpoint keeps of a conversation. Copies only grow, so it stays."""

    session_id: str
    name: str
    """`main` is the transcript; `beside/...` a file beside it."""
    size: int
    sha256: str
    """Of these bytes: the part is found by it, also where the copy was moved aside since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was observed of the conversation in one attempt: the input of `continuity.judge`."""

    asked: str = ""
    returned: str = ""
    before: Snapshot | None = None
    after: Snapshot | None = None
    last_known: Snapshot | None = None
    """The transcript as perdure last left it, from the session's record."""
    prefix_kept: bool | None = None
    """The bytes of `before` are the first bytes of `after`; None where there was no `before`. Of a fork: its history begins with
    the parent's prompts, or it names the parent as its beginning."""
    parent_kept: bool | None = None
    """A fork's parent has what it had, and nothing of this attempt was written into it; None where nothing was forked."""
    known_kept: bool | None = None
    """The bytes of `last_known` are the first bytes of `before`; None where nothing was known."""
    prompt_found: bool | None = None
    """This attempt's own prompt stands in the new part of the transcript."""
    foreign_turns: int = 0
    """Prompts in the new part that perdure did not send, while the attempt ran."""
    turns_between: int = 0
    """Prompts that came into the transcript between perdure's attempts."""
    other_writers: tuple[int, ...] = ()
    """Process ids of other live programs on the same conversation."""
    writes_lost: str = ""
    answered: bool = False
    """The agent said or did something in this attempt."""
    cached_tokens: int = 0
    compactions: int = 0
    """How often the agent made the conversation shorter in this attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The verdict on one attempt's conversation, with everything it rests on."""

    verdict: Verdict
    rung: Rung = Rung.NATIVE
    reasons: tuple[str, ...] = ()
    evidence: Evidence = Evidence()


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """An agent's native program on this machine. `version` is empty where only running it would tell."""

    path: str
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Everything a driver needs to say how its program is started."""

    spec: TaskSpec
    continuation: Continuation
    prompt: str
    cwd: str
    home: str
    program: Program
    transcript: str = ""
    """Absolute path of the transcript, for the rung `path`."""
    budget_usd: float = 0.0
    """What is left of the budget, for a CLI that keeps to one; 0: no limit."""
    compact_at: CompactAt | None = None
    """Where the CLI is to compact the conversation by itself; None: where it thinks fit."""
    mark: str = ""
    """The attempt's own mark, for a CLI that tells a conversation's id late and lets the caller give it a title."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A process to start. `env` are defaults for variables that the user has not set; the prompt goes by `stdin`."""

    argv: tuple[str, ...]
    stdin: bytes
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a process ended. `cause`: `exited`, `deadline`, `stalled`, `stopped`, `retrying`
    (without end), `flooded` (too much output), `lapsed` (the lease could not be renewed), `lost` (nobody saw the end), `turn` (its turn
    is over, and it is kept for another: it has no code)."""

    code: int | None = None
    signal: int | None = None
    cause: str = "exited"
    stderr_tail: str = ""
    at: int = 0

    @property
    def clean(self) -> bool:
        """It ended, or came to rest, without a complaint."""
        return self.code == 0 or self.cause == "turn"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try. `number` counts from 1 and is the fencing token: every write says "if still attempt n"."""

    run: str
    number: int
    context_version: int
    worker: str
    started: int
    directory: str = ""
    """Where its logs and the marks of its process lie."""
    continuation: Continuation | None = None
    session_id: str = ""
    flags: dict[str, str] = field(default_factory=dict)
    agent_version: str = ""
    prompt_sha256: str = ""
    before: Snapshot | None = None
    ended: int | None = None
    outcome: Outcome | None = None
    usage: Usage = Usage()
    fill: Fill | None = None
    """Of its conversation, when it ended; None where nothing tells."""
    receipt: Receipt | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Something true of a run that a person should know: `needs_person`, `collision`, `drift`, `open`."""

    type: str
    message: str
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """A working directory. `id` and `path` are a pure function of its identity, and of nothing else."""

    id: str
    path: str
    backend: Backend
    repo: str = ""
    branch: str = ""
    base: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A workdir as a checkpoint keeps it: a commit under a ref of perdure's own. Nobody's HEAD, index or branch is touched."""

    commit: str
    ref: str
    git_dir: str
    """Where commit and ref lie: the user's repository, or a git directory of perdure's own."""
    head: str = ""
    """What the workdir stood at; empty without git."""
    branch: str = ""
    """Empty without git, and for a detached HEAD."""
    changed: int = 0
    untracked: int = 0
    left_out: tuple[tuple[str, str], ...] = ()
    """Name and reason; a directory's name ends in a slash."""
    unsteady: tuple[str, ...] = ()
    """Files that were written to while they were being read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Workdir and conversation of a run, saved together. It exists only when both halves are there."""

    run: str
    number: int
    """Counts the checkpoints of a workdir, which several runs may share."""
    attempt: int
    at: int
    why: str
    """`turn`, `tool` (while it worked), `stop` (asked to end), `end` of the attempt, `adopted`, `restore` (before one)."""
    workdir: Saved
    session_id: str = ""
    """Empty where nothing had been said yet."""
    conversation: tuple[CopyPart, ...] = ()
    """The transcript first; then what lies beside it, and the conversations that it goes on from."""
    context_version: int = 0
    """The newest version of the instructions that the conversation had been given."""
    agent: str = ""
    agent_version: str = ""
    flags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRun:
    """A task on its way. `attempt` is the number of the latest attempt, 0 before the first."""

    id: str
    name: str
    spec: TaskSpec
    state: RunState
    created: int
    updated: int
    context_version: int = 1
    attempt: int = 0
    attempts_allowed: int = 3
    """The cap of attempts that count; a person's retry raises it by one."""
    run_after: int = 0
    reason: str = ""
    workspace: Workspace | None = None
    conditions: tuple[Condition, ...] = ()
    cancel_requested: bool = False
    worker: str = ""
    lease_until: int = 0
    finished: int | None = None
    origin: str = ""
    """The run's id on the machine that it came from; empty for one that began here."""
    host: str = ""
    """In a shared database: the id of the host on which its workdir and conversation lie; empty where any may begin."""
    host_name: str = ""
    account: str = ""
    """Whose limits its newest attempt drew on; empty where nobody has said so."""

    @property
    def scope(self) -> str:
        """The conversation's scope: as asked, else the service's task, else this run alone."""
        if self.spec.scope:
            return self.spec.scope
        if self.spec.service and self.spec.task:
            return f"task:{self.spec.service}/{self.spec.task}"
        return f"run:{self.id}"


@dataclass(frozen=True, slots=True)
class SessionKey:
    """Whose conversation it is. Agents never share one."""

    agent: str
    scope: str


RESET = "reset by a person"
"""The cause of a conversation's retirement after which nothing is told of it: the next attempt begins anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A pointer to the agent's own conversation. At most one that is not retired exists for each key."""

    key: SessionKey
    id: str
    state: SessionState
    created: int
    updated: int
    cwd: str = ""
    home: str = ""
    parent: str = ""
    """The session it was forked from, or stands in for."""
    cause: str = ""
    """Why it was retired."""
    context_version: int = 0
    """The newest version of the instructions that the agent has been given."""
    attempts: int = 0
    total: Usage = Usage()
    """The CLI's own running total, where it counts over the whole conversation."""
    snapshot: Snapshot | None = None
    fill: Fill | None = None
    """As it was when perdure last looked."""
    prompts: tuple[str, ...] = ()
    """SHA-256 (first 16 hex digits) of every prompt that perdure sent into it."""
    tasks: int = 0
    """The runs whose prompts it was given; further instructions of one run do not count."""
    lifetime_s: float = 0.0
    """It expires when it was not used for so long; 0: as the settings say."""
    expires: int = 0
    """When (ms) that will be, unless it is used before; 0: never."""
    revision: int = field(default=0, compare=False)
    """Counts what was stored for its key; the store sets it. A record with a smaller one is older."""

    def used(self, at: int, usual_s: float = 0.0) -> Session:
        """The record after a use at this time (ms): its lifetime, or the usual one, begins anew."""
        lasts_s = self.lifetime_s or usual_s
        return replace(self, updated=at, expires=at + int(lasts_s * 1000) if lasts_s else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A conversation as an agent's own files show it, whoever began it."""

    id: str
    path: str
    updated: int
    """When it was last written, in ms."""
    cwd: str = ""
    """The directory in which it began."""
    first: str = ""
    """Its first prompt."""
    turns: int = 0
    """Its prompts; 0 where the transcript is too long to be counted in passing."""
    parent: str = ""
    """The conversation that it is a fork of, where it says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A place among the runs that may be at work on one account."""

    account: str
    """Agent and credentials, as far as they can be told apart without reading a secret; see `attempt.accounts`."""
    agent: str
    model: str = ""
    jobs: int = 0
    """So many runs of the account may be at work at once; 0: any number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parking:
    """Nothing is launched on `what` (an account, or an agent) before `until`. `model`: only for runs of this model; empty: for all."""

    what: str
    until: int
    reason: str
    model: str = ""
    since: int = 0


@dataclass(frozen=True, slots=True)
class Host:
    """One of several that share a database: whoever works with one state directory, on one machine."""

    id: str
    name: str
    patience_s: float | None = None
    """How long it leaves a run that is due to the host that has its files; None, for ever, where it could not bring them here."""

    @property
    def label(self) -> str:
        return f"{self.name}/{self.id[:8]}"


NOWHERE = Host("", "")
"""Where the database is nobody else's."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on one attempt of a run, until the lease lapses."""

    run: TaskRun
    attempt: int
    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What follows an attempt: the run's next state and, where it goes on, when and why."""

    state: RunState
    run_after: int = 0
    reason: str = ""
    condition: Condition | None = None
