"""Parses a shell command into the programs that it starts. Used by `rules.effects.catalog`. Pure.

tree-sitter's bash grammar reads the command; it is imported when the first command is read.
Commands are untrusted, and for some constructs the grammar needs memory and time that grow with the
square of the length (4 KB of `a|`: 0.15 s and 80 MB; 16 KB: 2 s and 800 MB, tree-sitter 0.26.1,
tree-sitter-bash 0.25.1). Longer commands are therefore cut, commands with too many such constructs
are not parsed, and `ShellScript.whole` is false for both.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

import msgspec

from perdure.patterns import late_pattern

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

LONGEST = 4096
"""Maximum number of bytes of a command that are parsed."""
MOST_TANGLES = 200
"""Maximum number of pipes, arrays and here-documents in a command that is parsed."""
MOST_NODES = 20_000
MOST_DEPTH = 100
UNKNOWN = "\0"
"""Placeholder for a part of a word whose value is not known before the command runs."""

_CUT = late_pattern(r" \[\d+ characters more\]$")
"""Pattern of the note at the end of a command that was cut for the journal."""
_TANGLES = late_pattern(r"\||=\(|\$\[|<<")
_ESCAPED = late_pattern(r"\\(\n|.)", re.DOTALL)
_ESCAPED_IN_QUOTES = late_pattern(r"\\([\"\\$`\n])")
_EXPANSIONS = frozenset(
    (
        "simple_expansion",
        "expansion",
        "command_substitution",
        "process_substitution",
        "arithmetic_expansion",
    )
)
_ECHOES = frozenset(("echo", "printf"))


class Invocation(msgspec.Struct, frozen=True):
    """A program that a command starts. `words` are the words as the program gets them."""

    words: tuple[str, ...]
    text: str
    """The program's call as it is written in the command."""
    stdin: str | None = None
    """The text that the program reads from standard input, if the command contains it; None
    otherwise."""
    piped: bool = False
    """Whether the program reads the output of another program."""
    proves: bool = True
    """Whether the command's success means that the program succeeded."""
    disproves: bool = True
    """Whether the command's failure means that the program failed."""


class ShellScript(msgspec.Struct, frozen=True):
    """The result of parsing a shell command."""

    invocations: tuple[Invocation, ...]
    functions: frozenset[str] = frozenset()
    whole: bool = True
    """Whether the whole command was parsed. If not, programs may be missing."""


class _Place(msgspec.Struct, frozen=True):
    """The context in which a node of the syntax tree runs within its command."""

    proves: bool = True
    disproves: bool = True
    piped: bool = False
    stdin: str | None = None
    depth: int = 0

    def below(self, *, proves: bool = False, disproves: bool = False) -> _Place:
        """Return the context of a part of this node. `proves` and `disproves`: whether the outcome
        of the node shows the success and the failure of the part. If the outcome of the whole
        command does not show that of the node, it does not show that of the part either."""
        return _Place(
            self.proves and proves,
            self.disproves and disproves,
            self.piped,
            self.stdin,
            self.depth + 1,
        )


def read(command: str) -> ShellScript:
    """Return the programs that a command starts, in the order of the command's text. Never
    raises."""
    kept = _CUT.sub("", command)
    # The grammar's scanner looks up each character in the C library's table for bytes. A character
    # beyond U+FFFF crashes the process (tree-sitter-bash 0.25.1: "{" and U+FE7F5). So characters
    # that are not ASCII are replaced. The effects table has only ASCII words, so nothing is missed.
    source = kept.replace(UNKNOWN, " ").encode("ascii", "replace")
    if len(_TANGLES.findall(command)) > MOST_TANGLES:
        return ShellScript((), whole=False)
    cut = len(source) > LONGEST or kept != command
    root = _parser().parse(source[:LONGEST]).root_node
    reader = _Reader()
    reader.walk(root)
    return ShellScript(
        tuple(reader.found),
        frozenset(reader.functions),
        not cut and not root.has_error and not reader.gave_up,
    )


@cache
def _parser() -> Parser:
    import tree_sitter_bash
    from tree_sitter import Language, Parser

    return Parser(Language(tree_sitter_bash.language()))


