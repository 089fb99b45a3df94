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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perdure.errors import WorkspaceError
from perdure.model import Snapshot
from perdure.protocols import AgentDriver
from perdure.redaction import NO_SECRETS, Redactor

CHUNK = 1 << 20


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
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
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
            copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
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
            _copy_belongings(driver.belongings(transcript), transcript.parent, copy.parent / "beside", self.redactor)
        except FileNotFoundError:
            return
        except OSError as error:
            raise WorkspaceError(f"the conversation {session_id} could not be copied: {error}", "perdure doctor") from error

    def put_back(self, driver: AgentDriver, session_id: str, home: Path, cwd: Path) -> Path:
        """Puts the copy where the agent looks for it; what lies there is moved aside. Returns the place."""
        copy = self.of(driver.name, session_id)
        place = driver.place(home, session_id, cwd, copy)
        place.parent.mkdir(parents=True, exist_ok=True)
        there = driver.transcript(home, session_id)
        for old in {place, there} - {None}:
            if old is not None and old.exists():
                _move_aside(old, suffix=".perdure-unusable")
        staged = place.with_name(f".{place.name}.perdure")
        shutil.copyfile(copy, staged)
        staged.chmod(0o600)
        staged.replace(place)
        beside = copy.parent / "beside"
        if beside.is_dir():
            _copy_belongings(list(beside.iterdir()), beside, place.parent, self.redactor)
        return place


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _common_length(copy: Path, lines: bytes) -> int | None:
    """How many bytes the copy already holds of these; None if they do not begin with the copy."""
    try:
        old = copy.read_bytes()
    except FileNotFoundError:
        return 0
    return len(old) if lines.startswith(old) else None


def _move_aside(path: Path, suffix: str = "") -> None:
    number = 1
    while (aside := path.with_name(f"{path.name}{suffix}.{number}")).exists():
        number += 1
    path.rename(aside)


def _copy_belongings(sources: Sequence[Path], top: Path, target: Path, redactor: Redactor) -> None:
    """Copies regular files that are new or have grown; links and special files are left out, nothing is deleted."""
    for source in sources:
        for folder, _, names in os.walk(source, followlinks=False):
            for name in names:
                file = Path(folder, name)
                copy = target / file.relative_to(top)
                if file.is_symlink() or not file.is_file() or (copy.exists() and copy.stat().st_size >= file.stat().st_size):
                    continue
                copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                shutil.copyfile(file, copy)
                redactor.file(copy)
