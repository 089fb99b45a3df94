"""Outlines Go files. Names that begin with a capital letter are exported."""

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


def outline(root: Node) -> Outline:
    exports: list[Symbol] = []
    imports: list[Import] = []
    package = ""
    lists = (
        "import_declaration",
        "import_spec_list",
        "type_declaration",
        "const_declaration",
        "var_declaration",
        "var_spec_list",
    )
    for node in unfolded(root, *lists, "source_file"):
        if node.type == "package_clause":
            package = next(map(word, children(node, 1)), "")
        elif node.type == "import_spec":
            imports.append(Import(unquoted(node.child_by_field_name("path"))))
        exports += [symbol for symbol in _symbols(node) if symbol.name[:1].isupper()]
    return Outline(exports=tuple(exports), imports=tuple(imports), package=package)


def _symbols(node: Node) -> Iterator[Symbol]:
    name, body = field(node, "name"), node.child_by_field_name("body")
    if node.type in ("function_declaration", "method_declaration"):
        yield Symbol(name, one_line(node, before=body))
    elif node.type in ("type_spec", "type_alias"):
        kind = node.child_by_field_name("type")
        if kind is not None and kind.type in ("struct_type", "interface_type"):
            yield Symbol(
                name, f"type {name} {kind.type.removesuffix('_type')}", tuple(_members(kind))
            )
        else:
            yield Symbol(name, f"type {one_line(node)}")
    elif node.type in ("const_spec", "var_spec"):
        said = node.child_by_field_name("type")
        for each in node.children_by_field_name("name")[:100]:
            kind_word = node.type.removesuffix("_spec")
            rest = f" {one_line(said)}" if said is not None else ""
            yield Symbol(word(each), f"{kind_word} {word(each)}{rest}")


def _members(kind: Node) -> Iterator[str]:
    for node in unfolded(kind, "field_declaration_list"):
        if (
            node.type in ("field_declaration", "method_elem", "method_spec")
            and word(node)[:1].isupper()
        ):
            yield one_line(node, before=node.child_by_field_name("tag"))
