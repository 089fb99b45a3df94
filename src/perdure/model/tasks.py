"""The request: the task, its contexts, and the files that come with them."""

from __future__ import annotations

from msgspec import Struct, field

from perdure.model.choices import ContinuityPolicy, FileAction, OnEdit, Permissions


class TaskSpec(Struct, frozen=True, kw_only=True):
    """A task as a person asks for it. Immutable. The command line, the HTTP API and the TaskRun
    resource use the same struct."""

    prompt: str
    agent: str = "claude"
    name: str = ""
    key: str = ""
    repo: str = ""
    """A local path or a URL. Empty for a service's task and for `here`."""
    base: str = ""
    branch: str = ""
    here: str = ""
    """The directory in which the agent works directly; no worktree is made."""
    service: str = ""
    task: str = ""
    scope: str = ""
    """Runs of one agent with the same scope share one conversation. Empty: the run's own."""
    forks: str = ""
    """The conversation that the first attempt forks."""
    fork_at: int = 0
    """The last turn of the parent that the fork keeps (counted from 1); 0: all of them."""
    backend: str = ""
    model: str = ""
    permissions: Permissions = Permissions.EDIT
    agent_args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    """Variables for the agent, given with --env NAME=VALUE."""
    pass_env: tuple[str, ...] = ()
    """Names of the user's variables that are passed to the agent in addition to its usual ones,
    given with --env NAME; no value is stored."""
    timeout_s: float = 3600.0
    """Time limit of an attempt, in seconds; 0 means no limit."""
    stall_s: float = 600.0
    """Time without output after which an attempt is ended, in seconds (five times as long inside a
    tool); 0 means no limit."""
    attempts: int = 3
    budget_usd: float = 0.0
    """Budget for all attempts together, in US dollars; 0 means no limit."""
    continuity: ContinuityPolicy = ContinuityPolicy.DISCLOSE
    when_full: str = ""
    """The policy for a conversation that is nearly full (`WhenFull`). Empty: the user's setting."""
    on_denied: str = ""
    """The policy for a turn in which a tool call was denied (`OnDenied`). Empty: the user's
    setting."""
    last_word: str = ""
    """`on`: the agent is asked for its last word in a fixed form, if its CLI supports that. Empty:
    the user's setting."""
    on_leftover: str = ""
    """The policy for processes that the agent leaves running (`OnLeftover`). Empty: the user's
    setting."""
    verify: str = ""
    """A shell command that is run in the workdir after the agent reports success. A non-zero exit
    code fails the check."""
    files: tuple[str, ...] = ()
    """Files that must exist after the agent reports success, relative to the workdir. A missing one
    fails the attempt."""
    conflicts: tuple[str, ...] = ()
    """Files in which a merge left conflict marks. A mark that is still there after the agent
    reports success fails the attempt."""
    verify_rounds: int = 3
    """Number of failed checks that go back to the agent, for each version of the instructions. They
    use up none of the attempts."""
    verify_timeout_s: float = 1800.0
    """Time limit of a check, in seconds; a check that takes longer has failed. 0 means no limit."""
    labels: dict[str, str] = field(default_factory=dict)
    map: str = ""
    """Which prompts get the project map (see MapWhen). Empty: the user's setting."""
    title: str = ""
    """The title of the issue or pull request that the run is about, with its number. Empty: the
    first words of the prompt. A dispatch sets this."""
    link: str = ""
    """The http(s) address of the issue or pull request."""
    rule: str = ""
    """The `[agents.NAME]` rule that the run belongs to: it is shown as the run's role, and
    sets the author of commits and the number of runs at the same time. Only a dispatch sets
    this."""


class TaskFile(Struct, frozen=True):
    """A file that a person gave for the workdir. Its bytes are kept below `{state}/given`."""

    name: str
    """Relative to the workdir, with slashes."""
    sha256: str
    size: int
    executable: bool = False


class Given(Struct, frozen=True):
    """The task files that came with one version of the instructions."""

    files: tuple[TaskFile, ...] = ()
    whole: bool = False
    """Whether these are all task files. A file that was given before and is missing here is then no
    longer a task file."""
    on_edit: OnEdit = OnEdit.MERGE


NOTHING_GIVEN = Given()


class Context(Struct, frozen=True):
    """One version of the instructions of a run. Version 1 is the prompt; each update appends
    one."""

    version: int
    text: str
    at: int
    given: Given = NOTHING_GIVEN
    """The task files that came with this version."""
    message: str = ""
    """The key of a message that was told to a running attempt; empty for other instructions."""


class FileChange(Struct, frozen=True, kw_only=True):
    """A change of one task file in the workdir. File contents are given as SHA-256, followed by
    `+x` if the file is executable; empty: no such file."""

    name: str
    action: FileAction
    version: int
    """The version of the instructions that the file was given with."""
    given: str
    base: str = ""
    """The content that was given before."""
    before: str = ""
    """The content that was in the workdir; `?` for something that is not a regular file, which is
    never touched."""
    after: str = ""
    """The content that is in the workdir now."""
    backup: str = ""
    """The path of the backup of the replaced file."""
    why: str = ""
    """For a conflict: an explanation."""
