"""Checks what a task requires besides its instructions: files that must exist, and files that must
not contain conflict marks any more. Used by `finish` and by plans.

The check runs after the agent reports success and before the task's `verify`. If a file is missing
or still has conflict marks, the attempt fails. The next attempt tells the agent, in the same
conversation, which files these are. Files are only read. For a link, only the existence of its
target is checked.
"""

from __future__ import annotations

import re
from pathlib import Path

from perdure.model import TaskSpec
from perdure.patterns import late_pattern

MARK = late_pattern(rb"^(<{7}|>{7}) .*$|^={7}\r?$", re.MULTILINE)
LARGEST = 64 << 20
SHOWN = 20


def missing_files_sentence(spec: TaskSpec, workdir: Path) -> str:
    """Return a sentence that tells the agent which files are missing or still have conflict marks;
    empty if there are none."""
    missing = [name for name in spec.files if not _is_there(workdir / name)]
    marked = [name for name in spec.conflicts if _is_marked(workdir / name)]
    if missing:
        said = [f"the task was to create {_listed(missing)}, which does not exist"]
    else:
        said = []
    said += [f"conflict marks of a merge are still in {_listed(marked)}"] if marked else []
    return "; ".join(said)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _is_marked(path: Path) -> bool:
    """Return whether the file has all three marks of a conflict. The separator alone may be the
    underline of a heading."""
    try:
        if path.is_symlink() or not path.is_file():
            return False
        with path.open("rb") as file:
            found = {mark[0][:1] for mark in MARK.finditer(file.read(LARGEST))}
    except OSError:
        return False
    return found >= {b"<", b"=", b">"}


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more
