"""A real headless Chromium, and two servers: one full of hostile texts, and one whose agents
run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from perdure.agents.rehearsal import Rehearsal
from tests.dashboard.browsing import FLAGS, Looking
from tests.dashboard.filling import fill
from tests.journeys.stage import Stage
from tests.web.serving import Serving

WORKING = """
permissions = "full"
"""

SCRIPTS = r"""
match HOSTILE
say <script>alert(1)</script><img src=x onerror=alert(1)>
run printf '<b onclick=alert(1)>\n</pre><script>alert(1)</script>\n' > '<img src=x onerror=alert(1)>.html'
---
say "><svg/onload=alert(1)> is done.
===
match quercus
say The quercus is an oak.
---
say And an acorn.
===
match LASTS
say I look around.
run echo begun > begun.txt
---
hang x99
===
say One moment.
run echo one > one.txt
---
slow 1
say One is there.
---
run echo two > two.txt
---
say Two is there.
---
run echo three > three.txt
---
say Three is there.
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start one browser for a module."""
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, str]]:
    """Run a server with runs, plans, deliveries and conversations that are full of hostile text.
    Yield it with an admin's token."""
    serving = Serving(tmp_path_factory.mktemp("full"))
    fill(serving.state / "perdure.db")
    token = serving.token("admin")
    yield serving.start("--jobs", "0"), token
    serving.stop()


@pytest.fixture(scope="module")
def working() -> Iterator[tuple[Stage, Serving, str]]:
    """Run a server with a pool of two, and Claude Code with a scripted model. Yield it with an
    admin's token. Its paths are short, because the path of a socket has at most 108 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="pd"))
    rehearsal = Rehearsal(SCRIPTS).start()
    stage = Stage(directory, "claude", rehearsal)
    serving = Serving(stage.home, WORKING, **stage.environ)
    token = serving.token("admin")
    serving.start("--jobs", "2")
    yield stage, serving, token
    serving.kill()
    stage.close()
    rehearsal.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def look(browser: Browser) -> Iterator[Callable[..., Looking]]:
    """Open a signed-in window. At the end of the test, check that nothing forbidden happened in any
    window."""
    made: list[Looking] = []

    def make(serving: Serving, token: str, **settings: object) -> Looking:
        made.append(Looking(browser, serving, token, **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()
    for each in made:
        each.harmless()
