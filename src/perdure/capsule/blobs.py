"""Searches for secrets in the files that a checkpoint's commit has added since the run began.
Called by `export` and `publication`.

Files that are unchanged since then are not searched, because every receiver with the repository has
them. All other files are searched, also those that are only staged or only in earlier commits of
the run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from perdure.capsule.scan import Scan
from perdure.host.git import Git
from perdure.host.git.output import excluded, one_a_line
from perdure.workspace.snapshot.escapes import unescape

BATCH = 16 << 20
LARGEST = 64 << 20
"""Maximum size of a file that is searched, in bytes. Larger files are reported as not searched."""


def shown(name: str) -> str:
    """Return the display name for a path in a checkpoint's git tree. It shows whether the file is
    in the workdir, is staged, or is only in a commit of the run."""
    top, _, rest = name.partition("/")
    if rest:
        return {"worktree": rest, "index": f"{rest} (staged)"}.get(
            top, f"{name} (in a commit of the run)"
        )
    return name


def search(
    git: Git, commit: str, have: Sequence[str], scan: Scan, called: Callable[[str], str] = shown
) -> list[str]:
    """Search for secrets in the files that are in `commit` but in none of the commits `have`.
    Findings are added to `scan`.

    Return the display names of the files that are too large to search. `called` returns the display
    name for a path in the git tree.
    """
    large = []
    held: list[tuple[str, str]] = []
    size = 0
    for oid, name, length in _new(git, commit, have):
        if length > LARGEST:
            large.append(called(name))
            continue
        held.append((oid, name))
        size += length
        if size > BATCH:
            _search(git, held, scan, called)
            held, size = [], 0
    _search(git, held, scan, called)
    return large


def search_commits(git: Git, commit: str, have: Sequence[str], scan: Scan) -> None:
    """Search for secrets in the messages and authors of the commits that `commit` adds to the
    commits `have`. Findings are added to `scan`, in the same form as for a file that is only in the
    history."""
    raw = git.run(
        "rev-list",
        "--format=raw",
        "--stdin",
        stdin=_since(commit, have),
        cap=1 << 28,
        timeout_s=1800.0,
    ).stdout
    scan.look("a commit's message or author", raw, file="a commit")


def _since(commit: str, have: Sequence[str]) -> bytes:
    return one_a_line([commit, *excluded(have)]).encode()


def _new(git: Git, commit: str, have: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """Yield id, path and size in bytes of each blob that is in `commit` but in none of the commits
    `have`. git names each blob once, by the first path that it finds."""
    said = git.run(
        "rev-list",
        "--objects",
        "--stdin",
        stdin=_since(commit, have),
        cap=1 << 30,
        timeout_s=1800.0,
    ).stdout
    names = {}
    for line in said.split(b"\n"):
        blob, _, name = line.partition(b" ")
        if name:
            names[blob.decode()] = os.fsdecode(name)
    asked = one_a_line(names).encode()
    told = git.run(
        "cat-file", "--batch-check", stdin=asked, cap=1 << 30, timeout_s=1800.0
    ).stdout.decode()
    for answer in told.splitlines():
        oid, kind, *length = answer.split(" ")
        if kind == "blob":
            yield oid, names[oid], int(length[0])


def _search(
    git: Git, held: Sequence[tuple[str, str]], scan: Scan, called: Callable[[str], str]
) -> None:
    if not held:
        return
    asked = "".join(f"{oid}\n" for oid, _ in held).encode()
    said = memoryview(
        git.run(
            "cat-file", "--batch", stdin=asked, cap=BATCH + 2 * LARGEST, timeout_s=1800.0
        ).stdout
    )
    at = 0
    for oid, name in held:
        end = bytes(said[at : at + 200]).index(b"\n") + at
        length = int(bytes(said[at:end]).split(b" ")[2])
        at = end + 1 + length + 1
        scan.look(called(name), bytes(said[end + 1 : end + 1 + length]), name, oid)


def on_disk(name: str) -> str:
    """Convert the name of a file in a checkpoint's git tree to its path in the workdir, and return
    the path. Return an empty string if the file is only in the history."""
    top, _, rest = name.partition("/")
    if top in ("worktree", "index"):
        return unescape(rest)
    return ""
