"""A plan: tasks that depend on each other, and their results. Pure.

`plan_file` reads the file. `checks` turns its content into a `Plan`, or into a list of all its
problems with their lines. `conversations` decides which tasks share a conversation.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct, field

from perdure.errors import ConfigError
from perdure.model import ContinuityPolicy, Permissions, TaskSpec


class PlanError(ConfigError):
    """A plan that cannot be run; `problems` lists everything that is wrong with it, each with its
    place."""


class Forking(StrEnum):
    """Where an agent's program can fork a conversation: at the end of any turn, only at its current
    end, or not at all."""

    ANYWHERE = "anywhere"
    AT_END = "at end"
    NEVER = "never"


class Unforkable(StrEnum):
    """The way to handle a task that needs a fork of a conversation that cannot be forked. Either
    the task waits and continues the strand itself, or it begins a new conversation, in parallel,
    with a brief of the old one."""

    SERIAL = "serial"
    BRIEF = "brief"


class PlanTask(Struct, frozen=True, kw_only=True):
    """One task of a plan. The plan's own settings apply where the task has none."""

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
    """Files that the task must make, relative to the workdir. It fails if one is missing after its
    success."""
    map: str = ""
    """Which prompts get the project map (see MapWhen). Empty: those of a task with files from tasks
    that are not in its conversation."""


class Plan(Struct, frozen=True, kw_only=True):
    """Tasks in the order of the file."""

    name: str
    tasks: tuple[PlanTask, ...]
    repo: str = ""
    base: str = ""
    verify: str = ""
    """A command that is run in the final workdir after the last task."""
    continuity: ContinuityPolicy = ContinuityPolicy.DISCLOSE
    jobs: int = 1
    unforkable: Unforkable = Unforkable.SERIAL
    budget_usd: float = 0.0
    """Budget for all tasks together, in US dollars; 0 means no limit."""

    def task(self, name: str) -> PlanTask:
        return next(task for task in self.tasks if task.name == name)


class Strand(Struct, frozen=True, kw_only=True):
    """How one task joins the conversations of a plan."""

    name: str
    """The name of the strand: that of the task that began it."""
    goes_on: str = ""
    """The previous task in the same conversation and workdir."""
    forks: str = ""
    """The task whose conversation this task forks, at the end of that task."""
    files_of: str = ""
    """The task whose files a new workdir begins with. Empty if this task continues in an existing
    workdir, or begins at the plan's base."""
    merges: tuple[str, ...] = ()
    """Tasks whose files are merged before this task begins."""
    instead: str = ""
    """`serial` or `brief`: how the task replaces a fork that its agent cannot make; empty if it
    needs none."""
    lets: tuple[str, ...] = ()
    """Tasks that fork the conversation that this task continues. Their forks have to be made before
    this task continues it."""


class PlanState(StrEnum):
    """The state of a plan. `open`: begun and not finished; the plan's lease says whether a worker
    holds it."""

    OPEN = "open"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class PlanRun(Struct, frozen=True, kw_only=True):
    """The store's record of a plan that was begun. Times in ms."""

    id: str
    name: str
    plan: Plan
    seed: TaskSpec
    """The common part of the specs of all tasks: repository, base commit, limits. Its prompt is
    empty."""
    file: str
    """The file that the plan was read from, for display."""
    strands: dict[str, Strand] = field(default_factory=dict)
    """How each task joins the conversations, by task, as decided when the plan was begun."""
    state: PlanState = PlanState.OPEN
    reason: str = ""
    verified: bool = False
    """Whether the plan's own check has passed in the final workdir."""
    created: int = 0
    updated: int = 0
    worker: str = ""
    """The worker that holds the plan; empty if none does."""
    lease_until: int = 0
    stopped: int = 0
    """When a person stopped the plan, so that the service begins no further task; 0: not
    stopped."""


class TaskEnd(Struct, frozen=True, kw_only=True):
    """The state in which a successful task left its workdir and conversation. Tasks that continue
    from this task begin there."""

    commit: str
    checkpoint: int
    session_id: str = ""
    turns: int = 0
    """Number of prompts in the conversation."""
    files: tuple[str, ...] = ()
    """The first of the files that differ from the task's beginning. The names are hostile."""


class PlannedRun(Struct, frozen=True, kw_only=True):
    """A task of a plan that was begun: its run, and the origin of its files."""

    task: str
    run: str
    merged: tuple[str, ...] = ()
    conflicts: tuple[tuple[str, str], ...] = ()
    """The files with conflicts, each with the reason."""
    began: str = ""
    """The commit of the task's workdir before its agent's first turn, including the merged work of
    other tasks."""
    end: TaskEnd | None = None
    checks: int = 0
    """Number of times that the plan's own check has failed and its output was given to this
    task."""
