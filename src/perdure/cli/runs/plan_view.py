"""Shows plans, for the verb `plan`.

`PlanProgress` shows the progress of a running plan on standard error. On a terminal this is a table
with one line per task. Otherwise a line is printed whenever a task's state changes. `show` and `ls`
print the state of plans. They are read-only, and need only a plan's name, not its file.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from perdure.cli.compose import open_to_read, settings, this_host
from perdure.cli.runs.progress import apply_commands
from perdure.cli.text import (
    age,
    at_home,
    clean,
    columns,
    consumption,
    cut,
    dollars,
    one_line,
    widths_of,
)
from perdure.model import Usage
from perdure.model.events import (
    AttemptEnded,
    AttemptStarted,
    Record,
    RunFinished,
    RunQueued,
    UsageCounted,
)

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from perdure.engine.attempt import Engine
    from perdure.model.reports import PlanReport, TaskOfPlan
    from perdure.rules.plan import PlanRun

REFRESHES_S = 4
TOLD = (AttemptStarted, AttemptEnded, RunQueued, RunFinished)


class PlanProgress:
    """Shows a plan's progress to a person. Tasks run in threads, and several of them may call this
    object at the same time. No method raises an error if the terminal is lost."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._engine: Engine | None = None
        self._plan: PlanRun | None = None
        self._names: dict[str, str] = {}
        self._usage: dict[str, Usage] = {}
        self._lock = threading.Lock()
        self._report: PlanReport | None = None
        self._read = 0.0

    def __enter__(self) -> PlanProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            # This makes `_table` read the plan again, so that the final table is current.
            self._read = 0.0
            self._live.__exit__(None, None, None)
            self._live = None

    def introduce(self, engine: Engine) -> Callable[[PlanRun], None]:
        """Return a function that prints the first lines about a plan. Call it with the plan as soon
        as this process has the plan's lease."""

        def began(plan: PlanRun) -> None:
            self._engine, self._plan = engine, plan
            self._say(f"{plan.name}: {len(plan.plan.tasks)} task(s) in {clean(plan.seed.repo)}")
            if sys.stderr.isatty():
                from rich.console import Console
                from rich.live import Live

                self._live = Live(
                    console=Console(stderr=True),
                    refresh_per_second=REFRESHES_S,
                    transient=False,
                    get_renderable=self._table,
                )
                self._live.__enter__()

        return began

    def __call__(self, record: Record) -> None:
        if isinstance(record.event, UsageCounted):
            self._usage[record.run] = record.event.usage
        if self._live is None and isinstance(record.event, TOLD) and (text := self._line(record)):
            self._say(text)

    def conclude(self, report: PlanReport) -> None:
        """Print the last lines: where the result is, or what to do next."""
        name, result = report.name, report.result
        used = report.usage
        total = consumption(used)
        done = sum(task.state == "succeeded" for task in report.tasks)
        self._say(f"{name}: {report.state}, {done} of {len(report.tasks)} task(s) done; {total}")
        if report.reason:
            self._say(one_line(report.reason, 240))
        if report.state == "succeeded":
            home = apply_commands(result.run, result, result.commit)
            self._say(f"the result is in {clean(result.path)}; apply it: {home}")
        elif report.state == "failed":
            self._say(f"next: perdure plan show {name}, perdure plan retry {name}")
        else:
            self._say(f"perdure plan run {clean(report.file)} continues")

    def _line(self, record: Record) -> str:
        task = self._task(record.run)
        match record.event:
            case AttemptStarted(continuation=asked):
                return (
                    f"{task}: attempt {record.attempt}, {asked.kind} "
                    f"({one_line(asked.reason, 120)})"
                )
            case AttemptEnded(outcome=outcome, receipt=receipt):
                proof = f"; receipt {receipt.verdict}" if receipt else ""
                used = self._usage.get(record.run)
                if used is not None and used.cost_usd:
                    cost = f"; {dollars(used.cost_usd, estimated=used.estimated)}"
                else:
                    cost = ""
                if outcome.detail:
                    detail = f" ({one_line(outcome.detail, 160)})"
                else:
                    detail = ""
                return f"{task}: attempt {record.attempt} {outcome.kind}{detail}{proof}{cost}"
            case RunFinished(state=state, reason=reason):
                why = f": {one_line(reason, 160)}" if reason else ""
                return f"{task}: {state}{why}"
            case RunQueued(reason=reason):
                return f"{task}: retry: {one_line(reason, 160)}"
            case _:
                return ""

    def _task(self, run_id: str) -> str:
        """Return the name of a run's task in the plan, or the run's own name if it belongs to no
        plan."""
        with self._lock:
            if run_id not in self._names and self._engine is not None:
                run = self._engine.store.get(run_id)
                self._names[run_id] = run.spec.labels.get("task") or run.name
            return self._names.get(run_id, run_id[:8])

    def _table(self) -> Table:
        from rich.table import Table

        from perdure.engine.plans import report_of

        if (
            self._engine is not None
            and self._plan is not None
            and time.monotonic() - self._read >= 1.0
        ):
            self._report, self._read = report_of(self._engine.store, self._plan), time.monotonic()
        table = Table(box=None, pad_edge=False)
        for column in ("task", "state", "attempt", "receipt", "time", "cost", ""):
            table.add_column(column, no_wrap=True, overflow="ellipsis")
        for task in self._report.tasks if self._report is not None else ():
            table.add_row(*cells(task, int(time.time() * 1000)))
        return table

    def _say(self, text: str) -> None:
        try:
            if self._live is not None:
                self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                print(text, file=sys.stderr, flush=True)
        except OSError:
            self._live = None


def cells(task: TaskOfPlan, now_ms: int) -> list[str]:
    """Return the cells of a task's row: name, state, attempts, verdict, time, cost, remark."""
    if task.started:
        took = ((task.ended or now_ms) - task.started) // 1000
    else:
        took = None
    used = task.usage
    if task.state not in ("succeeded", "running"):
        more = task.reason
    else:
        more = ""
    if task.conflicts:
        more = f"{len(task.conflicts)} conflict(s) {more}"
    state = task.state
    if task.liveness in ("interrupted", "unattended"):
        state = task.liveness
    return [
        task.name,
        state,
        str(task.attempts or ""),
        task.verdict or "",
        f"{took // 60}:{took % 60:02}" if took is not None else "",
        dollars(used.cost_usd, estimated=used.estimated) if used.cost_usd else "",
        one_line(more, 60),
    ]


HEADINGS = ["TASK", "STATE", "ATTEMPTS", "RECEIPT", "TIME", "COST", ""]


def show(arguments: argparse.Namespace) -> int:
    """Run the verb `plan show NAME|FILE`. Return the exit code."""
    from perdure.engine.plan_file import name_of
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
    now = int(time.time() * 1000)
    _table([HEADINGS, *(cells(task, now) for task in report.tasks)])
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
    rows = []
    for plan in found:
        done = f"{plan.done}/{plan.tasks}"
        changed = age(int(str(plan.updated)), now)
        rows.append([str(plan.name), str(plan.state), done, changed, at_home(str(plan.file))])
    if rows:
        _table([["PLAN", "STATE", "DONE", "AGE", "FILE"], *rows])
    elif sys.stdout.isatty():
        print("no plans yet; start with: perdure plan run FILE")
    return 0


def _table(rows: list[list[str]]) -> None:
    widths = widths_of(rows)
    for row in rows:
        cells = map(str.ljust, map(clean, row), widths)
        print(cut("  ".join(cells).rstrip(), columns(sys.stdout)))


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
