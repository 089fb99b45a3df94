"""Parses hostile files in a child process. Used by `engine.attempt.project_map`.

A tree-sitter parser has a bounded stack, but no bound in memory or time: 100 KB of `a<a<a<...` as
Java took more than 23 GB (tree-sitter 0.26.1 with tree-sitter-java 0.23.5). So the child has limits
of its own, and may die while parsing. `Asker` is the interface of the child; the caller starts it
(`process.ChildProcess`).
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from perdure.engine.project_map.languages import outline_of
from perdure.engine.project_map.outline import NO_OUTLINE, Outline
from perdure.model.codec import resolved

ANSWER = f"{__name__}:answer"


class Asker(Protocol):
    """A child process that answers questions: `process.ChildProcess(ANSWER)`."""

    @property
    def over(self) -> bool: ...

    def ask(self, question: bytes) -> bytes | None: ...


class ParserProcess:
    """`outline_of`, run in the child."""

    def __init__(self, asker: Asker) -> None:
        self.asker = asker

    def __call__(self, language: str, content: bytes) -> Outline | None:
        """Return the same as `outline_of`. If the child dies on a file, return an empty outline; if
        it died too often to be asked again, return None."""
        if self.asker.over:
            return None
        said = self.asker.ask(msgspec.msgpack.encode((language, content)))
        if said is None:
            return NO_OUTLINE
        return msgspec.msgpack.decode(said, type=resolved(Outline | None))


def answer(question: bytes) -> bytes:
    """Answer a question in the child."""
    language, content = msgspec.msgpack.decode(question, type=resolved(tuple[str, bytes]))
    return msgspec.msgpack.encode(outline_of(language, content))
