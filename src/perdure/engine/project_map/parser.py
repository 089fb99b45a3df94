"""Parses hostile files out of the caller's process.

A parser of tree-sitter is bounded in its stack, but neither in memory nor in time: 100 KB of
`a<a<a<...` as Java took more than 23 GB (tree-sitter 0.26.1 with tree-sitter-java 0.23.5). So the
child has limits of its own, and may die of a file. `Asker` is whoever starts it (`process.Asking`):
rooms of one floor do not know each other.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from perdure.engine.project_map.languages import outline_of
from perdure.engine.project_map.outline import NO_OUTLINE, Outline
from perdure.model.codec import resolved

ANSWER = f"{__name__}:answer"


class Asker(Protocol):
    """A child that answers: `process.Asking(ANSWER)`."""

    @property
    def over(self) -> bool: ...

    def ask(self, question: bytes) -> bytes | None: ...


class Apart:
    """`outline_of`, by way of the child."""

    def __init__(self, asker: Asker) -> None:
        self.asker = asker

    def __call__(self, language: str, content: bytes) -> Outline | None:
        """As `outline_of`; a file on which the child dies has an empty outline. None also where it
        died too often to be asked again."""
        if self.asker.over:
            return None
        said = self.asker.ask(msgspec.msgpack.encode((language, content)))
        return (
            NO_OUTLINE
            if said is None
            else msgspec.msgpack.decode(said, type=resolved(Outline | None))
        )


def answer(question: bytes) -> bytes:
    """What the child does with a question."""
    language, content = msgspec.msgpack.decode(question, type=resolved(tuple[str, bytes]))
    return msgspec.msgpack.encode(outline_of(language, content))
