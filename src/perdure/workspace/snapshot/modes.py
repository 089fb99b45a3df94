"""Who may read what: the modes of files and directories that a checkpoint keeps, and how they come
back.

A mode is kept as far as it takes rights away: of `rwxr-xr-x` for directories and programs, of
`rw-r--r--` for other files. What perdure's own umask gives is usual, and not noted. Coming back, a
file never gets more than the umask of that moment gives, but what it has already may stay: no
setuid, setgid or sticky bit, and no right to write for others, ever comes out of a checkpoint.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from perdure.lateclass import dataclass

_MODE = re.compile(r"[0-7]{3}")


def umask() -> int:
    """This process's umask, read without a moment in which it is another one."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^Umask:\s*([0-7]+)", status, re.MULTILINE)
    assert found is not None
    return int(found[1], 8)


def kept(mode: int) -> int:
    """What of a mode (st_mode of a directory or a regular file) is kept."""
    return mode & _most(mode)


def usual(mode: int, mask: int) -> int:
    """What one of its kind has under a umask."""
    return _most(mode) & ~mask


def given(mode: int, wanted: int, mask: int, there: int = 0) -> int:
    """The mode that something gets. `mode`: st_mode, for its kind; `wanted`: what was kept;
    `there`: what it has now."""
    withheld = _most(mode) & ~wanted
    full = (0o777 if stat.S_ISDIR(mode) or mode & 0o100 else 0o666) & ~mask | there & 0o022
    # Something with a mode of its own is not opened further by a wide umask.
    return full & ~(withheld | (0o022 if withheld else 0))


@dataclass(frozen=True, slots=True)
class Rights:
    """The modes of a checkpoint: those that are not usual, and the umask that was."""

    noted: Mapping[str, int] = field(default_factory=dict)
    umask: int = 0o022

    def of(self, name: str, mode: int) -> int:
        """What was kept of a mode. `name`: as on disk, a directory's with a slash at its end;
        `mode`: st_mode, for its kind."""
        return self.noted.get(name, usual(mode, self.umask))

    def misfits(self, top: Path, names: Iterable[str], mask: int) -> dict[str, int]:
        """Those of the names whose mode is not what these rights give here, with the mode that they
        should have."""
        found = {}
        for name in names:
            try:
                there = (top / name.rstrip("/")).lstat().st_mode
            except OSError:
                continue
            if stat.S_ISDIR(there) if name.endswith("/") else stat.S_ISREG(there):
                wanted = given(there, self.of(name, there), mask, there)
                if kept(wanted) != kept(there):
                    found[name] = wanted
        return found


def to_json(modes: Mapping[str, int]) -> dict[str, list[str]]:
    """Names by mode, as three octal digits; a directory's name ends in a slash."""
    found: dict[str, list[str]] = {}
    for name, mode in sorted(modes.items()):
        found.setdefault(f"{mode:03o}", []).append(name)
    return found


def read(said: Any, mask: Any) -> Rights:
    """What `to_json` wrote, and the umask that was usual; checked. Raises ValueError, TypeError,
    AttributeError."""
    if not (_MODE.fullmatch(mask) and all(_MODE.fullmatch(mode) for mode in said)):
        raise ValueError("a mode is needed")
    modes: dict[str, int] = {}
    for mode, names in said.items():
        modes |= dict.fromkeys(map(str, names), int(mode, 8) & 0o755)
    return Rights(modes, int(mask, 8))


def _most(mode: int) -> int:
    return 0o755 if stat.S_ISDIR(mode) or mode & 0o100 else 0o644
