"""Reads the prompt that an attempt got. It is in the file `prompt.md` in the attempt's directory.
`engine.attempt.preparation` writes this file before the attempt begins."""

from __future__ import annotations

from pathlib import Path

from perdure.agents.transcripts import fingerprint
from perdure.model import Attempt


def prompt_path(directory: Path) -> Path:
    """Return the path of the prompt's file in an attempt's directory."""
    return directory / "prompt.md"


def read_prompt(directory: Path) -> str:
    """Return the prompt that is in an attempt's directory. Raises OSError."""
    return prompt_path(directory).read_text(encoding="utf-8", errors="surrogatepass")


def prompt_fingerprint(directory: Path) -> str:
    """Return the fingerprint of the prompt that is in an attempt's directory. Raises OSError."""
    return fingerprint(read_prompt(directory))


def kept_prompt_fingerprint(attempt: Attempt) -> str:
    """Return the fingerprint of an attempt's prompt; empty if its file cannot be read, for example
    because the attempt's directory was deleted."""
    try:
        return prompt_fingerprint(Path(attempt.directory))
    except OSError:
        return ""
