"""`ls`: the list of runs. It has to be there at once, so it goes a short way of its own, without settings, nouns and drivers.

What the short way cannot tell (a configuration that moves the state directory, a database of another schema, any error) is
left to the long one. Nothing is imported above that costs more than the list itself: see docs/performance.md.
"""

from __future__ import annotations

import os
import sys

from perdure.cli.text import age, clock, columns, cut, one_line

TYPE_CHECKING = False  # typing would be a tenth of the whole
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

DATABASE = "perdure.db"
LEAST = 16
"""So many columns of a name are shown on the narrowest terminal."""
STATES = ("pending", "queued", "running", "succeeded", "failed", "cancelled")
SHOWN = ("id", "name", "state", "agent", "attempt", "reason", "updated", "created", "place", "run_after", "fill_tokens", "fill_window")
Row = dict[str, "str | int"]


def ls_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", action="append", default=[], choices=STATES, help="only these; repeatable")
    parser.add_argument("-n", "--limit", type=int, default=50)
    parser.add_argument("--json", action="store_true")


def ls_verb(arguments: argparse.Namespace) -> int:
    from time import time_ns

    rows = runs(arguments.state, arguments.limit)
    if arguments.json:
        import json

        print(json.dumps({"schema_version": 1, "runs": [{key: row[key] for key in SHOWN} for row in rows]}, indent=2))
        return 0
    if not rows and sys.stdout.isatty():
        print('no runs yet; begin with: perdure run "what the agent is to do"')
    now = time_ns() // 1_000_000
    table(("NAME", "STATE", "AGENT", "TRY", "AGE", "REASON"), [_line(row, now) for row in rows])
    return 0


def runs(states: Sequence[str], limit: int) -> list[Row]:
    """The runs that changed last, by the short way if it leads there. Raises what the long way raises."""
    from perdure.stores.glance import newest

    place = _state_directory()
    found = newest(f"{place}/{DATABASE}", states, limit) if place else None
    return _the_long_way(states, limit) if found is None else found


def _the_long_way(states: Sequence[str], limit: int) -> list[Row]:
    from perdure.cli.compose import open_to_read, settings
    from perdure.model import RunState

    rows = open_to_read(settings()).last_changed([RunState(state) for state in states], limit)
    return [{key: str(value) if key == "state" else value for key in SHOWN for value in [getattr(row, key)]} for row in rows]


def _state_directory() -> str:
    """Where `config` has it, as long as nothing but the environment says so; else empty. A project's file has no say in it."""
    home = os.environ.get("HOME") or "/"
    given = os.environ.get("PERDURE_STATE", "")
    if os.environ.get("PERDURE_DATABASE"):
        return ""
    if given:
        return given if given.startswith("/") else ""
    try:
        with open(f"{_xdg('XDG_CONFIG_HOME', f'{home}/.config')}/perdure/config.toml", encoding="utf-8") as file:  # noqa: PTH123
            text = file.read()
            if "state" in text or "database" in text:
                return ""
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError):
        return ""
    return f"{_xdg('XDG_STATE_HOME', f'{home}/.local/state')}/perdure"


def _xdg(name: str, default: str) -> str:
    given = os.environ.get(name, "")
    return given if given.startswith("/") else default


def _line(row: Row, now: int) -> tuple[str, ...]:
    reason = one_line(str(row["reason"]), 200)
    if row["state"] == "queued" and int(row["run_after"]) > now:
        reason = f"until {clock(int(row['run_after']))}: {reason}"
    return (str(row["name"]), str(row["state"]), str(row["agent"]), str(row["attempt"]), age(int(row["updated"]), now), reason)


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Whole into a pipe; on a terminal no line is wider than it."""
    if not rows:
        return
    room = columns(sys.stdout)
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    if room:
        # A long name gives way before all that stands after it is lost; but it is what the next command needs.
        widths[0] = min(widths[0], max(LEAST, room - sum(width + 2 for width in widths[1:-1]) - len(head[-1]) - 2))
    for row in (head, *rows):
        cells = (cut(row[0], widths[0]) if room else row[0], *row[1:])
        print(cut("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip(), room))
