"""The page of checks: the results of `perdure doctor` on this machine, and the settings with their
sources."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from perdure.config.passwords import shown
from perdure.server.dashboard.visits import Visit

FRESH_S = 60.0


def checks(visit: Visit) -> Response:
    """Show `/checks`: the results of `perdure doctor` and the settings."""
    found, under_way = visit.desk.measured.get(
        "checks", lambda: list(visit.desk.checks()), FRESH_S, visit.now
    )
    chosen = visit.desk.settings
    settings = []
    for each in chosen.__struct_fields__:
        if each != "origin":
            settings.append(
                (
                    each,
                    _text(shown(each, getattr(chosen, each))),
                    chosen.origin.get(each, ""),
                )
            )
    return visit.page("checks.html", found=found, under_way=under_way, settings=settings)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(str(getattr(each, "name", each)) for each in value)
    if value is None:
        return ""
    return str(value)
