"""Decides which task files belong in the workdir, which of them were already placed according to
the journal, and what to do with each. Pure.

`task_files` calls this before it writes; `report` and the prompt show the result. A file's content
is identified by its mark: the SHA-256, followed by `+x` if the file is executable. The mark is
empty if there is no file, and `?` for something that is not a regular file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from msgspec import Struct, field
from msgspec.structs import replace

from perdure.model import Context, FileAction, FileChange, OnEdit, TaskFile
from perdure.model.events import (
    CheckpointRestored,
    CheckpointTaken,
    FilesPlaced,
    FilesPlanned,
    Record,
    RunTakenIn,
)

ODD = "?"
ODD_THERE = "something that is not a regular file is in its place, and was not touched"
DELETED = "it had been deleted"
CHANGED_MEANWHILE = "it changed while the files were written, and was left as it is"


class ExpectedFile(Struct, frozen=True):
    """The newest version of a task file that a person gave."""

    file: TaskFile
    version: int
    on_edit: OnEdit


class Placement(Struct, frozen=True, kw_only=True):
    """The task files that are in the workdir according to the journal. `version` is the newest
    version of the instructions whose files are all in place."""

    version: int = 0
    marks: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """The mark of each file, by name, for the version that the person gave last. Later changes by
    the agent do not change these marks."""
    unfinished: tuple[FileChange, ...] = ()
    """Changes that the journal lists as planned but not as done."""
    planned: int = 0
    """The version of the instructions that the changes in `unfinished` belong to."""

    def finished(self) -> Placement:
        """Return the placement that results when all planned changes are done."""
        marks = dict(self.marks)
        for change in self.unfinished:
            if change.action is FileAction.DROPPED:
                marks.pop(change.name, None)
            else:
                marks[change.name] = change.given
        return Placement(version=self.planned, marks=marks)


def mark(file: TaskFile) -> str:
    return mark_of(file.sha256, file.executable)


def mark_of(sha256: str, executable: bool) -> str:
    if executable:
        return f"{sha256}+x"
    return sha256


def digest_of(mark: str) -> str:
    return mark.removesuffix("+x")


def expected_files(contexts: Sequence[Context]) -> dict[str, ExpectedFile]:
    """Return the task files that the instructions require, by name. `contexts` are the versions of
    the instructions, oldest first."""
    found: dict[str, ExpectedFile] = {}
    for context in contexts:
        if context.given.whole:
            found.clear()
        for file in context.given.files:
            found[file.name] = ExpectedFile(file, context.version, context.given.on_edit)
    return found


def newest(contexts: Sequence[Context]) -> int:
    """Return the number of the newest version of the instructions that came with files; 0 if none
    did."""
    version = 0
    for context in contexts:
        if context.given.files or context.given.whole:
            version = max(version, context.version)
    return version


def placement_of(records: Sequence[Record]) -> Placement:
    """Return the placement according to the whole journal. After a restore from a checkpoint, or an
    import, it is the placement at the time of that checkpoint."""
    now, then = Placement(), dict[int, Placement]()
    for record in records:
        match record.event:
            case FilesPlanned(version=version, files=files):
                before = now.unfinished if now.planned == version else ()
                now = replace(now, planned=version, unfinished=(*before, *files))
            case FilesPlaced():
                now = now.finished()
            case CheckpointTaken(number=number):
                then[number] = now
            case CheckpointRestored(number=number) | RunTakenIn(number=number):
                now = replace(then.get(number, now), unfinished=(), planned=0)
            case _:
                pass
    return now


def planned_since(records: Sequence[Record]) -> frozenset[str]:
    """Return the names of the files that perdure may have written since the newest checkpoint."""
    names: set[str] = set()
    for record in records:
        if isinstance(record.event, CheckpointTaken | CheckpointRestored):
            names.clear()
        elif isinstance(record.event, FilesPlanned):
            names |= {change.name for change in record.event.files}
    return frozenset(names)


def changes_of(records: Sequence[Record]) -> Iterator[tuple[int, FileChange]]:
    """Yield the change of each file, with the number of the attempt that planned it, oldest
    first."""
    left = set()
    for record in records:
        if isinstance(record.event, FilesPlaced):
            left |= {(record.event.version, name) for name in record.event.left}
    for record in records:
        if isinstance(record.event, FilesPlanned):
            for change in record.event.files:
                skipped = (record.event.version, change.name) in left
                yield (
                    record.attempt,
                    replace(change, action=FileAction.CONFLICT, after="", why=CHANGED_MEANWHILE)
                    if skipped
                    else change,
                )


def action(asked: ExpectedFile, base: str, there: str, *, fresh: bool = False) -> FileAction | None:
    """Return the action for a file; None if the person did not give a new version of it. `MERGED`
    means that a merge has to be tried.

    `base`: the mark of the version that the person gave before. `there`: the mark of the file in
    the workdir. `fresh`: whether the workdir was newly made.
    """
    given = mark(asked.file)
    if base == given and not (fresh and not there):
        return None
    if there == given:
        return FileAction.SAME
    if there == base or (fresh and not there):
        return FileAction.WRITTEN
    if asked.on_edit is OnEdit.KEEP:
        return FileAction.KEPT
    if there == ODD or (not there and asked.on_edit is OnEdit.MERGE):
        return FileAction.CONFLICT
    if asked.on_edit is OnEdit.REPLACE:
        if there:
            return FileAction.REPLACED
        return FileAction.WRITTEN
    return FileAction.MERGED
