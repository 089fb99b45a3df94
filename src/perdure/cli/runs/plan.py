"""`plan`: examines a plan file (`check`, `graph`), and runs plans (`run`, `show`, `retry`,
`ls`)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from perdure.cli.compose import settings
from perdure.cli.runs.pool import jobs_of
from perdure.cli.text import clean, one_line
from perdure.config import Settings
from perdure.errors import UsageError
from perdure.rules.plan import Forking, Plan, Strand
from perdure.rules.plan.conversations import joins, order, weave

SHOWN = 60
WHAT = {
    "check": "check the file",
    "graph": "draw needs and conversations",
    "run": "start the plan in the file, or continue it",
    "show": "show its state, by its name or its file",
    "retry": "continue what failed, or one task of it",
    "ls": "list the plans",
}


def plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", choices=WHAT, help="; ".join(f"{name}: {words}" for name, words in WHAT.items())
    )
    parser.add_argument(
        "file",
        nargs="?",
        help="the plan, in TOML (.toml) or YAML (.yaml, .yml); for show and retry also its name",
    )
    parser.add_argument("task", nargs="?", help="retry: only this task")
    parser.add_argument(
        "-j",
        "--jobs",
        type=jobs_of,
        default=0,
        help="maximum number of tasks at once (default: jobs of the plan, or 1)",
    )
    parser.add_argument(
        "--format",
        choices=["text", "mermaid"],
        default="text",
        help="output format of graph (default: text)",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def plan_verb(arguments: argparse.Namespace) -> int:
    if arguments.task is not None and arguments.what != "retry":
        raise UsageError(f"plan {arguments.what} takes one name, not also {arguments.task!r}")
    if (arguments.file is None) != (arguments.what == "ls"):
        if arguments.what == "ls":
            wanted = "takes no name"
        elif arguments.what != "retry":
            wanted = "needs a plan file"
        else:
            wanted = "needs a plan's name"
        raise UsageError(f"plan {arguments.what} {wanted}", "perdure plan --help")
    if arguments.what in ("check", "graph"):
        return _look(arguments)
    if arguments.what in ("show", "ls"):
        from perdure.cli.runs import plan_show

        return plan_show.ls(arguments) if arguments.what == "ls" else plan_show.show(arguments)
    from perdure.cli.runs import plan_run

    return plan_run.run(arguments) if arguments.what == "run" else plan_run.retry(arguments)


def _look(arguments: argparse.Namespace) -> int:
    plan = checked_plan(Path(arguments.file), settings())
    strands = weave(plan, _forking)
    if arguments.json:
        print(json.dumps(_as_json(plan, strands), indent=2, ensure_ascii=False))
    elif arguments.what == "graph":
        print(_mermaid(plan, strands) if arguments.format == "mermaid" else _drawn(plan, strands))
    else:
        talks = len({strand.name for strand in strands.values()})
        print(f"{clean(plan.name)}: {len(plan.tasks)} task(s) in {talks} conversation(s), valid")
    return 0


def checked_plan(file: Path, chosen: Settings) -> Plan:
    """Return the plan in the file, over the settings. Raises NotFound, UsageError, PlanError, and
    AgentMissing for an unknown agent."""
    from perdure.agents import registry
    from perdure.engine.plans.reader import read_plan

    plan = read_plan(file, chosen)
    for agent in sorted({task.agent for task in plan.tasks}):
        registry.load(agent)
    return plan


def _forking(agent: str) -> Forking:
    from perdure.agents import registry
    from perdure.engine.plans.creation import forking

    return forking(registry.load(agent))


def _drawn(plan: Plan, strands: dict[str, Strand]) -> str:
    """Return one line per task, in order, indented by the task's depth in the plan."""
    depth: dict[str, int] = {}
    lines = []
    for task in order(plan):
        depth[task.name] = max((depth[need] + 1 for need in task.needs), default=0)
        lines.append(
            (f"{'  ' * depth[task.name]}{task.name}", task.agent, joins(strands[task.name]))
        )
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    return "\n".join(
        f"{name:{widths[0]}}  {agent:{widths[1]}}  {how}" for name, agent, how in lines
    )


def _mermaid(plan: Plan, strands: dict[str, Strand]) -> str:
    lines = ["flowchart TD"]
    places = {task.name: f"t{index}" for index, task in enumerate(plan.tasks)}
    lines += [
        f'  {places[task.name]}["{task.name}<br/>{one_line(task.agent, SHOWN)}"]'
        for task in plan.tasks
    ]
    for task in plan.tasks:
        strand = strands[task.name]
        for need in task.needs:
            if need == strand.goes_on:
                arrow = "==>"
            elif need == strand.forks:
                arrow = "-. fork .->"
            else:
                arrow = "-->"
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
            "instead": strands[task.name].instead,
            "merges": list(strands[task.name].merges),
        }
        for task in order(plan)
    ]
    return {"schema_version": 1, "name": plan.name, "jobs": plan.jobs, "tasks": tasks}
