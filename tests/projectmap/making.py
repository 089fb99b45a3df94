"""Small real projects on disk, for the tests of the project map."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from perdure.engine.project_map import Drawn, Project, draw, rank, read
from perdure.engine.project_map.languages import outline_of

SHOP = {
    "shop/__init__.py": "from .orders import Order\n",
    "shop/money.py": (
        "class Money:\n    cents: int\n    def __init__(self, cents: int) -> None: ...\n    def "
        "_round(self): ...\n\n\nZERO = Money(0)\n"
    ),
    "shop/orders.py": (
        "import json\nfrom shop.money import Money\n\n\nclass Order:\n    id: str\n    total: "
        "Money\n\n    def paid(self, by: str = 'card') -> bool:\n        return True\n\n\ndef "
        "load(path: str, *, strict: bool = False) -> list[Order]:\n    return []\n\n\ndef "
        "_private() -> None: ...\n"
    ),
    "shop/report.py": "from .orders import load\n\n\ndef printed() -> str:\n    return ''\n",
    "tools/clean.py": "def sweep() -> None: ...\n",
    "README.md": "# Shop\n",
}
WEB = {
    "src/money.ts": (
        "export class Money {\n  private n = 0;\n  constructor(readonly cents: number) {}\n  "
        "plus(other: Money): Money { return this; }\n}\n"
    ),
    "src/orders.ts": (
        'import { Money } from "./money.js";\nimport fs from "node:fs";\n\nexport interface Order '
        "{ id: string; total: Money }\n"
        "export type Id = string | number;\nexport const load = async (path: string): "
        "Promise<Order[]> => [];\nfunction hidden() {}\n"
    ),
    "src/index.ts": (
        'export * from "./orders";\nexport { Money as Amount } from "./money";\nexport default '
        "function main(): void {}\n"
    ),
    "lib/old.js": (
        'const { load } = require("../src/orders");\nfunction run(x, y = 1) {}\nmodule.exports = { '
        "run };\n"
    ),
}


def made(directory: Path, files: Mapping[str, str]) -> Path:
    """Write the project's files to the directory, and return it."""
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return directory


def project(directory: Path) -> Project:
    """Return a project with all files of a directory."""
    return read(
        directory,
        [str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()],
        outline_of,
    )


def mapped(
    directory: Path, prompt: str = "", tokens: int = 2000, tasks: Mapping[str, str] | None = None
) -> Drawn:
    return draw(rank(project(directory), prompt, tasks), tokens)
