"""`sessions`: lists, shows, checks and repairs conversations, including those that were started
without perdure. It also shows perdure's own records of them, and statistics.

Only `create`, `extend`, `close`, `repair --write` and `rebuild` change anything.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.cli.compose import conversation_index, open_to_read, settings
from perdure.cli.parser import limit_of
from perdure.cli.text import (
    age,
    at_home,
    clean,
    clock,
    columns,
    cut,
    dollars,
    one_line,
    say,
    widths_of,
)
from perdure.rules.run_titles import worker_of

if TYPE_CHECKING:
    from perdure.engine.conversations import ConversationEntry, ConversationIndex

LEAST = 8
WHATS = ["ls", "show", "check", "repair", "stats", "rebuild", "create", "extend", "close"]


def _what(word: str) -> str:
    """Return the action that the argument names. The old name `mend` is converted to `repair`."""
    if word == "mend":
        return "repair"
    return word


def sessions_arguments(parser: argparse.ArgumentParser) -> None:
    whats = (
        "ls (default): list; show ID: print one; check [ID ...]: find damage (default: in all); "
        "repair ID: show what a repair would change, or make it with --write; stats: how often "
        "conversations continued; rebuild: recreate lost records; create SCOPE: make a record "
        "for later runs of this scope; extend SCOPE: start its lifetime again; close SCOPE: let "
        "its next run start a new conversation"
    )
    parser.add_argument("what", nargs="?", type=_what, choices=WHATS, default="ls", help=whats)
    parser.add_argument(
        "id",
        nargs="*",
        metavar="ID",
        help=(
            "the id of a conversation or its first characters, or the name of its run; for "
            "create, extend and close: a scope"
        ),
    )
    parser.add_argument(
        "-a",
        "--all",
        action="store_true",
        help="conversations of all directories, not only of the current one",
    )
    parser.add_argument(
        "--agent", action="append", default=[], help="only conversations of this agent; repeatable"
    )
    parser.add_argument(
        "-n",
        "--limit",
        type=limit_of,
        default=50,
        help="maximum number of conversations (default: 50)",
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help="for repair: test the repaired copy and put it in place; the original is moved aside",
    )
    parser.add_argument(
        "--lifetime",
        default="",
        metavar="DURATION",
        help="for create and extend: lifetime such as 2h or 7d; 0: never expires",
    )
    parser.add_argument("--cause", default="", help="for close: the reason")
    parser.add_argument("--scope", default="", help="for stats: only attempts of this scope")
    parser.add_argument(
        "--since",
        default="",
        metavar="DURATION",
        help="for stats: only attempts that ended within this time, such as 24h or 7d",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def sessions_verb(arguments: argparse.Namespace) -> int:
    if arguments.what == "stats":
        from perdure.cli.data.records import stats

        return stats(arguments.agent, arguments.scope, arguments.since, as_json=arguments.json)
    if arguments.what == "rebuild":
        from perdure.cli.data.records import rebuild

        return rebuild(as_json=arguments.json)
    chosen = settings()
    if arguments.what in ("create", "extend", "close"):
        from perdure.cli.data.records import change

        return change(chosen, arguments, _one(arguments.id))
    store = open_to_read(chosen)
    index = conversation_index(store, arguments.agent)
    if arguments.what == "show":
        return _show(index, index.find(_one(arguments.id)), arguments.json)
    if arguments.what == "repair":
        from perdure.cli.data.repair import repair

        return repair(
            chosen, index, _one(arguments.id), write=arguments.write, as_json=arguments.json
        )
    below = None if arguments.all else project(Path.cwd())
    if arguments.what == "check":
        from perdure.cli.data.repair import check

        return check(index, arguments.id, arguments.limit, below, as_json=arguments.json)
    entries = index.entries(arguments.limit, below)
    print_entries(entries, store.now(), as_json=arguments.json)
    if not entries and sys.stdout.isatty() and not arguments.json:
        say("no conversations here; perdure sessions --all shows those of all directories")
    return 0


def _one(ids: Sequence[str]) -> str:
    from perdure.errors import UsageError

    if len(ids) != 1:
        raise UsageError(
            "missing the id of a conversation"
            if not ids
            else "expected one conversation, not several",
            "perdure sessions",
        )
    return ids[0]


def project(cwd: Path) -> Path:
    """Return the top directory of the repository that contains `cwd`, or `cwd` itself."""
    for place in (cwd, *cwd.parents):
        if os.path.lexists(place / ".git"):
            return place
    return cwd


def print_entries(entries: Sequence[ConversationEntry], now: int, *, as_json: bool) -> None:
    """Print the conversations as JSON or as a table. On a terminal the table is cut to the
    terminal's width."""
    if as_json:
        from perdure.model.codec import printed
        from perdure.model.session_reports import SessionList

        print(printed(SessionList(schema_version=1, sessions=[each.report() for each in entries])))
        return
    if not entries:
        return
    names = short_ids([entry.id for entry in entries])
    head = ("ID", "AGENT", "AGE", "TURNS", "STATE", "RUN", "DIRECTORY", "ABOUT")
    rows = [_row(entry, names[entry.id], now) for entry in entries]
    room = columns(sys.stdout)
    widths = widths_of([head, *rows])
    if room:
        # Shorten the directories first, then the names of runs, because the beginning of the title
        # must stay visible.
        for column, least in ((6, 9), (5, 10)):
            over = sum(widths[:-1]) + 2 * len(widths[:-1]) + 24 - room
            widths[column] = max(min(widths[column], least), widths[column] - max(over, 0))
    for row in (head, *rows):
        line = ""
        for cell, width in zip(row[:-1], widths, strict=False):
            fitting = _fit(cell, width) if room else cell
            line += f"{fitting.ljust(width)}  "
        print(cut(f"{line}{row[-1]}".rstrip(), room))


