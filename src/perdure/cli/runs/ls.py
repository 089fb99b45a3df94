"""`ls`: lists runs. To be fast, it normally avoids settings, model classes and drivers (the short
way).

The long way (`filters`) is used if the short way fails: if a configuration moves the state
directory, if the database has another schema, or after any error. No module is imported at the top
that takes more time than the list itself: see docs/performance.md.
"""

from __future__ import annotations

import os
import sys

from perdure.cli.parser import limit_of
from perdure.cli.style import STATES as STYLES
from perdure.cli.style import SYMBOLS, fitted, is_colored, paint
from perdure.cli.text import age, columns, cut, dollars, one_line, widths_of
from perdure.rules.run_titles import title_of, worker_of
from perdure.rules.text import soon

TYPE_CHECKING = False  # importing typing would take a tenth of the total time
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from perdure.host.process import Probe
    from perdure.protocols import RunStore

DATABASE = "perdure.db"
WIDE, WIDEST = 100, 140
"""Minimum widths of a terminal, in columns: from WIDE on the repository is shown, and from WIDEST
on the branch too."""
LEAST = 16
"""Minimum width of the column of names, in columns. On a narrow terminal, longer names are cut."""
STATES = ("pending", "queued", "running", "succeeded", "failed", "cancelled")
SHOWN = (
    *(
        "id",
        "name",
        "state",
        "liveness",
        "agent",
        "attempt",
        "reason",
        "updated",
        "created",
        "place",
        "run_after",
    ),
    *("fill_tokens", "fill_window"),
    *("repo", "branch", "prompt", "title", "link", "role", "labels"),
    *("cost_usd", "estimated", "work"),
)
READ = (
    *(name for name in SHOWN[:-10] if name != "liveness"),
    *("worker", "lease_until", "host"),
)
"""Columns that `runs` reads from the store, both by the short way (`fast_list.newest`) and by the
long way (`read_rows_from_store`)."""
WORDS = {"incomplete": "incomplete", "blocked": "blocked", "nothing_to_do": "nothing to do"}
"""Verdicts of the work report that the list shows, because they say more than `succeeded`."""
WATCH_S = 2.0
EVERYTHING = 1_000_000
"""Maximum number of rows that are read if filters are applied to the rows afterwards."""
Row = dict[str, "str | int | float | dict[str, str] | None"]


def ls_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state", action="append", default=[], choices=STATES, help="only these; repeatable"
    )
    parser.add_argument(
        "--agent", action="append", default=[], help="only these agents or roles; repeatable"
    )
    parser.add_argument(
        "--repo", help="only runs of this repository: path, URL or last part; `.`: the current one"
    )
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="only runs with this label; repeatable",
    )
    parser.add_argument("--plan", help="only tasks of this plan")
    parser.add_argument(
        "--since", metavar="AGE", help="only runs that changed within this time: 90s, 30m, 24h, 7d"
    )
    parser.add_argument(
        "-n", "--limit", type=limit_of, default=50, help="maximum number of runs (default: 50)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="only the names")
    parser.add_argument("--watch", action="store_true", help="refresh every 2 seconds")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--json",
        nargs="?",
        const="",
        metavar="FIELDS",
        help="print JSON; with FIELDS only these, such as name,state",
    )
    form.add_argument(
        "--format", metavar="TEMPLATE", help="a line for each run, such as '{name} {state}'"
    )


def ls_verb(arguments: argparse.Namespace) -> int:
    if not arguments.watch:
        return _list(arguments)
    if not sys.stdout.isatty():
        from perdure.errors import UsageError

        raise UsageError("--watch needs a terminal", "perdure ls")
    from time import sleep

    while True:
        print("\x1b[H\x1b[2J", end="")
        _list(arguments)
        sys.stdout.flush()
        sleep(WATCH_S)


