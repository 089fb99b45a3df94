"""`ls`, `show`, `logs`, `why`: the verbs that only look. `ls` imports nothing that it does not need."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from perdure.cli.compose import open_to_read, settings
from perdure.cli.text import age, clean, clock, columns, cut, one_line, tokens
from perdure.errors import NotFound
from perdure.model import RunState


def ls_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", action="append", default=[], choices=[str(state) for state in RunState], help="only these; repeatable")
    parser.add_argument("-n", "--limit", type=int, default=50)
    parser.add_argument("--json", action="store_true")


def ls_verb(arguments: argparse.Namespace) -> int:
    store = open_to_read(settings())
    rows = store.find([RunState(state) for state in arguments.state], arguments.limit)
    now = store.now()
    if arguments.json:
        keys = ("id", "name", "state", "agent", "attempt", "reason", "updated", "created", "place")
        print(json.dumps({"schema_version": 1, "runs": [{key: getattr(row, key) for key in keys} for row in rows]}, indent=2))
        return 0
    if not rows and sys.stdout.isatty():
        print('no runs yet; begin with: perdure run "what the agent is to do"')
    lines = [(row.name, str(row.state), row.agent, str(row.attempt), age(row.updated, now), one_line(row.reason, 200)) for row in rows]
    _table(("NAME", "STATE", "AGENT", "TRY", "AGE", "REASON"), lines)
    return 0


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Whole into a pipe; on a terminal no line is wider than it."""
    if not rows:
        return
    room = columns(sys.stdout)
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    if room:
        # A long name gives way before all that stands after it is lost.
        widths[0] = max(len(head[0]), min(widths[0], room - sum(width + 2 for width in widths[1:-1]) - len(head[-1]) - 2))
    for row in (head, *rows):
        cells = (cut(row[0], widths[0]) if room else row[0], *row[1:])
        print(cut("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip(), room))


def show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the run's name, id or key")
    parser.add_argument("--json", action="store_true")


def _report(ref: str) -> dict[str, Any]:
    from perdure.report import report_of

    store = open_to_read(settings())
    return report_of(store, store.get(ref))


def show_verb(arguments: argparse.Namespace) -> int:
    report = _report(arguments.name)
    if arguments.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
        return 0
    place = report["workspace"]
    print(f"{report['name']}  {report['state']}  ({report['agent']}, {report['id'][:8]})")
    if report["reason"]:
        print(f"  {one_line(report['reason'], 160)}")
    print(f"  workdir   {clean(place['path'])} ({place['backend']})")
    if place["branch"]:
        print(f"  branch    {clean(place['branch'])}")
    used = report["usage"]
    print(f"  used      {tokens(used['input'])} tokens in, {tokens(used['output'])} out, ${used['cost_usd']:.2f}")
    for condition in report["conditions"]:
        print(f"  {condition['type']}: {one_line(condition['message'], 160)}")
    for attempt in report["attempts"]:
        print(f"  attempt {attempt['number']}  {_attempt_line(attempt)}")
    return 0


def _attempt_line(attempt: dict[str, Any]) -> str:
    outcome, receipt = attempt["outcome"], attempt["receipt"]
    ended = "running" if outcome is None else f"{outcome['kind']}" + (f" ({one_line(outcome['detail'], 70)})" if outcome["detail"] else "")
    proof = f"  receipt {receipt['verdict']}" if receipt else ""
    return f"{attempt['continuation'] or 'not started'}  {ended}{proof}"


def why_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the run's name, id or key")
    parser.add_argument("--json", action="store_true")


def why_verb(arguments: argparse.Namespace) -> int:
    report = _report(arguments.name)
    if arguments.json:
        start = ("number", "continuation", "rung", "why", "session_id", "lost_session_id", "agent_version", "flags")
        keep = (*start, "outcome", "receipt", "effects")
        attempts = [{key: attempt[key] for key in keep} for attempt in report["attempts"]]
        print(json.dumps({"schema_version": 1, "name": report["name"], "attempts": attempts}, indent=2, ensure_ascii=False))
        return 0
    print(f"{report['name']}: {report['state']}; policy {report['policy']}, conversation of {clean(report['scope'])}")
    previous: dict[str, Any] | None = None
    for attempt in report["attempts"]:
        _explain(attempt, previous)
        previous = attempt
    return 0


def _explain(attempt: dict[str, Any], previous: dict[str, Any] | None) -> None:
    print(f"\nattempt {attempt['number']}  {clock(attempt['started'])}")
    if attempt["continuation"]:
        print(f"  start     {attempt['continuation']} {attempt['session_id']}: {clean(attempt['why'])}")
    print(f"  program   {attempt['agent_version'] or 'version unknown'}; " + _flags(attempt["flags"]))
    for change in _drift(previous, attempt) if previous else ():
        print(f"  drift     {clean(change)}")
    if attempt["outcome"]:
        outcome = attempt["outcome"]
        print(f"  outcome   {outcome['kind']}  {one_line(outcome['detail'], 200)}".rstrip())
    for effect in attempt["effects"]:
        ended = {True: "done", False: "failed", None: "end not seen"}[effect["ok"]]
        print(f"  effect    {effect['kind']}: {one_line(effect['command'], 160)} ({ended})")
    receipt = attempt["receipt"]
    if receipt is None:
        print("  receipt   none: the attempt ended before the conversation was touched" if attempt["outcome"] else "  receipt   not yet")
        return
    print(f"  receipt   {receipt['verdict']}")
    for reason in receipt["reasons"]:
        print(f"            - {one_line(reason, 200)}")


def _drift(previous: dict[str, Any], attempt: dict[str, Any]) -> list[str]:
    """What is no part of a conversation and has changed since the attempt before: the CLI's version, account, flags."""
    changes = []
    if previous["agent_version"] and attempt["agent_version"] not in ("", previous["agent_version"]):
        changes.append(f"the agent was version {previous['agent_version']} before")
    for name, value in attempt["flags"].items():
        before = previous["flags"].get(name, value)
        if before != value:
            changes.append(f"the {name} was {before or 'the default'} before")
    return changes


def _flags(flags: dict[str, str]) -> str:
    return ", ".join(f"{name} {clean(value)}" for name, value in flags.items() if value)


def logs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the run's name, id or key")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the run is over")
    parser.add_argument("--attempt", type=int, default=0, help="only this attempt")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON record a line")
    form.add_argument("--raw", action="store_true", help="the agent's own output as it was; cleaned only on a terminal")


def logs_verb(arguments: argparse.Namespace) -> int:
    from perdure.cli.progress import line_of
    from perdure.codec import encode
    from perdure.lifecycle import FINAL

    store = open_to_read(settings())
    run = store.get(arguments.name)
    if arguments.attempt and not any(attempt.number == arguments.attempt for attempt in store.attempts(run.id)):
        raise NotFound(f"{run.name} has no attempt {arguments.attempt}", f"perdure show {run.name}")
    if arguments.raw:
        from perdure.cli.rawlog import raw_log

        raw_log(store, run.id, arguments.attempt, arguments.follow)
        return 0
    seen = 0
    while True:
        state = store.get(run.id).state
        records = store.history(run.id, after=seen, limit=1000)
        for record in records:
            seen = record.seq
            if arguments.attempt and record.attempt != arguments.attempt:
                continue
            text = encode(record) if arguments.json else line_of(record)
            if text:
                print(text, flush=True)
        if not records and (not arguments.follow or state in FINAL):
            return 0
        if not records:
            time.sleep(0.2)
