"""The tutorial: every command of the page, in its order, on the real Claude Code; what the page shows
of an output is in it."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.agents.rehearsal import Rehearsal
from tests.journeys.stage import Stage
from tests.patience import PATIENCE_S

PAGE = Path(__file__).parents[2] / "docs/tutorial/repository.md"
SCRIPT = """by history
say I run the test first.
run touch at-work; test -e again || { touch again; sleep 60; }; python3 -m unittest 2>&1 | tail -3
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
    r"(?:<!-- wait: (?P<wait>\S+) -->\n)?```sh\n(?P<commands>.*?)```\n(?:```text\n(?P<shown>.*?)```)?",
    re.DOTALL,
)


@pytest.fixture
def stage() -> Iterator[Stage]:
    directory = Path(tempfile.mkdtemp(prefix="pt"))
    with Rehearsal(SCRIPT) as rehearsal:
        made = Stage(directory, "claude", rehearsal)
        yield made
        made.close()
    shutil.rmtree(directory, ignore_errors=True)


def test_the_tutorial(stage: Stage) -> None:
    """A reader who types the page, with an agent that is killed where the page kills it, sees what
    the page shows."""
    here = stage.directory
    (stage.home / ".gitconfig").write_text("[user]\nname = Ada\nemail = ada@example.invalid\n")
    workdirs = stage.home / ".local/share/perdure/.perdure/work"
    steps = list(STEP.finditer(PAGE.read_text()))
    assert len(steps) == len(re.findall(r"^```sh$", PAGE.read_text(), re.MULTILINE)) == 9
    for step in steps:
        if step["wait"]:
            stage.until(lambda at=step["wait"]: list(workdirs.glob(f"*/{at}")), "the agent works")
        place = stage.directory / "place"
        done = subprocess.run(
            ["bash", "-e", "-c", f'{step["commands"]}\npwd > "{place}"'],
            cwd=here,
            env=stage.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        print(done.stdout)
        assert done.returncode == 0, f"{step['commands']}\n{done.stdout}"
        here = Path(place.read_text().strip())
        for line in (step["shown"] or "").splitlines():
            wanted = ".*".join(map(re.escape, re.split(r"\s*\.\.\.\s*", line)))
            assert re.search(wanted, done.stdout), f"not shown: {line}\n{done.stdout}"
    stage.nothing_survives()
