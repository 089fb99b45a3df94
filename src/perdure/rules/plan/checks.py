"""Checks a plan as a whole before anything runs, and reports all problems at once, each with its
line. Pure. Called by `plan_file`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

from perdure.model import ContinuityPolicy, Permissions
from perdure.rules.plan import Plan, PlanError, PlanTask, Unforkable
from perdure.rules.specification import fitting

LineOf = Callable[..., int]
"""Function that returns the line of a value in the plan's file. Its arguments are the path of keys
and positions: `line_of("tasks", 2, "needs")`."""


RawPlan = Mapping[str, Any]
"""The content of a plan file, as `plan.schema.json` describes it. Its values are read from TOML,
YAML or JSON."""


def planned(raw: RawPlan, line_of: LineOf, place: str, defaults: Mapping[str, Any]) -> Plan:
    """Return the plan in a file. `raw` must already match the schema. `defaults` are the user's
    settings. Raises PlanError with every problem."""
    tasks = tuple(_task(raw, entry, defaults) for entry in raw["tasks"])
    problems = [
        *_doubled(tasks, line_of),
        *_unknown(tasks, line_of),
        *((line_of("tasks", index, "needs"), problem) for index, problem in _cycles(tasks)),
        *_at_odds(raw, defaults, line_of),
    ]
    if problems:
        raise PlanError(
            [f"{place}:{line}: {problem}" for line, problem in sorted(problems)],
            f"correct it, then: perdure plan check {shlex.quote(place)}",
        )
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


def _task(raw: RawPlan, entry: Mapping[str, Any], defaults: Mapping[str, Any]) -> PlanTask:
    names = ("agent", "model", "permissions", "timeout", "attempts", "map")
    shared = {"model": "", **fitting(defaults, {key: raw[key] for key in names if key in raw})}
    said = {"model": "", **fitting(shared, entry)}
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


def _at_odds(
    raw: Mapping[str, Any], defaults: Mapping[str, Any], line_of: LineOf
) -> list[tuple[int, str]]:
    strict = raw.get("continuity", defaults["continuity"]) == ContinuityPolicy.STRICT
    if not strict or raw.get("unforkable") != Unforkable.BRIEF:
        return []
    return [
        (
            line_of("unforkable"),
            "unforkable: `strict` forbids a brief in place of a conversation; use `serial`",
        )
    ]


def _doubled(tasks: Sequence[PlanTask], line_of: LineOf) -> list[tuple[int, str]]:
    first: dict[str, int] = {}
    found = []
    for index, task in enumerate(tasks):
        # Some file systems do not distinguish names that differ only in case, and people confuse
        # such names.
        name = task.name.lower()
        if name in first:
            there = first[name]
            where = line_of("tasks", there, "name")
            found.append(
                (
                    line_of("tasks", index, "name"),
                    f"the task {tasks[there].name!r} exists already, on line {where}",
                )
            )
        first.setdefault(name, index)
    return found


def _unknown(tasks: Sequence[PlanTask], line_of: LineOf) -> list[tuple[int, str]]:
    names = {task.name for task in tasks}
    found = []
    for index, task in enumerate(tasks):
        unknown = [need for need in task.needs if need not in names]
        line = line_of("tasks", index, "needs") if unknown else 0
        for need in unknown:
            found.append((line, f"{task.name!r} needs {need!r}, which does not exist"))
    return found


def _cycles(tasks: Sequence[PlanTask]) -> list[tuple[int, str]]:
    """Return the cycles of dependencies. Each has the index of its first task, and its path in
    words. If two cycles share a dependency, the second may be reported only after the first is
    fixed."""
    places = {task.name: index for index, task in reversed(list(enumerate(tasks)))}
    needs = {}
    for task in reversed(tasks):
        needs[task.name] = [need for need in task.needs if need in places]
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
            found.append(
                (places[path[0]], f"these tasks need each other: {' -> '.join([*path, path[0]])}")
            )
            needs[path[0]].remove(path[1 % len(path)])
