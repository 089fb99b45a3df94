"""Checks that an agent can store its conversation and run commands. An agent that cannot write to
its home works without an error message, but its conversation cannot be resumed later. Called by
`opening_steps`, when a run is added, and by `perdure doctor`.

Observed with Claude Code 2.1.329 and Codex 0.169.0 in a home that is read-only or belongs to
another user. Where /tmp is read-only and TMPDIR is not set, every command of Claude Code fails, and
so does every command in Codex's sandbox. The agents' tasks still end without an error.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from perdure.errors import WorkspaceError
from perdure.model import Permissions
from perdure.protocols import AgentDriver

_FOLDERS = ("projects", "sessions", "tmp")
"""Directories in the agents' homes where Claude Code, Codex and Gemini CLI keep conversations. A
single run of `sudo claude` leaves a directory there that belongs to root."""


def check_home(driver: AgentDriver, home: Path) -> None:
    """Raise WorkspaceError if the agent could not save its conversation. Agents that store no
    conversations are not checked."""
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
    """Raise WorkspaceError if the agent needs temporary files to run commands and cannot write
    them."""
    if permissions not in driver.abilities.temporary_files:
        return
    place = Path(environ.get("TMPDIR") or "/tmp")
    if why := unwritable(place):
        raise WorkspaceError(
            f"{driver.name} could run no command: it needs temporary files, and {why}",
            "Set TMPDIR to a directory that can be written.",
        )
    private = driver.abilities.private_directory.format(uid=os.geteuid())
    why = _not_private(Path(private)) if private else ""
    if why:
        raise WorkspaceError(
            f"{driver.name} could run no command: its sandbox needs {private}, and {why}",
            f"Make {private} a directory of this user with mode 0700, or use permissions full, "
            "which has no sandbox.",
        )


def _not_private(place: Path) -> str:
    """Return the reason why a directory is not private to this user; empty if it is. A directory
    that does not exist is accepted if it can be created."""
    try:
        found = place.lstat()
    except FileNotFoundError:
        return unwritable(place)
    if not stat.S_ISDIR(found.st_mode):
        return f"{place} is not a directory"
    if found.st_uid != os.geteuid():
        return f"{place} belongs to another user"
    if stat.S_IMODE(found.st_mode) != 0o700:
        return f"{place} does not have mode 0700"
    return ""


def unwritable(place: Path) -> str:
    """Return the reason why nothing can be written at a path; empty if it is writable. A path that
    does not exist is writable if it can be created."""
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
