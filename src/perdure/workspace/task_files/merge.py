"""Makes a three-way merge of one file, with `git merge-file` on copies in a temporary directory. No
repository is involved.

`placement` calls it. Where both sides changed the same lines, the result has all three versions
between labeled conflict markers (`--zdiff3`, git 2.35 and newer).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from perdure.errors import GitFailed
from perdure.host.git import Git

LARGEST = 4 << 20
"""Maximum size of a file to merge, in bytes. A larger file is reported as a conflict."""
MOST_CONFLICTS = 127
"""Highest number of conflicts that git's exit code can report."""


def merge_texts(
    own: bytes, base: bytes, given: bytes, labels: tuple[str, str, str], environ: Mapping[str, str]
) -> tuple[bytes, int] | None:
    """Return the merged bytes and the number of conflicts in them. None if one of the files is
    binary or too large."""
    sides = (own, base, given)
    if any(len(side) > LARGEST or b"\0" in side for side in sides):
        return None
    with tempfile.TemporaryDirectory(prefix="perdure-merge-") as directory:
        place = Path(directory).resolve()
        names = ("own", "base", "given")
        for name, side in zip(names, sides, strict=True):
            (place / name).write_bytes(side)
        told = []
        for label in labels:
            told += ["-L", label]
        git = Git(cwd=place, ceiling=place.parent, environ=environ)
        try:
            done = git.run(
                "merge-file",
                "-p",
                "-q",
                "--zdiff3",
                *told,
                "--",
                *names,
                good=range(MOST_CONFLICTS + 1),
            )
        except GitFailed:
            return None
    return done.stdout, done.code
