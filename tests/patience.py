"""How long tests wait for an event before they fail. No passing test takes this long."""

from __future__ import annotations

PATIENCE_S = 300.0
"""In seconds. OpenCode needs five seconds to start on a quiet machine, and a minute when 25
processes share two cores."""
