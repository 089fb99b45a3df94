"""The store of perdure's own copies: updated from the agents' files, referenced by checkpoints, put
back where an agent looks.

A copy and the files beside it (`beside/`: spilled tool output, subagents) only grow. If the agent's
file no longer begins with its copy, the copy is moved aside and kept. So a checkpoint does not copy
anything: it names the length of a copy that belongs to it (`CopyPart`), and that part is found by
its SHA-256, even if the copy was moved aside later. A lock file in the conversation's directory
allows one writer at a time.
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
from perdure.model import CopyPart
from perdure.protocols import AgentDriver, Archive

UNUSABLE = ".perdure-unusable"
"""Suffix in the names of files that were moved aside in an agent's home, or beside a copy."""
MAIN = "main"
BESIDE = "beside"


def locate(driver: AgentDriver, home: Path, session_id: str, directory: Path) -> Path | None:
    """Return the conversation's file, or None. It is the agent's own file; for an agent with an
    archive, the present content is written to a file in `directory`."""
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
    """The store of copies below one directory."""

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
        """Append new content of the transcript to the copy; return whether the transcript was
        taken. Raise WorkspaceError (as on a full disk).

        The copy is perdure's own record of the conversation. So a transcript that no longer begins
        with the copy is not taken: nothing is written, and the result is False. With `replace` it
        is taken nevertheless, because a person or perdure itself put it there; the earlier copy is
        moved aside.
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
                    **_files_of_conversation(driver.belongings(transcript), transcript.parent),
                }
                for name, source in pairs.items():
                    main = name == MAIN
                    with suppress(FileNotFoundError):  # the agent may delete it meanwhile
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
        WorkspaceError."""
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

    def take_line(self, driver: AgentDriver, home: Path, session_id: str, directory: Path) -> None:
        """Call `take` for a conversation and its ancestors: a fork may be unusable without them.
        `directory` as for `locate`."""
        seen: set[str] = set()
        while session_id and session_id not in seen:
            seen.add(session_id)
            path = locate(driver, home, session_id, directory)
            if path is None:
                return
            self.take(driver, session_id, path)
            session_id = driver.parent(path.read_bytes())

    def parts(self, driver: AgentDriver, session_id: str) -> tuple[CopyPart, ...]:
        """Return the present content of the copies of a conversation and its ancestors as parts;
        the conversation's own transcript is the first. Empty if there is no copy. Raise
        WorkspaceError."""
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
        """Return the content of the newest copy, or of the part that a checkpoint names. Raise
        WorkspaceError."""
        try:
            if not parts:
                return self.of(agent, session_id).read_bytes()
            return self._require_part(agent, parts[0]).read_bytes()[: parts[0].size]
        except OSError as error:
            raise WorkspaceError(
                f"the copy of conversation {session_id} cannot be read: {error}", "perdure doctor"
            ) from error

    def find(self, agent: str, part: CopyPart) -> Path | None:
        """Return the file that begins with this part, even if it was moved aside later; None if the
        part is lost."""
        path = self.of(agent, part.session_id).parent / part.name
        aside = "" if part.name == MAIN else UNUSABLE
        return next(
            (each for each in versions(path, aside) if prefix(each, part.size) == part.sha256), None
        )

    def bring(self, agent: str, part: CopyPart, source: Path) -> Path | None:
        """Add a part from another machine to the copies; a file in its place is moved aside, never
        overwritten. Return the new file, or None if the part already exists. The caller has checked
        the name. Raise WorkspaceError."""
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
        """Put a copy where the agent looks for it; a file in its place is moved aside. Return the
        path. Raise WorkspaceError.

        `parts`: the parts that a checkpoint names, instead of the newest copies. `exactly`: files
        beside it that have grown since are put back to their parts, too; else they stay. An
        existing file of a parent is left unchanged: it may belong to another run.
        """
        chosen = tuple(parts) or self.parts(driver, session_id)
        try:
            files = {part: self._require_part(driver.name, part) for part in chosen}
            return self._put_all(driver, session_id, home, cwd, files, exactly)
        except OSError as error:
            raise WorkspaceError(
                f"the copy of conversation {session_id} could not be put back: {error}",
                "perdure doctor",
            ) from error

    def put_mended(
        self,
        driver: AgentDriver,
        session_id: str,
        home: Path,
        cwd: Path,
        content: bytes,
        place: Path | None = None,
    ) -> tuple[Path, list[str]]:
        """Put a repaired transcript where the agent looks (or at `place`); every file of the
        conversation is first moved aside unchanged. Return the path and the moved files. Raise
        WorkspaceError."""
        remains = driver.remains(home, session_id)
        copy = self.of(driver.name, session_id)
        # A driver may derive the place from the file's name.
        mended = copy.parent / f"mended-{os.getpid()}" / (remains[0].name if remains else copy.name)
        try:
            private_directories(mended.parent)
            with open(mended, "wb", opener=private) as file:
                file.write(content)
            place = place or driver.place(home, session_id, cwd, mended)
            staged = place.with_name(f".{place.name}.perdure")
            private_directories(place.parent)
            _copy_new(mended, staged, len(content))
            aside = [
                str(move_aside(old, UNUSABLE))
                for old in dict.fromkeys((place, *remains))
                if os.path.lexists(old)
            ]
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
        """Return whether an agent's file begins with the part, apart from redacted secrets."""
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
        """Return whether an agent's file equals the part, apart from redacted secrets."""
        return self.begins_with(path, part) and path.stat().st_size == part.size

    def move_aside(self, paths: Sequence[Path]) -> list[str]:
        """Rename files of an agent so that it does not find them. Return the new names. Raise
        WorkspaceError."""
        try:
            return [str(move_aside(path, UNUSABLE)) for path in paths]
        except OSError as error:
            raise WorkspaceError(
                f"a transcript could not be moved aside: {error}", "perdure doctor"
            ) from error

    def _same_rows(self, driver: AgentDriver, copy: Path, transcript: Path) -> bool:
        """Return whether a conversation in an archive still begins with the rows of its copy, in
        order; False without an archive. Raise OSError.

        OpenCode 1.18.33 changes a row until it is complete, so a copy that was made during a turn
        may have rows that change later. Only kind and id of such rows are compared. A message that
        was not complete in the copy, or had no parts yet, may have more parts by now, even if
        messages of another process follow it.
        """
        if driver.archive is None:
            return False
        old = _rows(driver.archive, copy.read_bytes())
        new = _rows(driver.archive, self.redactor.bytes(transcript.read_bytes()))
        filled = {row.message for row in old}
        growing = {
            row.key
            for row in old
            if row.kind == "message" and (not row.settled or row.key not in filled)
        }
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
        """Put back a file beside the transcript. One that has grown since stays, unless
        `exactly`."""
        stays = self.is_exactly if exactly else self.begins_with
        if not stays(place, part):
            self._write_part(source, part, place, [place] if os.path.lexists(place) else [])

    def _write_part(self, source: Path, part: CopyPart, place: Path, olds: Sequence[Path]) -> None:
        """Write the part to its place. Files in the way, and older files of the same conversation,
        are first moved aside."""
        private_directories(place.parent)
        staged = place.with_name(f".{place.name}.perdure")
        # Prefer the agent's own file: it still has the secrets, which are redacted in the copy.
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
    """A row of a conversation in an archive."""

    kind: str
    key: str
    message: str
    """The message to which a part belongs; empty for other rows."""
    settled: bytes
    """Content of the row, once it no longer changes."""


