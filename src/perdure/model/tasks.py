"""Data types for a task: its spec, the versions of its instructions, and the files that come with
them."""

from __future__ import annotations

from msgspec import Struct, field

from perdure.model.choices import ContinuityPolicy, FileAction, OnEdit, Permissions


class TaskSpec(Struct, frozen=True, kw_only=True):
    """A task as a person requests it. Immutable. The command line, the HTTP API and the TaskRun
    resource use the same struct."""

    prompt: str
    agent: str = "claude"
    name: str = ""
    key: str = ""
    repo: str = ""
    """Local path or URL of the repository. Empty for a service's task and for `here`."""
    base: str = ""
    branch: str = ""
    here: str = ""
    """Directory in which the agent works directly, without a worktree; empty: a workdir is made."""
    service: str = ""
    task: str = ""
    scope: str = ""
    """Name for sharing: runs of one agent with the same scope share one conversation. Empty: the
    run has a conversation of its own."""
    forks: str = ""
    """Id of the conversation that the first attempt forks; empty: none."""
    fork_at: int = 0
    """Number of the last turn of the parent that the fork keeps, counted from 1; 0: all turns."""
    backend: str = ""
    model: str = ""
    permissions: Permissions = Permissions.EDIT
    agent_args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    """Variables for the agent, given with --env NAME=VALUE."""
    pass_env: tuple[str, ...] = ()
    """Names of the user's variables that are passed to the agent in addition to the usual ones,
    given with --env NAME. Their values are not stored."""
    timeout_s: float = 3600.0
    """Time limit of an attempt, in seconds; 0 means no limit."""
    stall_s: float = 600.0
    """Time without output after which an attempt is ended, in seconds. While a tool runs, the limit
    is five times as long. 0 means no limit."""
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
    """`on`: the agent is asked for a final report in a fixed form, if its CLI supports that. Empty:
    the user's setting."""
    on_leftover: str = ""
    """The policy for processes that the agent leaves running (`OnLeftover`). Empty: the user's
    setting."""
    verify: str = ""
    """Shell command that is run in the workdir after the agent reports success. If its exit code is
    not 0, the check has failed."""
    files: tuple[str, ...] = ()
    """Paths of files that must exist after the agent reports success, relative to the workdir. If
    one is missing, the attempt fails."""
    conflicts: tuple[str, ...] = ()
    """Paths of files in which a merge left conflict markers. If a marker is still there after the
    agent reports success, the attempt fails."""
    verify_rounds: int = 3
    """Maximum number of failed checks, for each version of the instructions, that are sent back to
    the agent. These turns do not count as attempts."""
    verify_timeout_s: float = 1800.0
    """Time limit of a check, in seconds. A check that takes longer has failed. 0 means no limit."""
    labels: dict[str, str] = field(default_factory=dict)
    map: str = ""
    """Which prompts get the project map (see MapWhen). Empty: the user's setting."""
    title: str = ""
    """The title of the issue or pull request that the run is about, with its number. Empty: the
    first words of the prompt. A dispatch sets this."""
    link: str = ""
    """The http(s) address of the issue or pull request that the run is about."""
    rule: str = ""
    """Name of the `[agents.NAME]` rule that started the run. It is shown as the run's role, and
    determines the author of commits and the maximum number of concurrent runs. Only a dispatch sets
    it."""


class TaskFile(Struct, frozen=True):
    """A file that a person gave for the workdir. Its content is stored below `{state}/given`."""

    name: str
    """Path relative to the workdir, with slashes."""
    sha256: str
    size: int
    executable: bool = False


class Given(Struct, frozen=True):
    """The task files that came with one version of the instructions."""

    files: tuple[TaskFile, ...] = ()
    whole: bool = False
    """Whether this is the complete list of task files. A file that was given before and is not
    listed is then no longer a task file."""
    on_edit: OnEdit = OnEdit.MERGE


NOTHING_GIVEN = Given()


MESSAGE_START = "The user sent a new message while you were working (message "
"""Beginning of the text in which a message is passed to a running turn. No prompt begins with it.
"""


class Context(Struct, frozen=True):
    """One version of the instructions of a run. Version 1 is the prompt; each update appends
    one."""

    version: int
    text: str
    at: int
    given: Given = NOTHING_GIVEN
    """The task files that came with this version."""
    message: str = ""
    """Key of the message, if these instructions were sent to a running attempt; otherwise empty."""


class FileChange(Struct, frozen=True, kw_only=True):
    """A change of one task file in the workdir. Contents are given as SHA-256, followed by `+x` if
    the file is executable. Empty means that there is no such file."""

    name: str
    action: FileAction
    version: int
    """Version number of the instructions with which the file was given."""
    given: str
    base: str = ""
    """Content that the person had given before this version; empty if the file is new."""
    before: str = ""
    """Content in the workdir before the change. `?` stands for something other than a regular file,
    which perdure never changes."""
    after: str = ""
    """Content in the workdir after the change."""
    backup: str = ""
    """Path of the backup of the file's earlier content; empty if no backup was needed."""
    why: str = ""
    """Explanation of a conflict; otherwise empty."""
