"""The tutorial: every command of the page is typed in order into a terminal of 80 by 24, with the
real Claude Code. The outputs on the page must be part of the real ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.journeys.pages import Reader, commands, machine
from tests.journeys.stage import Stage

PAGE = Path(__file__).parents[2] / "docs/tutorial/repository.md"
SCRIPT = """by history
say I run the test first.
run touch at-work; test -e again || { touch again; sleep 600; }; python3 -m unittest 2>&1 | tail -3
---
run rm -f at-work again; sed -i 's/, 1)/, 2)/' cart.py
---
say The total was rounded to one digit. It is rounded to cents now, and the test passes.
---
run printf '\\n    def test_empty(self):\\n        self.assertEqual(total([]), 0)\\n' >> test_cart.py
---
say There is a test for an empty cart.
"""
STEP = re.compile(
    r"(?P<typed>(?:<!-- wait: \S+ -->\n)?```sh\n.*?```\n)(?:```text\n(?P<shown>.*?)```)?",
    re.DOTALL,
)


@pytest.fixture
def stage() -> Iterator[Stage]:
    yield from machine(SCRIPT)


def test_the_tutorial(stage: Stage) -> None:
    """Every command of the page is typed into a terminal. The agent is killed where the page says
    so. The output is that of the page, and each screen is the one that a person approved last."""
    workdirs = stage.home / ".local/share/perdure/.perdure/work"
    steps = list(STEP.finditer(PAGE.read_text()))
    assert len(steps) == len(re.findall(r"^```sh$", PAGE.read_text(), re.MULTILINE)) == 9
    reader = Reader(stage, stage.home)
    try:
        for step in steps:
            seen = ""
            for wait, command in commands(step["typed"]):
                if wait:
                    stage.until(lambda at=wait: list(workdirs.glob(f"*/{at}")), "the agent works")
                seen += reader.type(command)
                assert reader.code == 0, f"{command}\n{seen}"
            for line in (step["shown"] or "").splitlines():
                wanted = ".*".join(map(re.escape, re.split(r"\s*\.\.\.\s*", line)))
                unwrapped = re.sub(r"\n {2,}", " ", seen)
                assert re.search(wanted, f"{seen}\n{unwrapped}"), f"not shown: {line}\n{seen}"
    finally:
        reader.close()
    reader.compare("tutorial.txt")
    stage.nothing_survives()
