"""Outlines Java files: their types, and the members that are not private."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from perdure.engine.project_map.languages.tree import children, field, one_line, unfolded, word
from perdure.engine.project_map.outline import Import, Outline, Symbol

if TYPE_CHECKING:
    from tree_sitter import Node

_TYPES = (
    "class_declaration",
    "interface_declaration",
    "enum_declaration",
    "record_declaration",
    "annotation_type_declaration",
)
_MEMBERS = (
    "method_declaration",
    "constructor_declaration",
    "field_declaration",
    "enum_constant",
    *_TYPES,
)


def outline(root: Node) -> Outline:
    exports: list[Symbol] = []
    imports: list[Import] = []
    package = ""
    for node in unfolded(root, "program"):
        if node.type == "package_declaration":
            package = next(map(word, children(node, 1)), "")
        elif node.type == "import_declaration":
            star = any(child.type == "asterisk" for child in children(node, 10))
            kinds = ("scoped_identifier", "identifier")
            names = (name for name in children(node, 5) if name.type in kinds)
            module = next(map(word, names), "")
            imports.append(Import(module, ("*",) if star else ()))
        elif node.type in _TYPES:
            body = node.child_by_field_name("body")
            members = tuple(_members(body)) if body is not None else ()
            exports.append(
                Symbol(field(node, "name"), one_line(node, before=body).rstrip(" {"), members)
            )
    return Outline(exports=tuple(exports), imports=tuple(imports), package=package)


def _members(body: Node) -> Iterator[str]:
    for node in unfolded(body, "enum_body_declarations"):
        line = one_line(node, before=node.child_by_field_name("body")).rstrip(" ;{")
        if node.type in _MEMBERS and "private " not in f"{line} ".partition("(")[0]:
            yield line.partition(" = ")[0]
