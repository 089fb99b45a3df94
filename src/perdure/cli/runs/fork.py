"""`fork`: creates a run that starts with the conversation and files of another run."""

from __future__ import annotations

import argparse
import sys

from perdure.cli.arguments import read_prompt
from perdure.cli.compose import settings
from perdure.cli.runs.run import following, start_and_follow


def fork_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the run's name, id or key")
    parser.add_argument(
        "prompt",
        nargs="?",
        help="prompt of the fork; `-` reads standard input (default: finish the task)",
    )
    parser.add_argument(
        "--prompt-file", metavar="FILE", help="read the prompt from a file (`-`: standard input)"
    )
    point = parser.add_mutually_exclusive_group()
    point.add_argument(
        "--turn",
        type=int,
        default=0,
        metavar="N",
        help="start after this turn of the conversation (counted from 1)",
    )
    point.add_argument("--at", type=int, default=0, help=argparse.SUPPRESS)
    point.add_argument(
        "--checkpoint",
        type=int,
        default=0,
        metavar="N",
        help="start from this checkpoint: files and conversation",
    )
    parser.add_argument(
        "--as",
        dest="new_name",
        default="",
        metavar="NAME",
        help="the new run's name (default: one is made up)",
    )
    parser.add_argument("--branch", default="", help="the new branch (default: perdure/NAME)")
    following(parser)


def fork_verb(arguments: argparse.Namespace) -> int:
    from perdure.engine.conversations import ForkRequest, fork

    if arguments.at:
        # `--at` is deprecated here. For all other verbs it selects a checkpoint, but here it
        # selects a turn.
        print(
            f"perdure: fork --at is deprecated and means a turn: use --turn {arguments.at}",
            file=sys.stderr,
        )
    given = arguments.prompt is not None or arguments.prompt_file is not None
    wanted = ForkRequest(
        prompt=read_prompt(arguments) if given else "",
        at=arguments.turn or arguments.at,
        checkpoint=arguments.checkpoint,
        name=arguments.new_name,
        branch=arguments.branch,
    )

    return start_and_follow(
        arguments, settings(), lambda engine: fork(engine, arguments.name, wanted), new=True
    )
