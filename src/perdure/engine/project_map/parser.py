"""Parses untrusted files in a child process. Used by `engine.attempt.project_map`.

A tree-sitter parser has a bounded stack, but no bound in memory or time: 100 KB of `a<a<a<...` as
Java took more than 23 GB (tree-sitter 0.26.1 with tree-sitter-java 0.23.5). The child therefore has
its own limits, and may die while parsing. `Asker` is the interface to the child, which the caller
starts (`process.ChildProcess`).
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from perdure.engine.project_map.languages import outline_of
from perdure.engine.project_map.outline import NO_OUTLINE, Outline
from perdure.model.codec import resolved

ANSWER = f"{__name__}:answer"


class Asker(Protocol):
    """Interface to a child process that answers questions. `process.ChildProcess(ANSWER)`
    implements it."""

    @property
    def over(self) -> bool: ...

    def ask(self, question: bytes) -> bytes | None: ...


class ParserStopped(Exception):
    """Raised if the child process died too often, so that it is not started again."""


class ParserProcess:
    """Parses files in a child process. It is called like `languages.outline_of`."""

    def __init__(self, asker: Asker) -> None:
        self.asker = asker

    def __call__(self, language: str, content: bytes) -> Outline | None:
        """Return the outline of a file, or None, as `outline_of` does. If the child process dies
        while it parses this file, return an empty outline. Raises ParserStopped."""
        if self.asker.over:
            raise ParserStopped
        said = self.asker.ask(msgspec.msgpack.encode((language, content)))
        if said is None:
            return NO_OUTLINE
        return msgspec.msgpack.decode(said, type=resolved(Outline | None))


def answer(question: bytes) -> bytes:
    """Decode the question, which has a language and the content of a file, and return the file's
    outline, encoded. Runs in the child process."""
    language, content = msgspec.msgpack.decode(question, type=resolved(tuple[str, bytes]))
    return msgspec.msgpack.encode(outline_of(language, content))
