"""The format of conversation ids. Claude Code and Codex use UUIDs; any other text must not be used
in a path or an argument.

If an id is not a UUID, Codex takes it for a name and silently starts a new conversation, and Claude
Code takes it for a title.
"""

from __future__ import annotations

from perdure.patterns import late_pattern

_UUID = late_pattern(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def is_id(session_id: str) -> bool:
    """Return whether the text is a UUID with dashes. Upper and lower case are accepted."""
    return _UUID.fullmatch(session_id) is not None


def checked(session_id: str) -> str:
    """Return the id unchanged. Raise ValueError if it is not a UUID."""
    if not is_id(session_id):
        raise ValueError(f"{session_id!r} is not a conversation id (a UUID)")
    return session_id
