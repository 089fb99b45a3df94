"""Puts the task files of the newest instructions into a workdir. A kill at any moment loses nothing
and repeats nothing.

`engine.attempt.preparation` calls `place` under the workdir's lock, before the prompt is written.
There are three steps:

- Each file is inspected, and `perdure.rules.placement` decides what to do with it. The agent's
  version is copied to the run's backups, and a merge result is stored among the contents.
- The plan is written to the journal.
- The files are written.

If a plan in the journal is not complete, the next call completes it. A file that still has its old
content is written. A file that already has its new content needs nothing. A file with any other
content was changed by somebody, and stays as it is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct
from msgspec.structs import replace

from perdure.errors import WorkspaceError
from perdure.model import Context, FileAction, FileChange
from perdure.model.events import AnyEvent, FilesPlaced, FilesPlanned, Record
from perdure.rules.placement import (
    DELETED,
    ODD,
    ODD_THERE,
    ExpectedFile,
    Placement,
    action,
    digest_of,
    expected_files,
    mark,
    mark_of,
    newest,
    placement_of,
)
from perdure.workspace.task_files.intake import Contents, check_name, write
from perdure.workspace.task_files.workdir import TaskFileWorkdir, merge_texts

A_RECORD = 50
"""Maximum number of files that one journal event names."""
_WRITES = (FileAction.WRITTEN, FileAction.REPLACED, FileAction.MERGED, FileAction.CONFLICT)
NOT_HERE = "its content is missing on this machine"
NO_TEXT = "the versions cannot be merged: they are not text, or too large"


class FilePlace(Struct, frozen=True, kw_only=True):
    """The workdir to put the files into, and the directories of backups and contents. `token` is
    the run's id."""

    workdir: Path
    backups: Path
    contents: Contents
    environ: Mapping[str, str]
    token: str
    fresh: bool = False
    """Whether the workdir was newly made, so that it has none of the files that were placed
    earlier."""


def place(
    at: FilePlace,
    contexts: Sequence[Context],
    records: Sequence[Record],
    record: Callable[[list[AnyEvent]], None],
) -> None:
    """Complete a plan that a kill interrupted, then put the files of the newest version in place.
    `record` is called with events for the journal.

    Raises WorkspaceError where a file cannot be read or written, UsageError for an invalid file
    name.
    """
    now = placement_of(records)
    try:
        if now.unfinished:
            now = _completed(at, now, record)
        version = newest(contexts)
        if version > now.version or (at.fresh and version):
            changes = _planned(at, now, contexts, version)
            if changes or version > now.version:
                parts = []
                for start in range(0, max(len(changes), 1), A_RECORD):
                    parts.append(tuple(changes[start : start + A_RECORD]))
                record([FilesPlanned(version=version, files=part) for part in parts])
                _completed(at, replace(now, unfinished=tuple(changes), planned=version), record)
    except OSError as error:
        if isinstance(error.filename, str | bytes):
            name = os.fsdecode(error.filename)
        else:
            name = "a file"
        raise WorkspaceError(
            f"The task files could not be put into {at.workdir}: {name}: {error.strerror}.",
            "Nothing is lost. Free some space or check its permissions. Then perdure retry "
            "continues where it stopped.",
        ) from error


def _planned(
    at: FilePlace, now: Placement, contexts: Sequence[Context], version: int
) -> list[FileChange]:
    """Plan the change of each file, and return the plans. First save the backups and merge results
    that the changes need, so that they survive a crash."""
    files, workdir = expected_files(contexts), TaskFileWorkdir(at.workdir)
    folder = _Backups(at.backups / f"v{version}", workdir)
    changes = []
    for name, asked in sorted(files.items()):
        base, there = now.marks.get(check_name(name), ""), workdir.file_mark(name)
        step = action(asked, base, there, fresh=at.fresh)
        if step is not None:
            bare = FileChange(
                name=name,
                action=step,
                version=asked.version,
                given=mark(asked.file),
                base=base,
                before=there,
                after=there,
            )
            changes.append(_decided(at, folder, bare, asked))
    for name, base in sorted(now.marks.items()):
        if name not in files:
            dropped = FileAction.DROPPED
            changes.append(
                FileChange(name=name, action=dropped, version=version, given="", base=base)
            )
    return changes


