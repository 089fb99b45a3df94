"""The store of perdure's own copies: brought up to the agents' files, pointed at by checkpoints,
put back where an agent looks.

A copy and what lies beside it (`beside/`: spilled tool output, sub-agents) only ever grow; what
they no longer begin with is moved aside and stays. So a checkpoint need not copy anything again: it
names how much of which copy it means (`CopyPart`), and that part is found by its SHA-256, whatever
was moved aside since. One writer at a time: a lock file in the conversation's directory.
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

from perdure.agents.transcripts.copy_file import (
    CHUNK,
    CopyDiverged,
    continues,
    grow,
    known_of,
    move_aside,
    prefix,
    private,
    private_directories,
    read_known,
    sync,
    versions,
    write_known,
)
from perdure.errors import WorkspaceError
from perdure.host.redaction import NO_SECRETS, Redactor
from perdure.lateclass import dataclass
from perdure.model import CopyPart
from perdure.protocols import AgentDriver

UNUSABLE = ".perdure-unusable"
"""Stands in the names of files that were moved aside in an agent's home, and beside a copy."""
MAIN = "main"
BESIDE = "beside"


def locate(driver: AgentDriver, home: Path, session_id: str, directory: Path) -> Path | None:
    """The file to judge a conversation by, or None: the agent's own; from an archive it is written
    into `directory`, as it stands there now."""
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


