"""`gc`, `trash`, `reset`, `du`: clean up, restore what was removed, and show disk usage."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.cli.compose import open_engine, settings
from perdure.cli.runs.ls import table
from perdure.cli.text import clean, clock, one_line, say
from perdure.errors import UsageError

if TYPE_CHECKING:
    from perdure.engine.sweeper import Row, Sweep
    from perdure.workspace.trash import Entry

NEEDS_A_PERSON = 3
SHORTEST_ID = 8
"""Minimum number of characters of an entry's id that are shown on a terminal."""


def gc_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be removed, and change nothing"
    )
    parser.add_argument(
        "--many",
        action="store_true",
        help="allow gc to remove most data of one class at once, which it refuses otherwise",
    )
    parser.add_argument(
        "--accept",
        action="store_true",
        help="if gc refused: confirm that the clock and the volume of perdure's root are right",
    )
    parser.add_argument(
        "-a", "--all", action="store_true", help="also show what is kept, with the reason"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def gc_verb(arguments: argparse.Namespace) -> int:
    from perdure.engine.sweeper import rules_of, sweep

    chosen = settings()
    engine = open_engine(chosen)
    swept = sweep(
        engine.store,
        engine.workspaces,
        engine.state,
        rules_of(chosen, many=arguments.many),
        dry=arguments.dry_run,
        accept=arguments.accept,
    )
    if arguments.json:
        from perdure.model.codec import printed

        print(printed(swept.report()))
    else:
        _print_sweep(swept, all_rows=arguments.all)
    if swept.for_a_person:
        return NEEDS_A_PERSON
    return 0


def _print_sweep(swept: Sweep, *, all_rows: bool) -> None:
    shown = [row for row in swept.rows if all_rows or row.verdict != "keep"]
    table(("VERDICT", "CLASS", "NAME", "SIZE", "WHY"), [_line(row, swept.dry) for row in shown])
    if swept.trouble:
        print(
            f"perdure: {clean(swept.trouble)}; nothing was removed. If this is expected: perdure "
            "gc --accept",
            file=sys.stderr,
        )
    freed = size(sum(row.bytes for row in swept.taken))
    counts = Counter(str(row.verdict) for row in swept.rows)
    kept, persons = counts["keep"], counts["person"]
    taken = "would be removed" if swept.dry else "removed"
    say(f"{len(swept.taken)} {taken} ({freed}), {kept} kept, {persons} for you to decide")


def _line(row: Row, dry: bool) -> tuple[str, ...]:
    verdict = {"take": "would go" if dry else "gone", "person": "look"}.get(row.verdict, "kept")
    return (
        verdict,
        str(row.cls),
        one_line(row.name, 40),
        size(row.bytes) if row.bytes else "",
        one_line(row.why, 300),
    )


def size(count: int) -> str:
    """Return a number of bytes as text, such as `12 B`, `3.4 KB` or `1.2 GB`, in steps of 1024."""
    number, unit = float(count), "B"
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if number < 1024 or unit == "TB":
            break
        number /= 1024
    if unit == "B":
        return f"{number:.0f} B"
    return f"{number:.1f} {unit}"


def trash_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="?",
        choices=["ls", "restore", "purge"],
        default="ls",
        help="ls (default), restore ID, or purge ID ...",
    )
    parser.add_argument("id", nargs="*", help="an entry's id, or the beginning of it")
    parser.add_argument("--json", action="store_true", help="print JSON")


def trash_verb(arguments: argparse.Namespace) -> int:
    from perdure.engine import sweeper

    if (arguments.what == "ls") == bool(arguments.id):
        raise UsageError(
            "restore and purge need the id of an entry; ls takes none", "perdure trash"
        )
    engine = open_engine(settings())
    if arguments.what == "purge":
        for name in arguments.id:
            print(f"{sweeper.purge(engine.workspaces, engine.state, name).id} is deleted for good")
        return 0
    if arguments.what == "restore":
        for name in arguments.id:
            back = sweeper.restore(engine.store, engine.workspaces, engine.state, name)
            for place in back.places:
                print(clean(str(place)))
            if back.run:
                print(f"{back.run} is on the list again", file=sys.stderr)
            for session in back.sessions:
                print(f"the conversation {clean(session)} is active again", file=sys.stderr)
        return 0
    _list_trash(sweeper.listed(engine.workspaces, engine.state), as_json=arguments.json)
    return 0


