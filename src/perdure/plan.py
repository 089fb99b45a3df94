"""A plan: tasks that need each other, checked as a whole before anything runs. Pure.

`planfile` reads the file; `planned` turns what it says into a `Plan` or into all of its problems, each with its line. `weave` says
which tasks share a conversation: a task goes on in the *strand* of the first need that nobody else goes on in, and forks it
otherwise. What the agents' programs can do (`Forking`) has a say in it: what cannot be forked goes on at the strand's end instead,
or begins with a brief.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from enum import StrEnum
from graphlib import CycleError, TopologicalSorter
from typing import Any

from perdure.errors import ConfigError
from perdure.lateclass import dataclass
from perdure.model import ContinuityPolicy, Permissions, TaskSpec

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")

LineOf = Callable[..., int]
"""The line on which a value stands, by its path of keys and positions: `line_of("tasks", 2, "needs")`."""


class PlanError(ConfigError):
    """A plan that cannot be run; `problems` lists everything that is wrong with it, each with its place."""


class Forking(StrEnum):
    """Where an agent's program can fork a conversation: at the end of any of its turns, where it stands now, or not at all."""

    ANYWHERE = "anywhere"
    AT_END = "at end"
    NEVER = "never"


class Unforkable(StrEnum):
    """What becomes of a branch whose conversation cannot be forked: it waits and goes on in the strand itself, or begins a new
    conversation, at the same time, with a brief of what was said."""

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
    """Which prompts get the project map (see MapWhen); empty: where the task has files from tasks that are not in its conversation."""


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
    """The task whose files a new workdir begins with; empty where it goes on, or begins at the plan's base."""
    merges: tuple[str, ...] = ()
    """Tasks whose files are merged in before it begins."""
    instead: str = ""
    """`serial` or `brief`: what it does instead of a fork, which its agent cannot make."""
    lets: tuple[str, ...] = ()
    """Forks of the task that it goes on after, which have to be made before the conversation goes on."""


class PlanState(StrEnum):
    """How a plan stands. `open`: begun, and not at its end; whether somebody is at work on it, its lease says."""

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
    """What the specs of all tasks have in common: repository, the commit to begin at, limits. Its prompt is empty."""
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
    """Where a task that succeeded left its workdir and conversation: what goes on from it begins there."""

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
    """The commit at which its workdir stood before its agent's first word, other tasks' work merged in."""
    end: TaskEnd | None = None
    checks: int = 0
    """How often the plan's own check has failed and its output was given to this task."""


def planned(raw: Mapping[str, Any], line_of: LineOf, place: str, defaults: Mapping[str, Any]) -> Plan:
    """The plan that a file says. `raw` fits the schema already; `defaults` are the settings. Raises PlanError with every problem."""
    tasks = tuple(_task(raw, entry, defaults) for entry in raw["tasks"])
    problems = [
        *_doubled(tasks, line_of),
        *_unknown(tasks, line_of),
        *((line_of("tasks", index, "needs"), problem) for index, problem in _cycles(tasks)),
        *_at_odds(raw, defaults, line_of),
    ]
    if problems:
        raise PlanError([f"{place}:{line}: {problem}" for line, problem in sorted(problems)], "perdure plan check FILE")
    return Plan(
        name=raw["name"],
        tasks=tasks,
        repo=raw.get("repo", ""),
        base=raw.get("base", ""),
        verify=raw.get("verify", ""),
        continuity=ContinuityPolicy(raw.get("continuity", defaults["continuity"])),
        jobs=raw.get("jobs", 1),
        unforkable=Unforkable(raw.get("unforkable", Unforkable.SERIAL)),
        budget_usd=float(raw.get("budget_usd", 0.0)),
    )


def _task(raw: Mapping[str, Any], entry: Mapping[str, Any], defaults: Mapping[str, Any]) -> PlanTask:
    said = {**defaults, **{key: raw[key] for key in ("agent", "model", "permissions", "timeout", "attempts", "map") if key in raw}, **entry}
    return PlanTask(
        name=entry["name"],
        prompt=entry["prompt"],
        needs=tuple(dict.fromkeys(entry.get("needs", ()))),
        agent=said["agent"],
        model=said["model"],
        permissions=Permissions(said["permissions"]),
        verify=entry.get("verify", ""),
        timeout_s=said["timeout"],
        attempts=said["attempts"],
        files=tuple(entry.get("files", ())),
        map=said.get("map", ""),
    )


def _at_odds(raw: Mapping[str, Any], defaults: Mapping[str, Any], line_of: LineOf) -> list[tuple[int, str]]:
    strict = raw.get("continuity", defaults["continuity"]) == ContinuityPolicy.STRICT
    if not strict or raw.get("unforkable") != Unforkable.BRIEF:
        return []
    return [(line_of("unforkable"), "unforkable: a brief in the place of a conversation is what `strict` forbids; `serial` is left")]


def _doubled(tasks: Sequence[PlanTask], line_of: LineOf) -> list[tuple[int, str]]:
    first: dict[str, int] = {}
    found = []
    for index, task in enumerate(tasks):
        if task.name in first:
            where = line_of("tasks", first[task.name], "name")
            found.append((line_of("tasks", index, "name"), f"there is a task {task.name!r} already, on line {where}"))
        first.setdefault(task.name, index)
    return found


def _unknown(tasks: Sequence[PlanTask], line_of: LineOf) -> list[tuple[int, str]]:
    names = {task.name for task in tasks}
    return [
        (line_of("tasks", index, "needs"), f"{task.name!r} needs {need!r}, and there is no such task")
        for index, task in enumerate(tasks)
        for need in task.needs
        if need not in names
    ]


