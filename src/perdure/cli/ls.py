"""`ls`: the list of runs. It has to be there at once, so it goes a short way of its own, without
settings, nouns and drivers.

What the short way cannot tell (a configuration that moves the state directory, a database of
another schema, any error) is left to the long one. Nothing is imported above that costs more than
the list itself: see docs/performance.md.
"""

from __future__ import annotations

import os
import sys

from perdure.cli.text import age, clock, columns, cut, one_line

TYPE_CHECKING = False  # typing would be a tenth of the whole
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from perdure.process import Probe
    from perdure.protocols import RunStore

DATABASE = "perdure.db"
LEAST = 16
"""So many columns of a name are shown on the narrowest terminal."""
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
)
READ = (*(name for name in SHOWN if name != "liveness"), "worker", "lease_until", "host")
Row = dict[str, "str | int | None"]


def ls_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state", action="append", default=[], choices=STATES, help="only these; repeatable"
    )
    parser.add_argument("-n", "--limit", type=int, default=50)
    parser.add_argument("--json", action="store_true")


def ls_verb(arguments: argparse.Namespace) -> int:
    from time import time_ns

    rows = looked_at(runs(arguments.state, arguments.limit))
    if arguments.json:
        import json

        print(
            json.dumps(
                {"schema_version": 1, "runs": [{key: row[key] for key in SHOWN} for row in rows]},
                indent=2,
            )
        )
        return 0
    if not rows and sys.stdout.isatty():
        print('no runs yet; begin with: perdure run "what the agent is to do"')
    now = time_ns() // 1_000_000
    table(("NAME", "STATE", "AGENT", "TRY", "AGE", "REASON"), [_line(row, now) for row in rows])
    for words in _advice(rows):
        sys.stdout.flush()
        print(words, file=sys.stderr)
    return 0


def looked_at(rows: Sequence[Row]) -> list[Row]:
    """The rows with what is alive of those that are running. Only a run whose supervisor is not
    seen at once costs more than the list."""
    looked: list[Row] = [
        {**row, "liveness": "attended" if row["state"] == "running" else None} for row in rows
    ]
    doubtful = [row for row in looked if row["liveness"] and not _supervised(str(row["worker"]))]
    if not doubtful:
        return looked
    from perdure.cli.compose import open_to_read, probe, settings

    chosen = settings()
    store, found = open_to_read(chosen), probe(chosen)
    return [_probed(row, store, found) if row in doubtful else row for row in looked]


def _supervised(worker: str) -> bool:
    """Whether a run's supervisor is a live process of this host, by its name for itself (see
    `process.identity`), without its imports."""
    from perdure.shim import stat

    name, boot, pid, starttime = [*worker.rsplit(":", 3), "", "", ""][:4]
    known = stat(pid) if pid.isdecimal() and name == os.uname().nodename else None
    if known is None or str(known[3]) != starttime or (known[0] in "ZX" and known[2] <= 1):
        return False
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:  # noqa: PTH123
            here = f"{file.read()[:8]}.{os.readlink('/proc/self/ns/pid').partition('[')[2].rstrip(']')}"  # noqa: PTH115
    except OSError:
        return False
    return boot == here


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
    """What to do for the runs that nobody attends."""
    words = []
    for liveness, one, many in (
        ("interrupted", "1 run was interrupted", "{} runs were interrupted"),
        (
            "unattended",
            "1 run has no supervisor, but its agent works on",
            "{} runs have no supervisor, but their agents work on",
        ),
    ):
        names = [str(row["name"]) for row in rows if row["liveness"] == liveness]
        if names:
            retries = ", ".join(f"perdure retry {name}" for name in names)
            words.append(f"{one if len(names) == 1 else many.format(len(names))}: {retries}")
    return words


def runs(states: Sequence[str], limit: int) -> list[Row]:
    """The runs that changed last, by the short way if it leads there. Raises what the long way
    raises."""
    from perdure.stores.glance import newest

    place = state_directory()
    found = newest(f"{place}/{DATABASE}", states, limit) if place else None
    return _the_long_way(states, limit) if found is None else [dict(row) for row in found]


def _the_long_way(states: Sequence[str], limit: int) -> list[Row]:
    from perdure.cli.compose import open_to_read, settings
    from perdure.model import RunState

    rows = open_to_read(settings()).last_changed([RunState(state) for state in states], limit)
    return [
        {
            key: str(value) if key == "state" else value
            for key in READ
            for value in [getattr(row, key)]
        }
        for row in rows
    ]


def state_directory() -> str:
    """Where `config` has it, as long as nothing but the environment says so; else empty. A
    project's file has no say in it."""
    home = os.environ.get("HOME") or "/"
    given = os.environ.get("PERDURE_STATE", "")
    if os.environ.get("PERDURE_DATABASE"):
        return ""
    if given:
        return given if given.startswith("/") else ""
    try:
        place = f"{_xdg('XDG_CONFIG_HOME', f'{home}/.config')}/perdure/config.toml"
        with open(place, encoding="utf-8") as file:  # noqa: PTH123
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
    after, updated = int(row["run_after"] or 0), int(row["updated"] or 0)
    if row["state"] == "queued" and after > now:
        reason = f"until {clock(after)}: {reason}"
    state = row["liveness"] if row["liveness"] in ("interrupted", "unattended") else row["state"]
    return (
        str(row["name"]),
        str(state),
        str(row["agent"]),
        str(row["attempt"]),
        age(updated, now),
        reason,
    )


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Whole into a pipe; on a terminal no line is wider than it."""
    if not rows:
        return
    room = columns(sys.stdout)
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    if room:
        # A long name gives way before all that stands after it is lost; but it is what the next
        # command needs.
        widths[0] = min(
            widths[0],
            max(LEAST, room - sum(width + 2 for width in widths[1:-1]) - len(head[-1]) - 2),
        )
    for row in (head, *rows):
        cells = (cut(row[0], widths[0]) if room else row[0], *row[1:])
        print(
            cut(
                "  ".join(
                    cell.ljust(width) for cell, width in zip(cells, widths, strict=True)
                ).rstrip(),
                room,
            )
        )
