"""Every way in which a person can answer an agent, with a real agent. perdure was killed while the
agent worked; the agent has asked, and its process has ended. The answer is given to another
perdure, which is killed as well. A third one lets the call run, once."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from perdure import store as stores
from perdure.agents.rehearsal import Rehearsal
from perdure.model.forge.deliveries import DeliveryState, Forge
from perdure.rules.requests import short_id
from tests.dashboard.test_doors import Door
from tests.forges import payloads
from tests.journeys.stage import Stage
from tests.journeys.terminal import Terminal
from tests.journeys.test_requests import requests
from tests.journeys.test_requests_told import STOPS, command, escalated, outside
from tests.notices.receivers import SECRET, Hook
from tests.web.serving import Serving

CONFIG = """
[webhooks.tea]
forge = "gitea"
secret_file = "{{home}}/secret"
[agents.dev]
agent = "codex"
login = "dev-bot"
authors = ["unknwon"]
labels = ["agent"]
clone = "{repo}"
[serve]
public_url = "https://perdure.example.com"
[notify.ops]
url = "{hook}"
secret_file = "{{home}}/notify-secret"
links = true
"""
PROGRAM = """
import sys, perdure
with perdure.open() as runner:
    runner.answer(sys.argv[1], "allow")
"""


@dataclass
class Asked:
    """A run whose agent waits for a person, and a server that executes no runs."""

    stage: Stage
    serving: Serving
    hook: Hook
    name: str


def deliver(serving: Serving, event: str, recorded: str, change: Callable[[Any], None]) -> None:
    """Send a webhook, and wait until it was handled."""
    body = payloads.derived("gitea", recorded, change)
    headers = payloads.headers(Forge.GITEA, event, body)
    assert serving.send("/webhooks/tea", body, headers)[0] == 202
    serving.until(
        lambda: serving.inbox()[-1].state is DeliveryState.HANDLED, "the webhook is handled"
    )


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    """Yield a run with an open request, and a server. The paths are short, because the path of a
    socket has at most 108 bytes."""
    directory, hook = Path(tempfile.mkdtemp(prefix="pb")), Hook()
    flag, file = tmp_path / "go", outside(tmp_path)
    script = [f"hold {flag}\n{command(file)}", STOPS, escalated(file), "say It is done.\n"]
    with Rehearsal("---\n".join(script)) as rehearsal:
        one = Stage(directory, "codex", rehearsal)
        (one.home / "notify-secret").write_text(SECRET)
        serving = Serving(one.home, CONFIG.format(repo=one.repo, hook=hook.url), **one.environ)
        try:
            yield asking(one, serving, hook, flag)
        finally:
            serving.kill()
            one.close()
            hook.close()
            file.unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def asking(one: Stage, serving: Serving, hook: Hook, flag: Path) -> Asked:
    """Begin a run by a label on an issue, and kill perdure while the model gives its first answer.
    The agent asks a person without a supervisor, and ends. Return when the next perdure knows the
    request."""
    serving.start("--jobs", "1")
    deliver(serving, "issue_label", "issues_opened", payloads.gitea_labels)
    one.attempt_directory(1)
    one.rehearsal.wait_for(1)
    serving.kill()
    flag.touch()
    one.until(lambda: not one.marked(), "the agent's process is gone")
    serving.start("--jobs", "0")
    assert one.perdure("work", "--once").code == 0
    (run,) = one.perdure("ls", "--json").json["runs"]
    (request,) = requests(one, run["name"])
    assert request["state"] == "open" and len(one.show(run["name"])["attempts"]) == 1
    return Asked(one, serving, hook, run["name"])


def by_command(asked: Asked) -> None:
    assert asked.stage.perdure("approve", asked.name).code == 0


def by_attach(asked: Asked) -> None:
    terminal = Terminal(asked.stage, 100)
    try:
        terminal.type(f"{sys.executable} -m perdure attach {asked.name}", "Enter")
        terminal.shows("Allow it once?")
        terminal.type("y", "Enter")
        terminal.shows("It is done.")
        # When the terminal closes, `attach` may still store the attempt's end before it exits.
        asked.stage.until(
            lambda: asked.stage.show(asked.name)["state"] == "succeeded", "attach has the end"
        )
    finally:
        terminal.tmux("kill-server")


def by_library(asked: Asked) -> None:
    words = [sys.executable, "-c", PROGRAM, asked.name]
    subprocess.run(words, cwd=asked.stage.repo, env=asked.stage.environ, check=True)


def by_api(asked: Asked) -> None:
    path, token = f"/api/v1/runs/{asked.name}/answer", asked.serving.token("admin")
    assert asked.serving.ask("POST", path, token, {"answer": "allow"})[0] == 200
    assert asked.serving.ask("POST", path, token, {"answer": "deny", "request": 1})[0] == 409


def by_dashboard(asked: Asked) -> None:
    door = Door(asked.serving, asked.serving.token("admin"))
    page = door.ask("GET", f"/runs/{asked.name}")[2]
    secret = page.split('name="csrf" value="')[1].split('"')[0]
    form = f"answer=allow&request=1&csrf={secret}"
    assert door.ask("POST", f"/runs/{asked.name}/answer", form)[0] == 303
    assert door.ask("POST", f"/runs/{asked.name}/answer", form)[0] == 409


def by_link(asked: Asked) -> None:
    def links() -> list[str]:
        found = [body["data"].get("answers") or [] for body in asked.hook.bodies]
        return [each["allow"] for answers in found for each in answers]

    path = urlsplit(asked.serving.until(links, "the message has come")[0]).path
    assert "Allow once" in Door(asked.serving).ask("GET", path)[2]
    assert Door(asked.serving).ask("POST", path)[0] == 200
    assert Door(asked.serving).ask("POST", path)[0] == 409


def by_comment(asked: Asked) -> None:
    with closing(stores.open(asked.serving.state / "perdure.db", read_only=True)) as store:
        (request,) = store.requests(store.get(asked.name).id)

    def approve(body: Any) -> None:
        body["comment"]["body"] = f"/approve {short_id(request)}"

    deliver(asked.serving, "issue_comment", "issue_comment_created", approve)


DOORS: dict[str, tuple[Callable[[Asked], None], str]] = {
    "command": (by_command, "local:"),
    "attach": (by_attach, "local:"),
    "library": (by_library, "local:"),
    "api": (by_api, "token:admin"),
    "dashboard": (by_dashboard, "token:admin"),
    "link": (by_link, "link:ops"),
    "comment": (by_comment, "forge:tea/unknwon"),
}
"""Each way to answer: the function that gives the answer, and the actor under which it is
stored."""


@pytest.mark.journey
@pytest.mark.parametrize("door", DOORS)
def test_an_answer_of_every_place_lets_the_call_run_once(
    asked: Asked, tmp_path: Path, door: str
) -> None:
    """Whichever way the answer is given, the conversation continues natively, the call runs once,
    and a later answer is refused."""
    answer, by = DOORS[door]
    here, file = asked.stage, outside(tmp_path)
    assert not file.exists()
    answer(asked)
    asked.serving.kill()
    assert here.perdure("work", "--once").code == 0
    report = here.show(asked.name)
    assert report["state"] == "succeeded" and file.read_text() == "ran\n"
    assert [each["receipt"]["verdict"] for each in report["attempts"][1:]] == ["native"]
    (request,) = requests(here, asked.name)
    assert (request["state"], request["answer"], request["given"]) == ("answered", "allow", 2)
    assert request["by"].startswith(by)
    late = here.perdure("deny", asked.name, "--request", "1")
    assert (late.code, "was answered already" in late.err) == (6, True)
    here.nothing_survives()
