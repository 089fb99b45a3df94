"""The parser of a verb: argparse, which says what it cannot take in a sentence, and where to read
on, in place of the whole usage."""

from __future__ import annotations

import argparse

from perdure.cli.text import clean

TYPE_CHECKING = False  # typing is too dear for `perdure ls`
if TYPE_CHECKING:
    from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """argparse's own, but for how it refuses: as every other error of perdure is told. The exit
    code is 2 as always."""

    def error(self, message: str) -> NoReturn:
        said = message.removeprefix("argument ").replace(
            "the following arguments are required", "what is missing", 1
        )
        self.exit(
            2,
            f"perdure: {self.prog.removeprefix('perdure ')}: {clean(said)}\n  {self.prog} --help\n",
        )
