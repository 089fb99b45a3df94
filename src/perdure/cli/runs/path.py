"""`path`: prints the workdir of a run, for `cd`."""

from __future__ import annotations

import argparse
import sys

from perdure.cli.compose import open_to_read, settings, this_host
from perdure.cli.parser import optional_name
from perdure.cli.style import linked
from perdure.cli.text import address_of, clean
from perdure.errors import Conflict, NotFound


def path_arguments(parser: argparse.ArgumentParser) -> None:
    optional_name(parser)


def path_verb(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    chosen = settings()
    run, here = open_to_read(chosen).get(arguments.name), this_host(chosen)
    if here.id and run.host not in ("", here.id):
        raise Conflict(
            f"The workdir of {run.name} is on {run.host_name}",
            f"run this command on {run.host_name}",
        )
    place = run.workspace.path if run.workspace is not None else ""
    if not place or not Path(place).is_dir():
        raise NotFound(
            f"the workdir of {run.name} is not here: {place or 'it has none yet'}",
            f"perdure restore {run.name}" if run.attempt else f"perdure retry {run.name}",
        )
    # The path is not cleaned for a pipe. Otherwise a shell might not find the directory.
    on_terminal = sys.stdout.isatty()
    shown = linked(clean(place), lambda: address_of(place), sys.stdout)
    print(shown if on_terminal else place)
    return 0
