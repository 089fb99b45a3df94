"""Writes, reads and compares trees and commits in a checkpoint repository
(`checkpoint_repository`), and finds missing objects.

`capture` makes checkpoints with it; `restore`, `files` and `pack` read them.
"""

from __future__ import annotations

import os

from msgspec import Struct

from perdure.host.git.output import one_a_line
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
    """Name as in the tree, which may be encoded (see `escapes`)."""


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
