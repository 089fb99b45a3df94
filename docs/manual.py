"""Writes the manual page `docs/man/perdure.1` from the same parsers as the reference. `generate`
calls it; it is not a program.

The page goes into the wheel as share/man/man1/perdure.1 (see pyproject.toml), so that `man perdure`
finds it for the installed command. It is written in the language man(7). Its text comes from
perdure's own help, with the characters escaped that have a meaning in roff.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from words import BARE, SETTINGS, VARIABLES

from perdure import __version__
from perdure.cli import main
from perdure.engine import service

TARGET = Path(__file__).resolve().parent / "man" / "perdure.1"


def page() -> str:
    """Return the whole page."""
    return "\n".join([*head(), *verbs(), *ends(), ""])


def head() -> Iterator[str]:
    yield f'.TH PERDURE 1 "" "perdure {__version__}" "User Commands"'
    yield from (".SH NAME", "perdure \\- coding\\-agent runs that last")
    yield from (".SH SYNOPSIS", ".B perdure", ".I VERB", "[options]")
    yield ".SH DESCRIPTION"
    yield text(
        "Runs coding agents so that a task's workdir and conversation survive whatever kills them, "
        "and proves after every attempt that"
    )
    yield text(
        "the conversation went on. A run is named by its name, its key, its id or a prefix of the "
        "id of at least 4 characters."
    )
    yield text("Data goes to standard output, progress and errors to standard error.")


def verbs() -> Iterator[str]:
    yield ".SH VERBS"
    for verb, (_, about) in main.VERBS.items():
        if about:
            parser = main.parser_of(verb)
            places = [
                f"[{place(a)}]" if a.nargs == "?" else place(a)
                for a in parser._actions
                if not a.option_strings
            ]
            yield f'.SS "{text(" ".join(["perdure", verb, *places]))}"'
            yield text(about[0].upper() + about[1:] + ".")
            yield from options(parser)


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if action.dest == "help" or action.help == argparse.SUPPRESS:
            continue
        names = (
            ", ".join(f"\\fB{text(name)}\\fR" for name in action.option_strings)
            or f"\\fI{text(place(action))}\\fR"
        )
        if action.option_strings and action.nargs != 0:
            names += f" \\fI{text(place(action))}\\fR"
        yield from (".TP", names)
        yield text(
            action.help or next((BARE[name] for name in action.option_strings if name in BARE), "")
        )


def ends() -> Iterator[str]:
    yield from (".SH EXIT STATUS",)
    for number, meaning in service.EXIT_CODES.items():
        yield from (".TP", f".B {number}", text(meaning))
    yield from (
        ".SH FILES",
        ".TP",
        ".I perdure.toml",
        text("a project's settings: the nearest one up to the top of the repository"),
    )
    yield from (".TP", ".I $XDG_CONFIG_HOME/perdure/config.toml", text("your own settings"))
    yield from (
        ".SH SETTINGS",
        text(
            "Each is also a variable, PERDURE_ and the name in capitals, which goes before both "
            "files."
        ),
    )
    for name, meaning in SETTINGS.items():
        yield from (".TP", f".B {text(name)}", text(meaning))
    yield ".SH ENVIRONMENT"
    for name, meaning in VARIABLES.items():
        yield from (".TP", f".B {text(name)}", text(meaning))


def place(action: argparse.Action) -> str:
    return (
        "|".join(map(str, action.choices))
        if action.choices
        else str(action.metavar or action.dest.upper())
    )


def text(words: str) -> str:
    """Return one line of roff: hyphens of flags stay hyphens, Markdown's marks are removed, and no
    line begins with a request."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(words.split())).replace("`", "")
    escaped = plain.replace("\\", "\\e").replace("-", "\\-").replace("%%", "%")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def problem() -> str:
    """Return one sentence if the page on disk differs from the one made from the code, else an
    empty string."""
    there = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
    return "" if there == page() else "docs/man/perdure.1 is not up to date: run docs/generate.py"


def write() -> None:
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(page(), encoding="utf-8")
