"""`diff`, `apply`, `rm`: show a run's changes, apply them to the user's own checkout, and remove a
run that is no longer needed."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from perdure.cli.compose import open_engine, settings
from perdure.cli.parser import optional_name
from perdure.cli.style import is_colored
from perdure.cli.text import clean, columns, shown_path, visible
from perdure.errors import Conflict

COLOURS = {"+": "32", "-": "31", "@": "36"}
HEADS = (
    "diff ",
    "index ",
    "--- ",
    "+++ ",
    "new file",
    "deleted file",
    "old mode",
    "new mode",
    "similarity",
    "rename ",
    "Binary ",
)


def diff_arguments(parser: argparse.ArgumentParser) -> None:
    optional_name(parser)
    parser.add_argument(
        "--stat", action="store_true", help="list only the files and their numbers of changed lines"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="print the exact patch for git apply, with binary files and control characters",
    )


def diff_verb(arguments: argparse.Namespace) -> int:
    from perdure.engine import service

    engine = open_engine(settings())
    width = columns(sys.stdout) or 80
    patch = service.diff(
        engine.store,
        engine.workspaces,
        engine.host,
        arguments.name,
        stat=width if arguments.stat else 0,
        binary=arguments.raw,
    )
    if arguments.raw:
        sys.stdout.buffer.write(patch)
        return 0
    if not patch:
        print(f"{arguments.name} has no changes", file=sys.stderr)
    _show(visible(patch.decode("utf-8", "replace")))
    return 0


def _show(text: str) -> None:
    """Print a patch: plain into a pipe or file, colored and with the user's pager on a terminal."""
    if not sys.stdout.isatty():
        sys.stdout.write(text)
        return
    from perdure.host.process.pager import page

    if is_colored(sys.stdout):
        text = "\n".join(map(_coloured, text.split("\n")))
    if text and not page(text, os.environ):
        sys.stdout.write(text)


def _coloured(line: str) -> str:
    code = "1" if line.startswith(HEADS) else COLOURS.get(line[:1], "")
    if code:
        return f"\x1b[{code}m{line}\x1b[m"
    return line


def apply_arguments(parser: argparse.ArgumentParser) -> None:
    optional_name(parser, ask=True)
    parser.add_argument(
        "--to",
        metavar="DIR",
        help="the checkout to change (default: the current one)",
    )
    parser.add_argument(
        "--commit",
        action="store_true",
        help="commit on the checkout's branch, with the agent as author; default: leave "
        "uncommitted",
    )


def apply_verb(arguments: argparse.Namespace) -> int:
    from perdure.engine import service

    engine = open_engine(settings())
    to = Path.cwd() / Path(arguments.to or ".").expanduser()
    applied = service.apply(
        engine.store, engine.workspaces, engine.host, arguments.name, to, commit=arguments.commit
    )
    if applied.refused:
        for name, reason in applied.refused:
            print(f"  {clean(name)}: {reason}", file=sys.stderr)
        raise Conflict(
            f"{len(applied.refused)} file(s) cannot be applied, so nothing was changed in "
            f"{applied.top}",
            "commit, stash or remove what is in the way and try again, or: perdure diff "
            f"{arguments.name}",
        )
    for name in applied.files:
        print(clean(name))
    if not applied.files and not applied.commit:
        print(
            f"{applied.top} already has all changes"
            if applied.already
            else f"{arguments.name} has no changes",
            file=sys.stderr,
        )
    else:
        if applied.commit:
            where = f"in commit {applied.commit[:12]}"
        else:
            where = "not committed"
        top = shown_path(applied.top, sys.stderr)
        print(f"{len(applied.files)} file(s) changed in {top}, {where}", file=sys.stderr)
    return 0


def rm_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the run's name, id or key")
    parser.add_argument(
        "--force",
        action="store_true",
        help="remove it even if its workdir has changes that exist nowhere else; the trash keeps "
        "it",
    )


def rm_verb(arguments: argparse.Namespace) -> int:
    from perdure.engine import service

    engine = open_engine(settings())
    removed = service.remove(
        engine.store, engine.workspaces, engine.host, arguments.name, force=arguments.force
    )
    print(f"removed {removed.run.name} (its log is kept)")
    place = removed.run.workspace
    if removed.trash is not None:
        print(f"  its workdir is in the trash\n  undo: perdure trash restore {removed.trash.name}")
        if removed.unsaved:
            print("  it has changes that exist nowhere else, so it stays there until you purge it")
    elif removed.kept:
        print(f"  its workdir stays: {clean(removed.kept)}")
    if place is not None and place.branch:
        print(
            f"  the branch {clean(place.branch)} stays"
            + (
                " in its repository"
                if not removed.trash or place.backend == "worktree"
                else " in the trash"
            )
        )
    return 0
