"""The grammar of conversation ids. Both CLIs use UUIDs; anything else must reach neither a path nor
an argument.

Codex takes an id that is no UUID for a name and silently starts anew; Claude takes it for a title.
"""

from __future__ import annotations

import re

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def is_id(session_id: str) -> bool:
    """Whether it is a UUID in its usual form, in either case of letters."""
    return _UUID.fullmatch(session_id) is not None


def checked(session_id: str) -> str:
    """The id itself. Raises ValueError if it is none."""
    if not is_id(session_id):
        raise ValueError(f"{session_id!r} is no conversation id (a UUID)")
    return session_id