def _list_trash(entries: Sequence[Entry], *, as_json: bool) -> None:
    from perdure.model.codec import printed
    from perdure.model.disk_reports import TrashList

    rows = [entry.report() for entry in entries]
    if as_json:
        print(printed(TrashList(schema_version=1, entries=rows)))
        return
    ids = [row.id for row in rows]
    lines = []
    for row in rows:
        if row.unsaved is None:
            stays = "until you purge it: not proven to be saved"
        elif row.unsaved:
            stays = f"until you purge it: {row.unsaved[0]}"
        else:
            stays = "the grace period"
        lines.append(
            (
                _shortest(row.id, ids) if sys.stdout.isatty() else row.id,
                row.kind,
                one_line(row.run, 30),
                clock(row.at) if row.at else "",
                one_line(stays, 100),
            )
        )
    table(("ID", "KIND", "RUN", "SINCE", "STAYS"), lines)
    if not lines and sys.stdout.isatty():
        say("the trash is empty; perdure gc --dry-run shows what would go there")


def _shortest(of: str, ids: Sequence[str]) -> str:
    """Return the shortest prefix of the id `of` that no other id in `ids` has. `perdure trash
    restore` accepts such a prefix."""
    others = [each for each in ids if each != of]
    for end in range(SHORTEST_ID, len(of)):
        if not any(each.startswith(of[:end]) for each in others):
            return of[:end]
    return of


def reset_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        nargs="?",
        default="",
        help="the run's name, id or key; without it, the options select the work",
    )
    parser.add_argument("--agent", default="", help="only work of this agent or role")
    parser.add_argument("--repo", default="", help="the repository (default: the current one)")
    parser.add_argument("--branch", default="", help="all work on this branch")
    parser.add_argument("--issue", default="", help="all work on the issue with this number")
    parser.add_argument("--service", default="", help="only tasks of this program")
    parser.add_argument("--task", default="", help="only this task of the program")
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be cleared, and change nothing"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def reset_verb(arguments: argparse.Namespace) -> int:
    from perdure.engine.sweeper import Target, reset

    names = ("agent", "repo", "branch", "issue", "service", "task")
    given = {name: getattr(arguments, name) for name in names}
    if arguments.name and any(given.values()):
        raise UsageError("a run's name excludes these flags", "perdure reset NAME")
    engine = open_engine(settings())
    cleared = reset(
        engine.store,
        engine.workspaces,
        engine.host,
        Target(run=arguments.name, **given),
        Path.cwd(),
        dry=arguments.dry_run,
    )
    if arguments.json:
        from perdure.model.codec import printed

        print(printed(cleared.report(dry=arguments.dry_run)))
        return 0
    for run in cleared.runs:
        starts = "would start" if arguments.dry_run else "starts"
        print(f"{run.name} {starts} over")
    for label, lines in (
        ("saved as", cleared.saved),
        ("retired", cleared.sessions),
        ("stays", cleared.kept),
        ("nowhere else" if arguments.dry_run else "was nowhere else", cleared.unsaved),
    ):
        for line in lines:
            print(f"  {label}: {one_line(line, 300)}")
    for path in cleared.trash:
        print(f"  undo with: perdure trash restore {path.name}")
    if not arguments.dry_run:
        for run in cleared.runs:
            print(f'  continue: perdure retry {run.name}, or perdure update {run.name} "..."')
    return 0


def du_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def du_verb(arguments: argparse.Namespace) -> int:
    from perdure.engine.sweeper import usage

    engine = open_engine(settings())
    found = usage(engine.store, engine.workspaces, engine.state)
    if arguments.json:
        from perdure.model.codec import builtins

        print(json.dumps(builtins(found.report()), indent=2))
        return 0
    for part, head in enumerate(("CLASS", "AGENT", "REPOSITORY OR SERVICE", "ROLE")):
        if rows := [(one_line(name, 80), size(count)) for name, count in found.by(part)]:
            table((head, "SIZE"), rows)
            print()
    print(f"{size(found.total)} in all")
    for path in found.unreadable:
        print(f"perdure: cannot be read: {clean(path)}", file=sys.stderr)
    return 0
