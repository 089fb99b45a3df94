"""`cost`: adds up the tokens and costs of runs by run, agent, repository, day or label."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import msgspec

from perdure.cli.arguments import seconds_of
from perdure.cli.compose import open_to_read, settings
from perdure.cli.runs.ls import table
from perdure.cli.text import dollars, one_line, tokens
from perdure.errors import UsageError
from perdure.model import Attempt, TaskRun, Usage
from perdure.model.codec import printed
from perdure.model.reports import Answer
from perdure.protocols import RunStore

MONTH_S = 30 * 86400.0
MOST = 100_000
"""Maximum number of runs that are read."""
GROUPINGS = ("run", "agent", "repo", "day")


class Consumption(msgspec.Struct):
    """The total tokens and costs of all attempts of one group. `key` names the group, such as a
    day."""

    key: str
    runs: int = 0
    attempts: int = 0
    input: int = 0
    output: int = 0
    cached: int = 0
    cost_usd: float = 0.0
    estimated: bool = False

    def add(self, used: Usage) -> None:
        self.attempts += 1
        self.input += used.input
        self.output += used.output
        self.cached += used.cached
        self.cost_usd = round(self.cost_usd + used.cost_usd, 6)
        self.estimated = self.estimated or used.estimated


class CostReport(Answer):
    """The report that `perdure cost` shows. `since`: time in ms since 1970 after which the counted
    attempts started; 0 for all."""

    by: str
    since: int
    rows: list[Consumption]
    total: Consumption


def cost_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="*", metavar="NAME", help="only these runs (default: all)")
    parser.add_argument(
        "--by",
        default="run",
        metavar="run|agent|repo|day|label:NAME",
        help="what to group by (default: run)",
    )
    parser.add_argument(
        "--since",
        type=seconds_of,
        default=MONTH_S,
        metavar="AGE",
        help=(
            "only attempts that started within this time, such as 24h or 7d (default: 30d; 0: all)"
        ),
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def cost_verb(arguments: argparse.Namespace) -> int:
    by = arguments.by
    if by not in GROUPINGS and not (by.startswith("label:") and len(by) > len("label:")):
        raise UsageError(
            f"--by: expected {', '.join(GROUPINGS)} or label:NAME, got {one_line(by, 60)!r}",
            "perdure cost --by label:team",
        )
    store = open_to_read(settings())
    if arguments.since:
        after = int((time.time() - arguments.since) * 1000)
    else:
        after = 0
    groups: dict[str, Consumption] = {}
    members: dict[str, set[str]] = {}
    total = Consumption(key="total")
    for run, attempt in _attempts(store, arguments.run, after):
        key = _key(run, attempt, by)
        members.setdefault(key, set()).add(run.id)
        for each in (groups.setdefault(key, Consumption(key=key)), total):
            each.add(attempt.usage)
    for key, group in groups.items():
        group.runs = len(members[key])
    total.runs = len(set().union(*members.values()))
    # Sort days by date, and all other groups by cost, the highest first.
    rows = sorted(
        groups.values(), key=lambda each: each.key if by == "day" else (-each.cost_usd, each.key)
    )
    if arguments.json:
        print(printed(CostReport(schema_version=1, by=by, since=after, rows=rows, total=total)))
        return 0
    head = (by.upper(), "RUNS", "ATTEMPTS", "IN", "OUT", "CACHED", "COST")
    table(head, list(map(_line, (*rows, total))) if rows else [])
    return 0


def _attempts(store: RunStore, names: list[str], after: int) -> Iterator[tuple[TaskRun, Attempt]]:
    """Yield the attempts that started after `after`, each with its run. `names` selects the runs;
    if it is empty, all runs are read."""
    if names:
        runs = (store.get(name) for name in names)
    else:
        rows = store.last_changed(limit=MOST)
        runs = (store.get(row.id) for row in rows if row.updated >= after)
    for run in runs:
        for attempt in store.attempts(run.id):
            if attempt.started >= after:
                yield run, attempt


def _key(run: TaskRun, attempt: Attempt, by: str) -> str:
    match by:
        case "run":
            return run.name
        case "agent":
            return run.spec.agent
        case "repo":
            return (run.workspace.repo if run.workspace is not None else "") or "-"
        case "day":
            return time.strftime("%Y-%m-%d", time.localtime(attempt.started / 1000))
        case _:
            return run.spec.labels.get(by.removeprefix("label:"), "-")


def _line(each: Consumption) -> tuple[str, ...]:
    return (
        one_line(each.key, 60),
        str(each.runs),
        str(each.attempts),
        tokens(each.input),
        tokens(each.output),
        tokens(each.cached),
        dollars(each.cost_usd, estimated=each.estimated),
    )
