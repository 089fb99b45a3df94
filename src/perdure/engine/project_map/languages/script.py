"""Outlines JavaScript and TypeScript files: the exports of a module, including CommonJS. If a file
has no exports, its declarations are listed instead."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from perdure.engine.project_map.languages.tree import (
    children,
    field,
    kinds,
    one_line,
    unfolded,
    unquoted,
    word,
)
from perdure.engine.project_map.outline import Import, Outline, Symbol

if TYPE_CHECKING:
    from tree_sitter import Node

_FUNCTIONS = ("function_declaration", "generator_function_declaration", "function_signature")
_TYPES = (
    "class_declaration",
    "abstract_class_declaration",
    "interface_declaration",
    "enum_declaration",
)
_VARIABLES = ("lexical_declaration", "variable_declaration")
_ARROWS = ("arrow_function", "function_expression", "function", "generator_function")


def outline(root: Node) -> Outline:
    there: dict[str, Symbol] = {}
    exports: dict[str, Symbol] = {}
    named: list[tuple[str, str]] = []
    imports: list[Import] = []
    for node in unfolded(root, "ambient_declaration", "program"):
        imports += _imports(node)
        if node.type == "export_statement":
            own, names = _exported(node)
            exports |= {symbol.name: symbol for symbol in own}
            named += names
        elif node.type == "expression_statement":
            named += _common(node)
        for symbol in _symbols(node):
            there.setdefault(symbol.name, symbol)
    for local, name in named:
        known = there.get(local)
        if known is not None and local == name:
            text = known.text
        elif known is not None:
            text = f"{name} (= {known.text})"
        else:
            text = name
        exports.setdefault(name, Symbol(name, text, known.members if known is not None else ()))
    return Outline(exports=tuple((exports or there).values()), imports=tuple(imports))


def _exported(node: Node) -> tuple[list[Symbol], list[tuple[str, str]]]:
    """Return the symbols that an `export` statement declares, and pairs (local name, exported name)
    for the names that it lists."""
    declared = node.child_by_field_name("declaration")
    value = node.child_by_field_name("value")
    if declared is not None:
        found = list(chain.from_iterable(map(_symbols, _unwrapped(declared))))
        if "default" in kinds(node):
            if found:
                text = found[0].text
            else:
                text = one_line(declared, before=declared.child_by_field_name("body"))
            found = [Symbol("default", f"default {text}", found[0].members if found else ())]
        return found, []
    if value is not None:
        body = value.child_by_field_name("body")
        local = word(value) if value.type == "identifier" else ""
        if local:
            return ([], [(local, "default")])
        return ([Symbol("default", f"default {one_line(value, before=body)}".rstrip(" {"))], [])
    names = []
    for clause in children(node, 50):
        if clause.type == "namespace_export":
            names += [("", word(name)) for name in children(clause, 1)]
        for each in children(clause) if clause.type == "export_clause" else ():
            local = field(each, "name")
            names.append((local, field(each, "alias") or local))
    return [], names


def _unwrapped(node: Node) -> Iterator[Node]:
    yield from children(node) if node.type == "ambient_declaration" else (node,)


def _symbols(node: Node) -> Iterator[Symbol]:
    body = node.child_by_field_name("body")
    if node.type in _FUNCTIONS:
        yield Symbol(field(node, "name"), one_line(node, before=body).rstrip(" ;"))
    elif node.type in _TYPES:
        members = tuple(_members(body)) if body is not None else ()
        yield Symbol(field(node, "name"), one_line(node, before=body).rstrip(" {"), members)
    elif node.type == "type_alias_declaration":
        yield Symbol(field(node, "name"), one_line(node).rstrip(" ;"))
    elif node.type in ("internal_module", "module"):
        yield Symbol(field(node, "name"), f"namespace {field(node, 'name')}")
    elif node.type in _VARIABLES:
        keyword = word(node.children[0]) if node.children else ""
        for declared in children(node):
            if declared.type == "variable_declarator" and field(declared, "name").isidentifier():
                yield Symbol(field(declared, "name"), f"{keyword} {_variable(declared)}")


def _variable(node: Node) -> str:
    """Return a variable's declaration as text: its name with its type, or with the signature if its
    value is a function."""
    name, said, value = (
        field(node, "name"),
        node.child_by_field_name("type"),
        node.child_by_field_name("value"),
    )
    if said is not None:
        return f"{name}{one_line(said)}"
    if value is not None and value.type in _ARROWS:
        return f"{name} = {one_line(value, before=value.child_by_field_name('body'))}".rstrip(" {")
    return name


def _members(body: Node) -> Iterator[str]:
    for node in unfolded(body):
        name = field(node, "name") or word(node)
        hidden = kinds(node) & {"accessibility_modifier"} and word(node).startswith(
            ("private", "protected")
        )
        if (
            hidden
            or name.startswith("#")
            or "comment" in node.type
            or node.type in ("decorator", "class_static_block")
        ):
            continue
        if node.type in ("public_field_definition", "field_definition"):
            said = node.child_by_field_name("type")
            yield f"{name}{one_line(said)}" if said is not None else name
        else:
            yield one_line(node, before=node.child_by_field_name("body")).rstrip(" ;{")


def _imports(node: Node) -> Iterator[Import]:
    source = node.child_by_field_name("source")
    if source is not None and (module := unquoted(source)):
        yield Import(module, tuple(_imported(node)))
    elif node.type == "import_statement":  # `import x = require("y")`
        for inner in children(node, 10):
            if inner.type == "import_require_clause":
                yield Import(unquoted(inner.child_by_field_name("source")), ())
    elif node.type in _VARIABLES:
        for declared in children(node, 100):
            value = declared.child_by_field_name("value")
            if value is not None and (module := _required(value)):
                if pattern := declared.child_by_field_name("name"):
                    names = list(map(word, children(pattern, 100)))
                else:
                    names = []
                yield Import(module, tuple(name for name in names if name.isidentifier()))


def _required(value: Node) -> str:
    """Return the name of the module in a `require("...")` call; empty for any other node."""
    arguments = value.child_by_field_name("arguments")
    if (
        value.type != "call_expression"
        or field(value, "function") != "require"
        or arguments is None
    ):
        return ""
    return next(map(unquoted, children(arguments, 1)), "")


def _imported(node: Node) -> Iterator[str]:
    for each in unfolded(node, "import_clause", "named_imports"):
        if each.type == "import_specifier":
            yield field(each, "name")
        elif each.type == "identifier":
            yield word(each)
        elif each.type == "namespace_import":
            yield "*"


def _common(node: Node) -> Iterator[tuple[str, str]]:
    """Yield pairs (local name, exported name) for a CommonJS export: `module.exports = {a, b}` or
    `exports.a = ...`."""
    for assigned in children(node, 1):
        left, right = assigned.child_by_field_name("left"), assigned.child_by_field_name("right")
        if assigned.type != "assignment_expression" or left is None or right is None:
            continue
        target = word(left)
        if target == "module.exports" and right.type == "object":
            for each in children(right):
                name = field(each, "key") or word(each)
                if name.isidentifier():
                    yield name, name
        elif target == "module.exports":
            yield word(right), "module.exports"
        elif target.startswith(("exports.", "module.exports.")):
            name = target.rpartition(".")[2]
            yield word(right), name
