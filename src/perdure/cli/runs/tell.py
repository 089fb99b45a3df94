"""`tell`: sends a message to a running agent."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from perdure.cli.arguments import read_prompt
from perdure.cli.compose import open_engine, settings
from perdure.cli.runs.run import check_known, detach
from perdure.model import RunState

if TYPE_CHECKING:
    from perdure.engine.steering import Told


def tell_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the run's name, id or key")
    parser.add_argument("prompt", nargs="?", help="the message; `-` reads standard input")
    parser.add_argument(
        "-F",
        "--prompt-file",
        metavar="FILE",
        help="read the message from a file (`-`: standard input)",
    )
    parser.add_argument(
        "--key", default="", help="idempotency key: the same message with the same key is sent once"
    )
    parser.add_argument("--json", action="store_true", help="print the run as JSON")


def tell_verb(arguments: argparse.Namespace) -> int:
    check_known(arguments.name)
    text = read_prompt(arguments, f'perdure tell {arguments.name} "your message"')
    from perdure.engine import service
    from perdure.engine.steering import tell

    chosen = settings()
    engine = open_engine(chosen)
    told = tell(engine.store, engine.state, arguments.name, text, arguments.key)
    if told.run.state is RunState.QUEUED and not told.known:
        detach(chosen, told.run)
    if arguments.json:
        report = service.describe(engine.store, engine.state, engine.host, told.run.id)
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        print(_where(told), file=sys.stderr)
    return 0


def _where(told: Told) -> str:
    """Return a sentence about whether and when the agent gets the message."""
    run, what = told.run, f"message {told.version}"
    if told.known:
        return f"{what} was accepted before: perdure show {run.name}"
    if run.state is not RunState.RUNNING:
        return f"{run.name} has just ended; {what} became its new instructions: perdure attach"
    if told.into_turn:
        return f"{what} goes into the running turn: perdure show {run.name}"
    return f"{what} is given to the agent as soon as its turn ends: perdure show {run.name}"
