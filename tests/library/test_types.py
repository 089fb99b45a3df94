"""The library's types, as mypy and pyright see them: the documentation's programs pass both in
strict mode, and wrong calls do not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
PROGRAMS = sorted((TOP / "examples").glob("*.py"))
WRONG = Path(__file__).with_name("wrong_calls.py")
EXPECTED = {
    number
    for number, line in enumerate(WRONG.read_text().split("\n"), 1)
    if line.endswith("# wrong")
}


def mypy(scratch: Path) -> dict[tuple[str, int], str]:
    """Return the errors of `mypy --strict`, by file and line."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--no-color-output", "--config-file="),
            *("--cache-dir", str(scratch / "cache"), *map(str, [*PROGRAMS, WRONG])),
        ],
        cwd=scratch,
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.findall(r"^(.+?):(\d+): error: (.*)$", done.stdout, re.MULTILINE)
    assert "Found" in done.stdout, done.stdout + done.stderr
    return {(Path(name).name, int(line)): text for name, line, text in found}


def pyright(scratch: Path) -> dict[tuple[str, int], str]:
    """Return the errors of pyright in strict mode, by file and line."""
    program = TOP / "agents" / "node_modules" / "pyright" / "index.js"
    assert program.exists(), "pyright is not installed: run `make agents`"
    config = scratch / "pyrightconfig.json"
    config.write_text(json.dumps({"typeCheckingMode": "strict", "include": ["*.py"]}))
    for path in (*PROGRAMS, WRONG):
        shutil.copy(path, scratch)
    done = subprocess.run(
        [
            *("node", str(program), "--outputjson", "--project", str(config)),
            *("--pythonpath", sys.executable),
        ],
        cwd=scratch,
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == len(PROGRAMS) + 1, done.stdout
    return {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1): each["message"]
        for each in report["generalDiagnostics"]
        if each["severity"] == "error"
    }


@pytest.mark.parametrize("check", [mypy, pyright])
def test_types(check: Callable[[Path], dict[tuple[str, int], str]], tmp_path: Path) -> None:
    """A strict checker accepts the three programs, and refuses exactly the wrong calls."""
    found = check(tmp_path)
    assert len(PROGRAMS) == 3
    assert {at: text for at, text in found.items() if at[0] != WRONG.name} == {}
    assert len(EXPECTED) >= 10
    assert {line for name, line in found if name == WRONG.name} == EXPECTED
