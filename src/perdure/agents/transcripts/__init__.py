"""Keeps perdure's own copies of the agents' transcripts, and observes transcripts for the receipt.

The agent's file is only read, except when a copy is restored. Copies (see `copies`) are stored in
`{state}/transcripts/{agent}/{hash of the session's id}/`. `main` is the newest copy. A copy is
never overwritten: before a new copy begins, the old one is moved aside to `main.<n>`. A copy holds
complete lines only. Secrets of the environment are redacted without a change of length
(`redaction`), and only new content is written (`copy_file`). Files have mode 0600 and directories
0700, because a transcript holds everything that the agent saw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from perdure.agents.transcripts.copies import Copies, locate
from perdure.agents.transcripts.copy_file import prefix
from perdure.model import Loaded, Snapshot
from perdure.protocols import AgentDriver

__all__ = [
    "Copies",
    "begins_with",
    "damaged",
    "fingerprint",
    "loaded",
    "locate",
    "prompts_since",
    "snapshot",
]


def fingerprint(prompt: str) -> str:
    """Return a hash of the prompt that ignores white space. An agent may change the white space of
    a prompt when it writes the prompt into its transcript. The prompt there still has the same hash
    as the prompt that was sent."""
    return hashlib.sha256(" ".join(prompt.split()).encode("utf-8", "surrogatepass")).hexdigest()[
        :16
    ]


def snapshot(driver: AgentDriver, path: Path | None) -> Snapshot | None:
    """Return size, hash and number of prompts of the transcript; None if it does not exist or
    cannot be read."""
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return Snapshot(
        str(path), len(content), hashlib.sha256(content).hexdigest(), len(driver.prompts(content))
    )


def begins_with(driver: AgentDriver, path: Path, earlier: Snapshot) -> bool:
    """Return whether the conversation still begins with what the snapshot describes. The file must
    begin with the same bytes. For an agent whose later records can undo earlier ones, the
    conversation must also begin with the same prompts."""
    return prefix(path, earlier.size) == earlier.sha256 and (
        not driver.abilities.rewinds or _same_prompts(driver, path, earlier)
    )


def _same_prompts(driver: AgentDriver, path: Path, earlier: Snapshot) -> bool:
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return list(driver.prompts(content))[: earlier.turns] == list(
        driver.prompts(content[: earlier.size])
    )


def loaded(driver: AgentDriver, home: Path, content: bytes) -> Loaded | None:
    """Return the items that a resume would load from a transcript. None if the driver cannot tell
    (a third-party driver may lack `loads`). The files that the transcript continues are read as
    well; an unreadable one counts as empty."""
    loads, find = getattr(driver, "loads", None), getattr(driver, "bases", None)
    if loads is None:
        return None
    found: Loaded | None = loads(
        content, list(map(_content, find(home, content))) if find is not None else []
    )
    return found


def damaged(driver: AgentDriver, content: bytes) -> Sequence[tuple[int, int]]:
    """Return the byte ranges of a transcript's damaged lines, as `AgentDriver.damaged` does. Empty
    if the driver cannot tell (a third-party driver may lack this method)."""
    find = getattr(driver, "damaged", None)
    if find is None:
        return ()
    found: Sequence[tuple[int, int]] = find(content)
    return found


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def prompts_since(driver: AgentDriver, path: Path, earlier: Snapshot | None) -> list[str]:
    """Return the fingerprints of the prompts that were added after the snapshot, or of all prompts
    if there is no snapshot. Empty if the file cannot be read."""
    try:
        with path.open("rb") as file:
            if earlier and driver.abilities.rewinds:
                found = []
                for prompt in driver.prompts(file.read())[earlier.turns :]:
                    found.append(fingerprint(prompt.text))
                return found
            file.seek(earlier.size if earlier else 0)
            return [fingerprint(prompt.text) for prompt in driver.prompts(file.read())]
    except OSError:
        return []