def _decided(at: FilePlace, folder: _Backups, bare: FileChange, asked: ExpectedFile) -> FileChange:
    if at.contents.get(asked.file.sha256) is None and bare.action is not FileAction.SAME:
        return replace(bare, action=FileAction.CONFLICT, why=NOT_HERE)
    match bare.action:
        case FileAction.WRITTEN:
            return replace(
                bare,
                after=bare.given,
                why=DELETED if bare.base and not bare.before and not at.fresh else "",
            )
        case FileAction.REPLACED:
            return replace(bare, after=bare.given, backup=folder.save(bare.name, bare.before))
        case FileAction.CONFLICT if bare.before == ODD:
            return replace(bare, why=ODD_THERE)
        case FileAction.CONFLICT:
            return replace(bare, after=bare.given, why=DELETED)
        case FileAction.MERGED:
            return _merged(at, folder, bare)
        case _:
            return bare


def _merged(at: FilePlace, folder: _Backups, bare: FileChange) -> FileChange:
    backup = folder.save(bare.name, bare.before)
    base = at.contents.get(digest_of(bare.base)) or b""
    given = at.contents.get(digest_of(bare.given)) or b""
    labels = (
        "as it was in the workdir",
        "as it was given before",
        f"as given with version {bare.version}",
    )
    joined = merge_texts(Path(backup).read_bytes(), base, given, labels, at.environ)
    if joined is None:
        return replace(bare, action=FileAction.CONFLICT, backup=backup, why=NO_TEXT)
    content, conflicts = joined
    # The executable bit is merged like lines: if only one side changed it, that side wins.
    executable = (
        bare.given if bare.before.endswith("+x") == bare.base.endswith("+x") else bare.before
    ).endswith("+x")
    after = mark_of(at.contents.put(content), executable)
    if conflicts:
        return replace(
            bare, action=FileAction.CONFLICT, after=after, backup=backup, why=f"{conflicts} marked"
        )
    return replace(bare, after=after, backup=backup)


def _completed(
    at: FilePlace, now: Placement, record: Callable[[list[AnyEvent]], None]
) -> Placement:
    workdir = TaskFileWorkdir(at.workdir)
    folder = _Backups(at.backups / f"v{now.planned}", workdir)
    left = []
    for change in now.unfinished:
        if change.action not in _WRITES or change.after == change.before:
            continue
        content = at.contents.get(digest_of(change.after))
        token = f"{at.token}/{now.planned}"

        def rescue(file: BinaryIO, name: str = change.name) -> None:
            folder.copy(name, file)

        if content is None or not workdir.put(
            change.name, content, change.before, change.after, token, rescue
        ):
            left.append(change.name)
    workdir.sync()
    record([FilesPlaced(version=now.planned, left=tuple(left))])
    return now.finished()


class _Backups:
    """Backups of a workdir's task files. Each version of the instructions has its own directory."""

    def __init__(self, directory: Path, workdir: TaskFileWorkdir) -> None:
        self._directory, self._workdir = directory, workdir

    def save(self, name: str, expected: str) -> str:
        """Copy a file and return the copy's path. Raises WorkspaceError if the file has changed
        since it was inspected."""
        with self._workdir.opened(name) as file:
            saved = self.copy(name, file) if file is not None else None
        if (
            saved is None
            or mark_of(hashlib.sha256(saved.read_bytes()).hexdigest(), expected.endswith("+x"))
            != expected
        ):
            raise WorkspaceError(
                f"{name!r} changes while perdure copies it.",
                "Another program writes there: wait until it has ended, then perdure retry.",
            )
        return str(saved)

    def copy(self, name: str, file: BinaryIO) -> Path:
        """Copy an open file and return the copy's path. If a copy with other bytes exists already,
        it stays, and the new copy gets another path."""
        file.seek(0)
        content = file.read()
        place, number = self._directory / name, 0
        while not _is_at(place, content):
            number += 1
            place = self._directory.with_name(f"{self._directory.name}.{number}") / name
        return place


def _is_at(place: Path, content: bytes) -> bool:
    """Write the content to the path `place` if there is no file yet. Return whether a file with
    exactly this content is there now. Anything else at this path stays."""
    try:
        if place.is_file():
            return place.read_bytes() == content
        write(place, content)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        return False
    return True
