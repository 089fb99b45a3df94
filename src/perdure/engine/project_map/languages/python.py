"""Outlines Python files and stubs. A file exports the names in `__all__`. Without `__all__`, it
exports all top-level names that do not begin with an underscore."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from perdure.engine.project_map.languages.tree import (
    children,
    field,
    one_line,
    unfolded,
    unquoted,
    word,
)
from perdure.engine.project_map.outline import Import, Outline, Symbol

if TYPE_CHECKING:
    from tree_sitter import Node

_THROUGH = (
    "if_statement",
    "else_clause",
    "elif_clause",
    "try_statement",
    "except_clause",
    "block",
    "decorated_definition",
    "module",
)
_CALLED = ("__init__", "__call__", "__enter__", "__iter__", "__getitem__")


def outline(root: Node) -> Outline:
    found: dict[str, Symbol] = {}
    imports: list[Import] = []
    named: list[str] = []
    for node in unfolded(root, *_THROUGH):
        if node.type in ("import_statement", "import_from_statement"):
            imports += _imports(node)
        elif node.type == "expression_statement" and (told := _all(node)):
            named += told
        for symbol in _symbols(node):
            found.setdefault(symbol.name, symbol)
    exports = []
    for name, symbol in found.items():
        if name in named if named else not name.startswith("_"):
            exports.append(symbol)
    return Outline(exports=tuple(exports), imports=tuple(imports))


def _symbols(node: Node) -> Iterator[Symbol]:
    body = node.child_by_field_name("body")
    if node.type == "function_definition":
        yield Symbol(field(node, "name"), one_line(node, before=body).rstrip(" :"))
    elif node.type == "class_definition":
        yield Symbol(
            field(node, "name"),
            one_line(node, before=body).rstrip(" :"),
            tuple(_members(body)) if body else (),
        )
    elif node.type == "type_alias_statement":
        left = node.child_by_field_name("left")
        yield Symbol(word(left).partition("[")[0], one_line(node))
    elif node.type == "expression_statement":
        for assigned in children(node, 3):
            left = assigned.child_by_field_name("left")
            if assigned.type == "assignment" and left is not None and left.type == "identifier":
                yield Symbol(word(left), _variable(left, assigned))


def _variable(left: Node, assigned: Node) -> str:
    said = assigned.child_by_field_name("type")
    if said is not None:
        return f"{word(left)}: {one_line(said)}"
    return word(left)


def _members(body: Node) -> Iterator[str]:
    for node in unfolded(body, "decorated_definition", "if_statement", "block"):
        for symbol in _symbols(node):
            if not symbol.name.startswith("_") or symbol.name in _CALLED:
                yield symbol.text


def _imports(node: Node) -> Iterator[Import]:
    source = node.child_by_field_name("module_name")
    names = list(map(_imported, node.children_by_field_name("name")[:100]))
    if source is not None:
        star = any(child.type == "wildcard_import" for child in children(node, 20))
        yield Import(word(source), ("*",) if star else tuple(names))
    elif node.type == "import_statement":
        yield from map(Import, names)


def _imported(node: Node) -> str:
    if node.type == "aliased_import":
        return field(node, "name")
    return word(node)


def _all(node: Node) -> list[str]:
    """Return the names in a statement that assigns or adds to `__all__`."""
    for assigned in children(node, 3):
        if (
            assigned.type in ("assignment", "augmented_assignment")
            and field(assigned, "left") == "__all__"
        ):
            right = assigned.child_by_field_name("right")
            if right is not None:
                return list(map(unquoted, children(right)))
            return []
    return []
