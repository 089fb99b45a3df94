"""Encodes names that git cannot store, for a checkpoint's tree.

git cannot store a name that has `.git` as one of its parts. Such a part gets a `%` at its end. A
part that already looks encoded gets one too (`.git%` becomes `.git%%`), so names stay distinct and
can be decoded. A link called `.gitmodules`, which git refuses, is encoded in the same way.

`folded` helps to recognize names that another file system takes for `.git`, such as `.GIT`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from perdure.patterns import late_pattern

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
