"""The words that have a fixed set: states, kinds, policies. They are stored and shown as they are
spelt here."""

from __future__ import annotations

from enum import StrEnum


class RunState(StrEnum):
    """The six states of a run. Backoff and waiting for a usage limit are `queued` with a later
    `run_after`."""

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
    DENIED = "denied"
    REFUSED = "refused"
    TRUNCATED = "truncated"
    WRITER_CONFLICT = "writer_conflict"


class Verdict(StrEnum):
    """What the receipt says of the conversation."""

    NATIVE = "native"
    FORKED = "forked"
    REPAIRED = "repaired"
    COMPACTED = "compacted"
    SHORTENED = "shortened"
    REPLAYED = "replayed"
    CLAIMED = "claimed"
    REBUILT = "rebuilt"
    FRESH = "fresh"
    BROKEN = "broken"


class ContinuityPolicy(StrEnum):
    """What may happen when the conversation is lost: stop, go on with a brief and say so, or simply
    start anew."""

    STRICT = "strict"
    DISCLOSE = "disclose"
    FRESH_OK = "fresh-ok"


class WhenFull(StrEnum):
    """What happens to a conversation that is nearly too long for its model: what its CLI does by
    itself; it is compacted, by the CLI's own means; a new one goes on with a summary; nothing,
    until a person looks."""

    CLI = "cli"
    COMPACT = "compact"
    ROLL_OVER = "roll-over"
    STOP = "stop"


class Measure(StrEnum):
    """What comes before a conversation goes on, that is nearly too long or was refused as too
    long."""

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
    """Which prompts get the project map: none; those of an agent that has no conversation to know
    the files from, or has lost it; also the first of each conversation; all."""

    OFF = "off"
    FALLBACK = "fallback"
    FIRST = "first"
    ALWAYS = "always"


class Backend(StrEnum):
    """How a workdir is made. `task`: a plain directory of a service; `here`: the directory the user
    stands in."""

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


class Standing(StrEnum):
    """How the agent's own transcript compares with everything that perdure has seen of it."""

    ABSENT = "absent"
    WHOLE = "whole"
    """It begins with all that perdure has seen; it may have grown."""
    CHANGED = "changed"
    """Something that perdure has seen is not in it any more, or is not what it was."""
    FOREIGN = "foreign"
    """It is another conversation: no prompt that perdure knows is in it."""


PUT_BACK = frozenset({Rung.COPY, Rung.REPAIRED, Rung.CHECKPOINT})
"""Rungs on which something of perdure's own takes the place of the agent's transcript."""


class OnDenied(StrEnum):
    """What a successful turn is worth in which a call of a tool was denied: a person is asked; the
    run has failed; it is reported, and the turn counts."""

    ASK = "ask"
    FAIL = "fail"
    REPORT = "report"


class OnLeftover(StrEnum):
    """What becomes of processes that still run when the agent's turn is over: they are ended; they
    run on; the attempt goes on until they end."""

    END = "end"
    KEEP = "keep"
    WAIT = "wait"


class OnExpiry(StrEnum):
    """What follows when a session's lifetime has passed and its transcript is there: the
    conversation goes on all the same, or a new one begins with a brief."""

    RESUME = "resume"
    REBUILD = "rebuild"


class ColdCache(StrEnum):
    """What follows when a conversation was left alone for so long that the model's service has to
    read all of it anew: it goes on all the same; it is compacted where that costs less; whatever
    costs least; a person is asked where something else would cost less."""

    RESUME = "resume"
    COMPACT = "compact"
    CHEAPEST = "cheapest"
    ASK = "ask"


class OnEdit(StrEnum):
    """What happens to a task file that the agent has edited when a newer version of it is given:
    the agent's stays; the given one takes its place, after a backup; or both are merged."""

    KEEP = "keep"
    REPLACE = "replace"
    MERGE = "merge"


class FileAction(StrEnum):
    """What was done with a task file. `conflict`: both sides changed it, and a person or the agent
    has to look; `dropped`: it is given no more, and stays in the workdir."""

    WRITTEN = "written"
    SAME = "same"
    KEPT = "kept"
    REPLACED = "replaced"
    MERGED = "merged"
    CONFLICT = "conflict"
    DROPPED = "dropped"


class SessionState(StrEnum):
    """`pinned`: the id is known; `confirmed`: the transcript on disk holds a turn; `retired`: never
    chosen again."""

    PINNED = "pinned"
    CONFIRMED = "confirmed"
    RETIRED = "retired"
