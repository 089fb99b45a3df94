"""Decides which permissions of files and directories a checkpoint keeps, and how they are restored.

A recorded mode can only withhold permissions: from `rwxr-xr-x` for directories and programs, from
`rw-r--r--` for other files. Modes that follow from perdure's own umask are not recorded. On
restore, a file never gets more than the current umask allows, but permissions that it has already
may stay. A setuid, setgid or sticky bit, or write permission for others, is never taken from a
checkpoint.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from perdure.host.system.files import umask as umask
from perdure.patterns import late_pattern

_MODE = late_pattern(r"[0-7]{3}")


def kept(mode: int) -> int:
    """Return those permission bits of `mode` that a checkpoint keeps. `mode` is the st_mode of a
    directory or a regular file."""
    return mode & _most(mode)


def usual(mode: int, mask: int) -> int:
    """Return the mode that a new file gets under the umask `mask`. `mode`: an st_mode that shows
    whether the file is a directory, a program or another file."""
    return _most(mode) & ~mask


def given(mode: int, wanted: int, mask: int, there: int = 0) -> int:
    """Return the mode to set on a file. `mode`: an st_mode that shows whether the file is a
    directory, a program or another file. `wanted`: the mode in the checkpoint; `mask`: the umask;
    `there`: the current mode."""
    withheld = _most(mode) & ~wanted
    full = (0o777 if stat.S_ISDIR(mode) or mode & 0o100 else 0o666) & ~mask | there & 0o022
    # A umask that allows group or others to write must not add that permission to a file whose
    # recorded mode withholds any.
    return full & ~(withheld | (0o022 if withheld else 0))


class Rights(Struct, frozen=True):
    """The modes that a checkpoint recorded. All other modes follow from its recorded `umask`."""

    noted: Mapping[str, int] = field(default_factory=dict)
    umask: int = 0o022

    def of(self, name: str, mode: int) -> int:
        """Return the recorded mode of a name, or the mode that follows from the recorded umask.
        `name`: as on disk, with a slash at the end for a directory. `mode`: an st_mode that shows
        whether the file is a directory, a program or another file."""
        return self.noted.get(name, usual(mode, self.umask))

    def misfits(self, top: Path, names: Iterable[str], mask: int) -> dict[str, int]:
        """Return the names whose current mode is wrong, each with the mode that it should have. The
        right mode follows from the recorded modes and from `mask`, the current umask."""
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
    """Return the names by mode; a mode is three octal digits. A directory's name ends in a
    slash."""
    found: dict[str, list[str]] = {}
    for name, mode in sorted(modes.items()):
        found.setdefault(f"{mode:03o}", []).append(name)
    return found


def read(said: Any, mask: Any) -> Rights:
    """Parse and check the output of `to_json`, and the umask that was recorded with it. Raises
    ValueError, TypeError, AttributeError."""
    if not (_MODE.fullmatch(mask) and all(map(_MODE.fullmatch, said))):
        raise ValueError("a mode is needed")
    modes: dict[str, int] = {}
    for mode, names in said.items():
        modes |= dict.fromkeys(map(str, names), int(mode, 8) & 0o755)
    return Rights(modes, int(mask, 8))


def _most(mode: int) -> int:
    if stat.S_ISDIR(mode) or mode & 0o100:
        return 0o755
    return 0o644
