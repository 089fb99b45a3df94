"""Walks over a tree-sitter tree without recursion, and renders a declaration as one line. Used by
each language's module.

Files are untrusted, so a walk ends after a fixed number of nodes. Signatures omit comments and the
text of strings, because these could contain instructions for the agent. Long lines are cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tree_sitter import Node

MOST_NODES = 5_000
"""Maximum number of child nodes that are read from a file or a class."""
MOST_TOKENS = 400
WIDTH = 200
_STRINGS = (
    "string",
    "string_literal",
    "template_string",
    "raw_string_literal",
    "interpreted_string_literal",
)
_QUOTES = ("'", '"', "`")
_PLAIN = re.compile(r"[\w.\[\]|,/@*-]{0,60}")
"""Pattern of strings that a signature may contain. It matches names of types and modules, but no
sentences."""


def children(node: Node, most: int = MOST_NODES) -> Iterator[Node]:
    """Yield the first `most` named child nodes."""
    cursor = node.walk()
    there = cursor.goto_first_child()
    while there and most:
        found = cursor.node
        if found is not None and found.is_named:
            most -= 1
            yield found
        there = cursor.goto_next_sibling()


def unfolded(node: Node, *through: str) -> Iterator[Node]:
    """Yield the child nodes in order. A node of a type in `through`, or a node for a syntax error,
    is replaced by its own children."""
    waiting = [children(node)]
    left = MOST_NODES
    while waiting and left:
        found = next(waiting[-1], None)
        if found is None:
            waiting.pop()
        elif (found.type in through or found.type == "ERROR") and len(waiting) < 8:
            waiting.append(children(found))
        else:
            left -= 1
            yield found


def word(node: Node | None) -> str:
    """Return the source text of a node, at most `WIDTH` bytes of it; empty for None."""
    if node is None or node.text is None:
        return ""
    return node.text[:WIDTH].decode("utf-8", "replace")


def field(node: Node, name: str) -> str:
    """Return the text of the node's field `name`; empty if the node has no such field."""
    return word(node.child_by_field_name(name))


def kinds(node: Node) -> set[str]:
    """Return the types of a node's first 40 children, including tokens such as keywords."""
    return {child.type for child in node.children[:40]}


def unquoted(node: Node | None) -> str:
    """Return the text of a string literal without its quotes; empty for any other node. Escapes are
    not decoded."""
    text = word(node)
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"`":
        return text[1:-1]
    return ""


def one_line(*nodes: Node, before: Node | None = None) -> str:
    """Return the source text of the nodes as one line, without comments and without strings that
    are longer than a name. If `before` is given, the line ends where this node begins."""
    parts: list[str] = []
    for node in nodes:
        parts += _pieces(node, before.start_byte if before is not None else node.end_byte)
    line = re.sub(r"\s+", " ", "".join(parts)).strip()
    line = re.sub(r"(?<=[(\[]) | (?=[)\]])", "", line).replace(",)", ")").replace(",]", "]")
    if len(line) <= WIDTH:
        return line
    return f"{line[:WIDTH]}..."


def _pieces(node: Node, end: int) -> Iterator[str]:
    waiting, at, left = [node], node.start_byte, MOST_TOKENS
    while waiting and left:
        found = waiting.pop()
        if found.start_byte >= end:
            continue
        left -= 1
        if "comment" in found.type:
            at = found.end_byte
        elif found.type in _STRINGS and word(found)[-1:] in _QUOTES:
            yield _blank(at, found) + _string(word(found))
            at = found.end_byte
        elif found.child_count and found.child_count <= MOST_TOKENS:
            waiting.extend(reversed(found.children))
        else:
            yield _blank(at, found) + word(found)
            at = found.end_byte
    if waiting and left == 0:
        yield " ..."


def _blank(at: int, token: Node) -> str:
    if token.start_byte > at:
        return " "
    return ""


def _string(text: str) -> str:
    plain = text[:1] in _QUOTES and _PLAIN.fullmatch(text[1:-1])
    if plain:
        return text
    return '"..."'
