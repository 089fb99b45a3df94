"""Data types of one attempt: how it starts, what is launched, how it ends, and the receipt."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct, field

from perdure.model.choices import OutcomeKind, Rung, Start, TranscriptCondition, Verdict
from perdure.model.loaded import Relation
from perdure.model.tasks import TaskSpec
from perdure.model.usage import NO_COSTS, NO_USAGE, CompactAt, Fill, ReplyCosts, Usage


class Outcome(Struct, frozen=True, kw_only=True):
    """The end of an attempt. `until` is the time (ms) at which a usage limit ends, if the agent
    reported one."""

    kind: OutcomeKind
    detail: str = ""
    until: int | None = None
    code: int | None = None
    signal: int | None = None
    began: bool = True
    """Whether the agent was started. False only for a lost or stopped attempt whose agent never
    ran. Such an attempt says nothing about the task."""

    @property
    def ok(self) -> bool:
        return self.kind is OutcomeKind.SUCCEEDED


class Shown(Struct, frozen=True, kw_only=True):
    """How much of the known conversation is shown to the model at the start of an attempt.

    All counts are numbers of items: prompts, answers, tool calls and their results. Only items that
    perdure knows are counted, which are those in its records.
    """

    relation: Relation = Relation.WHOLE
    known: int = 0
    shown: int = 0
    condensed: int = 0
    """Number of known items that the agent has replaced by a summary."""
    off_branch: int = 0
    """Number of known items in a part of the transcript that the agent does not load."""
    unrecorded: int = 0
    """Number of known items that are in perdure's journal, but in no transcript."""
    told: int = 0
    """Number of the `unrecorded` items that the prompt quotes in full, so that the model still gets
    them. The rules are in `engine.attempt.baseline.count_fully_quoted`."""
    missing: tuple[str, ...] = ()
    """Descriptions of the first known items that are not shown to the model."""
    damaged: int = 0
    """Number of lines of the transcript that were damaged before perdure first read them. Items in
    these lines are unknown and not counted."""


class Continuation(Struct, frozen=True, kw_only=True):
    """How an attempt starts, and why. `session_id` is the id of the conversation that is started,
    resumed or forked."""

    kind: Start
    session_id: str = ""
    rung: Rung = Rung.NATIVE
    reason: str = ""
    until: int | None = None
    lost_session_id: str = ""
    """Id of a lost conversation that this attempt replaces; empty if none was lost."""
    fork_id: str = ""
    """Id of the new conversation if this attempt forks one. Set only if the CLI lets its caller
    choose the id."""
    fork_at: int = 0
    """Number of the last turn of the parent conversation that the fork keeps; 0: all turns."""
    edits: tuple[str, ...] = ()
    """Changes that perdure made to the transcript before the agent continues it. Set only for
    `Rung.REPAIRED`."""
    checkpoint: int = 0
    """Number of the checkpoint whose conversation is restored. Set only for `Rung.CHECKPOINT`."""
    compact: bool = False
    """Whether the CLI compacts the conversation before the attempt continues it."""
    rolls_over: bool = False
    """Whether a new conversation replaces the previous one, which is too long. In the previous
    conversation, the agent is first asked for a summary."""
    expired: int = 0
    """Time (ms) at which the conversation's lifetime ended; 0: it has not ended."""
    standing: TranscriptCondition = TranscriptCondition.WHOLE
    """Condition of the agent's own transcript before perdure replaced anything in it."""
    shown: Shown | None = None
    """How much of the known conversation is shown to the model. None if this cannot be determined
    from the agent's transcripts."""
    prices: tuple[tuple[str, float], ...] = ()
    """Ways to continue the conversation, each with the estimated cost of the attempt in dollars.
    Empty if the price is unknown."""


class Snapshot(Struct, frozen=True):
    """The state of a transcript at one time. It is enough to prove later that the transcript only
    grew."""

    path: str
    size: int
    sha256: str
    turns: int
    """Number of prompts in the transcript, no matter who sent them."""


class Evidence(Struct, frozen=True, kw_only=True):
    """The observations of the conversation in one attempt, from which `receipt.judge` makes the
    verdict."""

    asked: str = ""
    returned: str = ""
    before: Snapshot | None = None
    after: Snapshot | None = None
    last_known: Snapshot | None = None
    """State of the transcript when perdure last recorded it in the session's record."""
    prefix_kept: bool | None = None
    """Whether the bytes of `before` are the first bytes of `after`; None without a `before`. For
    a fork: whether its history begins with the parent's prompts, or names the parent as its
    origin."""
    parent_kept: bool | None = None
    """Whether the parent of a fork still has its earlier content, without anything from this
    attempt; None if this attempt is not a fork."""
    known_kept: bool | None = None
    """Whether the bytes of `last_known` are the first bytes of `before`; None without a
    `last_known`."""
    copy_kept: bool | None = None
    """Whether the transcript begins with the whole of perdure's own copy; None without a copy."""
    turns_since: int = 0
    """Number of prompts that perdure did not send and that were added during or after the attempt.
    Set only if no supervisor saw the attempt's end. Otherwise see `foreign_turns`."""
    prompt_found: bool | None = None
    """Whether the transcript contains this attempt's own input: its prompt, or the results of the
    answered parked calls. None if there is no transcript. Also None if the agent saves the prompt
    before it reads the history, and no part of an answer was seen: the saved prompt then proves
    nothing."""
    foreign_turns: int = 0
    """Number of prompts that perdure did not send and that were added to the transcript during the
    attempt."""
    turns_between: int = 0
    """Number of prompts that somebody else added to the transcript between two of perdure's
    attempts."""
    other_writers: tuple[int, ...] = ()
    """Process ids of other running programs that use the same conversation."""
    writes_lost: str = ""
    answered: bool = False
    """Whether the agent said or did something in this attempt."""
    refused: bool = False
    """Whether the agent saved the prompt but ended before its first turn, because it could not use
    the conversation."""
    cached_tokens: int = 0
    compactions: int = 0
    """Number of times that the agent compacted the conversation in this attempt."""
    opened: str = ""
    """How the agent opened the conversation, by its own report: `new`, `loaded` or `resumed`. Set
    only for agents whose transcript cannot be read."""
    replayed: int | None = None
    """Number of known prompts, answers and tool calls. The agent replayed all of these. None: there
    was no replay."""


