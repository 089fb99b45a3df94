"""perdure's own copies of the agents' transcripts, and what is observed of a transcript for the receipt.

The agent's file is only ever read, except when a copy is put back where the file is gone. Copies lie under
`{state}/transcripts/{agent}/{session}/`: `main` is the newest; a copy that the agent's file does not begin with any more is
moved aside to `main.<n>`, never overwritten. It holds complete lines only, without the secrets of the environment (`redaction`,
which keeps every length). Files are 0600, directories 0700: a transcript holds whatever the agent saw.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from perdure.errors import WorkspaceError
from perdure.model import Snapshot
from perdure.protocols import AgentDriver
from perdure.redaction import NO_SECRETS, Redactor

CHUNK = 1 << 20
UNUSABLE = ".perdure-unusable"
"""Stands in the names of files that were moved aside in an agent's home."""


def fingerprint(prompt: str) -> str:
    """A prompt's mark, the same for the text as sent and as it stands in a transcript."""
    return hashlib.sha256(" ".join(prompt.split()).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def locate(driver: AgentDriver, home: Path, session_id: str, directory: Path) -> Path | None:
    """The file to judge a conversation by, or None: the agent's own; from an archive it is written into `directory`, as it
    stands there now."""
    if driver.archive is None:
        return driver.transcript(home, session_id)
    content = driver.archive.read(home, session_id)
    if content is None:
        return None
    _private_directories(directory)
    path = directory / f"conversation-{session_id}.jsonl"
    staged = path.with_suffix(".new")
    with open(staged, "wb", opener=_private) as file:
        file.write(content)
    return staged.replace(path)


def snapshot(driver: AgentDriver, path: Path | None) -> Snapshot | None:
    """What the transcript is now; None where there is none, or it cannot be read."""
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return Snapshot(str(path), len(content), hashlib.sha256(content).hexdigest(), len(driver.prompts(content)))


def begins_with(driver: AgentDriver, path: Path, earlier: Snapshot) -> bool:
    """Whether the conversation begins as it was: the file's first bytes are those of the snapshot and, where later records can
    take earlier ones back, the prompts that stood there still stand."""
    return _same_bytes(path, earlier) and (not driver.abilities.rewinds or _same_prompts(driver, path, earlier))


def _same_prompts(driver: AgentDriver, path: Path, earlier: Snapshot) -> bool:
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return list(driver.prompts(content))[: earlier.turns] == list(driver.prompts(content[: earlier.size]))


def _same_bytes(path: Path, earlier: Snapshot) -> bool:
    digest = hashlib.sha256()
    left = earlier.size
    try:
        with path.open("rb") as file:
            while left and (chunk := file.read(min(CHUNK, left))):
                digest.update(chunk)
                left -= len(chunk)
    except OSError:
        return False
    return left == 0 and digest.hexdigest() == earlier.sha256


def prompts_since(driver: AgentDriver, path: Path, earlier: Snapshot | None) -> list[str]:
    """Fingerprints of the prompts that came after the snapshot."""
    try:
        with path.open("rb") as file:
            if earlier and driver.abilities.rewinds:
                return [fingerprint(prompt.text) for prompt in driver.prompts(file.read())[earlier.turns :]]
            file.seek(earlier.size if earlier else 0)
            return [fingerprint(prompt.text) for prompt in driver.prompts(file.read())]
    except OSError:
        return []


@dataclass(frozen=True, slots=True)
class Copies:
    """The store of copies below one directory."""

    directory: Path
    redactor: Redactor = NO_SECRETS

    def of(self, agent: str, session_id: str) -> Path:
        """Where the newest copy of a conversation lies, whether or not it is there."""
        name = hashlib.sha256(session_id.encode()).hexdigest()[:32]
        return self.directory / agent / name / "main"

    def take(self, driver: AgentDriver, session_id: str, transcript: Path) -> None:
        """Brings the copy up to the transcript. Only what was appended is copied. Raises WorkspaceError (full disk)."""
        copy = self.of(driver.name, session_id)
        try:
            _private_directories(copy.parent)
            with transcript.open("rb") as source:
                content = self.redactor.bytes(source.read())
            lines = content[: content.rfind(b"\n") + 1]
            start = _common_length(copy, lines)
            if start is None:
                _move_aside(copy)
                start = 0
            if start < len(lines):
                with open(copy, "ab", opener=_private) as target:
                    target.write(lines[start:])
                    target.flush()
                    os.fsync(target.fileno())
            beside, staged = copy.parent / "beside", copy.parent / "staged"
            _copy_belongings(driver.belongings(transcript), transcript.parent, beside, staged, self.redactor)
        except FileNotFoundError:
            return
        except OSError as error:
            raise WorkspaceError(f"the conversation {session_id} could not be copied: {error}", "perdure doctor") from error

    def take_line(self, driver: AgentDriver, home: Path, session_id: str, directory: Path) -> None:
        """`take` of a conversation and of those that it goes on from: a fork may be of no use without them. `directory` as for
        `locate`."""
        seen: set[str] = set()
        while session_id and session_id not in seen:
            seen.add(session_id)
            path = locate(driver, home, session_id, directory)
            if path is None:
                return
            self.take(driver, session_id, path)
            session_id = driver.parent(path.read_bytes())

    def put_back(self, driver: AgentDriver, session_id: str, home: Path, cwd: Path) -> Path:
        """Puts the copy where the agent looks for it; what lies there is moved aside. Returns the place. Raises WorkspaceError."""
        copy = self.of(driver.name, session_id)
        place = driver.place(home, session_id, cwd, copy)
        staged = place.with_name(f".{place.name}.perdure")
        try:
            _private_directories(place.parent)
            _copy_new(copy, staged)
            for old in {place, driver.transcript(home, session_id) or place}:
                if os.path.lexists(old):
                    _move_aside(old, UNUSABLE)
            staged.replace(place)
            parent = driver.parent(copy.read_bytes())
            if parent and driver.transcript(home, parent) is None and self.of(driver.name, parent).exists():
                self.put_back(driver, parent, home, cwd)
            beside = copy.parent / "beside"
            if beside.is_dir():
                _copy_belongings(list(beside.iterdir()), beside, place.parent, staged, self.redactor)
        except OSError as error:
            raise WorkspaceError(f"the copy of conversation {session_id} could not be put back: {error}", "perdure doctor") from error
        finally:
            with suppress(OSError):
                staged.unlink()
        return place


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _private_directories(path: Path) -> None:
    """Makes what is missing of the path. `mkdir` alone gives its mode to the last directory only."""
    for missing in reversed([each for each in (path, *path.parents) if not each.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)


def _common_length(copy: Path, lines: bytes) -> int | None:
    """How many bytes the copy already holds of these; None if they do not begin with the copy."""
    try:
        old = copy.read_bytes()
    except FileNotFoundError:
        return 0
    return len(old) if lines.startswith(old) else None


def _move_aside(path: Path, suffix: str = "") -> None:
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}{suffix}.{number}")):
        number += 1
    path.rename(aside)


def _copy_new(source: Path, target: Path) -> None:
    """Into a new private file. What lies in its place is removed, and a link there is not written through."""
    target.unlink(missing_ok=True)
    with source.open("rb") as content, open(target, "xb", opener=_private) as file:
        shutil.copyfileobj(content, file, CHUNK)


def _copy_belongings(sources: Sequence[Path], top: Path, target: Path, staged: Path, redactor: Redactor) -> None:
    """Copies files that are new or have grown, by way of `staged`. Nothing is deleted; what is not the beginning of the new file
    is moved aside."""
    for file in (file for source in sources for file in _regular_files(source)):
        copy = target / file.relative_to(top)
        there = copy.is_file() and not copy.is_symlink()
        if there and copy.stat().st_size >= file.stat().st_size:
            continue
        _private_directories(copy.parent)
        _copy_new(file, staged)
        redactor.file(staged)
        if os.path.lexists(copy) and not (there and staged.read_bytes().startswith(copy.read_bytes())):
            _move_aside(copy, UNUSABLE)
        staged.replace(copy)


def _regular_files(top: Path) -> Iterator[Path]:
    """Below a directory of the agent's, in which links may lead anywhere and special files wait for ever: neither is followed."""
    if top.is_symlink():
        return
    for folder, _, names in os.walk(top, followlinks=False):
        yield from (file for name in names if (file := Path(folder, name)).is_file() and not file.is_symlink())
