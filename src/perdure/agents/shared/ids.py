"""The grammar of conversation ids. Claude Code and Codex use UUIDs; anything else must reach
neither a path nor an argument.

Codex takes an id that is not a UUID for a name and silently starts a new conversation; Claude Code
takes it for a title.
"""

from __future__ import annotations

from perdure.patterns import late_pattern

_UUID = late_pattern(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def is_id(session_id: str) -> bool:
    """Return whether it is a UUID with dashes, in upper or lower case."""
    return _UUID.fullmatch(session_id) is not None


def checked(session_id: str) -> str:
    """Return the id. Raise ValueError if it is not a UUID."""
    if not is_id(session_id):
        raise ValueError(f"{session_id!r} is not a conversation id (a UUID)")
    return session_id
