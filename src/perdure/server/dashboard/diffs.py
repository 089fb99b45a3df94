"""Parses a patch into files and numbered lines for display. Pure. The patch is untrusted bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BytesIO

from msgspec import Struct, field

from perdure.rules.text import visible

LINES = 4000
"""Maximum number of lines of a patch that the page shows. The whole patch is available as a file.
"""
FILES = 500
"""Maximum number of files that the page names."""
WIDE = 600
HUNK = re.compile(r"@@ -(\d{1,9})(?:,\d{1,9})? \+(\d{1,9})(?:,\d{1,9})? @@(.*)")


class ChangedFile(Struct):
    """A changed file. `how` is `new`, `deleted`, `renamed`, `binary` or `changed`. A line is a
    tuple of kind, old number, new number and text."""

    name: str
    how: str = "changed"
    added: int = 0
    removed: int = 0
    lines: list[tuple[str, str, str, str]] = field(default_factory=list)


class Patch(Struct, frozen=True):
    """A parsed patch. `left` is the number of lines that were cut off, `more` the number of files
    that were left out."""

    files: tuple[ChangedFile, ...]
    left: int
    more: int = 0

    @property
    def added(self) -> int:
        return sum(each.added for each in self.files)

    @property
    def removed(self) -> int:
        return sum(each.removed for each in self.files)


def read(patch: bytes) -> Patch:
    """Parse the output of `git diff`. Invalid lines are skipped."""
    files: list[ChangedFile] = []
    shown = left = 0
    for line in _lines(patch):
        if line.startswith("diff --git "):
            files.append(ChangedFile(_name(line)))
            before = after = 0
            in_hunk = False
        elif not files:
            continue
        elif found := HUNK.match(line):
            before, after, in_hunk = int(found[1]), int(found[2]), True
            shown += 1
            if shown <= LINES:
                files[-1].lines.append(("hunk", "", "", found[3].strip()))
        elif not in_hunk:
            _head(files[-1], line)
        elif line[:1] in ("+", "-", " "):
            kind = {"+": "add", "-": "del"}.get(line[:1], "same")
            files[-1].added += kind == "add"
            files[-1].removed += kind == "del"
            shown += 1
            if shown <= LINES:
                old, new = "" if kind == "add" else str(before), "" if kind == "del" else str(after)
                files[-1].lines.append(
                    (kind, old, new, line[1 : WIDE + 1] + ("…" if len(line) > WIDE + 1 else ""))
                )
            else:
                left += 1
            before += kind != "add"
            after += kind != "del"
    return Patch(tuple(files[:FILES]), left, len(files[FILES:]))


def _lines(patch: bytes) -> Iterator[str]:
    for line in BytesIO(patch):
        yield visible(line.removesuffix(b"\n").decode("utf-8", "replace"))


def _name(line: str) -> str:
    """Return the new file name from a line `diff --git a/x b/x`. The result is preliminary, because
    such a line can be ambiguous. If a `+++` line follows, its file name is used instead."""
    return line.removeprefix("diff --git ").rpartition(" b/")[2] or line


def _head(file: ChangedFile, line: str) -> None:
    if line.startswith("new file"):
        file.how = "new"
    elif line.startswith("deleted file"):
        file.how = "deleted"
    elif line.startswith("rename to "):
        file.how, file.name = "renamed", line.removeprefix("rename to ")
    elif line.startswith(("Binary files", "GIT binary patch")):
        file.how = file.how if file.how != "changed" else "binary"
    elif line.startswith("+++ b/"):
        file.name = line.removeprefix("+++ b/")
