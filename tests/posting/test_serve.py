"""`perdure serve` as a process: whichever process is killed, the report of a run is on the forge
exactly once."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from perdure import store as stores
from perdure.model.forge.deliveries import Forge
from perdure.model.forge.postings import Posting
from tests.forges import payloads
from tests.journeys.stage import native
from tests.servers.forge import SmallForge
from tests.servers.forge import gitea as dialect
from tests.servers.forge.state import Item
from tests.servers.githttp import serving as git_serving
from tests.web.serving import Serving
from tests.workspace.yard import make_yard

NAME = "gogits/hello-world"
TOKEN = "t0ken-of-the-dev-bot"
CONFIG = """
[webhooks.tea]
forge = "gitea"
url = "{url}"
secret_file = "{{home}}/secret"
token_env = "THE_TOKEN"
[agents.dev]
agent = "claude"
login = "dev-bot"
authors = ["unknwon"]
labels = ["agent"]
clone = "{clone}"
publish = "pull"
"""


class Desk:
    """A forge, and the home of a server that reports to it."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        yard = make_yard(directory / "yard")
        http = stack.enter_context(git_serving(directory / "git", ""))
        bare = http.make(NAME, yard.repo)
        self.small = stack.enter_context(SmallForge(dialect))
        self.small.state.person("dev-bot", TOKEN)
        self.small.state.repository(NAME, git=bare, unknwon="admin", dev_bot="write")
        self.small.state.issue(NAME, "unknwon", "Rounding", "The total is off.", labels=["agent"])
        config = CONFIG.format(url=self.small.url, clone=http.url("{{repository}}"))
        environ = {"PERDURE_CLAUDE": str(native("claude")), "THE_TOKEN": TOKEN}
        self.home = directory / "home"
        self.serving = self.server(config, environ)
        self.second = self.server(config, environ)
        stack.callback(self.serving.kill)
        stack.callback(self.second.kill)

    def server(self, config: str, environ: dict[str, str]) -> Serving:
        return Serving(self.home, config, **environ)

    @property
    def issue(self) -> Item:
        return self.small.state.repositories[NAME].items[1]

    def label(self, id: str) -> int:
        def labelled(body: Any) -> None:
            payloads.gitea_labels(body)

        body = payloads.derived("gitea", "issues_opened", labelled)
        return self.serving.send(
            "/webhooks/tea", body, payloads.headers(Forge.GITEA, "issue_label", body, id=id)
        )[0]

    def waiting(self) -> Sequence[Posting]:
        with closing(stores.open(self.serving.state / "perdure.db", read_only=True)) as store:
            return store.postings_waiting()

    def perdure(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.serving.perdure(*words)


@pytest.fixture
def desk() -> Iterator[Desk]:
    directory = Path(tempfile.mkdtemp(prefix="ps"))
    with ExitStack() as stack:
        yield Desk(directory, stack)
    shutil.rmtree(directory, ignore_errors=True)


def until(desk: Desk, met: Callable[[], Any], what: str) -> Any:
    return desk.serving.until(met, what)


def test_told_once_by_whoever_serves(desk: Desk) -> None:
    """The forge is down, and `inbox` and `why` show the waiting report. One server is killed while
    a second one waits beside it. When the forge is back, the second server posts the report.
    Nothing is posted twice, and the token is in no file and no message."""
    desk.serving.start("--jobs", "0")
    assert desk.label("one") == 202
    until(desk, lambda: len(desk.issue.said) == 1, "the issue became a task, and was told")
    (row,) = json.loads(desk.perdure("ls", "--json").stdout)["runs"]
    desk.small.fail(503, times=100_000)
    desk.perdure("stop", row["name"])
    until(desk, lambda: desk.waiting(), "the posting waits")
    listed = desk.perdure("inbox").stdout
    assert "Reports to the forge that have not arrived" in listed and row["name"] in listed
    assert "forge       next try at" in desk.perdure("why", row["name"]).stdout
    desk.second.start("--jobs", "0")
    desk.serving.kill()
    desk.serving = desk.second
    desk.small.faults.clear()
    assert desk.perdure("inbox", "tell", row["name"]).returncode == 0
    until(desk, lambda: "was stopped" in desk.issue.said[0].text, "the second server tells it")
    until(desk, lambda: not desk.waiting(), "nothing waits")
    assert len(desk.issue.said) == 1 and {kind for _, kind in desk.issue.reactions} == {"eyes"}
    assert desk.issue.said[0].author == "dev-bot"
    assert "forge       reported at http" in desk.perdure("why", row["name"]).stdout
    assert desk.second.stop() == 0
    for path in desk.home.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
