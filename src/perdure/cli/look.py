"""`show`, `logs`, `why`: the verbs that only look at one run."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

from perdure.cli.compose import environment, open_to_read, settings, this_host
from perdure.cli.text import clean, clock, filled, one_line, tokens
from perdure.errors import NotFound

if TYPE_CHECKING:
    from perdure.protocols import Retention

FILES = 10
"""Names in a line."""
SAID = 12
"""Lines of a check's output."""


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
    if report["host"]:
        print(f"  host      {clean(report['host'])}")
    if place["branch"]:
        print(f"  branch    {clean(place['branch'])}")
    used = report["usage"]
    print(f"  used      {tokens(used['input'])} tokens in, {tokens(used['output'])} out, ${used['cost_usd']:.2f}")
    if report["fill"]:
        print(f"  fill      {filled(report['fill'])}")
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
        start = (
            "number",
            "continuation",
            "rung",
            "why",
            "prices",
            "session_id",
            "lost_session_id",
            "expired",
            "rebuilt_sessions",
            "fill",
            "sizes",
        )
        after = ("agent_version", "flags", "outcome", "receipt", "effects", "turn", "checkpoint", "checkpoints", "missed_checkpoints")
        keep = (*start, *after, "drift", "files", "checks")
        attempts = [{key: attempt[key] for key in keep} for attempt in report["attempts"]]
        waits = {key: report[key] for key in ("state", "reason", "run_after", "conditions")}
        print(json.dumps({"schema_version": 1, "name": report["name"], **waits, "attempts": attempts}, indent=2, ensure_ascii=False))
        return 0
    print(f"{report['name']}: {report['state']}; policy {report['policy']}, conversation of {clean(report['scope'])}")
    if report["state"] == "queued" and report["reason"]:
        print(f"\nwaits       until {clock(report['run_after'])}: {one_line(report['reason'], 300)}")
    for condition in report["conditions"]:
        print(f"\n{condition['type']:11} {one_line(condition['message'], 300)}")
    if there := _waits_for(report):
        print(f"\nhost        {there}")
    previous: dict[str, Any] | None = None
    for attempt in report["attempts"]:
        _explain(attempt, previous)
        previous = attempt
    if kept := _retention(report["agent"]):
        print(
            f"\nnote        {report['agent']} itself removes what is older than {kept.days:g} days; perdure's copy stays (perdure doctor)"
        )
    return 0


def _waits_for(report: dict[str, Any]) -> str:
    """Which host goes on with a run whose files are not here, in a shared database."""
    chosen = settings()
    here = this_host(chosen)
    if not here.id or report["host_id"] in ("", here.id):
        return ""
    there = clean(report["host"])
    if report["state"] != "queued":
        return f"its workdir and conversation lie on {there}"
    if here.patience_s is None:
        return f"it waits for {there}, where its workdir and conversation lie; no checkpoint_store is set here that would bring them"
    return (
        f"it waits for {there}, where its workdir and conversation lie; after {here.patience_s:g} s another host may bring the newest "
        f"checkpoint from {clean(chosen.checkpoint_store)}"
    )


def _retention(agent: str) -> Retention | None:
    """The agent's own clean-up, where it has one and can be asked."""
    from perdure import drivers
    from perdure.errors import PerdureError

    try:
        driver = drivers.load(agent)
        return driver.retention(driver.home(environment(settings())))
    except PerdureError:
        return None


def _explain(attempt: dict[str, Any], previous: dict[str, Any] | None) -> None:
    print(f"\nattempt {attempt['number']}  {clock(attempt['started'])}")
    if attempt["continuation"]:
        print(f"  start     {attempt['continuation']} {attempt['session_id']}: {clean(attempt['why'])}")
    if attempt["expired"]:
        print(f"  expired   {clock(attempt['expired'])}: the session had not been used for its whole lifetime; the ladder was run")
    if attempt["rebuilt_sessions"]:
        print(f"  rebuilt   lost records were made again: {', '.join(map(clean, attempt['rebuilt_sessions']))}")
    kept = f"; turn {attempt['turn']} of its process, which was kept warm" if attempt["turn"] > 1 else ""
    print(f"  program   {attempt['agent_version'] or 'version unknown'}; " + _flags(attempt["flags"]) + kept)
    if given := attempt["map"]:
        about = f"about {tokens(given['tokens'])} tokens, {given['files']} file(s), {given['left']} without room"
        print(f"  map       {one_line(given['missed'], 200) if given['missed'] else about}")
    for line in _files(attempt["files"]):
        print(f"  file      {line}")
    for change in (*(_drift(previous, attempt) if previous else ()), *map(_moved, attempt["drift"])):
        print(f"  drift     {one_line(change, 200)}")
    if attempt["outcome"]:
        outcome = attempt["outcome"]
        print(f"  outcome   {outcome['kind']}  {one_line(outcome['detail'], 200)}".rstrip())
    if attempt["fill"]:
        print(f"  fill      {filled(attempt['fill'])}")
    for size in attempt["sizes"]:
        print(f"  size      {_size(size)}")
    for line in _checks(attempt["checks"]):
        print(f"  check     {line}")
    for effect in attempt["effects"]:
        ended = {True: "done", False: "failed", None: "end not seen"}[effect["ok"]]
        print(f"  effect    {effect['kind']}: {one_line(effect['command'], 160)} ({ended})")
    for line in _saved(attempt):
        print(f"  saved     {line}")
    receipt = attempt["receipt"]
    if receipt is None:
        untouched = "none: the attempt ended before the conversation was touched"
        unseen = "none: nobody was there to look at the conversation"
        lost = attempt["outcome"] and attempt["outcome"]["kind"] == "lost" and attempt["continuation"]
        print(f"  receipt   {'not yet' if not attempt['outcome'] else unseen if lost else untouched}")
        return
    print(f"  receipt   {receipt['verdict']}")
    for reason in receipt["reasons"]:
        print(f"            - {one_line(reason, 200)}")