class Receipt(Struct, frozen=True, kw_only=True):
    """The verdict on one attempt's conversation, with the evidence for it."""

    verdict: Verdict
    rung: Rung = Rung.NATIVE
    reasons: tuple[str, ...] = ()
    evidence: Evidence = Evidence()


class Program(Struct, frozen=True, kw_only=True):
    """The program of an agent on this machine. `version` is empty if it cannot be found without
    starting the program."""

    path: str
    version: str = ""


class Launch(Struct, frozen=True, kw_only=True):
    """Input for a driver: everything that it needs to build the command of an attempt."""

    spec: TaskSpec
    continuation: Continuation
    prompt: str
    cwd: str
    home: str
    program: Program
    transcript: str = ""
    """Absolute path of the transcript. Set only for `Rung.PATH`."""
    budget_usd: float = 0.0
    """Remaining budget in dollars, for a CLI that enforces a budget; 0: no limit."""
    compact_at: CompactAt | None = None
    """How full the conversation must be for the CLI to compact it by itself. None: the CLI uses its
    own default."""
    marks: tuple[str, ...] = ()
    """Hashes of the items of the conversation that perdure knows (see `ItemsMarked`). Set only for
    an agent whose transcript cannot be read."""
    mark: str = ""
    """Unique text that identifies the attempt. If a CLI reports a conversation's id late, this text
    is put into the title of the conversation."""
    last_word: bool = False
    """Whether the agent is asked for a final report in a fixed form (`LastWordGiven`), if its CLI
    supports that."""
    requests: str = ""
    """The run's directory for requests to a person; empty if the agent may not make requests."""
    answers: bool = False
    """Whether this launch gives the agent answers to its requests."""
    parked: tuple[str, ...] = ()
    """Ids of tool calls in the conversation that wait for an answer and get it from this launch. If
    there are any, the launch has no prompt."""
    messages: str = ""
    """The attempt's directory for messages to the running turn; empty if the agent cannot take
    messages (see `TakesMessages`)."""


class Command(Struct, frozen=True, kw_only=True):
    """A process to start. `env` has default values for variables that the user has not set. `stdin`
    is the content of its standard input: the prompt, alone or in JSON; may be empty."""

    argv: tuple[str, ...]
    stdin: bytes
    env: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """Changes that the driver made to the user's arguments, one sentence each."""
    takes_messages: bool = False
    """Whether `stdin` names a directory from which the process reads messages to its running turn.
    """


class Exit(Struct, frozen=True, kw_only=True):
    """The end of a process. `cause` is one of: `exited`, `deadline`, `stalled`, `stopped`,
    `retrying` (the agent repeated its requests without end), `flooded` (too much output), `lapsed`
    (the lease could not be renewed), `lost` (its end was not observed), `turn`. With `turn`, the
    process is kept for the next turn, so there is no exit code."""

    code: int | None = None
    signal: int | None = None
    cause: str = "exited"
    stderr_tail: str = ""
    at: int = 0

    @property
    def clean(self) -> bool:
        """Whether the process exited with code 0, or is kept after the end of its turn."""
        return self.code == 0 or self.cause == "turn"


class Attempt(Struct, frozen=True, kw_only=True):
    """One attempt of a run. `number` counts from 1 and is the fencing token: a write is accepted
    only while this is the run's newest attempt."""

    run: str
    number: int
    context_version: int
    worker: str
    started: int
    messages: int = 0
    """Number of versions of the instructions that the running turn got as messages. They are the
    newest versions up to `context_version`."""
    directory: str = ""
    """Directory that contains the attempt's logs and the files that identify its process."""
    continuation: Continuation | None = None
    session_id: str = ""
    flags: dict[str, str] = field(default_factory=dict)
    agent_version: str = ""
    prompt_sha256: str = ""
    before: Snapshot | None = None
    ended: int | None = None
    outcome: Outcome | None = None
    usage: Usage = NO_USAGE
    costs: ReplyCosts = NO_COSTS
    fill: Fill | None = None
    """How full the conversation was when the attempt ended; None if unknown."""
    receipt: Receipt | None = None
    work: str = ""
    """Verdict on the attempt's work (`model.work.WorkVerdict`), made when the attempt ended. It is
    stored here because lists of runs show it."""


def attempt_of(attempts: Iterable[Attempt], number: int) -> Attempt | None:
    """Return the attempt with this number; None if there is none."""
    for attempt in attempts:
        if attempt.number == number:
            return attempt
    return None


def ended_attempts(attempts: Iterable[Attempt]) -> list[Attempt]:
    """Return the attempts that have an outcome, in order."""
    return [attempt for attempt in attempts if attempt.outcome is not None]