class _Reader:
    """Walks over the syntax tree of one command, without recursion."""

    def __init__(self) -> None:
        self.found: list[Invocation] = []
        self.functions: set[str] = set()
        self.values: dict[str, str] = {}
        self.gave_up = False

    def walk(self, root: Node) -> None:
        waiting = [(root, _Place())]
        left = MOST_NODES
        while waiting:
            node, place = waiting.pop()
            left -= 1
            if left < 0 or place.depth > MOST_DEPTH:
                self.gave_up = True
                continue
            self._note(node, place)
            waiting += reversed(self._parts(node, place))

    def _note(self, node: Node, place: _Place) -> None:
        """Record the program, function or variable that this node itself defines, without its
        children."""
        match node.type:
            case "command":
                self._command(node, place)
            case "function_definition":
                self.functions.add(self._word(node.child_by_field_name("name")))
            case "variable_assignment":
                value = self._word(node.child_by_field_name("value"))
                if UNKNOWN not in value:
                    self.values[self._word(node.child_by_field_name("name"))] = value
            case _:
                pass

    def _command(self, node: Node, place: _Place) -> None:
        stdin = place.stdin
        words = []
        parts = []
        for child in node.named_children:
            if child.type == "herestring_redirect":
                stdin = self._word(child.named_children[0] if child.named_children else None)
            elif child.type not in ("variable_assignment", "file_redirect", "heredoc_redirect"):
                words.append(self._word(child))
                parts.append(child)
        if not words:
            return
        text = _text(node)[parts[0].start_byte - node.start_byte :]
        self.found.append(
            Invocation(
                tuple(words), text.strip(), stdin, place.piped, place.proves, place.disproves
            )
        )

    def _parts(self, node: Node, place: _Place) -> list[tuple[Node, _Place]]:
        """Return the direct children, each with the context in which it runs."""
        parts = [each for each in node.named_children if each.type != "comment"]
        dark = place.below()
        match node.type:
            case "program" | "compound_statement" | "subshell" | "do_group":
                return [(each, self._in_a_row(node, each, parts, place)) for each in parts]
            case "list":
                # A chain of && succeeded only if each of its commands did. A chain of || failed
                # only if each of its commands did.
                chained = any(child.type == "&&" for child in node.children)
                inner = place.below(proves=chained, disproves=not chained)
                return [(each, inner) for each in parts]
            case "pipeline":
                return self._pipeline(parts, place)
            case "redirected_statement":
                return self._redirected(node, parts, place)
            case "heredoc_redirect":
                fed = msgspec.structs.replace(dark, piped=True)
                found = []
                for each in parts:
                    found.append((each, fed if each.type in ("command", "pipeline") else dark))
                return found
            case _:
                plain = msgspec.structs.replace(dark, stdin=None, piped=False)
                return [(each, plain) for each in parts]

    def _in_a_row(self, node: Node, each: Node, parts: list[Node], place: _Place) -> _Place:
        """Return the context of one of several consecutive statements. Only the last statement
        determines the exit code."""
        last = each == parts[-1] and not (each.next_sibling and each.next_sibling.type == "&")
        return place.below(proves=last, disproves=last and len(parts) == 1)

    def _pipeline(self, parts: list[Node], place: _Place) -> list[tuple[Node, _Place]]:
        found = []
        stdin = place.stdin
        piped = place.piped
        for number, each in enumerate(parts):
            below = place.below(proves=number == len(parts) - 1)
            found.append((each, msgspec.structs.replace(below, piped=piped, stdin=stdin)))
            stdin = self._echoed(each) or (stdin if _text(each) == "cat" else None)
            piped = True
        return found

    def _echoed(self, node: Node) -> str | None:
        """Return the text that an `echo` or `printf` command prints; None for any other node."""
        words = list(map(self._word, node.named_children))
        if node.type != "command" or words[0] not in _ECHOES:
            return None
        return " ".join(word for word in words[1:] if not word.startswith("-"))

    def _redirected(
        self, node: Node, parts: list[Node], place: _Place
    ) -> list[tuple[Node, _Place]]:
        body = node.child_by_field_name("body")
        given = self._document(parts)
        stdin = place.stdin if given is None else given
        found = []
        for each in parts:
            below = place.below(proves=each == body, disproves=each == body)
            found.append((each, msgspec.structs.replace(below, stdin=stdin)))
        return found

    def _document(self, parts: list[Node]) -> str | None:
        """Return the text of the here-document or here-string among the redirections; None if there
        is none."""
        for redirect in parts:
            for each in redirect.named_children:
                if redirect.type == "heredoc_redirect" and each.type == "heredoc_body":
                    return _text(each)
                if redirect.type == "herestring_redirect":
                    return self._word(each)
        return None

    def _word(self, node: Node | None, depth: int = 0) -> str:
        """Return a word as the program gets it, with `UNKNOWN` for each part that is known only at
        run time."""
        if node is None or depth > 8:
            return UNKNOWN
        text = _text(node)
        match node.type:
            case "raw_string":
                return text[1:-1]
            case "ansi_c_string":
                return _decoded(text[2:-1])
            case "string" | "translated_string":
                return self._quoted(node, depth)
            case "concatenation" | "command_name":
                return "".join(self._word(each, depth + 1) for each in node.children)
            case "simple_expansion":
                return self.values.get(text[1:], UNKNOWN)
            case "expansion" if re.fullmatch(r"\$\{\w+\}", text):
                return self.values.get(text[2:-1], UNKNOWN)
            case kind if kind in _EXPANSIONS:
                return UNKNOWN
            case _:
                return _ESCAPED.sub(lambda found: found[1].strip("\n"), text)

    def _quoted(self, node: Node, depth: int) -> str:
        """Return the value of a quoted string. The text between its expansions is taken from the
        source, because the grammar has no node for blanks."""
        source = node.text or b""
        pieces = []
        at = node.start_byte + 1
        for each in [*(c for c in node.named_children if c.type in _EXPANSIONS), None]:
            end = node.end_byte - 1 if each is None else each.start_byte
            piece = source[at - node.start_byte : end - node.start_byte].decode("utf-8", "replace")
            pieces.append(_ESCAPED_IN_QUOTES.sub(lambda found: found[1].strip("\n"), piece))
            if each is not None:
                pieces.append(self._word(each, depth + 1))
                at = each.end_byte
        return "".join(pieces)


def _text(node: Node) -> str:
    return (node.text or b"").decode("utf-8", "replace")


def _decoded(text: str) -> str:
    """Return the value of the text in $'...', with its escape sequences replaced."""
    try:
        return text.encode("latin-1", "replace").decode("unicode_escape").replace(UNKNOWN, "")
    except UnicodeDecodeError:
        return text