def _size(size: dict[str, Any]) -> str:
    """What happened to the conversation because of its size."""
    match size["event"]:
        case "compacted":
            whose = "as it was told" if size["asked"] else "by itself"
            return f"the agent compacted the conversation {whose}: {size['before']:,} tokens became {size['after']:,}"
        case "not_compacted":
            return f"the agent was told to compact the conversation and did not: it holds {size['tokens']:,} tokens"
        case "summarised" if size["text"]:
            return f"{size['session_id']} said what the next conversation has to know: {one_line(size['text'], 160)}"
        case "summarised":
            return f"{size['session_id']} gave no summary ({one_line(size['reason'], 120)}): perdure's own brief takes its place"
        case _:
            return f"{size['session_id']} gave way to a new conversation: {one_line(size['cause'], 160)}"


def _checks(checks: list[dict[str, Any]]) -> list[str]:
    """How the task's own check ended, and the most telling part of what it said."""
    lines = []
    for check in checks:
        how = "passed" if check["code"] == 0 else f"failed with exit code {check['code']}"
        which = f", round {check['round']} of {check['rounds']}" if 0 < check["round"] <= check["rounds"] else ""
        lines.append(f"{how}{which}, after {check['seconds']:g} s: {one_line(check['command'], 120)}")
        said = [line for line in clean(check["output"]).split("\n") if line.strip()] if check["code"] else []
        lines += [f"  | {one_line(line, 160)}" for line in said[:SAID]]
        if len(said) > SAID:
            lines.append(f"  | ... {len(said) - SAID} more line(s)")
        if check["code"]:
            lines.append(f"  all of it: {clean(check['log'])}")
    return lines


def _files(changes: list[dict[str, Any]]) -> list[str]:
    """What was done with each task file, those first that a person may want to look at."""
    plain = [change for change in changes if change["action"] in ("written", "same")]
    lines = []
    for change in [each for each in changes if each not in plain]:
        why = f" ({one_line(change['why'], 120)})" if change["why"] else ""
        copy = f"; the agent's version: {clean(change['backup'])}" if change["backup"] else ""
        lines.append(f"{change['action']}: {one_line(change['name'], 120)}, version {change['version']}{why}{copy}")
    names = ", ".join(one_line(change["name"], 60) for change in plain[:FILES])
    more = f" and {len(plain) - FILES} more" if len(plain) > FILES else ""
    return [*lines, f"as given: {names}{more}"] if plain else lines


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


def _moved(seen: dict[str, Any]) -> str:
    """What somebody else did to the workdir before the attempt."""
    files = f"{seen['count']} file(s) changed since checkpoint {seen['number']}: {', '.join(seen['paths'])}" if seen["count"] else ""
    head = f"HEAD moved from {seen['head_before'][:12]} to {seen['head_now'][:12]}" if seen["head_before"] != seen["head_now"] else ""
    return "; ".join(part for part in (files, head) if part)


def _saved(attempt: dict[str, Any]) -> list[str]:
    """The newest checkpoint of the attempt, and why one is missing."""
    kept = attempt["checkpoints"]
    lines = [f"no checkpoint could be taken: {one_line(reason, 160)}" for reason in attempt["missed_checkpoints"][-1:]]
    if kept:
        last = kept[-1]
        more = f" ({len(kept) - 1} more of this attempt)" if len(kept) > 1 else ""
        lines.append(f"checkpoint {last['number']}, {clock(last['at'])}: {last['changed']} changed, {last['untracked']} new{more}")
    return lines


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
