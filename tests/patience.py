"""How long tests wait for an event before they give it up. Nothing that passes takes this long."""

from __future__ import annotations

PATIENCE_S = 300.0
"""In seconds. OpenCode needs five to start on a quiet machine, and a minute where 25 processes want
two cores."""
