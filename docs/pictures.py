"""Screenshots of the dashboard for the documentation, from a real `perdure serve` and a real
Chromium, with the runs of an invented day. `make pictures` makes them again, below docs/images."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from docs.pictured import a_day
from tests.dashboard.browsing import FLAGS
from tests.web.serving import Serving

IMAGES = Path(__file__).parent / "images"
SHOTS = (
    ("board", "/", "light", 1180, 760),
    ("run", "/runs/fix-rounding", "dark", 1180, 720),
    ("failures", "/failures", "light", 1180, 560),
    ("phone", "/", "light", 390, 720),
)
"""Each screenshot's name, address, color scheme, width and height."""


def shoot(
    browser: Browser,
    serving: Serving,
    token: str,
    name: str,
    path: str,
    colours: str,
    width: int,
    height: int,
) -> None:
    """Save one page as docs/images/dashboard-NAME.png."""
    base = f"http://127.0.0.1:{serving.port}"
    context = browser.new_context(
        base_url=base, color_scheme=colours, viewport={"width": width, "height": height}
    )  # type: ignore[arg-type]
    page = context.new_page()
    page.goto("/sign-in")
    page.fill("#i-token", token)
    page.click("button")
    page.goto(path)
    page.wait_for_load_state("load")
    page.screenshot(path=IMAGES / f"dashboard-{name}.png")
    print(f"docs/images/dashboard-{name}.png")
    context.close()


def main() -> None:
    """Make all screenshots."""
    home = Path(tempfile.mkdtemp(prefix="pp"))
    serving = Serving(home)
    try:
        a_day(serving.state / "perdure.db")
        token = serving.perdure("token", "new", "ada", "--scope", "admin").stdout.strip()
        serving.start("--jobs", "0")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
            for name, path, colours, width, height in SHOTS:
                shoot(browser, serving, token, name, path, colours, width, height)
            browser.close()
    finally:
        serving.stop()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
