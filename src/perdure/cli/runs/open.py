"""`open` and `take-back`: lend a run's conversation to a person who continues it in the agent's own
program, and take it back."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from typing import TYPE_CHECKING

from perdure.cli.compose import open_engine, settings
from perdure.cli.parser import optional_name
from perdure.cli.text import clean
from perdure.errors import AgentMissing
from perdure.host.privileges import drop

if TYPE_CHECKING:
    from perdure.engine.conversations import InteractiveCommand


def open_arguments(parser: argparse.ArgumentParser) -> None:
    optional_name(parser, ask=True)
    parser.add_argument(
        "--exec", action="store_true", help="start the program now, instead of printing the command"
    )
    parser.add_argument(
        "--json", action="store_true", help="print command, directory and variables as JSON"
    )


def open_verb(arguments: argparse.Namespace) -> int:
    from perdure.engine.conversations import open_for_person

    engine = open_engine(settings())
    found = open_for_person(engine, arguments.name)
    engine.store.close()
    if arguments.exec:
        os.chdir(found.cwd)
        drop()
        try:
            os.execvpe(found.argv[0], found.argv, {**os.environ, **found.env})
        except OSError as error:
            raise AgentMissing(
                f"{found.argv[0]} cannot be started: {error.strerror}",
                f"perdure take-back {found.run.name}",
            ) from error
    if arguments.json:
        shown = {
            "run": found.run.name,
            "session_id": found.session_id,
            "argv": found.argv,
            "cwd": found.cwd,
            "env": found.env,
        }
        print(json.dumps({"schema_version": 1, **shown}, indent=2, ensure_ascii=False))
        return 0
    print(
        f"# {found.run.name} is open for you: no attempt starts until you return it. Continue with"
    )
    print(command_line(found))
    print("# and afterwards")
    print(f"perdure take-back {found.run.name}")
    return 0


def command_line(found: InteractiveCommand) -> str:
    """Return a shell command in one line, with the directory and the variables of the program."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in found.env.items()]
    return clean(f"cd {shlex.quote(found.cwd)} && {' '.join([*variables, shlex.join(found.argv)])}")


def take_back_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the run's name, id or key")
    parser.add_argument(
        "--adopt",
        default="",
        metavar="ID",
        help="continue the run in this conversation, which you started in addition to its own",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def take_back_verb(arguments: argparse.Namespace) -> int:
    from perdure.engine.conversations import take_back

    back = take_back(open_engine(settings()), arguments.name, arguments.adopt)
    if arguments.json:
        from perdure.model.codec import printed

        print(printed(back.report()))
        return 0
    name = back.run.name
    if back.rewound:
        print(f"{name}: the conversation was rewound; the run continues from where you left it")
    elif not back.kept:
        print(
            f"{name}: the conversation no longer has what perdure had recorded; the next attempt "
            f"continues from perdure's own copy"
        )
    if arguments.adopt:
        print(f"{name} continues in {back.session_id}")
    else:
        print(
            f"{name}: {back.turns} turn(s) were added manually"
            if back.turns
            else f"{name}: nothing was added manually"
        )
    for each in back.others:
        if each.id != back.session_id:
            if each.id in back.forks:
                what = "a fork of it"
            else:
                what = "another conversation"
            print(f"  {what} was started here: {each.id} ({each.turns or '?'} turns)")
            print(f"  to continue in that one: perdure take-back {name} --adopt {each.id}")
    print(
        f'next: perdure update {name} "new instructions"'
        + ("" if back.run.state == "succeeded" else f", or perdure retry {name}")
    )
    return 0
