"""The types of a plan: tasks that depend on each other, and their results. Pure.

`plan_file` reads the file. `checks` turns its content into a `Plan`, or into a list of all its
problems with their lines. `conversations` decides which tasks share a conversation.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct, field

from perdure.errors import ConfigError
from perdure.model import ContinuityPolicy, Permissions, TaskSpec


class PlanError(ConfigError):
    """A plan cannot be run; `problems` lists everything that is wrong with it, each problem with
    its line."""


class Forking(StrEnum):
    """The points at which an agent's program can fork a conversation: the end of any turn, only the
    current end of the conversation, or none."""

    ANYWHERE = "anywhere"
    AT_END = "at end"
    NEVER = "never"


class Unforkable(StrEnum):
    """Setting that says how a task continues if it needs a fork that the agent's program cannot
    make. `serial`: the task waits and continues the conversation itself. `brief`: the task begins a
    new conversation in parallel, with a brief of the old one."""

    SERIAL = "serial"
    BRIEF = "brief"


class PlanTask(Struct, frozen=True, kw_only=True):
    """One task of a plan. The plan's own settings apply to fields that the task does not set."""

    name: str
    prompt: str
    needs: tuple[str, ...] = ()
    agent: str
    model: str = ""
    permissions: Permissions = Permissions.EDIT
    verify: str = ""
    timeout_s: float = 3600.0
    attempts: int = 3
    files: tuple[str, ...] = ()
    """Files that the task must make, relative to the workdir. If one is missing after the task
    succeeded, the task fails."""
    map: str = ""
    """Setting that says which prompts get the project map (see MapWhen). If empty, a task gets the
    map only if its workdir has files from tasks outside its own conversation."""


class Plan(Struct, frozen=True, kw_only=True):
    """A plan, with its tasks in the order of the file."""

    name: str
    tasks: tuple[PlanTask, ...]
    repo: str = ""
    base: str = ""
    verify: str = ""
    """Command that checks the final workdir after the plan's last task has ended."""
    continuity: ContinuityPolicy = ContinuityPolicy.DISCLOSE
    jobs: int = 1
    unforkable: Unforkable = Unforkable.SERIAL
    budget_usd: float = 0.0
    """Budget for all tasks together, in US dollars; 0 means no limit."""

    def task(self, name: str) -> PlanTask:
        return next(task for task in self.tasks if task.name == name)


class Strand(Struct, frozen=True, kw_only=True):
    """One task's membership in a strand, which is a series of tasks that share one conversation and
    workdir."""

    name: str
    """Name of the strand, which is the name of its first task."""
    goes_on: str = ""
    """The previous task in the same conversation and workdir; empty if the task begins a
    conversation."""
    forks: str = ""
    """The task whose conversation this task forks, at the point where that task ended. Empty if
    this task does not fork."""
    files_of: str = ""
    """The task whose files a new workdir begins with. Empty if this task continues in an existing
    workdir, or begins at the plan's base commit."""
    merges: tuple[str, ...] = ()
    """Tasks whose files are merged into the workdir before this task begins."""
    instead: str = ""
    """How the task continues if it needs a fork that its agent cannot make: `serial` or `brief`
    (see `Unforkable`). Empty if the task needs no fork, or if its agent can make the fork."""
    lets: tuple[str, ...] = ()
    """Tasks that fork the conversation before this task continues it. This task waits until the
    forks are made."""


class PlanState(StrEnum):
    """The state of a plan. `open` means begun and not finished. The plan's lease shows whether a
    worker is working on it."""

    OPEN = "open"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class PlanRun(Struct, frozen=True, kw_only=True):
    """The store's record of a plan that was started. Times are in ms."""

    id: str
    name: str
    plan: Plan
    seed: TaskSpec
    """The common part of all tasks' specifications: repository, base commit, limits. Its prompt is
    empty."""
    file: str
    """Path of the file that the plan was read from. It is only shown, never read again."""
    strands: dict[str, Strand] = field(default_factory=dict)
    """The strand of each task, by the task's name. The strands are decided once, when the plan
    starts."""
    state: PlanState = PlanState.OPEN
    reason: str = ""
    verified: bool = False
    """Whether the plan's own check (`verify`) has passed in the final workdir."""
    created: int = 0
    updated: int = 0
    worker: str = ""
    """The worker that has claimed the plan; empty if none has."""
    lease_until: int = 0
    stopped: int = 0
    """Time at which a person stopped the plan, in ms; 0 if it was not stopped. No further task
    begins after that."""


class TaskEnd(Struct, frozen=True, kw_only=True):
    """The state in which a successful task left its workdir and conversation. Tasks that continue
    from this task begin with that state."""

    commit: str
    checkpoint: int
    session_id: str = ""
    turns: int = 0
    """Number of prompts in the conversation when the task ended."""
    files: tuple[str, ...] = ()
    """Names of some of the files that the task changed. The names are untrusted text."""


class PlannedRun(Struct, frozen=True, kw_only=True):
    """The run that executes a task of a plan, with the state of the task's files."""

    task: str
    run: str
    merged: tuple[str, ...] = ()
    conflicts: tuple[tuple[str, str], ...] = ()
    """Files in which merging the work of other tasks left conflicts, each with the reason."""
    began: str = ""
    """The commit of the task's workdir before its agent's first turn, including the merged work of
    other tasks."""
    end: TaskEnd | None = None
    checks: int = 0
    """Number of times that the plan's own check failed and this task's agent got the output."""
