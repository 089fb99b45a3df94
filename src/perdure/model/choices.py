"""The words that have a fixed set: states, kinds, policies. They are stored and shown as they are
spelled here."""

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
    """How an attempt ended. `lifecycle.decide` decides the next step for each kind."""

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
    """The verdict of a receipt on the conversation."""

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
    """The policy for a lost conversation: stop (`strict`), continue with a brief and say so
    (`disclose`), or start a new conversation (`fresh-ok`)."""

    STRICT = "strict"
    DISCLOSE = "disclose"
    FRESH_OK = "fresh-ok"


class WhenFull(StrEnum):
    """The policy for a conversation that is nearly too long for its model. `cli`: the CLI decides.
    `compact`: the CLI is told to compact the conversation. `roll-over`: a new conversation
    continues with a summary. `stop`: the run waits for a person."""

    CLI = "cli"
    COMPACT = "compact"
    ROLL_OVER = "roll-over"
    STOP = "stop"


class Measure(StrEnum):
    """The step before continuing a conversation that is nearly too long, or was refused as too
    long."""

    NONE = "none"
    COMPACT = "compact"
    ROLL_OVER = "roll-over"
    STOP = "stop"


class Permissions(StrEnum):
    """The actions that the agent may take without asking: only read (`read`), change the workdir
    and run commands (`edit`), anything (`full`)."""

    READ = "read"
    EDIT = "edit"
    FULL = "full"


class MapWhen(StrEnum):
    """Which prompts get the project map. `off`: none. `fallback`: prompts in conversations that do
    not contain the files, because the agent has no conversations or has lost this one. `first`:
    also the first prompt of each conversation. `always`: all."""

    OFF = "off"
    FALLBACK = "fallback"
    FIRST = "first"
    ALWAYS = "always"


class Backend(StrEnum):
    """How a workdir is made. `task`: a plain directory of a service. `here`: the user's current
    directory."""

    WORKTREE = "worktree"
    ISOLATED = "isolated"
    TASK = "task"
    HERE = "here"


class Start(StrEnum):
    """The kinds of continuation. `wait` and `refuse` start nothing."""

    FRESH = "fresh"
    RESUME = "resume"
    FORK = "fork"
    REBUILD = "rebuild"
    WAIT = "wait"
    REFUSE = "refuse"


class Rung(StrEnum):
    """The ladder: the ways to go on with a conversation. Each rung is tried once, from the top."""

    NATIVE = "native"
    PATH = "path"
    COPY = "copy"
    REPAIRED = "repaired"
    CHECKPOINT = "checkpoint"
    REBUILT = "rebuilt"
    FRESH = "fresh"


class Standing(StrEnum):
    """How the agent's own transcript compares with perdure's own record of it."""

    ABSENT = "absent"
    WHOLE = "whole"
    """The transcript begins with everything that perdure has seen; it may have grown."""
    CHANGED = "changed"
    """A part that perdure has seen is missing or different."""
    FOREIGN = "foreign"
    """The transcript is of another conversation: it contains no prompt that perdure knows."""


PUT_BACK = frozenset({Rung.COPY, Rung.REPAIRED, Rung.CHECKPOINT})
"""Rungs on which perdure replaces the agent's transcript with a copy of its own."""


class OnDenied(StrEnum):
    """The policy for a successful turn in which a tool call was denied. `ask`: the run waits for a
    person. `fail`: the run has failed. `report`: the denial is reported, and the turn counts as a
    success."""

    ASK = "ask"
    FAIL = "fail"
    REPORT = "report"


class OnLeftover(StrEnum):
    """The policy for processes that are still running when the agent's turn is over. `end`: they
    are ended. `keep`: they continue to run. `wait`: the attempt continues until they end."""

    END = "end"
    KEEP = "keep"
    WAIT = "wait"


class OnExpiry(StrEnum):
    """The policy for a session whose lifetime has passed and whose transcript still exists.
    `resume`: the conversation continues. `rebuild`: a new one begins with a brief."""

    RESUME = "resume"
    REBUILD = "rebuild"


class ColdCache(StrEnum):
    """The policy for a conversation that was idle for so long that the model's service has to read
    all of it again. `resume`: it is continued unchanged. `compact`: it is compacted if that costs
    less. `cheapest`: the cheapest way is taken. `ask`: a person is asked if another way would cost
    less."""

    RESUME = "resume"
    COMPACT = "compact"
    CHEAPEST = "cheapest"
    ASK = "ask"


class OnEdit(StrEnum):
    """The policy for a task file if the agent has edited it and a newer version of it is given.
    `keep`: the agent's version is kept. `replace`: the new version replaces it, after a backup.
    `merge`: both are merged."""

    KEEP = "keep"
    REPLACE = "replace"
    MERGE = "merge"


class FileAction(StrEnum):
    """The action taken on a task file. `conflict`: both sides changed the file, and a person or the
    agent has to resolve that. `dropped`: the file is no longer a task file, but is left in the
    workdir."""

    WRITTEN = "written"
    SAME = "same"
    KEPT = "kept"
    REPLACED = "replaced"
    MERGED = "merged"
    CONFLICT = "conflict"
    DROPPED = "dropped"


class SessionState(StrEnum):
    """The state of a session. `pinned`: the id is known. `confirmed`: the transcript on disk
    contains a turn. `retired`: it will never be chosen again."""

    PINNED = "pinned"
    CONFIRMED = "confirmed"
    RETIRED = "retired"


class Liveness(StrEnum):
    """Which processes of a running attempt are alive."""

    ATTENDED = "attended"
    """Its supervisor is alive."""
    UNATTENDED = "unattended"
    """The agent is running, but nothing records what it does or enforces its limits."""
    INTERRUPTED = "interrupted"
    """None of its processes is alive."""