def _cycles(tasks: Sequence[PlanTask]) -> list[tuple[int, str]]:
    """The cycles, each with its path, at the first of its tasks. Where cycles share a need, one of them may be told later."""
    places = {task.name: index for index, task in reversed(list(enumerate(tasks)))}
    needs = {task.name: [need for need in task.needs if need in places] for task in reversed(tasks)}
    found: list[tuple[int, str]] = []
    while True:
        try:
            TopologicalSorter(needs).prepare()
            return sorted(found)
        except CycleError as error:
            needed_first: list[str] = error.args[1][1:]
            path = needed_first[::-1]
            turn = path.index(min(path, key=lambda name: places[name]))
            path = [*path[turn:], *path[:turn]]
            found.append((places[path[0]], f"these tasks need each other: {' -> '.join([*path, path[0]])}"))
            needs[path[0]].remove(path[1 % len(path)])


def order(plan: Plan) -> list[PlanTask]:
    """The tasks, each behind what it needs, and otherwise as the file has them."""
    left, done = list(plan.tasks), dict[str, PlanTask]()
    while left:
        task = next(task for task in left if all(need in done for need in task.needs))
        left.remove(task)
        done[task.name] = task
    return list(done.values())


def weave(plan: Plan, forking: Callable[[str], Forking] = lambda agent: Forking.ANYWHERE) -> dict[str, Strand]:
    """Which tasks share a conversation and a workdir, by the task's name. `forking` says what an agent's program can do.

    Agents never share a conversation: a task of another agent begins its own, with the files of what it needs.
    """
    loom = _Loom(plan, forking)
    for task in order(plan):
        loom.add(task)
    return loom.woven()


class _Loom:
    """The strands as far as they are woven."""

    def __init__(self, plan: Plan, forking: Callable[[str], Forking]) -> None:
        self._plan, self._forking = plan, forking
        self._strands: dict[str, Strand] = {}
        self._next: dict[str, str] = {}
        """Who goes on after a task."""
        self._holds: dict[str, frozenset[str]] = {}
        """What each task's workdir has in it when it begins its own work: the tasks of its own and of merged strands."""
        self._later: dict[str, set[str]] = {task.name: set(task.needs) for task in plan.tasks}
        """What has to come before each task: what it needs, and more."""
        self._lets: dict[str, tuple[str, ...]] = {}

    def add(self, task: PlanTask) -> None:
        akin = [need for need in task.needs if self._plan.task(need).agent == task.agent]
        free = next((need for need in akin if need not in self._next), "")
        if free or not akin:
            self._lay(task, goes_on=free, files_of=free or next(iter(task.needs), ""))
        elif self._can_fork(task, akin[0]):
            self._lay(task, forks=akin[0], files_of=akin[0])
        elif self._plan.unforkable is Unforkable.BRIEF:
            self._lay(task, forks=akin[0], files_of=akin[0], instead=Unforkable.BRIEF)
        else:
            last = self._last(akin[0])
            self._lay(task, goes_on=last, files_of=last, instead=Unforkable.SERIAL)

    def woven(self) -> dict[str, Strand]:
        return {name: replace(strand, lets=self._lets.get(name, ())) for name, strand in self._strands.items()}

    def _lay(self, task: PlanTask, *, goes_on: str = "", forks: str = "", files_of: str = "", instead: str = "") -> None:
        there = self._holds[files_of] | {files_of} if files_of else frozenset[str]()
        merges = tuple(need for need in task.needs if need not in there)
        for need in merges:
            there |= self._holds[need] | {need}
        self._holds[task.name] = frozenset(there)
        name = task.name
        if goes_on:
            name = self._strands[goes_on].name
            self._next[goes_on] = task.name
            self._later[task.name].add(goes_on)
        self._strands[task.name] = Strand(
            name=name, goes_on=goes_on, forks=forks, files_of="" if goes_on else files_of, merges=merges, instead=instead
        )

    def _can_fork(self, task: PlanTask, need: str) -> bool:
        """Whether a fork can be made at the need's end. Where that is where the conversation stands now, who goes on in it waits
        until the fork is made, unless the fork itself waits for him."""
        can = self._forking(task.agent)
        if can is not Forking.AT_END:
            return can is Forking.ANYWHERE
        goes_on = self._next[need]
        if self._waits(task.name, goes_on):
            return False
        self._later[goes_on].add(task.name)
        self._lets[goes_on] = (*self._lets.get(goes_on, ()), task.name)
        return True

    def _waits(self, task: str, other: str) -> bool:
        """Whether `task` can only begin after `other`."""
        seen, left = set[str](), [task]
        while left:
            at = left.pop()
            if at == other:
                return True
            if at not in seen:
                seen.add(at)
                left += self._later[at]
        return False

    def _last(self, task: str) -> str:
        """The end of a task's strand, as far as it is woven."""
        while task in self._next:
            task = self._next[task]
        return task


def joins(strand: Strand) -> str:
    """How a task joins the conversations, in words."""
    words = f"goes on after {strand.goes_on}" if strand.goes_on else f"forks {strand.forks}" if strand.forks else "begins a conversation"
    if strand.instead == "serial":
        words += ", in the place of a fork"
    if strand.instead == "brief":
        words = f"begins with a brief of {strand.forks}, in the place of a fork"
    if strand.files_of and not strand.forks:
        words += f" with the files of {strand.files_of}"
    return words + (f", merges {' and '.join(strand.merges)}" if strand.merges else "")