def _list(arguments: argparse.Namespace) -> int:
    from time import time_ns

    rows = with_liveness(_chosen(arguments))
    if arguments.json is not None:
        import json

        fields = _fields(arguments.json)
        found = [{key: row[key] for key in fields} for row in rows]
        print(json.dumps({"schema_version": 1, "runs": found}, indent=2))
        return 0
    if arguments.format is not None:
        for row in rows:
            print(_filled(arguments.format, row))
        return 0
    if arguments.quiet:
        for row in rows:
            print(row["name"])
        return 0
    if not rows and sys.stdout.isatty():
        print('no runs yet; start with: perdure run "Fix the failing test"')
    now = time_ns() // 1_000_000
    table(*_columns(rows, now), marks=[str(_shown_state(row)) for row in rows])
    for words in _advice(rows):
        sys.stdout.flush()
        print(words, file=sys.stderr)
    return 0


def _chosen(arguments: argparse.Namespace) -> list[Row]:
    """Return the rows that the flags select. Filters on data that is not in a column are applied
    after reading."""
    since = 0
    if arguments.since:
        since = _since(arguments.since)
    named = arguments.repo or arguments.label or arguments.plan
    if named:
        limit = EVERYTHING
    else:
        limit = arguments.limit
    rows = runs(arguments.state, limit, arguments.agent, since)
    if named:
        from perdure.cli.runs.filters import wanted

        rows = [row for row in rows if wanted(row, arguments.repo, arguments.label, arguments.plan)]
    return rows[: arguments.limit]


def _since(text: str) -> int:
    from time import time_ns

    from perdure.errors import UsageError
    from perdure.model.durations import duration

    try:
        return time_ns() // 1_000_000 - int(duration(text) * 1000)
    except ValueError as error:
        raise UsageError(f"--since: {error}", "perdure ls --since 24h") from None


def _fields(text: str) -> tuple[str, ...]:
    if text:
        fields = tuple(map(str.strip, text.split(",")))
    else:
        fields = SHOWN
    unknown = [field for field in fields if field not in SHOWN]
    if unknown:
        from perdure.errors import UsageError

        raise UsageError(f"perdure ls has no field {unknown[0]!r}", f"One of: {', '.join(SHOWN)}")
    return fields


def _filled(template: str, row: Row) -> str:
    """Return the template with each `{field}` replaced by its value. Other characters have no
    special meaning, unlike in `str.format`."""
    import re

    def value(found: re.Match[str]) -> str:
        return one_line(str(row[_fields(found[1])[0]]), 400)

    return re.sub(r"\{(\w+)\}", value, template)


def with_liveness(rows: Sequence[Row]) -> list[Row]:
    """Return the rows, with the liveness of each running run added.

    This is fast if each supervisor is a live process of this host. Otherwise settings and store are
    loaded.
    """
    looked: list[Row] = []
    doubtful: list[Row] = []
    for row in rows:
        is_running = row["state"] == "running"
        looked.append({**row, "liveness": "attended" if is_running else None})
        if is_running and not _supervised(str(row["worker"])):
            doubtful.append(looked[-1])
    if not doubtful:
        return looked
    from perdure.cli.compose import open_to_read, probe, settings

    chosen = settings()
    store, found = open_to_read(chosen), probe(chosen)
    return [_probed(row, store, found) if row in doubtful else row for row in looked]


def _supervised(worker: str) -> bool:
    """Return whether a run's supervisor is a live process of this host. `worker` is the stored
    identity of the supervisor, made by `host.process.identity`. It is parsed here because importing
    that module is slow."""
    from perdure.host import system

    name, boot, pid, starttime = [*worker.rsplit(":", 3), "", "", ""][:4]
    if name != os.uname().nodename or not (pid.isdecimal() and starttime.isdecimal()):
        return False
    if not system.lives(int(pid), int(starttime)):
        return False
    try:
        return boot == f"{system.boot_id()[:8]}.{system.namespace()}"
    except OSError:
        return False


