"""`digest`: summarizes on one screen what happened while a person was away."""

from __future__ import annotations

import argparse
import re
import sys
import time
from datetime import date, datetime, timedelta
from datetime import time as clock_time

from perdure.cli.compose import open_to_read, settings
from perdure.cli.style import paint
from perdure.cli.text import clean, clock, columns, cut, dollars, one_line
from perdure.errors import UsageError
from perdure.model.codec import encode
from perdure.model.durations import duration
from perdure.rules.run_titles import worker_of
from perdure.rules.text import soon

TYPE_CHECKING = False  # importing typing would only take time
if TYPE_CHECKING:
    from perdure.engine.digest import Digest, DigestRun

GROUPS = (
    ("Needs you", "needs_you", "bold yellow"),
    ("Failed", "failed", "red"),
    ("Done", "done", "cyan"),
    ("Waiting", "waiting", ""),
    ("Running", "working", "green"),
)
LONGEST_S = 10 * 365 * 86_400.0


def digest_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--since",
        type=since_of,
        default="yesterday",
        metavar="WHEN",
        help=(
            "start of the period: today, yesterday (default), a date such as 2026-11-20, or a "
            "duration before now such as 8h; a day starts at midnight"
        ),
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def since_of(text: str) -> int:
    """Return the beginning of the time span that the text names, in ms since 1970. Raises
    ArgumentTypeError."""
    today = date.today()
    days = {"today": today, "yesterday": today - timedelta(days=1)}
    try:
        if text in days or re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
            day = days.get(text) or date.fromisoformat(text)
            return int(datetime.combine(day, clock_time()).astimezone().timestamp() * 1000)
        seconds = duration(text)
        if not 0 < seconds <= LONGEST_S:
            raise ValueError(text)
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(
            f"expected today, yesterday, a date such as 2026-11-20, or a duration such as 8h, got "
            f"{one_line(text, 40)!r}"
        ) from None
    return int((time.time() - seconds) * 1000)


def digest_verb(arguments: argparse.Namespace) -> int:
    from perdure.engine.digest import digest

    if arguments.since > time.time() * 1000:
        raise UsageError("--since is in the future", "perdure digest --since yesterday")
    found = digest(open_to_read(settings()), arguments.since)
    if arguments.json:
        print(encode(found))
        return 0
    print(cut(_head(found), columns(sys.stdout)))
    for word, name, style in GROUPS:
        runs: list[DigestRun] = getattr(found, name)
        if runs:
            print(f"\n{paint(f'{word} ({len(runs)})', style, sys.stdout)}")
        for run in runs:
            print(cut(_line(run, found.until), columns(sys.stdout)))
            if run.link and name == "needs_you":
                print(f"    {clean(run.link)}")
    if found.cut:
        print("\nsome lists are cut short; all runs: perdure ls")
    return 0


def _head(found: Digest) -> str:
    spent = dollars(found.cost_usd, estimated=found.estimated)
    counts = []
    for word, name, _ in GROUPS:
        if runs := getattr(found, name):
            counts.append(f"{len(runs)} {word.lower()}")
    happened = ", ".join(counts) or "nothing happened"
    return f"Since {clock(found.since)[:16]}: {happened}; {found.attempts} attempt(s), {spent}"


def _line(run: DigestRun, now: int) -> str:
    """Return a run on one line: its name, its title, its role or agent, its cost, and what a person
    should know about it."""
    who = worker_of(run.role, run.agent)
    if run.cost_usd:
        spent = f", {dollars(run.cost_usd, estimated=run.estimated)}"
    else:
        spent = ""
    if run.state != "succeeded":
        message = one_line(run.message, 160)
    else:
        message = ""
    if run.until:
        message = f"{soon(run.until, now)}: {message}"
    why = f": {message}" if message else ""
    return f"  {clean(run.name)}  {one_line(run.title, 100)}  [{clean(who)}{spent}]{why}"
