"""Finds files that differ from a commit only by the line ends that git converts.

A checkpoint has the bytes of a file as they are on disk. A commit has the bytes after git's
conversion, which is configured in `.gitattributes`. `capture` and `work` compare checkpoints with
commits, and leave out the files that git itself does not report as changed. No filter is run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from perdure.workspace.snapshot.checkpoint_repository import CheckpointRepository, joined, split
from perdure.workspace.snapshot.trees import Change, objects, unescape

_LARGE = 10 << 20
_MOST = 1000
"""Maximum number of files that are read."""


def converted(repo: CheckpointRepository, found: Iterable[Change]) -> set[str]:
    """Return the names on disk of those files that git's conversion of line ends makes equal to
    their old side. `found`: differences between a commit's tree and a checkpoint. Raises GitFailed.
    """
    if repo.repository is None:
        return set()
    known: dict[str, bool] = {}
    asked: dict[str, Change] = {}
    for change in found:
        name = unescape(change.name)
        plain = change.state == "M" and change.mode == change.old_mode
        if plain and len(asked) < _MOST and _has_attributes(repo, name, known):
            asked[name] = change
    if not asked:
        return set()
    names = [name for name in _with_conversion(repo, list(asked)) if _is_small(repo.top / name)]
    contents = objects(repo, *(asked[name].new for name in names))
    same = set()
    for name, content in zip(names, contents, strict=True):
        if content is not None:
            text = content[1].replace(b"\r\n", b"\n")
            whole = b"blob %d\0" % len(text) + text
            if hashlib.new(repo.form, whole).hexdigest() == asked[name].old:
                same.add(name)
    return same


def _has_attributes(repo: CheckpointRepository, name: str, known: dict[str, bool]) -> bool:
    """Return whether attributes can apply to a file. Most repositories have no attributes, and then
    git is not started. `known` caches the answer for each directory."""
    if "" not in known:
        common = repo.user_objects or repo.agent_objects
        own = common is not None and (common.parent / "info/attributes").exists()
        known[""] = own or (repo.top / ".gitattributes").exists()
    directory = name.rpartition("/")[0]
    if directory not in known:
        there = os.path.lexists(repo.top / directory / ".gitattributes")
        known[directory] = there or _has_attributes(repo, directory, known)
    return known[directory]


def _with_conversion(repo: CheckpointRepository, names: list[str]) -> Iterator[str]:
    """Yield the names of the files whose line ends git converts."""
    assert repo.repository is not None
    said = repo.repository.run("check-attr", "-z", "--stdin", "text", "eol", stdin=joined(names))
    parts = split(said.stdout)
    values = dict(zip(zip(parts[::3], parts[1::3], strict=True), parts[2::3], strict=True))
    for name in names:
        text, eol = values.get((name, "text")), values.get((name, "eol"))
        if text in ("set", "auto") or (text == "unspecified" and eol in ("lf", "crlf")):
            yield name


def _is_small(path: Path) -> bool:
    try:
        return path.lstat().st_size <= _LARGE
    except OSError:
        return False
