"""`plan check` and `plan graph`: what a plan file says, before anything of it runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from perdure.cli.compose import settings
from perdure.cli.text import clean, one_line
from perdure.config import Settings
from perdure.plan import Plan, Strand, order, weave

SHOWN = 60


def plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", choices=["check", "graph"], help="check: is anything wrong with it; graph: who needs whom, and who talks on"
    )
    parser.add_argument("file", help="the plan, in TOML (.toml) or YAML (.yaml, .yml)")
    parser.add_argument("--format", choices=["text", "mermaid"], default="text", help="how graph draws it (default: text)")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def plan_verb(arguments: argparse.Namespace) -> int:
    from perdure.planfile import read

    plan = read(Path(arguments.file), defaults_of(settings()))
    _know_agents(plan)
    strands = weave(plan)
    if arguments.json:
        print(json.dumps(_as_json(plan, strands), indent=2, ensure_ascii=False))
    elif arguments.what == "graph":
        print(_mermaid(plan, strands) if arguments.format == "mermaid" else _drawn(plan, strands))
    else:
        talks = len({strand.name for strand in strands.values()})
        print(f"{clean(plan.name)}: {len(plan.tasks)} task(s) in {talks} conversation(s), nothing wrong")
    return 0


def defaults_of(chosen: Settings) -> dict[str, Any]:
    """What holds where a plan says nothing."""
    names = ("agent", "model", "permissions", "timeout", "attempts", "continuity")
    return {name: getattr(chosen, name) for name in names}


def _know_agents(plan: Plan) -> None:
    """Raises AgentMissing for an agent that perdure does not know."""
    from perdure import drivers

    for agent in sorted({task.agent for task in plan.tasks}):
        drivers.load(agent)


def _joins(strand: Strand) -> str:
    """How a task joins the conversations, in words."""
    words = f"goes on after {strand.goes_on}" if strand.goes_on else f"forks {strand.forks}" if strand.forks else "begins a conversation"
    if strand.files_of and not strand.forks:
        words += f" with the files of {strand.files_of}"
    return words + (f", merges {' and '.join(strand.merges)}" if strand.merges else "")


def _drawn(plan: Plan, strands: dict[str, Strand]) -> str:
    """One line a task, in order, moved in by how deep it stands in the plan."""
    depth: dict[str, int] = {}
    lines = []
    for task in order(plan):
        depth[task.name] = max((depth[need] + 1 for need in task.needs), default=0)
        lines.append((f"{'  ' * depth[task.name]}{task.name}", task.agent, _joins(strands[task.name])))
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    return "\n".join(f"{name:{widths[0]}}  {agent:{widths[1]}}  {how}" for name, agent, how in lines)


def _mermaid(plan: Plan, strands: dict[str, Strand]) -> str:
    lines = ["flowchart TD"]
    places = {task.name: f"t{index}" for index, task in enumerate(plan.tasks)}
    lines += [f'  {places[task.name]}["{task.name}<br/>{one_line(task.agent, SHOWN)}"]' for task in plan.tasks]
    for task in plan.tasks:
        strand = strands[task.name]
        for need in task.needs:
            arrow = "==>" if need == strand.goes_on else "-. fork .->" if need == strand.forks else "-->"
            lines.append(f"  {places[need]} {arrow} {places[task.name]}")
    return "\n".join(lines)


def _as_json(plan: Plan, strands: dict[str, Strand]) -> dict[str, Any]:
    tasks = [
        {
            "name": task.name,
            "agent": task.agent,
            "needs": list(task.needs),
            "conversation": strands[task.name].name,
            "goes_on": strands[task.name].goes_on,
            "forks": strands[task.name].forks,
            "merges": list(strands[task.name].merges),
        }
        for task in order(plan)
    ]
    return {"schema_version": 1, "name": plan.name, "jobs": plan.jobs, "tasks": tasks}
