"""`plan show` and `plan ls`: show the state of plans. They are read-only. A plan's name is enough;
its file is not needed."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from perdure.cli.compose import open_to_read, settings, this_host
from perdure.cli.runs.plan_progress import cells
from perdure.cli.text import age, at_home, clean, columns, consumption, cut, one_line

if TYPE_CHECKING:
    from perdure.model.reports import TaskOfPlan

HEADINGS = ["TASK", "STATE", "ATTEMPTS", "RECEIPT", "TIME", "COST", ""]


def show(arguments: argparse.Namespace) -> int:
    """Run the verb `plan show NAME|FILE`. Return the exit code."""
    from perdure.engine.plans.reader import name_of
    from perdure.engine.plans.report import report_of
    from perdure.host.process import Probe
    from perdure.model.codec import printed

    chosen = settings()
    store = open_to_read(chosen)
    probe = Probe(chosen.state, this_host(chosen))
    report = report_of(store, store.plan(name_of(arguments.file, chosen)), probe)
    if arguments.json:
        print(printed(report))
        return 0
    used, result = report.usage, report.result
    print(f"{report.name}  {report.state}  ({report.id[:8]}, {at_home(report.file)})")
    if report.reason:
        print(f"  {one_line(report.reason, 200)}")
    print(f"  repository  {at_home(report.repo)} from {clean(report.base[:12])}")
    print(f"  used        {consumption(used)}")
    if report.budget_usd:
        print(f"  budget      ${report.budget_usd:.2f}, ${report.spent_usd:.2f} spent")
    if report.verify:
        print(
            f"  verify      {one_line(report.verify, 80)}" + (": passed" if report.verified else "")
        )
    if result.path:
        print(f"  result      {at_home(result.path)} ({clean(result.branch)})")
    print()
    _table([HEADINGS, *(cells(task, int(time.time() * 1000)) for task in report.tasks)])
    print()
    for task in report.tasks:
        _explain(task)
    return 0


def ls(arguments: argparse.Namespace) -> int:
    """Run the verb `plan ls`. Return the exit code."""
    from perdure.engine.plans.report import row_of
    from perdure.model.codec import printed

    chosen = settings()
    store, host = open_to_read(chosen), this_host(chosen)
    found = [row_of(store, plan, host) for plan in store.plans(1000)]
    if arguments.json:
        print(printed({"schema_version": 1, "plans": found}))
        return 0
    now = int(time.time() * 1000)
    rows = [
        [
            str(p.name),
            str(p.state),
            f"{p.done}/{p.tasks}",
            age(int(str(p.updated)), now),
            at_home(str(p.file)),
        ]
        for p in found
    ]
    if rows:
        _table([["PLAN", "STATE", "DONE", "AGE", "FILE"], *rows])
    elif sys.stdout.isatty():
        print("no plans yet; start with: perdure plan run FILE")
    return 0


def _table(rows: list[list[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        line = "  ".join(
            f"{clean(cell):{width}}" for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        print(cut(line, columns(sys.stdout)))


def _explain(task: TaskOfPlan) -> None:
    """Print the details of a task that do not fit into its line."""
    print(f"{task.name}: {task.agent}, {task.how}")
    if task.run:
        commit = f" at {task.commit[:12]}" if task.commit else ""
        print(f"  run           {task.run} ({clean(task.branch)}{commit})")
    if task.session_id:
        print(f"  conversation  {clean(task.session_id)}")
    used = task.usage
    if task.attempts:
        print(f"  used          {consumption(used)}")
    if task.files:
        print(f"  files         {one_line(', '.join(task.files), 160)}")
    if task.changed:
        print(f"  changed       {one_line(', '.join(task.changed), 160)}")
    for conflict in task.conflicts:
        print(f"  conflict      {one_line(conflict.file, 80)}: {conflict.reason}")
    if task.reason and task.state != "succeeded":
        print(f"  {one_line(task.reason, 200)}")
