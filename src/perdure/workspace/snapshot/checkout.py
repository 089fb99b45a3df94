"""Reads the git index that git wrote when it checked out the files of a new worktree, so that the
first checkpoint need not read every file again.

The module `worktree` keeps that index before the agent starts. The index has the state of each file
as git wrote it, with the id of the file's content. The first capture begins with a copy of the kept
index, as each later capture begins with the index of the capture before.

The kept index is used only if three things are true. Every file is known to be equal to its blob.
The index lists only ordinary files and links. HEAD is still the commit that was checked out: which
ignored files a capture saves depends on the names that HEAD tracks.

The format is that of git 2.39 (gitformat-index(5)), versions 2 and 3, with SHA-1.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from perdure.workspace.locks import read
from perdure.workspace.snapshot.checkpoint_repository import CheckpointRepository
from perdure.workspace.snapshot.trees import escape
from perdure.workspace.worktree import CHECKOUT_INDEX

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
    """The git index that git wrote when it checked out a worktree, before anything changed
    there."""

    head: str
    tree: str
    """Id of HEAD's tree. The files of the worktree were equal to it when git wrote the index."""
    names: list[str]
    inode: int
    modified_ns: int
    """Modification time of the index. git compares the times of files with it."""
    content: bytes

    def copy_to(self, index: Path) -> None:
        """Write the index to this path, with its modification time."""
        index.write_bytes(self.content)
        os.utime(index, ns=(self.modified_ns, self.modified_ns))

    def is_index(self, signature: Sequence[int]) -> bool:
        """Return whether the worktree's current index is still the kept one, so that nothing was
        staged. `signature` is the signature of the current index (see `index.signature`)."""
        return [*signature[:3]] == [self.inode, len(self.content), self.modified_ns]


def read_checkout(repo: CheckpointRepository) -> Checkout | None:
    """Return the git index that git wrote when it checked out the worktree. Return None if no such
    index was kept, if the kept file was changed, or if HEAD has moved since. Also return None if
    the index has entries or extensions with which the first capture cannot begin."""
    if repo.admin is None or repo.form != "sha1" or repo.checkout_note is None:
        return None
    note = read(repo.checkout_note).split()
    if len(note) != 3 or note[0] != repo.head:
        return None
    head, modified_ns, digest = note
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(repo.admin / CHECKOUT_INDEX, flags), "rb") as file:
            seen = os.fstat(file.fileno())
            if not stat.S_ISREG(seen.st_mode) or seen.st_size > _LARGEST:
                return None
            content = file.read(_LARGEST)
        if hashlib.sha256(content).hexdigest() != digest:
            return None
        names, end = _names(content)
        return Checkout(head, _tree(content, end), names, seen.st_ino, int(modified_ns), content)
    except (OSError, ValueError, struct.error, IndexError):
        return None


def forget_checkout(repo: CheckpointRepository) -> None:
    """Remove the kept index of the worktree, and the file that describes it."""
    if repo.admin is not None and repo.checkout_note is not None:
        (repo.admin / CHECKOUT_INDEX).unlink(missing_ok=True)
        repo.checkout_note.unlink(missing_ok=True)


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
    """Return whether a capture would store the name unchanged. Return False for a `.gitattributes`
    below the top directory: it may convert the content of files, and was not checked when the
    worktree was made."""
    if ".git" not in name.lower():
        return True
    parts = name.lower().split("/")
    if parts[-1] == ".gitattributes" and len(parts) > 1:
        return False
    return all(escape(part, link) == part for part in name.split("/"))


def _tree(content: bytes, at: int) -> str:
    """Return the id of the top directory's tree, which the index's extension of cached trees (TREE)
    has. `at` is the offset of the first extension in the index. Raises ValueError if the id is
    missing, or if an extension may change the meaning of the entries."""
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
