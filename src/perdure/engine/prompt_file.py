"""The prompt of an attempt as it is on disk, in `prompt.md` of the attempt's directory. Written by
`engine.attempt.preparation`, before the attempt begins."""

from __future__ import annotations

from pathlib import Path

from perdure.agents.transcripts import fingerprint
from perdure.model import Attempt


def prompt_path(directory: Path) -> Path:
    """Return the path of the prompt in an attempt's directory."""
    return directory / "prompt.md"


def read_prompt(directory: Path) -> str:
    """Return the prompt in an attempt's directory. Raises OSError."""
    return prompt_path(directory).read_text(encoding="utf-8", errors="surrogatepass")


def prompt_fingerprint(directory: Path) -> str:
    """Return the fingerprint of the prompt in an attempt's directory. Raises OSError."""
    return fingerprint(read_prompt(directory))


def kept_prompt_fingerprint(attempt: Attempt) -> str:
    """Return the fingerprint of an attempt's prompt; empty if the attempt's directory was
    deleted."""
    try:
        return prompt_fingerprint(Path(attempt.directory))
    except OSError:
        return ""
