"""Enumerations of states, kinds and policies. Their values are stored and shown as they are spelled
here."""

from __future__ import annotations

from enum import StrEnum


class RunState(StrEnum):
    """The six states of a run. A run that waits for a retry or for the end of a usage limit is
    `queued` with a later `run_after`."""

    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class OutcomeKind(StrEnum):
    """How an attempt ended. `lifecycle.decide` chooses the next step for each kind."""

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
    """The verdict in a receipt on the conversation of an attempt."""

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
    """The policy for a lost conversation: stop (`strict`), continue in a new conversation that gets
    a brief, and report the loss (`disclose`), or start a new conversation (`fresh-ok`)."""

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
    """The step that perdure takes before it continues a conversation that is nearly too long, or
    that was refused as too long."""

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
    not contain the files, because the agent keeps no conversations or has lost this one. `first`:
    also the first prompt of each conversation. `always`: all prompts."""

    OFF = "off"
    FALLBACK = "fallback"
    FIRST = "first"
    ALWAYS = "always"


class Backend(StrEnum):
    """How a workdir is made. `task`: a plain directory of a service. `here`: the user's current
    directory is used."""

    WORKTREE = "worktree"
    ISOLATED = "isolated"
    TASK = "task"
    HERE = "here"


class Start(StrEnum):
    """How an attempt starts. With `wait` and `refuse`, no agent is started."""

    FRESH = "fresh"
    RESUME = "resume"
    FORK = "fork"
    REBUILD = "rebuild"
    WAIT = "wait"
    REFUSE = "refuse"


class Rung(StrEnum):
    """The ways to continue a conversation, in the order in which they are tried (the ladder). Each
    rung is tried once."""

    NATIVE = "native"
    PATH = "path"
    COPY = "copy"
    REPAIRED = "repaired"
    CHECKPOINT = "checkpoint"
    REBUILT = "rebuilt"
    FRESH = "fresh"


class TranscriptCondition(StrEnum):
    """Result of comparing the agent's own transcript with perdure's record of it."""

    ABSENT = "absent"
    WHOLE = "whole"
    """The transcript begins with everything that perdure has recorded. It may have grown."""
    CHANGED = "changed"
    """Something that perdure has recorded is missing or different in the transcript."""
    FOREIGN = "foreign"
    """The transcript belongs to another conversation: it contains none of the prompts that perdure
    knows."""


PUT_BACK = frozenset({Rung.COPY, Rung.REPAIRED, Rung.CHECKPOINT})
"""The ways to continue a conversation (rungs) for which perdure replaces the agent's transcript
with a copy of its own."""


class OnDenied(StrEnum):
    """The policy for a successful turn in which a tool call was denied. `ask`: the run waits for a
    person. `fail`: the run fails. `report`: the run reports the denial and succeeds."""

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
    """The policy for a conversation that was idle for so long that the prompt cache of the model's
    service has expired. `resume`: continue it unchanged. `compact`: compact it first if that costs
    less. `cheapest`: take the cheapest way. `ask`: ask a person if another way would cost less."""

    RESUME = "resume"
    COMPACT = "compact"
    CHEAPEST = "cheapest"
    ASK = "ask"


class OnEdit(StrEnum):
    """The policy for a task file that the agent has edited, if a newer version of it is given.
    `keep`: the agent's version stays. `replace`: the new version replaces it, after a backup.
    `merge`: both are merged."""

    KEEP = "keep"
    REPLACE = "replace"
    MERGE = "merge"


class FileAction(StrEnum):
    """The change that was made to a task file. `conflict`: a person or the agent has to check the
    file, for the reason in `FileChange.why`. `dropped`: the file is no longer a task file, but
    stays in the workdir."""

    WRITTEN = "written"
    SAME = "same"
    KEPT = "kept"
    REPLACED = "replaced"
    MERGED = "merged"
    CONFLICT = "conflict"
    DROPPED = "dropped"


class SessionState(StrEnum):
    """The state of a session. `pinned`: the conversation's id is known. `confirmed`: its transcript
    contains a turn. `retired`: the session will never be used again."""

    PINNED = "pinned"
    CONFIRMED = "confirmed"
    RETIRED = "retired"


class Liveness(StrEnum):
    """Which processes of a running attempt are alive."""

    ATTENDED = "attended"
    """The supervisor of the attempt is alive."""
    UNATTENDED = "unattended"
    """The agent is running without a supervisor, so its work is not recorded and its limits are not
    enforced."""
    INTERRUPTED = "interrupted"
    """No process of the attempt is alive."""
