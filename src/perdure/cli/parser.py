"""The parser of a verb: argparse with one-sentence errors. An error names the most similar flag or
choice, and the command that shows the help."""

from __future__ import annotations

import argparse
import re
import sys
from itertools import chain

from perdure.cli.text import clean, columns

TYPE_CHECKING = False  # importing typing is too slow for `perdure ls`
if TYPE_CHECKING:
    from typing import NoReturn

_CHOICE = r"(?s)(.*): invalid choice: '(.*?)' \(choose from (.*)\)"

_NUMBER = r"(?s)(.*): invalid int value: (.*)"
_MOST = 2**31


def limit_of(text: str) -> int:
    """Return the number in the value of a flag such as --limit. Raises argparse.ArgumentTypeError
    if it is not a positive integer, or is too large."""
    if not text.isdecimal() or not 1 <= int(text[:12]) <= _MOST:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


class Parser(argparse.ArgumentParser):
    """The parser of argparse, with error messages in perdure's form. After an error the exit code
    is 2, as with argparse."""

    def error(self, message: str) -> NoReturn:
        said = message.removeprefix("argument ")
        missing = said.removeprefix("the following arguments are required: ")
        hint = f"{self.prog} --help"
        if missing != said:
            names = list(map(_shown, missing.split(", ")))
            plural = "s" if len(names) > 1 else ""
            said = f"missing argument{plural} {', '.join(names)}"
        elif said.startswith("unrecognized arguments: "):
            said, hint = self._unknown(said.removeprefix("unrecognized arguments: "))
        elif found := re.fullmatch(_NUMBER, said):
            said = f"{found[1]}: expected an integer, got {found[2]}"
        elif found := re.match(_CHOICE, said):
            known = re.findall(r"[\w.-]+", found[3])
            said, hint = (
                f"{found[1]}: expected one of {', '.join(known)}, got {found[2]!r}",
                self._near(found[2], known),
            )
        verb = self.prog.removeprefix("perdure ")
        from perdure.cli.style import wrapped

        text = f"perdure {verb}: {clean(said)}\n  {clean(hint)}\n"
        self.exit(2, wrapped(text, columns(sys.stderr)))

    def _unknown(self, words: str) -> tuple[str, str]:
        """Return the error message about unknown arguments, and a hint about what to do."""
        first = words.split(" ")[0].partition("=")[0]
        flags = list(chain.from_iterable(action.option_strings for action in self._actions))
        if first.startswith("-"):
            return f"unknown flag {first}", self._near(first, flags)
        if any(action.dest == "prompt" for action in self._actions):
            return (
                f"expected one prompt, but there are more words: {words}",
                f'Put the prompt in quotes: {self.prog} "..." ({self.prog} --help)',
            )
        return f"unexpected words: {words}", f"{self.prog} --help"

    def _near(self, word: str, known: list[str]) -> str:
        from difflib import get_close_matches

        near = get_close_matches(word, known, 1)
        more = f"{self.prog} --help"
        if near:
            return f"Did you mean {near[0]}? ({more})"
        return more


def _shown(argument: str) -> str:
    """Return the name of a missing argument as the help shows it. Positional arguments are in
    capitals, flags unchanged."""
    if argument.startswith("-"):
        return argument
    return argument.upper()


def optional_name(parser: argparse.ArgumentParser, *, ask: bool = False) -> None:
    """Add the argument NAME. If the user omits it, `main` uses the newest run of the repository.
    Set `ask` if the verb lets a person choose when several runs are possible; the help then
    mentions it."""
    if ask:
        more = "; at a terminal you choose, if there are several"
    else:
        more = ""
    parser.set_defaults(any_run=True)
    parser.add_argument(
        "name",
        nargs="?",
        help=f"the run's name, id or key (default: the newest run of this repository{more})",
    )
