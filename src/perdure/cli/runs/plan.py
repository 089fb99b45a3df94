"""`plan`: examines a plan file (`check`, `graph`), runs a plan in this process with a line for each
task (`run`, `retry`), or shows plans (`show`, `ls`).

Ctrl-C stops the agents gracefully, as `perdure stop` would. Another `plan run` continues where they
stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.cli.compose import settings
from perdure.cli.runs.pool import jobs_of
from perdure.cli.text import clean, one_line, widths_of
from perdure.config import Settings
from perdure.errors import UsageError
from perdure.rules.plan import Forking, Plan, Strand
from perdure.rules.plan.conversations import assign_strands, joins, order

if TYPE_CHECKING:
    from perdure.engine.attempt import Engine
    from perdure.rules.plan import PlanRun

SHOWN = 60
WHAT = {
    "check": "check the file",
    "graph": "draw which tasks need which, and which share a conversation",
    "run": "start the plan in the file, or continue it",
    "show": "show the state of a plan, given its name or its file",
    "retry": "continue the failed tasks, or one of them",
    "ls": "list the plans",
}


def plan_arguments(parser: argparse.ArgumentParser) -> None:
    actions = [f"{name}: {words}" for name, words in WHAT.items()]
    parser.add_argument("what", choices=WHAT, help="; ".join(actions))
    parser.add_argument(
        "file",
        nargs="?",
        help="the plan, in TOML (.toml) or YAML (.yaml, .yml); for show and retry also its name",
    )
    parser.add_argument("task", nargs="?", help="for retry: only this task")
    parser.add_argument(
        "-j",
        "--jobs",
        type=jobs_of,
        default=0,
        help="maximum number of tasks at once (default: `jobs` in the plan, or 1)",
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
        raise UsageError(
            f"plan {arguments.what}: expected one name, but also got {arguments.task!r}"
        )
    if (arguments.file is None) != (arguments.what == "ls"):
        hint = "perdure plan --help"
        if arguments.what == "ls":
            wanted = "takes no name"
        elif arguments.what in ("show", "retry"):
            wanted, hint = "needs a plan's name", "perdure plan ls"
        else:
            wanted = "needs a plan file"
        raise UsageError(f"plan {arguments.what} {wanted}", hint)
    if arguments.what in ("check", "graph"):
        return _look(arguments)
    if arguments.what in ("show", "ls"):
        from perdure.cli.runs import plan_view

        if arguments.what == "ls":
            return plan_view.ls(arguments)
        return plan_view.show(arguments)
    if arguments.what == "run":
        return _run(arguments)
    return _retry(arguments)


def _look(arguments: argparse.Namespace) -> int:
    plan = checked_plan(Path(arguments.file), settings())
    strands = assign_strands(plan, _forking)
    if arguments.json:
        print(json.dumps(_as_json(plan, strands), indent=2, ensure_ascii=False))
    elif arguments.what == "graph":
        print(
            _mermaid(plan, strands) if arguments.format == "mermaid" else _tree_lines(plan, strands)
        )
    else:
        talks = len({strand.name for strand in strands.values()})
        print(f"{clean(plan.name)}: {len(plan.tasks)} task(s) in {talks} conversation(s), valid")
    return 0


def checked_plan(file: Path, chosen: Settings) -> Plan:
    """Return the plan in a file. The settings supply its defaults. Raises NotFound, UsageError,
    PlanError, and AgentMissing for an unknown agent."""
    from perdure.agents import registry
    from perdure.engine.plan_file import read_plan

    plan = read_plan(file, chosen)
    for agent in sorted({task.agent for task in plan.tasks}):
        registry.load(agent)
    return plan


def _forking(agent: str) -> Forking:
    from perdure.agents import registry
    from perdure.engine.plans.creation import forking

    return forking(registry.load(agent))


def _tree_lines(plan: Plan, strands: dict[str, Strand]) -> str:
    """Return one line per task, in order. A task that needs others is indented below them."""
    depth: dict[str, int] = {}
    lines = []
    for task in order(plan):
        depth[task.name] = max((depth[need] + 1 for need in task.needs), default=0)
        lines.append(
            (f"{'  ' * depth[task.name]}{task.name}", task.agent, joins(strands[task.name]))
        )
    first, second, _ = widths_of(lines)
    return "\n".join(f"{name:{first}}  {agent:{second}}  {how}" for name, agent, how in lines)


def _mermaid(plan: Plan, strands: dict[str, Strand]) -> str:
    lines = ["flowchart TD"]
    places = {}
    for index, task in enumerate(plan.tasks):
        places[task.name] = f"t{index}"
        lines.append(f'  t{index}["{task.name}<br/>{one_line(task.agent, SHOWN)}"]')
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


def _as_json(plan: Plan, strands: dict[str, Strand]) -> Mapping[str, object]:
    tasks = []
    for task in order(plan):
        strand = strands[task.name]
        tasks.append(
            {
                "name": task.name,
                "agent": task.agent,
                "needs": list(task.needs),
                "conversation": strand.name,
                "goes_on": strand.goes_on,
                "forks": strand.forks,
                "instead": strand.instead,
                "merges": list(strand.merges),
            }
        )
    return {"schema_version": 1, "name": plan.name, "jobs": plan.jobs, "tasks": tasks}


def _run(arguments: argparse.Namespace) -> int:
    """Run the verb `plan run FILE`. Return the exit code."""
    from perdure.engine import plans
    from perdure.engine.plan_file import seed_of

    chosen = settings()
    file = Path(arguments.file).absolute()
    plan, seed = checked_plan(file, chosen), seed_of(chosen, Path.cwd())

    return _followed(
        arguments,
        chosen,
        lambda engine, began: plans.run(engine, plan, seed, file, arguments.jobs, began),
    )


def _retry(arguments: argparse.Namespace) -> int:
    """Run the verb `plan retry NAME [TASK]`. Return the exit code."""
    from perdure.engine import plans
    from perdure.engine.plan_file import is_file, seed_of

    chosen = settings()
    file = Path(arguments.file).absolute()
    if is_file(arguments.file):
        changed = (checked_plan(file, chosen), seed_of(chosen, Path.cwd()), file)
    else:
        changed = None

    return _followed(
        arguments,
        chosen,
        lambda engine, began: plans.retry(
            engine, arguments.file, arguments.task or "", arguments.jobs, began, changed
        ),
    )


def _followed(
    arguments: argparse.Namespace,
    chosen: Settings,
    work: Callable[[Engine, Callable[[PlanRun], None]], PlanRun],
) -> int:
    from perdure.cli.compose import Stopper, open_engine
    from perdure.cli.runs.plan_view import PlanProgress
    from perdure.cli.runs.run import warn
    from perdure.engine import plans
    from perdure.engine.plans.status import task_statuses
    from perdure.engine.report import report_of
    from perdure.engine.service import probe_of
    from perdure.model.codec import printed

    progress = None if arguments.quiet else PlanProgress()
    with Stopper() as stopper:
        engine = stopper.attach(open_engine(chosen, observers=[progress] if progress else []))
        with progress or nullcontext():
            plan = work(engine, progress.introduce(engine) if progress else lambda plan: None)
        reports = []
        for status in task_statuses(engine.store, plan).values():
            if status.run is not None:
                reports.append(report_of(engine.store, status.run))
        report, code = (
            plans.report_of(engine.store, plan, probe_of(engine.state, engine.host)),
            plans.exit_code(engine.store, plan),
        )
    if arguments.json:
        print(printed(report))
    if progress:
        progress.conclude(report)
    for each in reports:
        warn(each)
    return code