@dataclass(frozen=True, slots=True)
class Copies:
    """The store of copies below one directory."""

    directory: Path
    redactor: Redactor = NO_SECRETS

    def of(self, agent: str, session_id: str) -> Path:
        """Where the newest copy of a conversation lies, whether or not it is there."""
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
        """Append to the copy what is new in the transcript. Raises WorkspaceError (full disk).

        The copy is what perdure knows of the conversation, so a transcript that no longer begins
        with it is not taken: then nothing is written, and the result is False. `replace`: it is
        taken all the same, because a person or perdure itself put it there; the copy before is
        moved aside.
        """
        copy = self.of(driver.name, session_id)
        try:
            if not transcript.is_file():
                return False
            private_directories(copy.parent)
            with _alone(copy.parent):
                known = read_known(copy.parent)
                now = dict(known)
                pairs = {
                    MAIN: transcript,
                    **_beside(driver.belongings(transcript), transcript.parent),
                }
                for name, source in pairs.items():
                    main = name == MAIN
                    with suppress(
                        FileNotFoundError
                    ):  # the agent may delete a file while it is looked at
                        found = grow(
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
            if driver.archive is None or not _same_rows(copy, transcript):
                return False
            return self.take(driver, session_id, transcript, replace=True)
        except OSError as error:
            raise WorkspaceError(
                f"the conversation {session_id} could not be copied: {error}", "perdure doctor"
            ) from error

    def continued_by(self, driver: AgentDriver, session_id: str, transcript: Path) -> bool | None:
        """Return whether the transcript begins with the copy; None where there is no copy.

        Raises WorkspaceError.
        """
        copy = self.of(driver.name, session_id)
        if not copy.is_file():
            return None
        try:
            with _alone(copy.parent):
                known = read_known(copy.parent).get(MAIN)
                same = continues(transcript, copy, known, self.redactor)
            return same or (driver.archive is not None and _same_rows(copy, transcript))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise WorkspaceError(
                f"the copy of conversation {session_id} cannot be read: {error}", "perdure doctor"
            ) from error

    def take_line(self, driver: AgentDriver, home: Path, session_id: str, directory: Path) -> None:
        """`take` of a conversation and of those that it goes on from: a fork may be of no use
        without them. `directory` as for `locate`."""
        seen: set[str] = set()
        while session_id and session_id not in seen:
            seen.add(session_id)
            path = locate(driver, home, session_id, directory)
            if path is None:
                return
            self.take(driver, session_id, path)
            session_id = driver.parent(path.read_bytes())

    def parts(self, driver: AgentDriver, session_id: str) -> tuple[CopyPart, ...]:
        """What the copies of a conversation and of those that it goes on from hold now; the
        conversation's own transcript is the first. Nothing where there is no copy. Raises
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
                with _alone(copy.parent):
                    found += _parts(copy.parent, session_id)
                session_id = driver.parent(_head(copy))
        except OSError as error:
            raise WorkspaceError(
                f"the copy of conversation {session_id} cannot be read: {error}", "perdure doctor"
            ) from error
        return tuple(found)

    def content(self, agent: str, session_id: str, parts: Sequence[CopyPart] = ()) -> bytes:
        """The transcript's newest copy, or the part of one that a checkpoint names. Raises
        WorkspaceError."""
        try:
            if not parts:
                return self.of(agent, session_id).read_bytes()
            return self._found(agent, parts[0]).read_bytes()[: parts[0].size]
        except OSError as error:
            raise WorkspaceError(
                f"the copy of conversation {session_id} cannot be read: {error}", "perdure doctor"
            ) from error

    def find(self, agent: str, part: CopyPart) -> Path | None:
        """The file whose beginning is this part, also one that was moved aside since; None if it is
        lost."""
        path = self.of(agent, part.session_id).parent / part.name
        aside = "" if part.name == MAIN else UNUSABLE
        return next(
            (each for each in versions(path, aside) if prefix(each, part.size) == part.sha256), None
        )

    def bring(self, agent: str, part: CopyPart, source: Path) -> Path | None:
        """Makes a part from another machine one of the own copies; what lies in its place is moved
        aside, never overwritten. Returns the new file, or None where the part was there already.
        The name is checked by the caller. Raises WorkspaceError."""
        place = self.of(agent, part.session_id).parent / part.name
        try:
            private_directories(place.parent)
            with _alone(self.of(agent, part.session_id).parent):
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
        """Puts a copy where the agent looks for it; what lies there is moved aside. Returns the
        place. Raises WorkspaceError.

        `parts`: what a checkpoint names, instead of the newest copies. `exactly`: files beside it
        that have grown since become what they were; else they stay. A parent that is there is left
        as it is: it may be another run's.
        """
        chosen = tuple(parts) or self.parts(driver, session_id)
        try:
            files = {part: self._found(driver.name, part) for part in chosen}
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
        """Puts mended bytes where the agent looks (or in `place`); every file of the conversation
        is moved aside first, as it is. Returns the place and the files that were moved. Raises
        WorkspaceError."""
        remains = driver.remains(home, session_id)
        copy = self.of(driver.name, session_id)
        # By the file's name a driver may know where it belongs.
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
                f"the mended conversation {session_id} could not be put in place: {error}",
                "perdure doctor",
            ) from error
        finally:
            shutil.rmtree(mended.parent, ignore_errors=True)
        return place, aside

    def begins_with(self, path: Path, part: CopyPart) -> bool:
        """Whether an agent's file begins with the part, secrets aside."""
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
        """Whether an agent's file is the part, secrets aside."""
        return self.begins_with(path, part) and path.stat().st_size == part.size

    def move_aside(self, paths: Sequence[Path]) -> list[str]:
        """Gives files of an agent names under which it does not find them. Returns the names.
        Raises WorkspaceError."""
        try:
            return [str(move_aside(path, UNUSABLE)) for path in paths]
        except OSError as error:
            raise WorkspaceError(
                f"a transcript could not be moved aside: {error}", "perdure doctor"
            ) from error

    def _found(self, agent: str, part: CopyPart) -> Path:
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
                self._put(files[part], part, place, olds)
            for beside, path in files.items():
                if beside.session_id == each and beside.name != MAIN:
                    self._put_beside(
                        path, beside, place.parent / Path(beside.name).relative_to(BESIDE), exactly
                    )
        return place

    def _put_beside(self, source: Path, part: CopyPart, place: Path, exactly: bool) -> None:
        """A file beside the transcript. One that has grown since stays, unless `exactly`."""
        stays = self.is_exactly if exactly else self.begins_with
        if not stays(place, part):
            self._put(source, part, place, [place] if os.path.lexists(place) else [])

    def _put(self, source: Path, part: CopyPart, place: Path, olds: Sequence[Path]) -> None:
        """Writes the part to its place; what lies in its way, or as an older file of the same
        conversation, is moved aside first."""
        private_directories(place.parent)
        staged = place.with_name(f".{place.name}.perdure")
        # The agent's own file still has what the copy must not have: its secrets.
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


def _same_rows(copy: Path, transcript: Path) -> bool:
    """Whether a conversation of an archive still has the rows of its copy, in their order.

    OpenCode 1.18.33 changes a row until it is complete, so a copy that was taken within a turn has
    some that are not what they become. Raises OSError.
    """
    old, new = _rows(copy.read_bytes()), _rows(transcript.read_bytes())
    return bool(old) and new[: len(old)] == old


def _rows(content: bytes) -> list[tuple[str, str]]:
    """Kind and id of each row; the place to which a session is reverted is none."""
    found = []
    for line in content.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("type") != "revert":
            found.append((str(row.get("type")), str(row.get("id"))))
    return found


def _parts(directory: Path, session_id: str) -> Iterator[CopyPart]:
    known = read_known(directory)
    main = known_of(directory / MAIN, known.get(MAIN), lines=True)
    if main is None:
        return
    yield CopyPart(session_id, MAIN, main.size, main.kept)
    there = [
        str(path.relative_to(directory))
        for path in _regular_files(directory / BESIDE)
        if UNUSABLE not in path.name
    ]
    for name in sorted(there):
        found = known_of(directory / name, known.get(name))
        if found is not None:
            yield CopyPart(session_id, name, found.size, found.kept)


def _head(copy: Path) -> bytes:
    """The beginning of a copy, in which it names its parent."""
    with copy.open("rb") as file:
        return file.read(CHUNK)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Waits for other threads and processes at the same copy."""
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _copy_new(source: Path, target: Path, size: int) -> None:
    """So many bytes into a new private file. What lies in its place is removed, and a link there is
    not written through."""
    target.unlink(missing_ok=True)
    with source.open("rb") as content, open(target, "xb", opener=private) as file:
        while size and (chunk := content.read(min(CHUNK, size))):
            file.write(chunk)
            size -= len(chunk)
        file.flush()
        os.fsync(file.fileno())


def _beside(sources: Sequence[Path], top: Path) -> dict[str, Path]:
    """The files that belong to a conversation, by the names of their copies; those that perdure
    moved aside are none of them."""
    found = [
        file
        for file in chain.from_iterable(_regular_files(source) for source in sources)
        if UNUSABLE not in file.name
    ]
    return {f"{BESIDE}/{file.relative_to(top)}": file for file in found}


def _regular_files(top: Path) -> Iterator[Path]:
    """Below a directory of the agent's, in which links may lead anywhere and special files wait for
    ever: neither is followed."""
    if top.is_symlink():
        return
    for folder, _, names in os.walk(top, followlinks=False):
        yield from (
            file
            for name in names
            if (file := Path(folder, name)).is_file() and not file.is_symlink()
        )
