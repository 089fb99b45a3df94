"""One attempt: how it goes on, what is launched, how it ends, and the receipt."""

from __future__ import annotations

from dataclasses import field

from perdure.lateclass import dataclass
from perdure.model.choices import OutcomeKind, Rung, Standing, Start, Verdict
from perdure.model.loaded import Relation
from perdure.model.tasks import TaskSpec
from perdure.model.usage import NO_USAGE, CompactAt, Fill, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended, for certain. `until` (ms) is when a usage limit ends, where the agent
    said so."""

    kind: OutcomeKind
    detail: str = ""
    until: int | None = None
    code: int | None = None
    signal: int | None = None
    began: bool = True
    """Of a lost attempt: False where its agent was never started, so that it says nothing of the
    task."""

    @property
    def ok(self) -> bool:
        return self.kind is OutcomeKind.SUCCEEDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What the model is shown at the start of an attempt, of all that perdure knows was there.

    Counted in items: prompts, answers, calls and results of tools.
    """

    relation: Relation = Relation.WHOLE
    known: int = 0
    shown: int = 0
    condensed: int = 0
    """Number of known items for which a summary of the agent stands."""
    off_branch: int = 0
    """Number of known items that are in the transcript, where the agent does not load them."""
    unrecorded: int = 0
    """Number of known items that are in no transcript: only perdure's journal has them."""
    told: int = 0
    """Number of those that the prompt tells the agent in full."""
    missing: tuple[str, ...] = ()
    """The first of the missing items, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """How an attempt starts, and why. `session_id` is the conversation asked for (chosen, resumed
    or forked from)."""

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
    """What perdure changed in the transcript before the agent goes on from it, for the rung
    `repaired`."""
    checkpoint: int = 0
    """The checkpoint whose conversation is put back, on the rung `checkpoint`."""
    compact: bool = False
    """The CLI is told to compact the conversation before it goes on."""
    rolls_over: bool = False
    """The conversation before is whole, and too long: it is asked for a summary, and this one goes
    on in its place."""
    expired: int = 0
    """When (ms) the conversation's lifetime had ended; 0: it had not."""
    standing: Standing = Standing.WHOLE
    """How the agent's own transcript was found, before anything was put in its place."""
    shown: Shown | None = None
    """What the model is shown of what was known; None where the agent's transcripts do not tell."""
    prices: tuple[tuple[str, float], ...] = ()
    """What each way to go on was reckoned to cost over the attempt, in dollars; empty where nothing
    is known of the price."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a transcript was at one moment: enough to prove later that it only grew."""

    path: str
    size: int
    sha256: str
    turns: int
    """Prompts that stand in it, whoever wrote them."""


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
    """The bytes of `before` are the first bytes of `after`; None where there was no `before`. Of a
    fork: its history begins with the parent's prompts, or it names the parent as its beginning."""
    parent_kept: bool | None = None
    """A fork's parent has what it had, and nothing of this attempt was written into it; None where
    nothing was forked."""
    known_kept: bool | None = None
    """The bytes of `last_known` are the first bytes of `before`; None where nothing was known."""
    copy_kept: bool | None = None
    """The transcript begins with all that perdure's own copy holds; None where there was no
    copy."""
    turns_since: int = 0
    """Prompts of somebody else found behind an attempt whose end nobody saw: they came during it or
    after it."""
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
    opened: str = ""
    """`new`, `loaded` or `resumed`: what the agent says, where its transcript cannot be read."""
    replayed: int | None = None
    """Number of known prompts, answers and tool calls that the agent replayed, which is all of
    them; None: it replayed nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The verdict on one attempt's conversation, with everything it rests on."""

    verdict: Verdict
    rung: Rung = Rung.NATIVE
    reasons: tuple[str, ...] = ()
    evidence: Evidence = Evidence()


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """An agent's native program on this machine. `version` is empty where only running it would
    tell."""

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
    marks: tuple[str, ...] = ()
    """Marks of what is known of the conversation (`ItemsMarked`), for an agent whose transcript
    cannot be read."""
    mark: str = ""
    """The attempt's own mark, for a CLI that tells a conversation's id late and lets the caller
    give it a title."""
    last_word: bool = False
    """The agent is asked for its last word in a fixed form, where its CLI can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A process to start. `env` are defaults for variables that the user has not set; the prompt
    goes by `stdin`."""

    argv: tuple[str, ...]
    stdin: bytes
    env: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What the driver changed in the user's arguments, one sentence each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a process ended. `cause`: `exited`, `deadline`, `stalled`, `stopped`, `retrying` (without
    end), `flooded` (too much output), `lapsed` (the lease could not be renewed), `lost` (nobody saw
    the end), `turn` (its turn is over, and it is kept for another: it has no code)."""

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
    """One try. `number` counts from 1 and is the fencing token: every write says "if still attempt
    n"."""

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
    usage: Usage = NO_USAGE
    fill: Fill | None = None
    """Of its conversation, when it ended; None where nothing tells."""
    receipt: Receipt | None = None
    work: str = ""
    """The verdict on its work when it ended (`model.work.WorkVerdict`), for lists."""
