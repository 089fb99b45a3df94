"""Runs the perdure command and records the processes that it starts, and the modules that it has
imported when the agent's shim starts.

`python -m tests.journeys.recorder FILE WORDS...` behaves as `perdure WORDS...`. FILE gets one JSON
object a line: `{"start": [...]}` for each process, `{"modules": [...]}` before the shim.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.journeys.stage import Stage


@dataclass(frozen=True)
class Recorded:
    """One command: its git calls before and after the shim, and the modules loaded before it."""

    before: list[str]
    after: list[str]
    modules: list[str]
    said: str
    """The command's standard error."""


def record(stage: Stage, *words: str) -> Recorded:
    """Run a command of perdure to its end, and return the record of it."""
    log = stage.directory / "record"
    log.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "tests.journeys.recorder", str(log), *words]
    done = subprocess.run(
        argv,
        cwd=stage.repo,
        env=stage.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    at = next(place for place, row in enumerate(rows) if "modules" in row)
    starts = [row.get("start", [""]) for row in rows]
    git = [" ".join(each) if Path(each[0]).name == "git" else "" for each in starts]
    return Recorded(
        before=[each for each in git[:at] if each],
        after=[each for each in git[at:] if each],
        modules=rows[at]["modules"],
        said=done.stderr,
    )


def main() -> None:
    record, words = sys.argv[1], sys.argv[2:]
    before = set(sys.modules)
    log = Path(record).open("a", encoding="utf-8")  # noqa: SIM115

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("subprocess.Popen", "os.posix_spawn"):
            return
        argv = [str(word) for word in arguments[1]]
        if any(word.endswith("shim.py") for word in argv) or "/host/shim-" in argv[0]:
            log.write(json.dumps({"modules": sorted(set(sys.modules) - before)}) + "\n")
        log.write(json.dumps({"start": argv}) + "\n")
        log.flush()

    sys.addaudithook(note)
    sys.argv = ["perdure", *words]
    from perdure.cli.main import main as perdure

    raise SystemExit(perdure())


if __name__ == "__main__":
    main()
