"""What is asked for: the task, its contexts, and the files that come with them."""

from __future__ import annotations

from dataclasses import field

from perdure.lateclass import dataclass
from perdure.model.choices import ContinuityPolicy, FileAction, OnEdit, Permissions


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """What is asked for. Immutable; the same struct is the command's input and, later, the HTTP
    body and CRD spec."""

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
    """Names of the user's variables that the agent gets besides its own, given with --env NAME; no
    value is stored."""
    timeout_s: float = 3600.0
    """An attempt that takes longer is ended; 0 means no limit."""
    stall_s: float = 600.0
    """An attempt that is silent for longer is ended (five times as long inside a tool); 0 means no
    limit."""
    attempts: int = 3
    budget_usd: float = 0.0
    """All attempts together; 0 means no limit."""
    continuity: ContinuityPolicy = ContinuityPolicy.DISCLOSE
    when_full: str = ""
    """What happens when the conversation is nearly full (`WhenFull`); empty: what the user's
    settings say."""
    on_denied: str = ""
    """What a turn is worth in which a call of a tool was denied (`OnDenied`); empty: what the
    user's settings say."""
    last_word: str = ""
    """`on`: the agent is asked for its last word in a fixed form, where its CLI can; empty: what
    the user's settings say."""
    on_leftover: str = ""
    """What becomes of processes that the agent leaves running (`OnLeftover`); empty: what the
    user's settings say."""
    verify: str = ""
    """A shell command, run in the workdir after the agent's success; a non-zero exit is a
    failure."""
    files: tuple[str, ...] = ()
    """What is to be there after the agent's success, relative to the workdir; what is missing fails
    the attempt."""
    conflicts: tuple[str, ...] = ()
    """Files in which a merge left its marks; a mark that is still there after the agent's success
    fails the attempt."""
    verify_rounds: int = 3
    """So often a failed check goes back to the agent, for each version of the instructions; it uses
    up none of the attempts."""
    verify_timeout_s: float = 1800.0
    """A check that takes longer is ended and has failed; 0 means no limit."""
    labels: dict[str, str] = field(default_factory=dict)
    map: str = ""
    """Which prompts get the project map (see MapWhen); empty: as the settings say."""
    rule: str = ""
    """The `[agents.NAME]` that it works under: who its commits are by, and how many of its runs may
    be at work at once. Only a dispatch sets it."""


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
    """One version of the instructions of a run. Version 1 is the prompt; each update appends
    one."""

    version: int
    text: str
    at: int
    given: Given = NOTHING_GIVEN
    """The task files that came with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """What was done with one task file in the workdir. Contents stand as SHA-256, with `+x` where
    the file is executable; empty: no such file."""

    name: str
    action: FileAction
    version: int
    """Of the instructions that it was given with."""
    given: str
    base: str = ""
    """As it was given before."""
    before: str = ""
    """What lay in the workdir; `?` for something that is no ordinary file, which is never
    touched."""
    after: str = ""
    """What lies there now."""
    backup: str = ""
    """Where the copy of what lay there is."""
    why: str = ""
    """For a conflict: a word on it."""
