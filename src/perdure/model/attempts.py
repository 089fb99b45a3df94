"""One attempt: how it starts, what is launched, how it ends, and the receipt."""

from __future__ import annotations

from msgspec import Struct, field

from perdure.model.choices import OutcomeKind, Rung, Standing, Start, Verdict
from perdure.model.loaded import Relation
from perdure.model.tasks import TaskSpec
from perdure.model.usage import NO_COSTS, NO_USAGE, CompactAt, Fill, ReplyCosts, Usage


class Outcome(Struct, frozen=True, kw_only=True):
    """How an attempt ended. `until` (ms) is when a usage limit ends, if the agent named a time."""

    kind: OutcomeKind
    detail: str = ""
    until: int | None = None
    code: int | None = None
    signal: int | None = None
    began: bool = True
    """Whether the agent was started. False only for a lost attempt whose agent never ran, which
    says nothing about the task."""

    @property
    def ok(self) -> bool:
        return self.kind is OutcomeKind.SUCCEEDED


class Shown(Struct, frozen=True, kw_only=True):
    """How much of the known conversation the model is shown at the start of an attempt.

    The unit is items: prompts, answers, tool calls and their results.
    """

    relation: Relation = Relation.WHOLE
    known: int = 0
    shown: int = 0
    condensed: int = 0
    """Number of known items that a summary of the agent replaces."""
    off_branch: int = 0
    """Number of known items that are in the transcript, but in a part that the agent does not
    load."""
    unrecorded: int = 0
    """Number of known items that are in no transcript, only in perdure's journal."""
    told: int = 0
    """Number of unrecorded items that the prompt quotes in full in such a way that the model loses
    nothing (`engine.attempt.baseline.told_in_full`)."""
    missing: tuple[str, ...] = ()
    """The first of the missing items, in words."""
    damaged: int = 0
    """Number of lines of the transcript that were damaged before perdure had read them. What they
    held is not among the known items."""


class Continuation(Struct, frozen=True, kw_only=True):
    """How an attempt starts, and why. `session_id` is the conversation to start, resume or fork
    from."""

    kind: Start
    session_id: str = ""
    rung: Rung = Rung.NATIVE
    reason: str = ""
    until: int | None = None
    lost_session_id: str = ""
    """The conversation that was lost and that this attempt replaces."""
    fork_id: str = ""
    """The id for the fork, where the CLI lets the caller choose it."""
    fork_at: int = 0
    """The last turn of the parent that the fork keeps; 0: all of them."""
    edits: tuple[str, ...] = ()
    """Changes that perdure made to the transcript before the agent goes on from it, on the rung
    `repaired`."""
    checkpoint: int = 0
    """The checkpoint whose conversation is put back, on the rung `checkpoint`."""
    compact: bool = False
    """Whether the CLI compacts the conversation before it continues it."""
    rolls_over: bool = False
    """Whether the previous conversation is complete, but too long. It is asked for a summary, and a
    new conversation continues in its place."""
    expired: int = 0
    """Time (ms) at which the conversation's lifetime had ended; 0: it has not ended."""
    standing: Standing = Standing.WHOLE
    """The state in which the agent's own transcript was found, before anything replaced it."""
    shown: Shown | None = None
    """How much of the known conversation the model is shown; None if the agent's transcripts do not
    say."""
    prices: tuple[tuple[str, float], ...] = ()
    """Estimated cost of each way to go on, in dollars, over the attempt. Empty if the price is
    unknown."""


class Snapshot(Struct, frozen=True):
    """The state of a transcript at one moment: enough to prove later that it only grew."""

    path: str
    size: int
    sha256: str
    turns: int
    """Number of prompts in the transcript, by perdure or anybody else."""


