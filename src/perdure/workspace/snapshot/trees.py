"""Writes, reads and compares trees and commits in a checkpoint repository
(`checkpoint_repository`). Also encodes names and modes for a checkpoint's tree.

`capture` makes checkpoints with it; `restore`, `files` and `pack` read them.

Names: git cannot store a name that has `.git` as one of its parts. Such a part gets a `%` at its
end. A part that already looks encoded gets one too (`.git%` becomes `.git%%`), so names stay
distinct and can be decoded. A link called `.gitmodules`, which git refuses, is encoded in the same
way. `escape` encodes, and `unescape` decodes.

`folded` helps to recognize names that some file systems take for `.git`, such as `.GIT`.

Modes: `kept` decides which permissions of files and directories a checkpoint keeps, and `given`
decides how they are restored.

A recorded mode can only withhold permissions: from `rwxr-xr-x` for directories and programs, from
`rw-r--r--` for other files. Modes that follow from perdure's own umask are not recorded. On
restore, a file never gets more than the current umask allows, but permissions that it has already
may stay. A setuid, setgid or sticky bit, or write permission for others, is never taken from a
checkpoint.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from perdure.host.git.output import one_a_line
from perdure.patterns import late_pattern
from perdure.workspace.snapshot.checkpoint_repository import CheckpointRepository, split


class Change(Struct, frozen=True):
    """The difference of one name between two trees. `state` is git's letter: A (added), D
    (deleted), M (modified) or T (other type). A missing side has the mode `000000`."""

    old_mode: str
    mode: str
    old: str
    new: str
    state: str
    name: str
    """Name as in the tree, which may be encoded (see `escape`)."""


def changes(repo: CheckpointRepository, before: str, after: str) -> list[Change]:
    """Return the differences between two trees, file by file."""
    if before == after:
        return []
    said = split(
        repo.run(
            "diff-tree", "-r", "-z", "--raw", "--no-abbrev", "--no-renames", before, after, "--"
        ).stdout
    )
    found = []
    for facts, name in zip(said[::2], said[1::2], strict=True):
        old_mode, mode, old, new, state = facts.lstrip(":").split(" ")
        found.append(Change(old_mode, mode, old, new, state, name))
    return found


def missing(repo: CheckpointRepository, ids: list[str], *, lent: bool = False) -> list[str]:
    """Return the ids of missing objects. An object is missing if the checkpoint repository does not
    have it. With `lent`, the agent's repository is searched too."""
    if not ids:
        return []
    said = repo.run(
        "cat-file",
        "--batch-check",
        stdin=one_a_line(ids).encode(),
        with_agent_objects=lent,
    ).text
    found = []
    for line in said.split("\n"):
        if line.endswith(" missing"):
            found.append(line.partition(" ")[0])
    return found


def objects(repo: CheckpointRepository, *names: str) -> list[tuple[str, bytes] | None]:
    """Return id and content of each named object, in order; None for a missing object. One git
    process reads them all.

    Raises GitFailed.
    """
    asked = one_a_line(names)
    said = repo.run("cat-file", "--batch", stdin=os.fsencode(asked)).stdout
    found: list[tuple[str, bytes] | None] = []
    place = 0
    for _ in names:
        end = said.index(b"\n", place)
        facts = said[place:end].rsplit(b" ", 2)
        place = end + 1
        if len(facts) < 3 or not facts[2].isdigit():
            found.append(None)
            continue
        size = int(facts[2])
        found.append((facts[0].decode("ascii"), said[place : place + size]))
        place += size + 1
    return found


def entries(tree: bytes, form: str) -> dict[str, str]:
    """Return the ids of the entries in a tree, by name. `tree` is the content of the tree object.
    `form` is the hash algorithm of object ids."""
    found: dict[str, str] = {}
    length, place = (32 if form == "sha256" else 20), 0
    while place < len(tree):
        end = tree.index(b"\0", place)
        name = tree[place:end].partition(b" ")[2]
        found[os.fsdecode(name)] = tree[end + 1 : end + 1 + length].hex()
        place = end + 1 + length
    return found


def commit_of(
    repo: CheckpointRepository, commit: str
) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Return a checkpoint's entries (mode and id by name) and its parents."""
    entries = {}
    for line in split(repo.run("ls-tree", "-z", commit).stdout):
        facts, _, name = line.partition("\t")
        mode, _, oid = facts.split(" ")
        entries[name] = (mode.lstrip("0"), oid)
    return entries, repo.run("rev-parse", f"{commit}^@").text.split()


def tree_of(repo: CheckpointRepository, entries: list[tuple[str, str, str]]) -> str:
    ordered = sorted(entries, key=lambda entry: entry[1] + ("/" if entry[0] == "40000" else ""))
    lines = []
    for mode, name, oid in ordered:
        lines.append(f"{mode} {name}\0".encode() + bytes.fromhex(oid))
    return repo.write_object("tree", b"".join(lines))


ODD = late_pattern(r"\.git%*", re.IGNORECASE)
ODD_LINK = late_pattern(r"\.gitmodules%*", re.IGNORECASE)

_IGNORED = dict.fromkeys(
    [*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF]
)
"""Code points that HFS+ ignores in names, as in `is_hfs_dotgit` of git 2.39."""


def escape(part: str, link: bool = False) -> str:
    """Return one part of a path in its encoded form, as it is stored in a tree."""
    if ODD.fullmatch(part) or (link and ODD_LINK.fullmatch(part)):
        return part + "%"
    return part


def unescape(name: str, link: bool = False) -> str:
    """Return a whole path in its decoded form, as it is on disk."""
    *above, last = name.split("/")
    ends = link and ODD_LINK.fullmatch(last) and last.endswith("%")
    return "/".join([*map(_plain, above), last[:-1] if ends else _plain(last)])


def folded(part: str) -> str:
    """Return one part of a path in a form for comparisons. Names that are one file on some file
    system have the same form. Many file systems ignore case, HFS+ ignores some characters, and NTFS
    and FAT ignore dots and spaces at the end, and what follows a colon."""
    return part.translate(_IGNORED).casefold().partition(":")[0].rstrip(". ")


def ignores_case(top: Path) -> bool:
    """Return whether the file system takes `.GIT` and `.git` in this directory for the same name.
    True if the directory has no `.git`, because then the answer is unknown."""
    if not os.path.lexists(top / ".git"):
        return True
    try:
        other = (top / ".GIT").lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat((top / ".git").lstat(), other)


def _plain(part: str) -> str:
    if part.endswith("%") and ODD.fullmatch(part):
        return part[:-1]
    return part


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
