"""Determines how long a CLI keeps conversations if it is started without perdure: the setting of
its own clean-up in the user's settings.

If perdure starts a CLI, the CLI's clean-up removes nothing (`claude.settings`, `gemini_keep.mjs`).
The user's settings are never changed. Used by `perdure doctor` and `perdure why`. Observed with
Claude Code 2.1.329 and Gemini CLI 0.61.0; Codex 0.169.0 and OpenCode 1.18.33 have no clean-up.
"""

from __future__ import annotations

import re
from pathlib import Path

from perdure.agents.shared import json_lines
from perdure.host.system.files import read_file
from perdure.protocols import Retention

DAYS = 30.0
"""Default retention of Claude Code and Gemini CLI, in days."""
_UNITS = {"h": 1 / 24, "d": 1.0, "w": 7.0, "m": 30.0}
_LARGEST = 4 * 1024 * 1024


def claude(home: Path) -> Retention | None:
    """Return the retention that the setting `cleanupPeriodDays` determines, counted from the last
    write. None for the value 0, with which the CLI was observed to delete nothing."""
    days = _settings(home).get("cleanupPeriodDays")
    if isinstance(days, int | float) and not isinstance(days, bool) and days >= 0:
        days = float(days)
    else:
        days = DAYS
    if days:
        return Retention(days, f'"cleanupPeriodDays": 3650 in {home / "settings.json"}')
    return None


def gemini(home: Path) -> Retention | None:
    """Return the retention that `general.sessionRetention` sets; None if the clean-up is disabled.
    The clean-up is enabled by default, and also removes every conversation that was ever resumed.
    """
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
