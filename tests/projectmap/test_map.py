"""The project map of small real projects, and the order of its files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from perdure.engine.project_map import draw, estimate, rank, read
from perdure.engine.project_map.languages import outline_of
from perdure.engine.project_map.outline import Outline
from tests.projectmap.making import SHOP, WEB, made, mapped, project


def test_a_python_project(tmp_path: Path) -> None:
    """The map has public classes, functions and constants with their signatures, and imports as
    files of the project. It has no private name and no body."""
    text = mapped(made(tmp_path, SHOP)).text
    assert (
        "shop/orders.py:\n  class Order\n    id: str\n    total: Money\n    def paid(self, by: str "
        "= 'card') -> bool\n" in text
    )
    assert (
        "  def load(path: str, *, strict: bool = False) -> list[Order]\n  imports shop/money.py, "
        "json\n" in text
    )
    assert (
        "shop/money.py:\n  class Money\n    cents: int\n    def __init__(self, cents: int) -> "
        "None\n  ZERO\n" in text
    )
    assert "  imports shop/orders.py\n" in text
    assert "_private" not in text and "_round" not in text and "return" not in text
    assert "README.md\n" in text


def test_a_typescript_project(tmp_path: Path) -> None:
    """The map has the exports and imports of ES modules and CommonJS, `.js` that means a `.ts`, and
    re-exports. It has no private member."""
    text = mapped(made(tmp_path, WEB)).text
    assert (
        "  interface Order\n    id: string\n    total: Money\n  type Id = string | number\n" in text
    )
    assert (
        "  const load = async (path: string): Promise<Order[]> =>\n  imports src/money.ts, "
        "node:fs\n" in text
    )
    assert (
        "  class Money\n    constructor(readonly cents: number)\n    plus(other: Money): Money\n"
        in text
    )
    assert (
        "  default function main(): void\n  Amount\n  imports src/orders.ts, src/money.ts\n" in text
    )
    assert "lib/old.js:\n  function run(x, y = 1)\n  imports src/orders.ts\n" in text
    assert "hidden" not in text and "private" not in text


@pytest.mark.parametrize(
    ("language", "source", "exports"),
    [
        (
            "go",
            "package p\nfunc New(id string) *T { return nil }\nfunc no() {}\ntype T struct { ID "
            "string; x int }\n",
            ["New", "T"],
        ),
        (
            "rust",
            "pub fn load(p: &Path) -> T { }\nfn no() {}\npub struct T { pub id: String }\nimpl T { "
            "pub fn new() -> T {} }\n",
            ["load", "T"],
        ),
        (
            "java",
            "package a.b;\npublic class T { private int x; public int go(String s) { return 1; } "
            "}\n",
            ["T"],
        ),
        ("javascript", "export function* each(a) {}\nexport { each as all }\n", ["each", "all"]),
        ("python", "__all__ = ['_a']\ndef _a(): ...\ndef b(): ...\n", ["_a"]),
        (
            "python",
            "if True:\n    try:\n        def deep(): ...\n    except ImportError:\n        pass\n",
            ["deep"],
        ),
        ("tsx", "export const View = (props: Props) => <a/>;\n", ["View"]),
    ],
)
def test_a_language(language: str, source: str, exports: list[str]) -> None:
    """Each language has its own rule for exports."""
    found = outline_of(language, source.encode())
    assert found is not None
    assert [symbol.name for symbol in found.exports] == exports


def test_go_and_java_and_rust_know_whom_they_import(tmp_path: Path) -> None:
    """An import is resolved to the project's file by the rules of each language."""
    files = {
        "go.mod": "module acme.io/x\n",
        "cmd/main.go": 'package main\nimport "acme.io/x/store"\nfunc main() {}\n',
        "store/store.go": "package store\nfunc Open() {}\n",
        "app/A.java": "package app;\nimport lib.B;\npublic class A {}\n",
        "lib/B.java": "package lib;\npublic class B {}\n",
        "src/main.rs": "mod shelf;\nuse crate::shelf::{Shelf};\npub fn go() {}\n",
        "src/shelf.rs": "pub struct Shelf;\n",
    }
    text = mapped(made(tmp_path, files)).text
    assert "cmd/main.go:\n  imports store/store.go\n" in text
    assert "app/A.java:\n  public class A\n  imports lib/B.java\n" in text
    assert "src/main.rs:\n  pub fn go()\n  imports src/shelf.rs\n" in text


