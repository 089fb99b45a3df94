"""Outlines Rust files: items that are `pub`, and the public functions of `impl` blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from msgspec.structs import replace

from perdure.engine.project_map.languages.tree import field, kinds, one_line, unfolded
from perdure.engine.project_map.outline import Import, Outline, Symbol

if TYPE_CHECKING:
    from tree_sitter import Node

_ITEMS = (
    *(
        "function_item",
        "struct_item",
        "enum_item",
        "union_item",
        "trait_item",
        "type_item",
        "const_item",
        "static_item",
    ),
    "macro_definition",
)


def outline(root: Node) -> Outline:
    found: dict[str, Symbol] = {}
    imports: list[Import] = []
    for node in unfolded(root, "source_file"):
        public = "visibility_modifier" in kinds(node)
        if node.type == "use_declaration":
            argument = node.child_by_field_name("argument")
            imports += [Import(one_line(argument).replace(" ", ""))] if argument is not None else []
        elif node.type == "mod_item" and node.child_by_field_name("body") is None:
            imports.append(Import(f"self::{field(node, 'name')}"))
        elif node.type == "impl_item":
            _implemented(node, found)
        elif node.type in _ITEMS and (public or node.type == "macro_definition"):
            symbol = _symbol(node)
            found[symbol.name] = replace(
                symbol,
                members=(
                    *symbol.members,
                    *(found[symbol.name].members if symbol.name in found else ()),
                ),
            )
    return Outline(
        exports=tuple(symbol for symbol in found.values() if symbol.text), imports=tuple(imports)
    )


def _implemented(node: Node, found: dict[str, Symbol]) -> None:
    name, body = field(node, "type").partition("<")[0], node.child_by_field_name("body")
    if body is None or node.child_by_field_name("trait") is not None:
        return
    known = found.get(name, Symbol(name, ""))
    found[name] = replace(known, members=(*known.members, *_members(body)))


def _symbol(node: Node) -> Symbol:
    body, name = node.child_by_field_name("body"), field(node, "name")
    if node.type == "macro_definition":
        return Symbol(name, f"macro_rules! {name}")
    end = body or node.child_by_field_name("value")
    return Symbol(
        name,
        one_line(node, before=end).rstrip(" ={;"),
        tuple(_members(body)) if body is not None else (),
    )


def _members(body: Node) -> Iterator[str]:
    """Yield the public fields and functions, the variants of an enum, and the functions that a
    trait requires."""
    for node in unfolded(body):
        always = node.type in ("enum_variant", "function_signature_item")
        if always or (
            node.type in ("function_item", "field_declaration")
            and "visibility_modifier" in kinds(node)
        ):
            if node.type == "enum_variant":
                end = None
            else:
                end = node.child_by_field_name("body")
            yield one_line(node, before=end).rstrip(" ;{")
