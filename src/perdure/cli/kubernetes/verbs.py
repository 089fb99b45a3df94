"""`perdure --cluster`, also known as `kubectl perdure`: shows and changes the TaskRuns of a
Kubernetes cluster, with the permissions of a kubeconfig.

`-n`, `--context` and `--kubeconfig` may be before or after the verb, as with kubectl.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from perdure.cli.parser import Parser, limit_of
from perdure.cli.text import age, clean, clock, one_line, tokens
from perdure.kubernetes.view import (
    OVER,
    STATES,
    AttemptOfTaskRun,
    ConditionOfTaskRun,
    TaskRunOfList,
    TaskRunReport,
    WorkspaceOfTaskRun,
    report_of,
    row_of,
    why_of,
)

if TYPE_CHECKING:
    from perdure.kubernetes.taskruns import TaskRuns

VERBS: dict[str, tuple[str, str]] = {
    "run": (
        "kubernetes.requests",
        "create a TaskRun: an agent, instructions, a workdir",
    ),
    "retry": (
        "kubernetes.requests",
        "start one more attempt of a TaskRun, with the same instructions",
    ),
    "update": ("kubernetes.requests", "give a TaskRun new instructions, in the same conversation"),
    "fork": (
        "kubernetes.requests",
        "create a TaskRun with a copy of another one's conversation and files",
    ),
    "stop": (
        "kubernetes.requests",
        "stop the running attempt and start no other; resume continues",
    ),
    "resume": ("kubernetes.requests", "continue a TaskRun that was stopped"),
    "requests": ("kubernetes.answers", "show what agents ask of you"),
    "approve": ("kubernetes.answers", "allow the call that an agent waits for, once"),
    "deny": ("kubernetes.answers", "refuse the call that an agent waits for"),
    "answer": ("kubernetes.answers", "answer an agent's question"),
    "ls": ("kubernetes.verbs", "list TaskRuns"),
    "show": ("kubernetes.verbs", "show one TaskRun, its attempts and receipts"),
    "logs": ("kubernetes.inspection", "show the logs of the attempts' pods; -f follows"),
    "attach": ("kubernetes.inspection", "follow the running attempt to the TaskRun's end"),
    "sessions": ("kubernetes.inspection", "list the conversations on a TaskRun's claim"),
    "diff": ("kubernetes.inspection", "show what a TaskRun has changed in its workdir"),
    "cp": ("kubernetes.inspection", "copy a file or directory out of a TaskRun's workdir"),
    "debug": (
        "kubernetes.inspection",
        "create a pod that mounts a TaskRun's claim, to inspect its conversations and files",
    ),
    "why": (
        "kubernetes.verbs",
        "show how each attempt ended, its receipt, and what the TaskRun waits for",
    ),
}


def main(words: Sequence[str], prog: str = "perdure --cluster") -> int:
    """Run one verb. Return the exit code. Raises PerdureError."""
    from perdure.errors import UsageError
    from perdure.kubernetes.taskruns import TaskRuns

    where, rest = _where().parse_known_args(list(words))
    if not rest or rest[0] in ("-h", "--help", "help"):
        print(usage(prog))
        if rest:
            return 0
        return 2
    if rest[0] not in VERBS:
        raise UsageError(f"there is no verb {rest[0]!r} for a cluster", f"{prog} --help")
    arguments = parser_of(rest[0], prog).parse_intermixed_args(rest[1:])
    with closing(TaskRuns(where.kubeconfig, where.context, where.namespace)) as taskruns:
        code: int = _part(rest[0], "verb")(taskruns, arguments)
    return code


def parser_of(verb: str, prog: str = "perdure --cluster") -> argparse.ArgumentParser:
    """Return the parser of a verb. Its help includes the flags that choose the cluster."""
    parser = Parser(
        prog=f"{prog} {verb}", description=VERBS[verb][1], allow_abbrev=False, parents=[_where()]
    )
    _part(verb, "arguments")(parser)
    return parser


def _where() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    where = parser.add_argument_group("cluster")
    where.add_argument(
        "-n", "--namespace", default="", metavar="NS", help="the namespace (default: the context's)"
    )
    where.add_argument(
        "--context",
        default="",
        metavar="NAME",
        help="the kubeconfig's context (default: its current one)",
    )
    where.add_argument(
        "--kubeconfig",
        default="",
        metavar="FILE",
        help="the kubeconfig (default: KUBECONFIG or ~/.kube/config; in a pod, its account)",
    )
    return parser


def _part(verb: str, what: str) -> Any:
    from importlib import import_module

    return getattr(import_module(f"perdure.cli.{VERBS[verb][0]}"), f"{verb}_{what}")


def usage(prog: str) -> str:
    lines = [f"usage: {prog} [-n NAMESPACE] [--context NAME] [--kubeconfig FILE] VERB ...", ""]
    for verb, (_, text) in VERBS.items():
        lines.append(f"  {verb:8} {text}")
    return "\n".join([*lines, "", f"more:  {prog} VERB --help"])


def printed(found: Any) -> None:
    """Print a report, or an object that contains reports, as JSON."""
    from perdure.model import codec

    print(codec.printed(found))


# --- ls ---


def ls_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-A", "--all-namespaces", action="store_true", help="TaskRuns of all namespaces"
    )
    parser.add_argument(
        "--phase",
        action="append",
        default=[],
        choices=list(STATES),
        help="only TaskRuns in this phase; repeatable",
    )
    parser.add_argument(
        "--limit", type=limit_of, default=50, help="maximum number of TaskRuns (default: 50)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def ls_verb(taskruns: TaskRuns, arguments: argparse.Namespace) -> int:
    from perdure.cli.runs.ls import table

    rows = list(map(row_of, taskruns.list(everywhere=arguments.all_namespaces)))
    if arguments.phase:
        rows = [row for row in rows if row.phase in arguments.phase]
    rows.sort(key=lambda row: -row.created)
    rows = rows[: arguments.limit]
    if arguments.json:
        printed({"schema_version": 1, "runs": rows})
        return 0
    if not rows and sys.stdout.isatty():
        if arguments.all_namespaces:
            where = "any namespace"
        else:
            where = taskruns.namespace
        print(f"no TaskRuns in {where}; start with: kubectl perdure run ...")
    now = time.time_ns() // 1_000_000
    head: tuple[str, ...] = ("NAME", "TASK", "AGENT", "PHASE", "TRY", "RECEIPT", "AGE", "REASON")
    if arguments.all_namespaces:
        head = ("NAMESPACE", *head)
    lines = []
    for row in rows:
        cells = _line(row, now)
        if arguments.all_namespaces:
            cells = (one_line(row.namespace, 63), *cells)
        lines.append(cells)
    table(head, lines)
    return 0


def _line(row: TaskRunOfList, now: int) -> tuple[str, ...]:
    reason = one_line(row.reason, 200)
    if row.run_after > now and row.phase not in OVER:
        reason = f"until {clock(row.run_after)}: {reason}"
    return (
        one_line(row.name, 63),
        one_line("/".join(filter(None, (row.service, row.task))), 60),
        one_line(row.agent, 63),
        one_line(row.phase, 20),
        str(row.attempt),
        one_line(row.receipt, 20),
        age(row.created, now),
        reason,
    )


# --- show, why ---


def show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the TaskRun's name")
    parser.add_argument("--json", action="store_true", help="print JSON")


def show_verb(taskruns: TaskRuns, arguments: argparse.Namespace) -> int:
    report = report_of(taskruns.get(arguments.name))
    if arguments.json:
        printed(report)
        return 0
    place, used = report.workspace, report.usage
    print(
        f"{report.name}  {one_line(report.phase, 20)}  ({one_line(report.agent, 63)}, "
        f"{report.uid[:8]})"
    )
    if report.reason:
        print(f"  {one_line(report.reason, 300)}")
    if report.service:
        print(f"  task      {one_line('/'.join(filter(None, (report.service, report.task))), 130)}")
    print(f"  versions  {report.context_version} wanted, {report.recorded_version} recorded")
    print(f"  attempts  {report.attempt} of {report.attempts_allowed}")
    if report.session_id:
        print(f"  session   {one_line(report.session_id, 200)}")
    saved = "" if place.saved else ", not all of it saved elsewhere"
    print(f"  state     {_storage_text(place)}{saved}")
    if place.branch:
        print(f"  branch    {one_line(place.branch, 250)} {clean(place.commit)[:12]}".rstrip())
    print(
        f"  used      {tokens(used.input)} tokens in, {tokens(used.output)} out, "
        f"${used.cost_usd:.2f}"
    )
    for each in _true(report):
        print(
            f"  {one_line(each.type, 40)}: {one_line(each.message, 300)} "
            f"({one_line(each.reason, 60)})"
        )
    for attempt in report.attempts:
        print(f"  attempt {attempt.number}  {_attempt_line(attempt)}")
    return 0


def _storage_text(place: WorkspaceOfTaskRun) -> str:
    kept = f"the claim {place.claim}" if place.claim else ""
    if place.checkpoints:
        store = f"the checkpoint store {place.checkpoints}"
    else:
        store = ""
    return one_line(" and ".join(filter(None, (kept, store))) or f"mode {place.mode}", 300)


FROM_PHASE = ("Complete", "Failed", "Reconciling", "Stalled")
"""Types of conditions that are not shown, because they only repeat the phase."""


def _true(report: TaskRunReport) -> list[ConditionOfTaskRun]:
    found = []
    for each in report.conditions:
        if each.status == "True" and each.type not in FROM_PHASE:
            found.append(each)
    return found


def _attempt_line(attempt: AttemptOfTaskRun) -> str:
    ended = one_line(attempt.outcome, 40) or "running"
    if attempt.detail:
        why = f" ({one_line(attempt.detail, 100)})"
    else:
        why = ""
    if attempt.node:
        node = f" on {one_line(attempt.node, 60)}"
    else:
        node = ""
    if attempt.verdict:
        proof = f"  receipt {one_line(attempt.verdict, 20)}"
    else:
        proof = ""
    if attempt.work.verdict:
        proof += f"  work {one_line(attempt.work.verdict, 20)}"
    counts = "  (not counted)" if attempt.infrastructure else ""
    return f"{ended}{why}{node}{proof}{counts}"


def why_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the TaskRun's name")
    parser.add_argument("--json", action="store_true", help="print JSON")


def why_verb(taskruns: TaskRuns, arguments: argparse.Namespace) -> int:
    report = report_of(taskruns.get(arguments.name))
    if arguments.json:
        printed(why_of(report))
        return 0
    print(f"{report.name}: {one_line(report.phase, 20)}; policy {one_line(report.policy, 20)}")
    if report.reason:
        if report.run_after and report.phase not in OVER:
            until = f"until {clock(report.run_after)}: "
        else:
            until = ""
        print(f"\nreason      {until}{one_line(report.reason, 1000)}")
    for each in _true(report):
        print(
            f"\n{one_line(each.type, 40):11} {one_line(each.reason, 60)}, since {clock(each.since)}"
        )
        print(f"            {one_line(each.message, 1000)}")
    for attempt in report.attempts:
        print(f"\nattempt {attempt.number}  {clock(attempt.started)}")
        for label, text in _explained(attempt):
            print(f"  {label:9} {one_line(text, 300)}")
    return 0


def _explained(attempt: AttemptOfTaskRun) -> list[tuple[str, str]]:
    where = " on ".join(filter(None, (attempt.pod, attempt.node)))
    if attempt.outcome:
        detail = f": {attempt.detail}" if attempt.detail else ""
        outcome = f"{attempt.outcome}{detail}"
    else:
        outcome = "running"
    lines = [
        ("version", str(attempt.context_version)),
        ("pod", where or "none yet"),
        ("outcome", outcome),
    ]
    if attempt.infrastructure:
        lines.append(("counts", "no: its end was not caused by the task"))
    if attempt.session_id:
        lines.append(("session", attempt.session_id))
    if attempt.verdict:
        rung = f" (by {attempt.rung})" if attempt.rung else ""
        lines.append(("receipt", f"{attempt.verdict}{rung}"))
    lines += [("", f"- {reason}") for reason in attempt.reasons]
    work = attempt.work
    if work.verdict:
        why = f": {work.reason}" if work.reason else ""
        lines.append(("work", f"{work.verdict}{why}"))
        pushed = {True: ", pushed", False: ", no push known", None: ""}[work.pushed]
        lines.append(("changes", f"{work.files} file(s), {work.commits} commit(s){pushed}"))
    if work.question:
        lines.append(("asks", work.question))
    return lines
