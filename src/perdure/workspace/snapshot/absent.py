"""Finds content that a user's checkout has but an agent's workdir lacks: files of submodules, and
contents of Git LFS.

`Workspaces.prepare` calls `absent` once for each new workdir. The sentences become notes of the
attempt. Names are untrusted text.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from perdure.errors import GitFailed
from perdure.host.git import Git
from perdure.workspace.locks import read
from perdure.workspace.worktree import git_directory

NAMED = 3
"""Maximum number of names in a note."""
_SUBMODULE = "160000"
_POINTER = "^version https://git-lfs.github.com/spec/v1$"


def absent(top: Path, git: Git) -> list[str]:
    """Return a sentence for each kind of content that is missing in the workdir. `git` runs in the
    workdir, without filters of the repository."""
    if not _may_name_any(git_directory(top) or top / ".git"):
        return []
    entries = []
    for line in _split(git.run("ls-files", "--stage", "-z", cap=1 << 30).stdout):
        entries.append(line.partition("\t"))
    modules = [name for facts, _, name in entries if facts.startswith(_SUBMODULE)]
    notes = []
    if modules:
        notes.append(f"Submodules are empty directories here: {_named(modules)}.")
    attributes = []
    for _, _, name in entries:
        if name.rpartition("/")[2] == ".gitattributes":
            attributes.append(name)
    if any("filter=lfs" in read(top / name) for name in attributes):
        pointers = _pointers(git)
        if pointers:
            notes.append(
                f"Files of Git LFS are pointers here, without their contents: {_named(pointers)}."
            )
    return notes


def _may_name_any(admin: Path) -> bool:
    """Return whether the index may list a submodule or an attributes file. The index file is read
    directly, which saves a git process in most workdirs.

    Modes are four bytes in each entry (gitformat-index(5)). Up to version 3 of the format, names
    are stored in full, unless the index shares entries with another file (a split index).
    """
    try:
        index = (admin / "index").read_bytes()
        split = any(admin.glob("sharedindex.*"))
    except OSError:
        return True
    whole = index[:4] == b"DIRC" and index[4:8] in (b"\0\0\0\2", b"\0\0\0\3")
    marks = (b"\0\0\xe0\0", b".gitattributes\0")
    return split or not whole or any(mark in index for mark in marks)


def _pointers(git: Git) -> list[str]:
    words = ("grep", "--cached", "--no-recurse-submodules", "-l", "-z", "-e", _POINTER)
    try:
        return _split(git.run(*words, good=(0, 1), cap=1 << 26).stdout)
    except GitFailed:
        # If the names cannot be found, there is no note. A missing note must not prevent the start
        # of the attempt.
        return []


def _split(out: bytes) -> list[str]:
    return [part for part in os.fsdecode(out).split("\0") if part]


def _named(names: Sequence[str]) -> str:
    listed = ", ".join(map(repr, names[:NAMED]))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{listed}{more}"
