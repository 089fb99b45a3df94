"""Writes the paragraph on task files in an agent's prompt: their names, the paths of the backups,
and changes that the agent has not seen. `engine.attempt.prompt_facts` calls it.

Names are untrusted, so each is quoted as one word. A long difference between two given versions is
cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from perdure.model import FileAction, FileChange
from perdure.rules.placement import digest_of
from perdure.workspace.task_files.intake import Contents

NAMES = 10
DIFFERED = 256 << 10
"""Maximum size of a version of a task file, in bytes, for which the prompt shows what changed."""
DIFF_LINES = 40
DIFF_WIDTH = 200
_LEAD = {
    FileAction.WRITTEN: "As given",
    FileAction.MERGED: "Merged: they have the new version's changes, and your own",
}


def files_note(changes: Sequence[FileChange], contents: Contents) -> str:
    """Return the paragraph on task files; empty where there is nothing to report."""
    by_action: dict[FileAction, list[FileChange]] = {}
    for change in changes:
        if change.action is FileAction.SAME:
            kind = FileAction.WRITTEN
        else:
            kind = change.action
        by_action.setdefault(kind, []).append(change)
    lines: list[str] = []
    for kind, some in by_action.items():
        lines += _lines(kind, some, contents)
    if not lines:
        return ""
    version = max(change.version for change in changes)
    head = "Files that belong to this task were put into the working directory"
    number = f" (version {version})" if version > 1 else ""
    return "\n".join([f"{head}{number}:", *lines])


def _lines(kind: FileAction, some: Sequence[FileChange], contents: Contents) -> Iterator[str]:
    if kind in _LEAD:
        yield f"- {_LEAD[kind]}: {_names(some)}."
    elif kind is FileAction.DROPPED:
        yield f"- No longer given, left where they are: {_names(some)}."
    else:
        for change in some[:NAMES]:
            yield f"- {_sentence(change, contents)}"
        if len(some) > NAMES:
            yield f"- {kind}, too: {_names(some[NAMES:])}."


def _sentence(change: FileChange, contents: Contents) -> str:
    name, copy = (
        _word(change.name),
        f" The copy of yours: {change.backup}." if change.backup else "",
    )
    is_here = contents.path(digest_of(change.given)).exists()
    if not is_here:
        new = "the new version is not on this machine"
    else:
        new = f"the new version lies in {contents.path(digest_of(change.given))}"
    match change.action:
        case FileAction.REPLACED:
            return f"Replaced by the new version, though you had edited it: {name}.{copy}"
        case FileAction.KEPT:
            return (
                f"Left as you made it: {name}. A new version was given; "
                f"{new}.{_difference(change, contents)}"
            )
        case _ if change.after not in ("", change.before) and change.before:
            return (
                f"CONFLICT: {name}. You and the new version changed the same lines. Both stand in "
                f"the file, between <<<<<<< and >>>>>>>: decide, and take the marks out.{copy}"
            )
        case _ if change.after and not change.before:
            return (
                f"CONFLICT: {name}. You had deleted it; a new version was given and is there again."
            )
        case _:
            return (
                f"CONFLICT: {name}, left as it is: {change.why}; "
                f"{new}.{copy}{_difference(change, contents)}"
            )


def _difference(change: FileChange, contents: Contents) -> str:
    """Return the text that shows how the person's new version differs from the person's version
    before; empty if there is nothing to show."""
    if not change.base or change.base == change.given:
        return ""
    before = _text_lines(contents.get(digest_of(change.base)))
    after = _text_lines(contents.get(digest_of(change.given)))
    if before is None or after is None:
        return ""
    import difflib

    lines = list(difflib.unified_diff(before, after, "given before", "given now", n=2, lineterm=""))
    shown = [line[:DIFF_WIDTH] for line in lines[:DIFF_LINES]]
    if len(lines) > DIFF_LINES:
        more = [f"... {len(lines) - DIFF_LINES} more lines"]
    else:
        more = []
    text = " What changed in it since it was given before:"
    for line in [*shown, *more]:
        text += f"\n    {line}"
    return text


def _text_lines(content: bytes | None) -> list[str] | None:
    """Return the lines of a file; None if it is missing, binary, or too large to compare."""
    if content is None or b"\0" in content or len(content) > DIFFERED:
        return None
    return content.decode("utf-8", "replace").split("\n")


def _names(some: Sequence[FileChange]) -> str:
    more = f" and {len(some) - NAMES} more" if len(some) > NAMES else ""
    return ", ".join(_word(change.name) for change in some[:NAMES]) + more


def _word(name: str) -> str:
    """Return a name quoted as one word. No newline, quote or space in the name can end the
    quotation."""
    if re.fullmatch(r"[\w./+@-]+", name):
        return f"`{name}`"
    return repr(name)
