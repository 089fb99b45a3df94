"""Reads the index that git wrote when perdure made a worktree, so that the first checkpoint need
not read every file again.

`worktree` keeps that index before the agent starts. It has the state of each file as git wrote it,
with the id of the file's content. The first capture begins with a copy of it, in the same way as
each later capture begins with the index of the one before. An index is used only if every file is
known to be equal to its blob, and if it has nothing but ordinary files and links.

The format is that of git 2.39 (gitformat-index(5)), versions 2 and 3, with SHA-1.
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

from msgspec import Struct

from perdure.workspace.snapshot.checkpoint_repository import CheckpointRepository
from perdure.workspace.snapshot.escapes import escape
from perdure.workspace.worktree import CHECKOUT, CHECKOUT_INDEX

_HEADER = struct.Struct(">4sLL")
_MODE_AT, _ID_AT, _FLAGS_AT, _NAME_AT = 24, 40, 60, 62
"""Offsets in an entry of the index."""
_LONG = 0xFFF
"""Length in the flags of an entry whose name is at least that long."""
_MODES = frozenset((0o100644, 0o100755, 0o120000))
_EXTENSIONS = frozenset((b"TREE", b"EOIE", b"IEOT"))
"""Extensions that do not change the meaning of the entries: cached trees, and offsets."""
_LARGEST = 1 << 30


class Checkout(Struct, frozen=True):
    """The index of a checkout, before anything changed in the worktree."""

    head: str
    tree: str
    """Id of the tree of HEAD, to which all files were equal."""
    names: list[str]
    modified_ns: int
    """Modification time of the index. git compares the times of files with it."""
    content: bytes
    is_current: bool
    """Whether the worktree still has this index, so that nothing was staged."""

    def copy_to(self, index: Path) -> None:
        """Write the index to this path, with its modification time."""
        index.write_bytes(self.content)
        os.utime(index, ns=(self.modified_ns, self.modified_ns))


def read_checkout(repo: CheckpointRepository) -> Checkout | None:
    """Return the index of the worktree's checkout. None if there is none, if it was overwritten,
    or if the first capture cannot begin with it."""
    if repo.admin is None or repo.form != "sha1" or repo.user_objects is None:
        return None
    try:
        head, size, modified_ns = (repo.admin / CHECKOUT).read_text("ascii").split()
        fd = os.open(
            repo.admin / CHECKOUT_INDEX, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        )
        with os.fdopen(fd, "rb") as file:
            seen = os.fstat(fd)
            if (
                not stat.S_ISREG(seen.st_mode)
                or (seen.st_size, seen.st_mtime_ns) != (int(size), int(modified_ns))
                or seen.st_size > _LARGEST
            ):
                return None
            content = file.read()
        names, end = _names(content)
        tree = _tree(content, end)
    except (OSError, ValueError, struct.error, IndexError):
        return None
    try:
        is_current = os.path.samestat(seen, (repo.admin / "index").lstat())
    except OSError:
        is_current = False
    return Checkout(head, tree, names, seen.st_mtime_ns, content, is_current)


def forget_checkout(repo: CheckpointRepository) -> None:
    """Remove the index of the worktree's checkout."""
    if repo.admin is not None:
        for name in (CHECKOUT, CHECKOUT_INDEX):
            (repo.admin / name).unlink(missing_ok=True)


def _names(content: bytes) -> tuple[list[str], int]:
    """Return the names in an index, and the offset behind its last entry. Raises ValueError if an
    entry is not an ordinary file or link, struct.error and IndexError if the index is damaged."""
    signature, version, count = _HEADER.unpack_from(content)
    if signature != b"DIRC" or version not in (2, 3):
        raise ValueError("another format")
    names, at = list[str](), _HEADER.size
    for _ in range(count):
        (mode,) = struct.unpack_from(">L", content, at + _MODE_AT)
        (flags,) = struct.unpack_from(">H", content, at + _FLAGS_AT)
        length = flags & _LONG
        if length == _LONG:
            length = content.index(b"\0", at + _NAME_AT) - at - _NAME_AT
        name = os.fsdecode(content[at + _NAME_AT : at + _NAME_AT + length])
        if flags & ~_LONG or mode not in _MODES or not _is_ordinary(name, mode == 0o120000):
            raise ValueError("an unusual entry")
        names.append(name)
        at += (_NAME_AT + length + 8) & ~7
    return names, at


def _is_ordinary(name: str, link: bool) -> bool:
    """Return whether the name can be used as it is. A `.gitattributes` below the top directory was
    not read when the worktree was made."""
    if ".git" not in name.lower():
        return True
    parts = name.lower().split("/")
    if parts[-1] == ".gitattributes" and len(parts) > 1:
        return False
    return all(escape(part, link) == part for part in name.split("/"))


def _tree(content: bytes, at: int) -> str:
    """Return the id of the tree that the cached trees of an index have for the top directory.
    Raises ValueError if there is none, or if an extension may change the meaning of the entries."""
    tree = ""
    while at < len(content) - 20:
        kind, size = struct.unpack_from(">4sL", content, at)
        if kind not in _EXTENSIONS:
            raise ValueError("an unknown extension")
        if kind == b"TREE":
            counts, _, rest = content[at + 9 : at + 8 + size].partition(b"\n")
            if content[at + 8] or counts.startswith(b"-"):
                raise ValueError("no tree")
            tree = rest[:20].hex()
        at += 8 + size
    if len(tree) != 40:
        raise ValueError("no tree")
    return tree