def test_what_the_prompt_mentions_comes_first_and_then_what_is_near(tmp_path: Path) -> None:
    """A file is first if the prompt mentions one of its exports. Its neighbors in the graph of
    imports follow. Unrelated files are last."""
    shown = mapped(made(tmp_path, SHOP), "Let `load` take a Path").shown
    assert shown[0] == "shop/orders.py"
    assert set(shown[1:4]) == {"shop/money.py", "shop/report.py", "shop/__init__.py"}
    assert mapped(tmp_path, "Look at tools/clean.py").shown[0] == "tools/clean.py"


def test_what_earlier_tasks_made_comes_before_the_rest_and_says_so(tmp_path: Path) -> None:
    """If the prompt mentions no file, the newest task's files are first, and each names its
    task."""
    drawn = mapped(made(tmp_path, SHOP), tasks={"tools/clean.py": "cleaning", "README.md": "words"})
    assert drawn.shown[:2] == ("README.md", "tools/clean.py")
    assert "tools/clean.py (made by task cleaning):" in drawn.text


@pytest.mark.parametrize("tokens", [1, 200, 300, 500, 1000])
def test_the_bound_holds(tmp_path: Path, tokens: int) -> None:
    """However many files there are, the map does not exceed its limit, and states how many files it
    left out. A limit below 200 tokens is raised to 200."""
    made(
        tmp_path,
        {f"part{number}/module{number}.py": SHOP["shop/orders.py"] for number in range(80)},
    )
    drawn = mapped(tmp_path, "module7", tokens)
    assert drawn.tokens == estimate(drawn.text) <= max(tokens, 200)
    assert drawn.shown[0] == "part7/module7.py"
    assert f"(and {80 - len(drawn.shown)} more file(s))" in drawn.text


def test_a_look_again_parses_what_changed_and_nothing_else(tmp_path: Path) -> None:
    """On a second reading the cache is used for unchanged files. A change is noticed even if size
    and modification time stay. Deleted files are removed from the cache."""
    made(tmp_path / "shop", SHOP)
    parsed: list[bytes] = []

    def parse(language: str, content: bytes) -> Outline | None:
        parsed.append(content)
        return outline_of(language, content)

    names, cache = [*SHOP], tmp_path / "cache" / "one"
    first = read(tmp_path / "shop", names, parse, cache)
    assert len(parsed) == 5
    assert read(tmp_path / "shop", names, parse, cache) == first
    assert len(parsed) == 5
    path = tmp_path / "shop/shop/report.py"
    before = path.stat()
    path.write_text(path.read_text().replace("printed", "chanted"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    outline = read(tmp_path / "shop", names, parse, cache).files["shop/report.py"].outline
    assert outline is not None and outline.exports[0].name == "chanted"
    assert len(parsed) == 6
    cache.write_bytes(b"not a cache")
    assert read(tmp_path / "shop", names[:2], parse, cache).files.keys() == set(names[:2])


def test_without_the_parsers_there_are_names_and_that_is_told(tmp_path: Path) -> None:
    """Without the extra, the map lists only the names of files, and says why."""
    drawn = draw(rank(read(made(tmp_path, SHOP), [*SHOP], lambda language, content: None)), 2000)
    assert drawn.missing == ("python",)
    assert "whose parsers are not installed: python" in drawn.text
    assert "class Order" not in drawn.text and "shop/orders.py" in drawn.text


def test_an_empty_directory_has_no_map(tmp_path: Path) -> None:
    """Without files there is no map."""
    assert mapped(tmp_path).text == ""
    assert not project(tmp_path).files
