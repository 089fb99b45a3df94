"""Determines the language of a file, and outlines the file. Called by `project`. Pure, except that
it loads grammars.

The parsers are tree-sitter's, from the extra `map`. They can also read files with syntax errors.
The code here does not recurse over a file's tree, but the parser itself has no limit of memory or
time. Untrusted files must therefore be parsed through `project.ParserProcess`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from perdure.engine.project_map.outline import NO_OUTLINE, Outline

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

LANGUAGES: dict[str, tuple[str, str, str]] = {
    "python": ("tree_sitter_python", "language", "python"),
    "javascript": ("tree_sitter_javascript", "language", "script"),
    "typescript": ("tree_sitter_typescript", "language_typescript", "script"),
    "tsx": ("tree_sitter_typescript", "language_tsx", "script"),
    "go": ("tree_sitter_go", "language", "go"),
    "rust": ("tree_sitter_rust", "language", "rust"),
    "java": ("tree_sitter_java", "language", "java"),
}
"""Three names for each language: the package of its grammar, the function in that package that
returns the grammar, and the module of this package that reads its trees."""

ENDINGS: dict[str, str] = {
    **dict.fromkeys(("py", "pyi"), "python"),
    **dict.fromkeys(("js", "mjs", "cjs", "jsx"), "javascript"),
    **dict.fromkeys(("ts", "mts", "cts"), "typescript"),
    "tsx": "tsx",
    "go": "go",
    "rs": "rust",
    "java": "java",
}


def language_of(name: str) -> str:
    """Return the language of a file by its name; empty if it is not supported."""
    if "." in name:
        return ENDINGS.get(name.rpartition(".")[2].lower(), "")
    return ""


def outline_of(language: str, content: bytes) -> Outline | None:
    """Return what the file exports and imports; None if the language's grammar is not installed. No
    content of a file makes this function raise."""
    made = _made(language)
    if made is None:
        return None
    parser, read = made
    tree = parser().parse(content)
    if tree is None:
        return NO_OUTLINE
    return read(tree.root_node)


@cache
def _made(language: str) -> tuple[Callable[[], Parser], Callable[[Node], Outline]] | None:
    package, function, room = LANGUAGES[language]
    try:
        from tree_sitter import Language, Parser

        grammar = Language(getattr(import_module(package), function)())
    except ImportError:
        return None
    reader: Any = import_module(f"perdure.engine.project_map.languages.{room}")
    # A parser is not thread-safe, but it is cheap to create, so each call creates one.
    return lambda: Parser(grammar), reader.outline
