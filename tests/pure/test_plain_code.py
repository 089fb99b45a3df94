"""The figures of the code that are held: names, nesting, the top of the package."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import perdure

SOURCE = Path(perdure.__file__).parent
TREES = {
    path.relative_to(SOURCE).as_posix(): ast.parse(path.read_bytes())
    for path in sorted(SOURCE.rglob("*.py"))
}


def test_a_class_name_is_there_once() -> None:
    """Two public classes never share a name, so that a name can be searched for."""
    places = defaultdict(list)
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{file}:{node.lineno}")
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_conditional_expression_is_in_another() -> None:
    """A conditional expression holds no other: an if statement says it."""
    nested = []
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.IfExp):
                inner = [each for each in ast.walk(node) if isinstance(each, ast.IfExp)]
                nested += [f"{file}:{node.lineno}"] * (len(inner) > 1)
    assert nested == []


def test_no_condition_is_in_a_formatted_string() -> None:
    """A formatted string holds names and calls; what depends on a condition has a name before."""
    found = []
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                inner = [each for each in ast.walk(node) if isinstance(each, ast.IfExp)]
                found += [f"{file}:{node.lineno}"] * bool(inner)
    assert found == []


def test_a_comprehension_has_one_loop() -> None:
    """What needs two loops is written as loops, or as a product or a chain."""
    kinds = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    found = []
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, kinds) and len(node.generators) > 1:
                found.append(f"{file}:{node.lineno}")
    assert found == []


@pytest.mark.parametrize("most", [20])
def test_the_top_of_the_package_is_short(most: int) -> None:
    """A newcomer reads the names at the top of the package at one glance."""
    unseen = {"__init__.py", "__main__.py", "__pycache__", "py.typed"}
    assert len({path.name for path in SOURCE.iterdir()} - unseen) <= most


def test_no_line_is_long() -> None:
    """A line has at most 100 columns."""
    lines: list[str] = []
    for file in TREES:
        rows = enumerate((SOURCE / file).read_text().splitlines(), 1)
        lines += [f"{file}:{number}" for number, line in rows if len(line) > 100]
    assert lines == []
