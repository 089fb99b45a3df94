"""A program: the perdure command with a record of what it starts, and of what it has imported when
the agent's shim starts.

`python -m tests.journeys.recorder FILE WORDS...` behaves as `perdure WORDS...`. FILE gets one JSON
object a line: `{"start": [...]}` for each process, `{"modules": [...]}` before the shim.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    record, words = sys.argv[1], sys.argv[2:]
    before = set(sys.modules)
    log = Path(record).open("a", encoding="utf-8")  # noqa: SIM115

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("subprocess.Popen", "os.posix_spawn"):
            return
        argv = [str(word) for word in arguments[1]]
        if any(word.endswith("shim.py") for word in argv):
            log.write(json.dumps({"modules": sorted(set(sys.modules) - before)}) + "\n")
        log.write(json.dumps({"start": argv}) + "\n")
        log.flush()

    sys.addaudithook(note)
    sys.argv = ["perdure", *words]
    from perdure.cli.main import main as perdure

    raise SystemExit(perdure())


if __name__ == "__main__":
    main()
