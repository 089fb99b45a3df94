"""perdure's own copies of the agents' transcripts, and what is observed of a transcript for the
receipt.

The agent's file is only ever read, except when a copy is put back where the file is gone. Copies
(`copies`) lie under `{state}/transcripts/{agent}/{session}/`: `main` is the newest; a copy that the
agent's file does not begin with any more is moved aside to `main.<n>`, never overwritten. It holds
complete lines only, without the secrets of the environment (`redaction`, which keeps every length),
and only what is new is written (`copy_file`). Files are 0600, directories 0700: a transcript holds
whatever the agent saw.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from perdure.agents.transcripts.copies import Copies, locate
from perdure.agents.transcripts.copy_file import prefix
from perdure.model import Loaded, Snapshot
from perdure.protocols import AgentDriver

__all__ = ["Copies", "begins_with", "fingerprint", "loaded", "locate", "prompts_since", "snapshot"]


def fingerprint(prompt: str) -> str:
    """A prompt's mark, the same for the text as sent and as it stands in a transcript."""
    return hashlib.sha256(" ".join(prompt.split()).encode("utf-8", "surrogatepass")).hexdigest()[
        :16
    ]


def snapshot(driver: AgentDriver, path: Path | None) -> Snapshot | None:
    """What the transcript is now; None where there is none, or it cannot be read."""
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
    """Whether the conversation begins as it was: the file's first bytes are those of the snapshot
    and, where later records can take earlier ones back, the prompts that stood there still
    stand."""
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
    """Return what a resume would load from a transcript; None where the driver cannot say (an
    installed one may not know `loads`).

    Reads the files that the transcript goes on from; one that cannot be read counts as empty.
    """
    loads, find = getattr(driver, "loads", None), getattr(driver, "bases", None)
    if loads is None:
        return None
    found: Loaded | None = loads(
        content, [_content(path) for path in find(home, content)] if find is not None else []
    )
    return found


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def prompts_since(driver: AgentDriver, path: Path, earlier: Snapshot | None) -> list[str]:
    """Fingerprints of the prompts that came after the snapshot."""
    try:
        with path.open("rb") as file:
            if earlier and driver.abilities.rewinds:
                return [
                    fingerprint(prompt.text)
                    for prompt in driver.prompts(file.read())[earlier.turns :]
                ]
            file.seek(earlier.size if earlier else 0)
            return [fingerprint(prompt.text) for prompt in driver.prompts(file.read())]
    except OSError:
        return []
