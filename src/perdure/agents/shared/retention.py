"""How long a CLI keeps conversations where perdure does not start it: its own clean-up, as the
user's settings have it.

In perdure's own launches it removes none (`claude.SETTINGS`, `gemini_keep.mjs`), and the user's
settings are never edited. Read for `perdure doctor` and `perdure why`. As of Claude Code 2.1.329
and Gemini CLI 0.61.0; Codex 0.169.0 and OpenCode 1.18.33 have none.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from perdure.agents.shared import json_lines
from perdure.protocols import Retention

DAYS = 30.0
"""The default of both."""
_UNITS = {"h": 1 / 24, "d": 1.0, "w": 7.0, "m": 30.0}
_LARGEST = 4 * 1024 * 1024


def claude(home: Path) -> Retention | None:
    """`cleanupPeriodDays`, counted from the last write; 0 was seen to sweep nothing."""
    days = _settings(home).get("cleanupPeriodDays")
    days = (
        float(days)
        if isinstance(days, int | float) and not isinstance(days, bool) and days >= 0
        else DAYS
    )
    return (
        Retention(days, f'"cleanupPeriodDays": 3650 in {home / "settings.json"}') if days else None
    )


def gemini(home: Path) -> Retention | None:
    """`general.sessionRetention`: on by default; besides, it removes each conversation that was
    ever resumed."""
    kept = json_lines.part(_settings(home), "general", "sessionRetention")
    if json_lines.part(kept, "enabled") is False:
        return None
    age = re.fullmatch(r"(\d{1,6})([hdwm])", json_lines.text(json_lines.part(kept, "maxAge")))
    days = int(age[1]) * _UNITS[age[2]] if age else DAYS
    return Retention(
        days, f'"general": {{"sessionRetention": {{"enabled": false}}}} in {home / "settings.json"}'
    )


def _settings(home: Path) -> dict[str, Any]:
    try:
        path = home / "settings.json"
        return json_lines.read(path.read_bytes()) or {} if path.stat().st_size <= _LARGEST else {}
    except OSError:
        return {}
