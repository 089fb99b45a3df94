"""Checks that an agent can store its conversation and run commands. An agent that cannot write its
home works without an error message, and cannot be resumed later.

Observed with Claude Code 2.1.329 and Codex 0.169.0 in a home that is read-only or belongs to
another user. Where /tmp is read-only and TMPDIR is not set, every command of Claude Code fails, and
so does every command in Codex's sandbox; their tasks end as if all was well.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from perdure.errors import WorkspaceError
from perdure.model import Permissions
from perdure.protocols import AgentDriver

_FOLDERS = ("projects", "sessions", "tmp")
"""Directories below their homes where Claude Code, Codex and Gemini CLI keep conversations. A
single run of `sudo claude` leaves a directory that belongs to root."""


def check_home(driver: AgentDriver, home: Path) -> None:
    """Raise WorkspaceError if a conversation could not be written. An agent whose conversations are
    stored in an unknown place is not checked."""
    if not driver.abilities.sessions:
        return
    for place in (home, *(home / name for name in _FOLDERS)):
        if place != home and not os.path.lexists(place):
            continue
        if why := unwritable(place):
            raise WorkspaceError(
                f"{driver.name} could not save its conversation: {why}",
                f"Make {place} writable for this user, or set HOME to a writable directory.",
            )


def check_temporary(
    driver: AgentDriver, permissions: Permissions, environ: Mapping[str, str]
) -> None:
    """Raise WorkspaceError if the agent may run commands and could not, because it has no directory
    for temporary files."""
    if permissions not in driver.abilities.temporary_files:
        return
    place = Path(environ.get("TMPDIR") or "/tmp")
    if why := unwritable(place):
        raise WorkspaceError(
            f"{driver.name} could run no command: it needs temporary files, and {why}",
            "Set TMPDIR to a directory that can be written.",
        )


def unwritable(place: Path) -> str:
    """Return why nothing can be written at a path, which need not exist yet; empty if it can be
    written."""
    there = place
    while not os.path.lexists(there):
        there = there.parent
    if not there.exists():
        return f"{there} is a dangling link"
    if there.is_file() and there == place:
        if os.access(there, os.W_OK):
            return ""
        return f"{there} is not writable"
    if not there.is_dir():
        return f"{there} is not a directory"
    if os.access(there, os.W_OK | os.X_OK):
        return ""
    if there == place:
        return f"{there} is not writable"
    return f"{place} cannot be created, because {there} is not writable"