def _row(entry: ConversationEntry, short_id: str, now: int) -> tuple[str, ...]:
    return (
        short_id,
        worker_of(entry.role, entry.agent),
        age(entry.updated, now),
        str(entry.turns or "?"),
        entry.state if entry.on_disk else f"{entry.state}, gone",
        entry.run.name if entry.run else "-",
        at_home(entry.cwd) or "-",
        entry.title or "-",
    )


def _fit(cell: str, width: int) -> str:
    """Return a cell that is at most `width` characters long. The beginning is cut off, because the
    end of a path says more than its beginning."""
    if len(cell) <= width:
        return cell
    return "…" + cell[len(cell) - width + 1 :]


def short_ids(ids: Sequence[str]) -> dict[str, str]:
    """Return the shortest unique prefix of each id, with at least 8 characters."""
    shortened = {}
    for each in ids:
        length = LEAST
        while length < len(each) and sum(other.startswith(each[:length]) for other in ids) > 1:
            length += 1
        shortened[each] = each[:length].rstrip("-")
    return shortened


def _show(index: ConversationIndex, entry: ConversationEntry, as_json: bool) -> int:
    line = index.lineage(entry)
    if as_json:
        from msgspec.structs import asdict

        from perdure.model.codec import printed

        lineage = [each.report() for each in line]
        print(printed({"schema_version": 1, **asdict(entry.report()), "lineage": lineage}))
        return 0
    print(f"{clean(entry.id)}  {worker_of(entry.role, entry.agent)}  {entry.state}")
    print(f"  about       {entry.title or 'nothing was said yet'}")
    if entry.run and entry.run.spec.link:
        print(f"  link        {clean(entry.run.spec.link)}")
    if entry.session and entry.session.cause:
        print(f"  retired     {one_line(entry.session.cause, 200)}")
    print(f"  directory   {at_home(entry.cwd) or 'not known'}")
    if entry.conversation:
        transcript = at_home(entry.conversation.path)
    else:
        transcript = "not on disk"
    print(f"  transcript  {transcript}")
    print(f"  written     {clock(entry.updated)}; {entry.turns or 'an unknown number of'} turn(s)")
    if entry.run:
        if entry.cost_usd:
            cost = f", {dollars(entry.cost_usd, estimated=entry.cost_estimated)}"
        else:
            cost = ""
        print(f"  run         {entry.run.name} ({entry.run.state}{cost})")
    for each in line:
        owner = each.run.name if each.run else each.state
        print(f"  comes from  {each.id}  {owner}: {one_line(each.title, 80)}")
    for said in index.spoken(entry, sys.maxsize):
        speaker = "agent" if said.by_agent else "person"
        print(f"\n{speaker}: {clean(said.text).strip()}")
    return 0
