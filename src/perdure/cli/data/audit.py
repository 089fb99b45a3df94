"""`audit`: prints the audit trail, or checks it. The trail records who did what, in lines that are
chained by hashes."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

from perdure.cli.arguments import seconds_of
from perdure.cli.compose import open_to_read, settings
from perdure.cli.runs.ls import table
from perdure.cli.text import clean, clock
from perdure.errors import NotFound, UsageError
from perdure.model.codec import encode
from perdure.rules.audit_chain import AuditLine, problems, read
from perdure.store.sql import SqlStore

BROKEN = 8
"""Exit code if the trail, or a record of the journal that it covers, was changed."""
SHOWN_MOST = 1000
"""Maximum number of problems that `--check` prints."""


def audit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--since",
        type=seconds_of,
        default=0.0,
        metavar="AGE",
        help="only actions within this time, such as 24h or 7d (default: all)",
    )
    parser.add_argument(
        "--actor", default="", metavar="TEXT", help="only actors that contain this text"
    )
    parser.add_argument("--run", default="", metavar="NAME", help="only actions on this run")
    parser.add_argument(
        "--check",
        nargs="?",
        const="",
        metavar="FILE",
        help=(
            "check that no entry was changed or removed: the chain of hashes and the journal, or "
            "only the chain in an exported FILE (`-`: standard input)"
        ),
    )
    parser.add_argument("--json", action="store_true", help="print JSON, one object per line")


def audit_verb(arguments: argparse.Namespace) -> int:
    filtered = bool(arguments.since or arguments.actor or arguments.run)
    if arguments.check is not None:
        if filtered or arguments.json:
            raise UsageError(
                "--check checks the whole trail, without filters and without --json",
                "perdure audit --check",
            )
        if arguments.check:
            found = _of_file(arguments.check)
        else:
            found = _of_store()
        return _checked(found)
    store = open_to_read(settings())
    lines = _lines(store, arguments)
    if arguments.json:
        for line in lines:
            print(encode(line))
        return 0
    names = _names(store)
    rows = []
    for line in lines:
        what = _what(line, names)
        number = str(line.number)
        rows.append((number, clock(line.at), line.actor, line.kind, what, line.hash[:12]))
    table(("LINE", "TIME", "ACTOR", "WHAT", "OF", "HASH"), rows)
    if not rows and sys.stdout.isatty():
        print("nothing was recorded" + (" that matches" if filtered else " yet"))
    return 0


def _lines(store: SqlStore, arguments: argparse.Namespace) -> Iterator[AuditLine]:
    """Yield the lines that the flags select, page by page. Raises NotFound for an unknown run."""
    if arguments.since:
        since = int((time.time() - arguments.since) * 1000)
    else:
        since = 0
    run = _run_id(store, arguments.run) if arguments.run else ""
    after = 0
    while page := store.audit(since=since, actor=arguments.actor, run=run, after=after):
        yield from page
        after = page[-1].number


def _run_id(store: SqlStore, ref: str) -> str:
    """Return the id of a run. A removed run is found only by its full id. Raises NotFound."""
    try:
        return store.get(ref).id
    except NotFound:
        if ref in _names(store):
            return ref
        raise


def _names(store: SqlStore) -> dict[str, str]:
    return {run.id: run.name for run in store.placed()}


def _what(line: AuditLine, names: dict[str, str]) -> str:
    """Return what an action was about: a run and its attempt, or the name of a token."""
    if not line.run:
        return clean(line.about)
    attempt = f", attempt {line.attempt}" if line.attempt else ""
    return clean(f"{names.get(line.run, line.run)}{attempt}")


def _of_store() -> Iterator[str]:
    """Yield the problems of the store's audit trail, as sentences. After the last problem, print
    the number of lines of the trail and the last hash."""
    store = open_to_read(settings())
    yield from store.audit_problems()
    number, last = store.audit_head()
    print(f"{number} lines; the last hash is {last or 'empty'}", file=sys.stderr)


def _of_file(name: str) -> Iterator[str]:
    try:
        file = sys.stdin if name == "-" else open(name, encoding="utf-8")  # noqa: PTH123, SIM115
        with file:
            yield from problems(_parsed(iter(file)))
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError):
            why = error.strerror
        else:
            why = "it is not UTF-8 text"
        raise UsageError(f"{name} cannot be read: {why}", "perdure audit --json > FILE") from error


def _parsed(texts: Iterator[str]) -> Iterator[AuditLine]:
    for number, text in enumerate(texts, 1):
        if text.strip():
            try:
                yield read(text, number)
            except ValueError as error:
                raise UsageError(str(error), "perdure audit --json > FILE") from error


def _checked(found: Iterator[str]) -> int:
    """Print the problems of a trail. Return BROKEN if there are any, else 0."""
    count = 0
    for problem in found:
        count += 1
        if count <= SHOWN_MOST:
            print(clean(problem))
    if count:
        print(f"the audit trail is not whole: {count} problem(s)", file=sys.stderr)
        return BROKEN
    print("the audit trail is whole")
    return 0
