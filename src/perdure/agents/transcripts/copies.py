"""The store of perdure's own copies of transcripts. The copies are updated from the agents' files,
referenced by checkpoints, and restored to the path where an agent looks for the transcript.

A copy and the files that belong to it (in `beside/`: long tool output, subagents) only grow. If a
new copy must begin, because the agent's file no longer begins with the copy, the old copy is moved
aside and kept. So a checkpoint does not have to copy anything. It stores only the length and the
SHA-256 of the copy's content at that time (`CopyPart`). This part of the copy is found by its
SHA-256, even if the copy was moved aside later. A lock file in the conversation's directory allows
one writer at a time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from threading import get_ident

from msgspec import Struct

from perdure.agents.transcripts.copy_file import (
    CHUNK,
    CopyDiverged,
    append_new,
    continues,
    load_known,
    move_aside,
    prefix,
    private,
    private_directories,
    read_known,
    same_redacted_text,
    sync,
    versions,
    write_known,
)
from perdure.errors import WorkspaceError
from perdure.host.redaction import NO_SECRETS, Redactor
from perdure.host.system.files import regular_files
from perdure.model import CopyPart
from perdure.protocols import AgentDriver, Archive

UNUSABLE = ".perdure-unusable"
"""Part of the name of each file that perdure has moved aside, in an agent's home or beside a copy.
"""
MAIN = "main"
BESIDE = "beside"


def locate(driver: AgentDriver, home: Path, session_id: str, directory: Path) -> Path | None:
    """Return the path of the conversation's file; None if there is none. An agent with an archive
    has no such files. Its conversation is first written to a file in `directory`, and the path of
    that file is returned."""
    if driver.archive is None:
        return driver.transcript(home, session_id)
    content = driver.archive.read(home, session_id)
    if content is None:
        return None
    private_directories(directory)
    path = directory / f"conversation-{session_id}.jsonl"
    staged = path.with_suffix(f".{get_ident()}.new")
    with open(staged, "wb", opener=private) as file:
        file.write(content)
    return staged.replace(path)


class Copies(Struct, frozen=True):
    """The store of copies in one directory."""

    directory: Path
    redactor: Redactor = NO_SECRETS

    def of(self, agent: str, session_id: str) -> Path:
        """Return the path of the newest copy of a conversation, whether or not it exists."""
        name = hashlib.sha256(session_id.encode()).hexdigest()[:32]
        return self.directory / agent / name / MAIN

    def take(
        self,
        driver: AgentDriver,
        session_id: str,
        transcript: Path,
        *,
        replace: bool = False,
    ) -> bool:
        """Append new content of the transcript to the copy. Return whether this was possible; False
        if there is no transcript. Raise WorkspaceError, for example if the disk is full.

        The copy is perdure's own record of the conversation. If the transcript no longer begins
        with the copy, nothing is appended and the result is False. With `replace`, the old copy is
        instead moved aside and a new one is begun. Use `replace` only if a person or perdure itself
        has replaced the transcript.
        """
        copy = self.of(driver.name, session_id)
        try:
            if not transcript.is_file():
                return False
            private_directories(copy.parent)
            with _copy_lock(copy.parent):
                known = read_known(copy.parent)
                now = dict(known)
                pairs = {
                    MAIN: transcript,
                    **_files_of_conversation(driver.sidecar_files(transcript), transcript.parent),
                }
                for name, source in pairs.items():
                    main = name == MAIN
                    with suppress(FileNotFoundError):  # the agent may delete the file meanwhile
                        found = append_new(
                            source,
                            copy.parent / name,
                            known.get(name),
                            self.redactor,
                            aside="" if main else UNUSABLE,
                            lines=main,
                            replace=replace or not main,
                        )
                        now |= {name: found} if found is not None else {}
                if now != known:
                    write_known(copy.parent, now)
                return True
        except CopyDiverged:
            if not self._same_rows(driver, copy, transcript):
                return False
            return self.take(driver, session_id, transcript, replace=True)
        except OSError as error:
            raise WorkspaceError(
                f"the conversation {session_id} could not be copied: {error}", "perdure doctor"
            ) from error

    def continued_by(self, driver: AgentDriver, session_id: str, transcript: Path) -> bool | None:
        """Return whether the transcript begins with the copy; None if there is no copy. Raise
        WorkspaceError if the copy cannot be read."""
        copy = self.of(driver.name, session_id)
        if not copy.is_file():
            return None
        try:
            with _copy_lock(copy.parent):
                known = read_known(copy.parent).get(MAIN)
                same = continues(transcript, copy, known, self.redactor)
            return same or self._same_rows(driver, copy, transcript)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise WorkspaceError(
                f"the copy of conversation {session_id} cannot be read: {error}", "perdure doctor"
            ) from error

    def take_with_ancestors(
        self, driver: AgentDriver, home: Path, session_id: str, directory: Path
    ) -> None:
        """Call `take` for a conversation and for its ancestors, because a fork may be unusable
        without them. `directory` is passed to `locate`."""
        seen: set[str] = set()
        while session_id and session_id not in seen:
            seen.add(session_id)
            path = locate(driver, home, session_id, directory)
            if path is None:
                return
            self.take(driver, session_id, path)
            session_id = driver.parent(path.read_bytes())

    def parts(self, driver: AgentDriver, session_id: str) -> tuple[CopyPart, ...]:
        """Return the parts that describe the present copies of a conversation and its ancestors.
        The first one is the conversation's own transcript. Empty if there is no copy. Raise
        WorkspaceError if a copy cannot be read."""
        found: list[CopyPart] = []
        seen: set[str] = set()
        try:
            while (
                session_id
                and session_id not in seen
                and (copy := self.of(driver.name, session_id)).is_file()
            ):
                seen.add(session_id)
                with _copy_lock(copy.parent):
                    found += _parts(copy.parent, session_id)
                session_id = driver.parent(_head(copy))
        except OSError as error:
            raise WorkspaceError(
                f"the copy of conversation {session_id} cannot be read: {error}", "perdure doctor"
            ) from error
        return tuple(found)

    def content(self, agent: str, session_id: str, parts: Sequence[CopyPart] = ()) -> bytes:
        """Return the content of the newest copy or, if there are `parts`, of the first part. Raise
        WorkspaceError if it cannot be read."""
        try:
            if not parts:
                return self.of(agent, session_id).read_bytes()
            return self._require_part(agent, parts[0]).read_bytes()[: parts[0].size]
        except OSError as error:
            raise WorkspaceError(
                f"the copy of conversation {session_id} cannot be read: {error}", "perdure doctor"
            ) from error

    def find(self, agent: str, part: CopyPart) -> Path | None:
        """Return the file whose first bytes are this part. The file is found even if it was moved
        aside later. None if no file has the part."""
        path = self.of(agent, part.session_id).parent / part.name
        aside = "" if part.name == MAIN else UNUSABLE
        for each in versions(path, aside):
            if prefix(each, part.size) == part.sha256:
                return each
        return None

    def import_part(self, agent: str, part: CopyPart, source: Path) -> Path | None:
        """Store a part that came from another machine, with the content of the file `source`. A
        copy with the same name is moved aside. Return the new file, or None if the part already
        exists. The caller must have checked the part's name. Raise WorkspaceError if the part
        cannot be written."""
        place = self.of(agent, part.session_id).parent / part.name
        try:
            private_directories(place.parent)
            with _copy_lock(self.of(agent, part.session_id).parent):
                if self.find(agent, part) is not None:
                    return None
                staged = place.with_name(f".{place.name[:200]}.new")
                _copy_new(source, staged, part.size)
                if os.path.lexists(place):
                    move_aside(place, "" if part.name == MAIN else UNUSABLE)
                staged.replace(place)
                sync(place.parent)
                return place
        except OSError as error:
            raise WorkspaceError(
                f"the conversation {part.session_id} could not be copied: {error}", "perdure doctor"
            ) from error

    def put_back(
        self,
        driver: AgentDriver,
        session_id: str,
        home: Path,
        cwd: Path,
        parts: Sequence[CopyPart] = (),
        *,
        exactly: bool = False,
    ) -> Path:
        """Restore a conversation to the path where the agent looks for it, and return this path.
        Existing files at that path are moved aside. Raise WorkspaceError if the copy is lost or
        cannot be written.

        - `parts`: the parts to restore, as a checkpoint names them; by default the newest copies.
        - `exactly`: also replace files beside the transcript that begin with their part and are
          longer. By default such files are left unchanged.

        An existing transcript of an ancestor is left unchanged, because it may belong to another
        run.
        """
        chosen = tuple(parts) or self.parts(driver, session_id)
        try:
            files = {part: self._require_part(driver.name, part) for part in chosen}
            return self._put_all(driver, session_id, home, cwd, files, exactly)
        except OSError as error:
            raise WorkspaceError(
                f"the copy of conversation {session_id} could not be restored: {error}",
                "perdure doctor",
            ) from error

    def put_repaired(
        self,
        driver: AgentDriver,
        session_id: str,
        home: Path,
        cwd: Path,
        content: bytes,
        place: Path | None = None,
    ) -> tuple[Path, list[str]]:
        """Write a repaired transcript to the path where the agent looks for it (or to `place`). All
        files of the conversation are first moved aside unchanged. Return the path, and the new
        paths of the files that were moved. Raise WorkspaceError if a file cannot be written or
        moved."""
        remains = driver.files_of(home, session_id)
        copy = self.of(driver.name, session_id)
        # Keep the original file name, because a driver may derive the path from it.
        mended = copy.parent / f"mended-{os.getpid()}" / (remains[0].name if remains else copy.name)
        try:
            private_directories(mended.parent)
            with open(mended, "wb", opener=private) as file:
                file.write(content)
            place = place or driver.place(home, session_id, cwd, mended)
            staged = place.with_name(f".{place.name}.perdure")
            private_directories(place.parent)
            _copy_new(mended, staged, len(content))
            aside = []
            for old in dict.fromkeys((place, *remains)):
                if os.path.lexists(old):
                    aside.append(str(move_aside(old, UNUSABLE)))
            staged.replace(place)
            sync(place.parent)
        except (OSError, ValueError) as error:
            raise WorkspaceError(
                f"the repaired conversation {session_id} could not be put in place: {error}",
                "perdure doctor",
            ) from error
        finally:
            shutil.rmtree(mended.parent, ignore_errors=True)
        return place, aside

    def begins_with(self, path: Path, part: CopyPart) -> bool:
        """Return whether an agent's file begins with the part. Secrets are redacted before the
        comparison."""
        try:
            if path.is_symlink() or path.stat().st_size < part.size:
                return False
            with path.open("rb") as file:
                return (
                    hashlib.sha256(self.redactor.bytes(file.read(part.size))).hexdigest()
                    == part.sha256
                )
        except OSError:
            return False

    def is_exactly(self, path: Path, part: CopyPart) -> bool:
        """Return whether an agent's file has the content of the part and nothing more. Secrets are
        redacted before the comparison."""
        return self.begins_with(path, part) and path.stat().st_size == part.size

    def move_aside(self, paths: Sequence[Path]) -> list[str]:
        """Rename files of an agent so that the agent no longer finds them. Return the new paths.
        Raise WorkspaceError if a file cannot be renamed."""
        try:
            return [str(move_aside(path, UNUSABLE)) for path in paths]
        except OSError as error:
            raise WorkspaceError(
                f"a transcript could not be moved aside: {error}", "perdure doctor"
            ) from error

    def _same_rows(self, driver: AgentDriver, copy: Path, transcript: Path) -> bool:
        """Return whether a conversation in an archive still begins with the rows of its copy, in
        order. False for an agent without an archive. Raise OSError if a file cannot be read.

        OpenCode 1.18.33 changes a row until it is complete, so a copy that was made during a turn
        may have incomplete rows. Only kind and id of such rows are compared. A message that was
        incomplete or had no parts in the copy may have more parts now. These parts may even be
        placed before messages of another process that are already in the copy.
        """
        if driver.archive is None:
            return False
        old = _rows(driver.archive, copy.read_bytes())
        new = _rows(driver.archive, self.redactor.bytes(transcript.read_bytes()))
        filled = {row.message for row in old}
        growing = set()
        for row in old:
            if row.kind == "message" and (not row.settled or row.key not in filled):
                growing.add(row.key)
        rest = iter(new)
        for row in old:
            found = next(rest, None)
            while found is not None and found.key != row.key and found.message in growing:
                found = next(rest, None)
            if found is None or not self._same_row(row, found):
                return False
        return bool(old)

    def _same_row(self, old: _Row, new: _Row) -> bool:
        if (old.kind, old.key) != (new.kind, new.key):
            return False
        if not old.settled:
            return True
        if len(old.settled) != len(new.settled):
            return False
        return same_redacted_text(old.settled, new.settled, self.redactor)

    def _require_part(self, agent: str, part: CopyPart) -> Path:
        path = self.find(agent, part)
        if path is None:
            raise FileNotFoundError(f"the part of {part.size} bytes of {part.name!r} is lost")
        return path

    def _put_all(
        self,
        driver: AgentDriver,
        session_id: str,
        home: Path,
        cwd: Path,
        files: dict[CopyPart, Path],
        exactly: bool,
    ) -> Path:
        mains = {part.session_id: part for part in files if part.name == MAIN}
        if session_id not in mains:
            raise FileNotFoundError("there is no copy")
        place = Path()
        for each, part in reversed(mains.items()):
            there = driver.transcript(home, each)
            if each != session_id and there is not None:
                continue
            place = driver.place(home, each, cwd, files[part])
            olds = [old for old in dict.fromkeys((place, there or place)) if os.path.lexists(old)]
            if not (exactly and olds == [place] and self.is_exactly(place, part)):
                self._write_part(files[part], part, place, olds)
            for beside, path in files.items():
                if beside.session_id == each and beside.name != MAIN:
                    self._put_beside(
                        path, beside, place.parent / Path(beside.name).relative_to(BESIDE), exactly
                    )
        return place

    def _put_beside(self, source: Path, part: CopyPart, place: Path, exactly: bool) -> None:
        """Restore `part`, one of the files that are stored beside the transcript, at `place`. An
        existing file is left unchanged if it begins with the content of `part`. With `exactly`,
        it is left unchanged only if it has exactly this content."""
        stays = self.is_exactly if exactly else self.begins_with
        if not stays(place, part):
            self._write_part(source, part, place, [place] if os.path.lexists(place) else [])

    def _write_part(self, source: Path, part: CopyPart, place: Path, olds: Sequence[Path]) -> None:
        """Write the part to `place`. Files that are already there, and older files of the same
        conversation (`olds`), are first moved aside."""
        private_directories(place.parent)
        staged = place.with_name(f".{place.name}.perdure")
        # Prefer an existing file of the agent as the source. In the copy, secrets are redacted.
        own = next((old for old in olds if self.begins_with(old, part)), source)
        try:
            _copy_new(own, staged, part.size)
            for old in olds:
                move_aside(old, UNUSABLE)
            staged.replace(place)
            sync(place.parent)
        finally:
            with suppress(OSError):
                staged.unlink()


class _Row(Struct, frozen=True):
    """One row of a conversation in an archive."""

    kind: str
    key: str
    message: str
    """Id of the message to which a part belongs; empty for other rows."""
    settled: bytes
    """Content of the row as returned by `Archive.settled`; empty if the row may still change."""


def _rows(archive: Archive, content: bytes) -> list[_Row]:
    """Return the rows of a conversation. A line that only says that the session is reverted is not
    a row, so it is left out."""
    found = []
    for line in content.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("type") != "revert":
            kind, key, message = (str(row.get(name, "")) for name in ("type", "id", "message"))
            settled = archive.settled(row).encode("utf-8", "surrogatepass")
            found.append(_Row(kind, key, message, settled))
    return found


def _parts(directory: Path, session_id: str) -> Iterator[CopyPart]:
    known = read_known(directory)
    main = load_known(directory / MAIN, known.get(MAIN), lines=True)
    if main is None:
        return
    yield CopyPart(session_id, MAIN, main.size, main.kept)
    there = []
    for path in regular_files(directory / BESIDE):
        if UNUSABLE not in path.name:
            there.append(str(path.relative_to(directory)))
    for name in sorted(there):
        found = load_known(directory / name, known.get(name))
        if found is not None:
            yield CopyPart(session_id, name, found.size, found.kept)


def _head(copy: Path) -> bytes:
    """Return the first bytes of a copy. They contain the id of the parent conversation, if there is
    one."""
    with copy.open("rb") as file:
        return file.read(CHUNK)


@contextmanager
def _copy_lock(directory: Path) -> Iterator[None]:
    """Hold the lock of a conversation's copies while the block runs. Wait until no other thread or
    process holds it."""
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _copy_new(source: Path, target: Path, size: int) -> None:
    """Copy the first `size` bytes of a file into a new private file. An existing target is removed
    first, so that a link there is not followed."""
    target.unlink(missing_ok=True)
    with source.open("rb") as content, open(target, "xb", opener=private) as file:
        while size and (chunk := content.read(min(CHUNK, size))):
            file.write(chunk)
            size -= len(chunk)
        file.flush()
        os.fsync(file.fileno())


def _files_of_conversation(sources: Sequence[Path], top: Path) -> dict[str, Path]:
    """Return the files that belong to a conversation, by the name of their copy. Files that perdure
    moved aside are left out."""
    found = []
    for file in chain.from_iterable(map(regular_files, sources)):
        if UNUSABLE not in file.name:
            found.append(file)
    return {f"{BESIDE}/{file.relative_to(top)}": file for file in found}