def _rows(archive: Archive, content: bytes) -> list[_Row]:
    """Return the rows of a conversation, without the `revert` line."""
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
    there = [
        str(path.relative_to(directory))
        for path in _regular_files(directory / BESIDE)
        if UNUSABLE not in path.name
    ]
    for name in sorted(there):
        found = load_known(directory / name, known.get(name))
        if found is not None:
            yield CopyPart(session_id, name, found.size, found.kept)


def _head(copy: Path) -> bytes:
    """Return the beginning of a copy, which names its parent."""
    with copy.open("rb") as file:
        return file.read(CHUNK)


@contextmanager
def _copy_lock(directory: Path) -> Iterator[None]:
    """Lock the copy: wait for other threads and processes."""
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _copy_new(source: Path, target: Path, size: int) -> None:
    """Copy `size` bytes into a new private file. An existing file is removed first, so a link in
    its place is not followed."""
    target.unlink(missing_ok=True)
    with source.open("rb") as content, open(target, "xb", opener=private) as file:
        while size and (chunk := content.read(min(CHUNK, size))):
            file.write(chunk)
            size -= len(chunk)
        file.flush()
        os.fsync(file.fileno())


def _files_of_conversation(sources: Sequence[Path], top: Path) -> dict[str, Path]:
    """Return the files that belong to a conversation, without files that perdure moved aside. Each
    key is the name under which the file is copied."""
    found = [
        file
        for file in chain.from_iterable(_regular_files(source) for source in sources)
        if UNUSABLE not in file.name
    ]
    return {f"{BESIDE}/{file.relative_to(top)}": file for file in found}


def _regular_files(top: Path) -> Iterator[Path]:
    """Yield the regular files below a directory of the agent's. Links may lead anywhere and special
    files may block forever, so both are skipped."""
    if top.is_symlink():
        return
    for folder, _, names in os.walk(top, followlinks=False):
        yield from (
            file
            for name in names
            if (file := Path(folder, name)).is_file() and not file.is_symlink()
        )
