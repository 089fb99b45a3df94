"""Measures of the code that must not get worse: names, nesting, the top of the package."""

from __future__ import annotations

import ast
import io
import itertools
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterable
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import perdure

SOURCE = Path(perdure.__file__).parent
FILES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))

Nodes = dict[str, list[ast.AST]]
"""The syntax nodes of each file."""


@pytest.fixture(scope="module")
def nodes() -> Nodes:
    """Return the syntax nodes of each file, the module first. This is a fixture, so that only a
    process that runs these tests parses the package."""
    return {file: list(ast.walk(ast.parse((SOURCE / file).read_bytes()))) for file in FILES}


def test_a_class_name_is_there_once(nodes: Nodes) -> None:
    """No two public classes have the same name, so that a name can be searched for."""
    places = defaultdict(list)
    for file, inside in nodes.items():
        for node in inside:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{file}:{node.lineno}")
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_conditional_expression_is_in_another(nodes: Nodes) -> None:
    """A conditional expression contains no other one. An if statement is used instead."""
    nested = []
    for file, inside in nodes.items():
        for node in inside:
            if isinstance(node, ast.IfExp):
                inner = [each for each in ast.walk(node) if isinstance(each, ast.IfExp)]
                nested += [f"{file}:{node.lineno}"] * (len(inner) > 1)
    assert nested == []


def test_no_condition_is_in_a_formatted_string(nodes: Nodes) -> None:
    """A formatted string has only names and calls. A conditional value gets a name first."""
    found = []
    for file, inside in nodes.items():
        for node in inside:
            if isinstance(node, ast.JoinedStr):
                inner = [each for each in ast.walk(node) if isinstance(each, ast.IfExp)]
                found += [f"{file}:{node.lineno}"] * bool(inner)
    assert found == []


@pytest.mark.parametrize("most", [13])
def test_conditional_expressions_are_few(nodes: Nodes, most: int) -> None:
    """A thousand lines have at most 13 conditional expressions. Other conditions are statements."""
    every = itertools.chain.from_iterable(nodes.values())
    found = sum(isinstance(node, ast.IfExp) for node in every)
    lines = sum(len((SOURCE / file).read_text().splitlines()) for file in FILES)
    assert 1000 * found / lines <= most


def test_a_comprehension_has_one_loop(nodes: Nodes) -> None:
    """A comprehension with two loops is written as loops, or with product or chain."""
    kinds = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    found = []
    for file, inside in nodes.items():
        for node in inside:
            if isinstance(node, kinds) and len(node.generators) > 1:
                found.append(f"{file}:{node.lineno}")
    assert found == []


@pytest.mark.parametrize("most", [20])
def test_the_top_of_the_package_is_short(most: int) -> None:
    """The names at the top of the package are few, so that a newcomer can read them at one
    glance."""
    unseen = {"__init__.py", "__main__.py", "__pycache__", "py.typed"}
    assert len({path.name for path in SOURCE.iterdir()} - unseen) <= most


def test_no_line_is_long() -> None:
    """A line has at most 100 columns."""
    lines: list[str] = []
    for file in FILES:
        rows = enumerate((SOURCE / file).read_text().splitlines(), 1)
        lines += [f"{file}:{number}" for number, line in rows if len(line) > 100]
    assert lines == []


def _imports(name: str, nodes: list[ast.AST], modules: set[str]) -> set[str]:
    """Return the modules among `modules` that a file imports, at its beginning or inside
    functions."""
    typing = set()
    for node in nodes:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            typing |= {id(each) for each in ast.walk(node)}
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in typing:
            for each in node.names:
                inner = f"{node.module}.{each.name}"
                found.add(inner if inner in modules else node.module)
    return (found & modules) - {name}


def _module(file: str) -> str:
    return ".".join(("perdure", *file.removesuffix(".py").removesuffix("/__init__").split("/")))


def test_files_import_in_one_direction(nodes: Nodes) -> None:
    """The imports between files, including those inside functions, have no cycle."""
    modules = {_module(file): inside for file, inside in nodes.items()}
    names = set(modules)
    graph = {name: _imports(name, inside, names) for name, inside in modules.items()}
    TopologicalSorter(graph).prepare()


UNPLAIN = re.compile(r"\b(anew|whoever|whosever|at work|mend(s|ed)?|nobody knows of|take away)\b")
"""Words that have plainer synonyms. No text that a person reads may have them."""
LABELS = {"transcript unusable, mended"}
"""Texts that are values of a metric's label, and that stay as they were published."""


def test_texts_are_in_plain_words(nodes: Nodes) -> None:
    """No text of the program has a word from the list. Docstrings are not checked here."""
    found = []
    for file, inside in nodes.items():
        said = {id(node.value) for node in inside if isinstance(node, ast.Expr)}
        for node in inside:
            text = node.value if isinstance(node, ast.Constant) else None
            if not isinstance(text, str) or id(node) in said or " " not in text:
                continue
            if UNPLAIN.search(text) and text not in LABELS:
                found.append(f"{file}:{node.lineno}: {text[:60]}")
    assert found == []


HARD_BEGINNING = re.compile(r"(What|Who|Whose|Whom|Whoever|Whatever|Somebody|Of|So|Against)\b")
"""First words of a docstring after which a reader must search for its subject."""
ARCHAIC = re.compile(r"\b([Aa]new|[Ww]hosever|[Ww]homever|[Ww]herefrom|Whoever|Whosoever)\b")
ROOT = Path(__file__).parents[2]


def _docstrings(nodes: Iterable[ast.AST]) -> list[ast.Constant]:
    """Return every string that is a statement: docstrings of modules, classes, functions and
    names."""
    found = [node.value for node in nodes if isinstance(node, ast.Expr)]
    return [
        each for each in found if isinstance(each, ast.Constant) and isinstance(each.value, str)
    ]


def test_a_docstring_begins_with_its_subject_or_verb(nodes: Nodes) -> None:
    """No docstring, in the tests as well, begins with a word that delays its subject."""
    found = []
    texts = {file: _docstrings(inside) for file, inside in nodes.items()}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        texts[str(path.relative_to(ROOT))] = _docstrings(ast.walk(ast.parse(path.read_bytes())))
    for file, docstrings in texts.items():
        for text in docstrings:
            if HARD_BEGINNING.match(str(text.value).strip()):
                found.append(f"{file}:{text.lineno}: {str(text.value)[:60]}")
    assert found == []


def test_comments_and_docstrings_have_no_archaic_words() -> None:
    """Comments and texts of the source, and all pages of the docs, use words of today."""
    found = []
    for file in FILES:
        source = (SOURCE / file).read_text()
        if not ARCHAIC.search(source):
            continue
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            is_text = token.type in (tokenize.COMMENT, tokenize.STRING)
            if is_text and ARCHAIC.search(token.string):
                found.append(f"{file}:{token.start[0]}: {token.string[:60]}")
    for page in (ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")):
        for number, line in enumerate(page.read_text().splitlines(), 1):
            if ARCHAIC.search(line):
                found.append(f"{page.relative_to(ROOT)}:{number}")
    assert found == []