class Evidence(Struct, frozen=True, kw_only=True):
    """Observations of the conversation in one attempt: the input of `receipt.judge`."""

    asked: str = ""
    returned: str = ""
    before: Snapshot | None = None
    after: Snapshot | None = None
    last_known: Snapshot | None = None
    """The state of the transcript when perdure last recorded it, from the session's record."""
    prefix_kept: bool | None = None
    """Whether the bytes of `before` are the first bytes of `after`; None without a `before`. For a
    fork: whether its history begins with the parent's prompts, or names the parent as its
    beginning."""
    parent_kept: bool | None = None
    """Whether the parent of a fork still has its earlier content, with nothing of this attempt
    written into it; None if this is no fork."""
    known_kept: bool | None = None
    """Whether the bytes of `last_known` are the first bytes of `before`; None if nothing was
    known."""
    copy_kept: bool | None = None
    """Whether the transcript begins with all of perdure's own copy; None without a copy."""
    turns_since: int = 0
    """Number of prompts that perdure did not send, found after an attempt whose end was not
    observed. They were added during the attempt or after it."""
    prompt_found: bool | None = None
    """Whether this attempt's own prompt is in the new part of the transcript. None if there is no
    transcript, or if the agent saves the prompt before it reads the history, and nothing of an
    answer was seen."""
    foreign_turns: int = 0
    """Number of prompts in the new part that perdure did not send, added while the attempt ran."""
    turns_between: int = 0
    """Number of prompts that were added to the transcript between perdure's attempts."""
    other_writers: tuple[int, ...] = ()
    """Process ids of other running programs that use the same conversation."""
    writes_lost: str = ""
    answered: bool = False
    """Whether the agent said or did something in this attempt."""
    refused: bool = False
    """Whether the agent saved the prompt, and ended before its first turn because it could not use
    the conversation."""
    cached_tokens: int = 0
    compactions: int = 0
    """Number of times that the agent compacted the conversation in this attempt."""
    opened: str = ""
    """How the agent says that it opened the conversation: `new`, `loaded` or `resumed`. Set only
    for agents whose transcript cannot be read."""
    replayed: int | None = None
    """Number of known prompts, answers and tool calls that the agent replayed, which is all of
    them; None: it replayed nothing."""


class Receipt(Struct, frozen=True, kw_only=True):
    """The verdict on one attempt's conversation, with the evidence for it."""

    verdict: Verdict
    rung: Rung = Rung.NATIVE
    reasons: tuple[str, ...] = ()
    evidence: Evidence = Evidence()


class Program(Struct, frozen=True, kw_only=True):
    """An agent's native program on this machine. `version` is empty if it can only be found out by
    running the program."""

    path: str
    version: str = ""


class Launch(Struct, frozen=True, kw_only=True):
    """Everything that a driver needs to build the command of an attempt."""

    spec: TaskSpec
    continuation: Continuation
    prompt: str
    cwd: str
    home: str
    program: Program
    transcript: str = ""
    """Absolute path of the transcript, for the rung `path`."""
    budget_usd: float = 0.0
    """The rest of the budget in dollars, for a CLI that enforces one; 0: no limit."""
    compact_at: CompactAt | None = None
    """The fill at which the CLI compacts the conversation by itself; None: the CLI decides."""
    marks: tuple[str, ...] = ()
    """Marks of the known items of the conversation (see `ItemsMarked`), for an agent whose
    transcript cannot be read."""
    mark: str = ""
    """The attempt's own mark. A CLI that reports a conversation's id late gets it as the
    conversation's title."""
    last_word: bool = False
    """Whether the agent is asked for its last word in a fixed form, if its CLI supports that."""
    requests: str = ""
    """The run's directory of requests, for an agent that may ask a person; empty if it may
    not."""
    answers: bool = False
    """Whether the launch gives answers to requests."""
    parked: tuple[str, ...] = ()
    """Ids of calls that wait in the conversation for an answer that this launch gives. If there are
    any, the launch has no prompt."""
    messages: str = ""
    """The attempt's directory of messages, for an agent whose turn can take one; empty if it cannot
    (see `TakesMessages`)."""


class Command(Struct, frozen=True, kw_only=True):
    """A process to start. `env` has defaults for variables that the user has not set. The prompt is
    passed on `stdin`."""

    argv: tuple[str, ...]
    stdin: bytes
    env: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """Changes that the driver made to the user's arguments, one sentence each."""


class Exit(Struct, frozen=True, kw_only=True):
    """How a process ended. `cause` is one of: `exited`, `deadline`, `stalled`, `stopped`,
    `retrying` (it repeated its requests without end), `flooded` (too much output), `lapsed` (the
    lease could not be renewed), `lost` (its end was not observed), `turn` (its turn is over and the
    process is kept for the next one, so there is no exit code)."""

    code: int | None = None
    signal: int | None = None
    cause: str = "exited"
    stderr_tail: str = ""
    at: int = 0

    @property
    def clean(self) -> bool:
        """Whether the process exited with code 0, or its turn ended and it is kept."""
        return self.code == 0 or self.cause == "turn"


class Attempt(Struct, frozen=True, kw_only=True):
    """One try of a run. `number` counts from 1 and is the fencing token: every write is conditional
    on "this is still attempt n"."""

    run: str
    number: int
    context_version: int
    worker: str
    started: int
    messages: int = 0
    """Number of versions, the newest ones up to `context_version`, that the running turn took."""
    directory: str = ""
    """The directory of its logs and of the files that identify its process."""
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
    """The fill of the attempt's conversation when it ended; None if unknown."""
    receipt: Receipt | None = None
    work: str = ""
    """The verdict on the attempt's work when it ended (`model.work.WorkVerdict`), for lists."""