def _probed(row: Row, store: RunStore, probe: Probe) -> Row:
    run = store.get(str(row["id"]))
    found = probe.liveness(run, store.now(), lambda: store.get(run.id))
    run = store.get(run.id) if found is None else run
    return {
        **row,
        "state": str(run.state),
        "reason": run.reason,
        "attempt": run.attempt,
        "updated": run.updated,
        "liveness": str(found) if found else None,
    }


def _advice(rows: Sequence[Row]) -> list[str]:
    """Return a line of advice about the interrupted runs, and one about the unattended runs."""
    words = []
    for liveness, one, many in (
        ("interrupted", "1 run was interrupted", "{} runs were interrupted"),
        (
            "unattended",
            "1 run has no supervisor, but its agent still runs",
            "{} runs have no supervisor, but their agents still run",
        ),
    ):
        names = [str(row["name"]) for row in rows if row["liveness"] == liveness]
        if names:
            subject = one if len(names) == 1 else many.format(len(names))
            words.append(f"{subject}: perdure retry {', perdure retry '.join(names)}")
    return words


def runs(
    states: Sequence[str], limit: int, agents: Sequence[str] = (), since: int = 0
) -> list[Row]:
    """Return the runs that changed last. They are read by the short way if possible, else by the
    long way, whose errors are raised."""
    from perdure.store.fast_list import newest

    place = state_directory()
    if place:
        found = newest(f"{place}/{DATABASE}", states, limit, agents, since)
    else:
        found = None
    if found is None:
        from perdure.cli.runs.filters import read_rows_from_store

        return read_rows_from_store(states, limit, agents, since, READ)
    return list(map(_typed, found))


def _typed(row: dict[str, str | int]) -> Row:
    """Return a row of the short way with its values converted to the types that JSON shows."""
    labels: dict[str, str] = {}
    if row["labels"] not in ("{}", None):
        import json

        labels = json.loads(str(row["labels"]))
    title = title_of(
        str(row["title"]), str(row["prompt"]), str(row["key"] or ""), str(row["scope"])
    )
    role = row["role"] or (labels.get("agent", "") if "delivery" in labels else "")
    return {
        **row,
        "title": title,
        "role": role,
        "labels": labels,
        "estimated": bool(row["estimated"]),
        "work": row["work"] or "",
    }


def state_directory() -> str:
    """Return the state directory, if environment variables alone determine it. Otherwise return an
    empty string; the caller then has to load the settings. The settings file of a project cannot
    change the state directory, so it is not read."""
    home = os.environ.get("HOME", "")
    given = os.environ.get("PERDURE_STATE", "")
    if os.environ.get("PERDURE_DATABASE"):
        return ""
    if given and not given.startswith("/"):
        return ""
    if not os.environ.get("HOME"):
        return ""
    try:
        place = f"{_xdg('XDG_CONFIG_HOME', f'{home}/.config')}/perdure/config.toml"
        with open(place, encoding="utf-8") as file:  # noqa: PTH123
            text = file.read()
            if "database" in text or ("state" in text and not given):
                return ""
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError):
        return ""
    if given:
        return given
    return f"{_xdg('XDG_STATE_HOME', f'{home}/.local/state')}/perdure"


def _xdg(name: str, default: str) -> str:
    given = os.environ.get(name, "")
    if given.startswith("/"):
        return given
    return default


def _shown_state(row: Row) -> str:
    is_left = row["liveness"] in ("interrupted", "unattended")
    return str(row["liveness"] if is_left else row["state"])


