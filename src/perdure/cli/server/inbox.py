"""`inbox`: shows the deliveries of forges and their results. The text in deliveries is not trusted,
and is cleaned before it is shown."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from perdure.cli.compose import open_engine, open_to_read, settings
from perdure.cli.parser import limit_of
from perdure.cli.runs.ls import table
from perdure.cli.text import age, clean, clock, one_line
from perdure.errors import NotFound, StoreError, UsageError

if TYPE_CHECKING:
    from perdure.model.forge.deliveries import Delivery, Intent
    from perdure.model.forge.postings import Posting

STATES = ("received", "handled", "ignored", "failed")


def inbox_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="?",
        choices=["ls", "show", "replay", "tell"],
        default="ls",
        help=(
            "ls (default): list; show ID ...: print; replay ID ...: process again; tell RUN ...: "
            "report these runs to their forges again"
        ),
    )
    parser.add_argument(
        "id",
        nargs="*",
        help=(
            "a delivery's number, its id, or the first characters of it (at least 4); for tell: "
            "runs"
        ),
    )
    parser.add_argument("--state", default="", choices=STATES, help="only deliveries in this state")
    parser.add_argument(
        "--source", default="", metavar="NAME", help="only deliveries to /webhooks/NAME"
    )
    parser.add_argument(
        "-n",
        "--limit",
        type=limit_of,
        default=50,
        help="maximum number of deliveries (default: 50)",
    )
    parser.add_argument(
        "--before",
        type=limit_of,
        default=0,
        metavar="NUMBER",
        help="only deliveries with smaller numbers than this, for the next page",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def inbox_verb(arguments: argparse.Namespace) -> int:
    if (arguments.what == "ls") == bool(arguments.id):
        raise UsageError(
            "show and replay need a delivery, tell needs a run, ls takes none", "perdure inbox"
        )
    if arguments.what == "show":
        return _show(arguments)
    if arguments.what == "replay":
        return _replay(arguments)
    if arguments.what == "tell":
        return _post_now(arguments)
    from perdure.model.forge.deliveries import DeliveryState

    chosen = settings()
    store = open_to_read(chosen)
    state = DeliveryState(arguments.state) if arguments.state else None
    found = store.inbox(state, arguments.source, arguments.limit, arguments.before)
    waiting = store.postings_waiting()
    if arguments.json:
        deliveries, postings = list(map(plain, found)), list(map(plain, waiting))
        _print({"deliveries": deliveries, "postings": postings})
        return 0
    now = store.now()
    lines = [_line(each, now) for each in found]
    table(("NUMBER", "SOURCE", "EVENT", "STATE", "AGE", "WHAT"), lines)
    if not found and sys.stdout.isatty():
        print("no deliveries yet; perdure serve receives them")
    if not chosen.agents and any(each.state is DeliveryState.RECEIVED for each in found):
        print("\nNo [agents.NAME] is configured, so nothing works on what is received.")
    if waiting:
        print("\nReports to the forge that have not arrived (perdure inbox tell RUN tries now):")
        rows = [_waits(store.get(each.run).name, each) for each in waiting]
        table(("RUN", "AGAIN AT", "TRIES", "WHY"), rows)
    return 0


def _waits(name: str, each: Posting) -> tuple[str, ...]:
    return (name, clock(each.due), str(each.tries), one_line(each.reason, 200))


def _post_now(arguments: argparse.Namespace) -> int:
    """Make `perdure serve` post the state of these runs on their forges now, even if no posting is
    due. Return the exit code."""
    store = open_engine(settings()).store
    runs = list(map(store.get, arguments.id))
    for run in runs:
        if not store.hurry_posting(run.id):
            raise NotFound(
                f"{run.name} was not started by a delivery, so it reports to no forge",
                "perdure inbox",
            )
    if arguments.json:
        postings = [store.posting(run.id) for run in runs]
        _print({"postings": list(map(plain, filter(None, postings)))})
        return 0
    for run in runs:
        print(f"{run.name} will be reported to its forge by perdure serve in a moment")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    store = open_to_read(settings())
    found = list(map(store.delivery, arguments.id))
    if arguments.json:
        _print({"deliveries": [plain(each) | {"body": body} for each, body in found]})
        return 0
    for each, body in found:
        print(f"{each.number}  {each.forge} {clean(each.event)} by {each.source}, {each.state}")
        print(f"  id         {clean(each.id)}")
        print(
            f"  received   {clock(each.received)}"
            + (f", {each.times} times" if each.times > 1 else "")
        )
        print(f"  sha256     {each.sha256}")
        if each.reason:
            if each.state in ("ignored", "failed"):
                label = "because"
            else:
                label = "done"
            print(f"  {label:10} {one_line(each.reason, 300)}")
        for name, value in _intent_lines(each.intent):
            print(f"  {name:10} {one_line(value, 300)}")
        print(
            clean(body)
            if body
            else "the body was deleted after its retention time; its digest is kept"
        )
    return 0


def _intent_lines(intent: Intent | None) -> list[tuple[str, str]]:
    from perdure.model.codec import plain

    found = plain(intent) if intent else {}
    lines = []
    for name, value in found.items():
        if value:
            lines.append((name, ", ".join(value) if isinstance(value, list) else str(value)))
    return lines


def _replay(arguments: argparse.Namespace) -> int:
    """Parse stored deliveries again with this version of perdure. This version may handle
    deliveries that an older version ignored. Return the exit code."""
    from perdure.forge.webhooks import parsed, read

    store = open_engine(settings()).store
    done = []
    for ref in arguments.id:
        found, body = store.delivery(ref)
        if not body:
            raise StoreError(
                f"The body of delivery {found.number} was deleted after its retention time",
                "have the forge send it again",
            )
        done.append(
            store.replay_delivery(
                found.number, read(found.forge, found.event, parsed(body.encode()))
            )
        )
    if arguments.json:
        _print({"deliveries": list(map(plain, done))})
        return 0
    for each in done:
        print(
            f"{each.number} is {each.state} again"
            + (f": {one_line(each.reason, 200)}" if each.reason else "")
        )
    return 0


def plain(delivery: Delivery | Posting) -> dict[str, object]:
    """Return a delivery or a posting as the object that `--json` prints."""
    from perdure.model.codec import plain as as_json

    found: dict[str, object] = as_json(delivery)
    return found


def _print(found: Mapping[str, object]) -> None:
    print(json.dumps({"schema_version": 1, **found}, indent=2, ensure_ascii=True))


def _line(each: Delivery, now: int) -> tuple[str, ...]:
    intent = each.intent
    what = each.reason
    if intent is not None:
        number = f"#{intent.number}" if intent.number else ""
        where = f"{intent.repository}{number}"
        what = " ".join(
            filter(None, [intent.kind.value, where, f"by {intent.author}" if intent.author else ""])
        )
        for mark, text in ((":", intent.title), (";", each.reason)):
            if text:
                what += f"{mark} {text}"
    return (
        str(each.number),
        each.source,
        one_line(each.event, 40),
        each.state.value,
        age(each.received, now),
        one_line(what, 200),
    )
