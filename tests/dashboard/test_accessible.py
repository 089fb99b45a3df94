"""Every page against the rules of axe-core, in a real browser: WCAG 2.2 AA, one first heading, and
landmarks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.dashboard.browsing import Looking
from tests.dashboard.test_pages import PAGES
from tests.web.serving import Serving

PHONE, DESKTOP = 390, 1280
"""Widths of a window in pixels."""
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@pytest.mark.parametrize(("colors", "width"), [("light", DESKTOP), ("dark", PHONE)])
def test_every_page_can_be_used_by_everybody(
    full: tuple[Serving, str], look: Callable[..., Looking], colors: str, width: int
) -> None:
    """axe-core finds no violation on any page."""
    window = look(*full, width=width)
    window.page.emulate_media(color_scheme=colors)  # type: ignore[arg-type]
    axe, found = Axe(), []
    for path in (*PAGES, "/runs/nowhere"):
        page = window.open(path, 404 if path == "/runs/nowhere" else 200)
        options = {"resultTypes": ["violations"], "runOnly": RULES}
        for violation in axe.run(page, options=options).response["violations"]:
            places = [node["html"][:150] for node in violation["nodes"]]
            found.append(f"{path}: {violation['id']}, {len(places)} times: {places[:2]}")
    assert not found, "\n".join(found)
