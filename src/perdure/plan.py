"""A plan: tasks that need each other, checked as a whole before anything runs. Pure.

`planfile` reads the file; `planned` turns what it says into a `Plan` or into all of its problems, each with its line. `weave` says
which tasks share a conversation: a task goes on in the *strand* of the first need that nobody else goes on in, and forks it
otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from perdure.errors import ConfigError
from perdure.model import ContinuityPolicy, Permissions

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")

LineOf = Callable[..., int]
"""The line on which a value stands, by its path of keys and positions: `line_of("tasks", 2, "needs")`."""


class PlanError(ConfigError):
    """A plan that cannot be run; `problems` lists everything that is wrong with it, each with its place."""


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


def planned(raw: Mapping[str, Any], line_of: LineOf, place: str, defaults: Mapping[str, Any]) -> Plan:
    """The plan that a file says. `raw` fits the schema already; `defaults` are the settings. Raises PlanError with every problem."""
    tasks = tuple(_task(raw, entry, defaults) for entry in raw["tasks"])
    problems = [
        *_doubled(tasks, line_of),
        *_unknown(tasks, line_of),
        *((line_of("tasks", index, "needs"), problem) for index, problem in _cycles(tasks)),
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
    )


def _task(raw: Mapping[str, Any], entry: Mapping[str, Any], defaults: Mapping[str, Any]) -> PlanTask:
    said = {**defaults, **{key: raw[key] for key in ("agent", "model", "permissions", "timeout", "attempts") if key in raw}, **entry}
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
    )


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


def weave(plan: Plan) -> dict[str, Strand]:
    """Which tasks share a conversation and a workdir, by the task's name.

    Agents never share a conversation: a task of another agent begins its own, with the files of what it needs.
    """
    strands: dict[str, Strand] = {}
    gone_on: set[str] = set()
    holds: dict[str, frozenset[str]] = {}
    """What each task's workdir has in it when it begins its own work: the tasks of its own and of merged strands."""
    for task in order(plan):
        akin = [need for need in task.needs if plan.task(need).agent == task.agent]
        free = next((need for need in akin if need not in gone_on), "")
        before = free or next(iter(akin), "") or next(iter(task.needs), "")
        there = holds[before] | {before} if before else frozenset[str]()
        merges = tuple(need for need in task.needs if need not in there)
        for need in merges:
            there |= holds[need] | {need}
        holds[task.name] = frozenset(there)
        if free:
            gone_on.add(free)
            strands[task.name] = Strand(name=strands[free].name, goes_on=free, merges=merges)
        else:
            strands[task.name] = Strand(name=task.name, forks=before if akin else "", files_of=before, merges=merges)
    return strands
