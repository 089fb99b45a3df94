"""The time that tests wait for an event before they fail. No passing test takes this long."""

from __future__ import annotations

PATIENCE_S = 300.0
"""Longest wait for an event, in seconds. OpenCode needs five seconds to start on a quiet machine,
and a minute when 25 processes share two cores."""
