"""A plan: tasks that need each other, and what becomes of them. Pure.

`plan_file` reads the file; `checks` turns what it says into a `Plan` or into all of its problems,
each with its line. `conversations` says which tasks share a conversation.
"""

from __future__ import annotations

from dataclasses import field
from enum import StrEnum

from perdure.errors import ConfigError
from perdure.lateclass import dataclass
from perdure.model import ContinuityPolicy, Permissions, TaskSpec


class PlanError(ConfigError):
    """A plan that cannot be run; `problems` lists everything that is wrong with it, each with its
    place."""


class Forking(StrEnum):
    """Where an agent's program can fork a conversation: at the end of any of its turns, where it
    stands now, or not at all."""

    ANYWHERE = "anywhere"
    AT_END = "at end"
    NEVER = "never"


class Unforkable(StrEnum):
    """What becomes of a branch whose conversation cannot be forked: it waits and goes on in the
    strand itself, or begins a new conversation, at the same time, with a brief of what was said."""

    SERIAL = "serial"
    BRIEF = "brief"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTask:
    """One task of a plan. What it does not say, the plan says."""

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
    """What it is to make, relative to the workdir: missing after its success, they fail it."""
    map: str = ""
    """Which prompts get the project map (see MapWhen); empty: where the task has files from tasks
    that are not in its conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Tasks in the order of the file."""

    name: str
    tasks: tuple[PlanTask, ...]
    repo: str = ""
    base: str = ""
    verify: str = ""
    """Run in the result after the last task."""
    continuity: ContinuityPolicy = ContinuityPolicy.DISCLOSE
    jobs: int = 1
    unforkable: Unforkable = Unforkable.SERIAL
    budget_usd: float = 0.0
    """All tasks together; 0 means no limit."""

    def task(self, name: str) -> PlanTask:
        return next(task for task in self.tasks if task.name == name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Strand:
    """How one task joins the conversations of a plan."""

    name: str
    """The strand's: that of the task which began it."""
    goes_on: str = ""
    """The task that stands before it in the same conversation and workdir."""
    forks: str = ""
    """The task at whose end its conversation is forked."""
    files_of: str = ""
    """The task whose files a new workdir begins with; empty where it goes on, or begins at the
    plan's base."""
    merges: tuple[str, ...] = ()
    """Tasks whose files are merged in before it begins."""
    instead: str = ""
    """`serial` or `brief`: what it does instead of a fork, which its agent cannot make."""
    lets: tuple[str, ...] = ()
    """Forks of the task that it goes on after, which have to be made before the conversation goes
    on."""


class PlanState(StrEnum):
    """How a plan stands. `open`: begun, and not at its end; whether somebody is at work on it, its
    lease says."""

    OPEN = "open"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRun:
    """A plan that was begun, as the store keeps it. Times in ms."""

    id: str
    name: str
    plan: Plan
    seed: TaskSpec
    """What the specs of all tasks have in common: repository, the commit to begin at, limits. Its
    prompt is empty."""
    file: str
    """Where the plan was read from, to be shown."""
    strands: dict[str, Strand] = field(default_factory=dict)
    """As they were woven when the plan was begun, by task."""
    state: PlanState = PlanState.OPEN
    reason: str = ""
    verified: bool = False
    """The plan's own check has passed in the result."""
    created: int = 0
    updated: int = 0
    worker: str = ""
    """Who is at work on it; empty for nobody."""
    lease_until: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEnd:
    """Where a task that succeeded left its workdir and conversation: what goes on from it begins
    there."""

    commit: str
    checkpoint: int
    session_id: str = ""
    turns: int = 0
    """Prompts that stand in the conversation."""
    files: tuple[str, ...] = ()
    """The first of the files that differ from where the task began: hostile names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """A task of a plan that was begun: its run, and how it came to its files."""

    task: str
    run: str
    merged: tuple[str, ...] = ()
    conflicts: tuple[tuple[str, str], ...] = ()
    """File and reason."""
    began: str = ""
    """The commit at which its workdir stood before its agent's first word, other tasks' work merged
    in."""
    end: TaskEnd | None = None
    checks: int = 0
    """How often the plan's own check has failed and its output was given to this task."""
