"""The output of `run`, `update` and `attach` for a person or a script: the answer, the progress and
the last line, with colors or plain."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.agents.rehearsal import Rehearsal
from perdure.cli.style import width_of
from tests.journeys.stage import Stage
from tests.journeys.terminal import on_terminal

pytestmark = pytest.mark.journey

SCRIPT = """by history
say I write the files.
run echo one > one.txt; sed -i s/Hello/Hi/ greet.py
---
say Both files \x1b]0;owned\x07are written, and nothing else was touched, as you can see in the list of changes.
---
say Nothing \u2713 more to do.
"""
ANSWER = (
    "Both files are written, and nothing else was touched, as you can see in the list of changes."
)
COLOR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def stage() -> Iterator[Stage]:
    directory = Path(tempfile.mkdtemp(prefix="po"))
    with Rehearsal(SCRIPT) as rehearsal:
        one = Stage(directory, "claude", rehearsal)
        yield one
        one.close()
    shutil.rmtree(directory, ignore_errors=True)


def test_the_answer_is_on_standard_output_and_the_last_line_sums_up(stage: Stage) -> None:
    """Standard output gets only the final message, without escapes; `--json` and `show` have the
    message unchanged. Progress and the summary go to standard error; with -q only the summary. On a
    terminal there are colors, no line is wider than the terminal, and the answer appears once."""
    done = stage.perdure("run", "--permissions", "full", "--name", "task", "Write the files.")
    assert (done.code, done.out) == (0, f"{ANSWER}\n"), done.err
    last = done.err.splitlines()[-1]
    assert re.fullmatch(
        r"✓ task · \d+s · ≈?\$\d\.\d\d · 2 files \+2 −1 · new conversation", last
    ), done.err
    assert "  I write the files." in done.err.splitlines()
    shown = stage.show()
    assert shown["result"] == shown["attempts"][0]["result"]
    assert shown["result"].replace("\x1b]0;owned\x07", "") == ANSWER

    stage.environ["PYTHONIOENCODING"] = "latin-1"
    more = stage.perdure("update", "-q", "task", "Is there more?")
    assert (more.code, more.out) == (0, "Nothing \\u2713 more to do.\n"), more.err
    assert re.fullmatch(
        r"ok task - 2 attempts - \d+s - ~?\$\d\.\d\d - 2 files \+2 -1 - continued ok\n",
        more.err,
    ), more.err
    del stage.environ["PYTHONIOENCODING"]

    for columns in (40, 80, 300):
        code, screen = on_terminal(stage, "attach", "task", columns=columns)
        assert code == 0 and COLOR.search(screen), screen
        plain = COLOR.sub("", screen)
        assert "continued ✓" in plain.splitlines()[-1]
        assert "".join(plain.split()).count("".join(ANSWER.split())) == 1, plain
        lines = [line.rpartition("\r")[2] for line in screen.split("\n") if "/" not in line]
        assert all(width_of(line.replace("\x1b[2K", "")) <= columns for line in lines), screen
    for variable, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        assert not COLOR.search(on_terminal(stage, "attach", "task", **{variable: value})[1])
