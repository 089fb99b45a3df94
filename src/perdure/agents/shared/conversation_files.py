"""Ids, lists and retention of conversations that an agent stores as files. Called by the drivers.

- `is_id` and `checked`: Claude Code and Codex use UUIDs as ids of conversations. Any other text
  must not be used in a path or an argument. Codex takes such a text for a name and silently starts
  a new conversation. Claude Code takes such a text for a title.
- `newest` lists the conversations on disk, newest first, without reading long ones completely. Each
  driver passes the function that reads one file.
- `claude` and `gemini` return how long the CLI's own clean-up keeps conversations, according to the
  user's settings. This retention applies only if the CLI is started without perdure. If perdure
  starts the CLI, the clean-up removes nothing (`claude.settings`, `gemini_keep.mjs`). The user's
  settings are never changed. Used by `perdure doctor` and `perdure why`. Observed with Claude Code
  2.1.329 and Gemini CLI 0.61.0; Codex 0.169.0 and OpenCode 1.18.33 have no clean-up.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from heapq import nlargest
from pathlib import Path

from perdure.agents.shared import json_lines
from perdure.host.system.files import read_file
from perdure.model import Conversation
from perdure.patterns import late_pattern
from perdure.protocols import Retention

_UUID = late_pattern(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def is_id(session_id: str) -> bool:
    """Return whether the text is a UUID with dashes. Upper and lower case are accepted."""
    return _UUID.fullmatch(session_id) is not None


def checked(session_id: str) -> str:
    """Return the id unchanged. Raise ValueError if it is not a UUID."""
    if not is_id(session_id):
        raise ValueError(f"{session_id!r} is not a conversation id (a UUID)")
    return session_id


HEAD = 256 * 1024
"""Number of bytes that are read from the beginning of a long transcript. The first prompt is
normally in this part."""
WHOLE = 4 * 1024 * 1024
"""Maximum size of a transcript that is read completely, in bytes. The turns of a longer one are not
counted."""

Reader = Callable[[Path, bytes, bool, int], Conversation | None]
"""Type of a function that reads one file of an agent. It returns None if the file is not a
conversation. Its parameters are the path, the content (or its beginning), whether the content is
complete, and the time of the last write (in ms since 1970)."""


def newest(paths: Iterable[Path], limit: int, read: Reader) -> Sequence[Conversation]:
    """Return the newest conversations, at most `limit`. Files that cannot be read or are not
    conversations are skipped. If a conversation has several files, the one that was written last
    counts."""
    found: dict[str, Conversation] = {}
    dated = []
    for path in paths:
        if (state := _state(path)) is not None:
            dated.append((state.st_mtime_ns, path, state.st_size))
    # Consider more than `limit` files, because some of them may not be conversations.
    for written, path, size in nlargest(limit * 2 + 20, dated):
        if len(found) >= limit:
            break
        conversation = read(path, _content(path, size), size <= WHOLE, written // 1_000_000)
        if conversation is not None:
            found.setdefault(conversation.id, conversation)
    return list(found.values())


def _state(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _content(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            if size <= WHOLE:
                return file.read()
            return file.read(HEAD)
    except OSError:
        return b""


DAYS = 30.0
"""Default retention of Claude Code and Gemini CLI, in days."""
_UNITS = {"h": 1 / 24, "d": 1.0, "w": 7.0, "m": 30.0}
_LARGEST = 4 * 1024 * 1024


def claude(home: Path) -> Retention | None:
    """Return Claude Code's retention (setting `cleanupPeriodDays`), counted from the last write to
    the conversation. None for the value 0, with which the CLI was observed to delete nothing."""
    days = _settings(home).get("cleanupPeriodDays")
    if isinstance(days, int | float) and not isinstance(days, bool) and days >= 0:
        days = float(days)
    else:
        days = DAYS
    if days:
        return Retention(days, f'"cleanupPeriodDays": 3650 in {home / "settings.json"}')
    return None


def gemini(home: Path) -> Retention | None:
    """Return Gemini CLI's retention (setting `general.sessionRetention`); None if the clean-up is
    disabled. The clean-up is enabled by default. It also removes every conversation that was ever
    resumed."""
    kept = json_lines.part(_settings(home), "general", "sessionRetention")
    if json_lines.part(kept, "enabled") is False:
        return None
    age = re.fullmatch(r"(\d{1,6})([hdwm])", json_lines.text(json_lines.part(kept, "maxAge")))
    days = int(age[1]) * _UNITS[age[2]] if age else DAYS
    return Retention(
        days, f'"general": {{"sessionRetention": {{"enabled": false}}}} in {home / "settings.json"}'
    )


def _settings(home: Path) -> dict[str, object]:
    try:
        path = home / "settings.json"
        if path.stat().st_size <= _LARGEST:
            return json_lines.read(read_file(path)) or {}
        return {}
    except OSError:
        return {}
