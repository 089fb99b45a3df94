"""`map`: prints the project map of a directory or of a run's workdir, as an agent would get it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from msgspec.structs import asdict

from perdure.cli.compose import open_engine, settings
from perdure.cli.text import visible
from perdure.errors import NotFound, UsageError
from perdure.host.extras import install_command

LEAST, MOST = 200, 999_999


def map_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "place",
        nargs="?",
        default=".",
        metavar="DIR|NAME",
        help="a directory, or a run (default: the current directory)",
    )
    parser.add_argument(
        "--for",
        dest="prompt",
        metavar="PROMPT",
        help="a prompt: files that it mentions come first",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        help="maximum number of tokens, estimated as bytes / 3 (default: the setting map_tokens)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def map_verb(arguments: argparse.Namespace) -> int:
    from perdure.engine.attempt.project_map import drawn_of, made_before

    if arguments.tokens is not None and not LEAST <= arguments.tokens <= MOST:
        raise UsageError(
            f"--tokens: expected a number from {LEAST} to {MOST}, got {arguments.tokens}"
        )
    engine = open_engine(settings())
    if Path(arguments.place).is_dir():
        workspace, made, prompt = engine.workspaces.plan_here(Path(arguments.place)), {}, ""
    else:
        try:
            run = engine.store.get(arguments.place)
        except NotFound as error:
            raise NotFound(
                f"there is no directory {arguments.place!r}, and no run of that name", error.hint
            ) from None
        assert run.workspace is not None
        workspace, made, prompt = (
            run.workspace,
            made_before(engine.store, engine.workspaces, run),
            run.spec.prompt,
        )
    drawn = drawn_of(
        engine.workspaces,
        engine.state,
        engine.map_tokens,
        workspace,
        arguments.prompt or prompt,
        made,
        arguments.tokens or 0,
    )
    if arguments.json:
        print(
            json.dumps(
                {"schema_version": 1, "directory": workspace.path, **asdict(drawn)},
                indent=2,
                ensure_ascii=True,
            )
        )
    elif drawn.text:
        print(visible(drawn.text))
    if drawn.missing:
        print(
            f"perdure: no parser for {', '.join(drawn.missing)}: {install_command('map')}",
            file=sys.stderr,
        )
    if drawn.unparsed:
        print(
            f"perdure: {drawn.unparsed} file(s) appear only by name: their parser died too often",
            file=sys.stderr,
        )
    if not drawn.text:
        print("perdure: the project map is empty: there are no files", file=sys.stderr)
    return 0