def _columns(rows: Sequence[Row], now: int) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the heading and the rows of the table. On a narrow terminal, repository and branch are
    omitted."""
    room = columns(sys.stdout)
    head = ["NAME", "STATE", "AGENT", "ATTEMPT", "AGE", "COST"]
    head += ["REPO"] if not room or room >= WIDE else []
    head += ["BRANCH"] if not room or room >= WIDEST else []
    head += ["ABOUT"]
    lines = []
    for row in rows:
        cells = {
            "NAME": str(row["name"]),
            "STATE": _shown_state(row),
            "AGENT": worker_of(str(row["role"]), str(row["agent"])),
            "ATTEMPT": str(row["attempt"]),
            "AGE": age(_number(row["updated"]), now),
            "COST": _spent(row),
            "REPO": one_line(str(row["repo"] or "-").rstrip("/").rpartition("/")[2], 24),
            "BRANCH": one_line(str(row["branch"] or "-"), 40),
            "ABOUT": _about(row, now),
        }
        lines.append(tuple(cells[name] for name in head))
    return tuple(head), lines


def _number(value: object) -> int:
    if isinstance(value, int):
        return value
    return 0


def _spent(row: Row) -> str:
    cost = row["cost_usd"]
    if not isinstance(cost, int | float) or not cost:
        return "-"
    return dollars(cost, estimated=bool(row["estimated"]))


def _about(row: Row, now: int) -> str:
    """Return the last cell of a run's row: its title, or the reason why the run waits or failed.

    For a run of a forge, the title comes before the reason, because people look for the issue. If
    the run succeeded but its work report says more, such as `blocked`, that verdict comes before
    the title.
    """
    title, reason = one_line(str(row["title"]), 80), one_line(str(row["reason"]), 200)
    after = _number(row["run_after"])
    before = f"{title}: " if row["role"] else ""
    if row["state"] == "queued" and after > now:
        return f"{before}{soon(after, now)}: {reason}"
    if reason and row["state"] not in ("succeeded", "running"):
        return f"{before}{reason}"
    if row["state"] == "succeeded":
        doubt = WORDS.get(str(row["work"]))
    else:
        doubt = None
    if doubt:
        return f"{doubt}: {title}"
    return title


def table(
    head: tuple[str, ...], rows: Sequence[tuple[str, ...]], marks: Sequence[str] = ()
) -> None:
    """Print the rows as a table. On a terminal, lines are cut to its width. `marks` has the state
    of each row. On a terminal, the state determines the symbol and the color of the row's second
    cell."""
    if not rows:
        return
    room = columns(sys.stdout)
    colored = bool(marks) and is_colored(sys.stdout)
    if room and marks:
        # The symbol shows the state even without colors.
        marked = []
        for row, mark in zip(rows, marks, strict=True):
            marked.append((row[0], f"{SYMBOLS.get(mark, ' ')} {row[1]}", *row[2:]))
        rows = marked
        head = (head[0], f"  {head[1]}", *head[2:])
    rows = [tuple(fitted(cell, sys.stdout) for cell in row) for row in rows]
    widths = widths_of([head, *rows])
    if room:
        # Shorten long names so that the columns after them stay visible. At least LEAST columns are
        # kept, because people need the name for the next command.
        others = sum(widths[1:-1]) + 2 * len(widths[1:-1])
        widths[0] = min(widths[0], max(LEAST, room - others - len(head[-1]) - 2))
    for number, row in enumerate((head, *rows)):
        cells = (cut(row[0], widths[0]) if room else row[0], *row[1:])
        padded = list(map(str.ljust, cells, widths))
        # `cut` may have added an ellipsis, which the stream may be unable to encode.
        line = fitted(cut("  ".join(padded).rstrip(), room), sys.stdout)
        if colored:
            line = _painted(line, len(padded[0]) + 2, len(cells[1]), ("", *marks)[number])
        print(line)


def _painted(line: str, start: int, length: int, mark: str) -> str:
    """Return a line with its second cell in the color of the state `mark`. If `mark` is empty, the
    line is the heading, which is dim."""
    if not mark:
        return paint(line, "dim", sys.stdout)
    end = start + length
    return f"{line[:start]}{paint(line[start:end], STYLES.get(mark, ''), sys.stdout)}{line[end:]}"
