"""What a task promised besides words: files that it is to make, and conflict marks that are to be
gone.

Looked at after the agent's own success and before the task's `verify`; what is lacking is the
attempt's failure, so that it goes back into the same conversation. Files are looked at and never
run; a link may lead anywhere, and is only asked whether it leads to something.
"""

from __future__ import annotations

import re
from pathlib import Path

from perdure.model import TaskSpec

MARK = re.compile(rb"^(<{7}|>{7}) .*$|^={7}\r?$", re.MULTILINE)
LARGEST = 64 << 20
SHOWN = 20


def lacking(spec: TaskSpec, workdir: Path) -> str:
    """What is missing, in a sentence for the agent; empty where all is there."""
    missing = [name for name in spec.files if not _is_there(workdir / name)]
    marked = [name for name in spec.conflicts if _is_marked(workdir / name)]
    said = (
        [f"the task was to make {_listed(missing)}, and there is no such file"] if missing else []
    )
    said += [f"conflict marks of a merge are still in {_listed(marked)}"] if marked else []
    return "; ".join(said)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _is_marked(path: Path) -> bool:
    """Whether both ends of a conflict stand in the file. A separator alone may be an underlined
    heading."""
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
