"""The service's secrets: a real agent of `perdure serve` searches for them everywhere that it can
read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from perdure.agents.rehearsal import Rehearsal
from perdure.model.forge.deliveries import Forge
from tests.finding import first_file
from tests.forges import payloads
from tests.journeys.stage import TOP, Stage
from tests.servers.forge import SmallForge
from tests.servers.forge import gitea as dialect
from tests.web.serving import Serving

SECRET = "canary-of-the-webhook-0001"
TOKEN = "canary-of-the-forge-0002"
NAME = "gogits/hello-world"
CONFIG = """
permissions = "full"
[webhooks.tea]
forge = "gitea"
url = "{url}"
{places}
[agents.dev]
agent = "claude"
login = "dev-bot"
authors = ["unknwon"]
labels = ["agent"]
clone = "{repo}"
report = false
"""
VARIABLES = 'secret_env = "THE_SECRET"\ntoken_env = "THE_TOKEN"'


class Den:
    """A forge, a service with secrets that begin with `canary-`, and an agent that searches for
    them."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.small = stack.enter_context(SmallForge(dialect))
        self.small.state.person("dev-bot", TOKEN)
        self.small.state.repository(NAME, unknwon="admin", dev_bot="write")
        self.small.state.issue(NAME, "unknwon", "Rounding", "The total is off.", labels=["agent"])
        self.stack = stack

    def serve(
        self, places: str, files: str = "", config: str = CONFIG, **environ: str
    ) -> tuple[Stage, Serving]:
        """Return a server that is not started yet, whose agent runs the spy over all processes and
        the files."""
        # Other workers of the test suite have the same constants in memory, and an agent of the
        # same user can read that. So all processes that exist now are spared.
        spare = ",".join(each.name for each in Path("/proc").iterdir() if each.name.isdecimal())
        script = (
            f"run {sys.executable} -I {TOP}/tests/web/spy.py found.json {spare} can+ary- "
            f"{files}\n---\nsay Done.\n"
        )
        one = Stage(self.directory, "claude", self.stack.enter_context(Rehearsal(script)))
        self.stack.callback(one.close)
        text = config.format(url=self.small.url, repo=one.repo, places=places)
        serving = Serving(one.home, text, **{**one.environ, **environ})
        self.stack.callback(serving.kill)
        return one, serving

    def looked(self, one: Stage, serving: Serving) -> dict[str, Any]:
        """Start the agent by a delivery, and return its findings."""
        body = payloads.derived("gitea", "issues_opened", payloads.gitea_labels)
        sent = serving.send(
            "/webhooks/tea", body, payloads.headers(Forge.GITEA, "issue_label", body, SECRET, "one")
        )
        assert sent[0] == 202, sent
        place = one.home / ".local/share/perdure"
        report = serving.until(lambda: first_file(place, "found.json"), "the agent has looked")
        return serving.until(
            lambda: json.loads(report.read_text() or "null"), "its report is written"
        )


@pytest.fixture
def den() -> Iterator[Den]:
    directory = Path(tempfile.mkdtemp(prefix="ps"))
    with ExitStack() as stack:
        yield Den(directory, stack)
    shutil.rmtree(directory, ignore_errors=True)


def as_ordinary_user() -> list[str]:
    """Return a command that starts a program as an ordinary user with the same files, because root
    can read everything."""
    return ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []


def test_an_agent_of_the_same_user_finds_no_secret_in_a_process(den: Den) -> None:
    """Secrets from variables are in no part of a process that an agent of the same user can read:
    environment, memory, files."""
    one, serving = den.serve(VARIABLES, THE_SECRET=SECRET, THE_TOKEN=TOKEN)
    serving.inside = as_ordinary_user()
    serving.start("--jobs", "1")
    found = den.looked(one, serving)
    assert found["found"] == [], found


def test_an_agent_of_a_run_finds_no_secret_in_its_supervisor(den: Den) -> None:
    """No part of the supervisor or the shim that an agent can read has the secrets that `perdure
    run` got for itself."""
    one, _ = den.serve(VARIABLES)
    command = [
        *as_ordinary_user(),
        sys.executable,
        "-m",
        "perdure",
        "run",
        "--agent",
        "claude",
        "--permissions",
        "full",
        "Look around.",
    ]
    environ = one.environ | {
        "PERDURE_GIT_TOKEN": TOKEN,
        "PERDURE_GIT_TOKEN_HOST": "git.example.com",
    }
    done = subprocess.run(
        command, cwd=one.repo, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (report,) = one.home.rglob("found.json")
    found = json.loads(report.read_text())
    assert found["found"] == [], found


def test_credentials_of_systemd(den: Den) -> None:
    """The service's secret and its forge token may be credentials of systemd. If they are missing,
    the start is refused, and the error says which line the unit lacks."""
    _, serving = den.serve('secret_credential = "hook"\ntoken_credential = "forge"')
    refused = serving.perdure("serve")
    assert refused.returncode == 2 and "LoadCredential=hook:/path" in refused.stderr, refused.stderr
    assert "only the service itself can check them" in serving.perdure("doctor").stdout
    directory = den.directory / "credentials"
    directory.mkdir()
    (directory / "hook").write_text(f"{SECRET}\n")
    serving.environ["CREDENTIALS_DIRECTORY"] = str(directory)
    refused = serving.perdure("serve")
    assert refused.returncode == 2 and "the credential forge" in refused.stderr, refused.stderr
    (directory / "forge").write_text(f"{TOKEN}\n")
    serving.start()
    body = payloads.derived("gitea", "issues_opened", payloads.gitea_labels)
    assert (
        serving.send(
            "/webhooks/tea", body, payloads.headers(Forge.GITEA, "issue_label", body, SECRET, "one")
        )[0]
        == 202
    )


def test_what_agents_can_reach_is_said(den: Den) -> None:
    """`serve` and `doctor` say what an agent could read on this machine, and which process exposes
    a secret of the service. They do not show the secret."""
    _, serving = den.serve(VARIABLES, THE_SECRET=SECRET, THE_TOKEN=TOKEN)
    with subprocess.Popen(
        ["sleep", "600"], env={"LEFT_OVER": SECRET}, stdout=subprocess.DEVNULL
    ) as careless:
        try:
            serving.start()
            serving.until(
                lambda: "in the environment of process" in serving.said(), "it names the process"
            )
            assert f"process {careless.pid} (sleep 600)" in serving.said()
            serving.stop()
        finally:
            careless.kill()
    serving.inside = as_ordinary_user()
    serving.start()
    said = serving.until(
        lambda: "agents run as" in serving.said() and serving.said(), "it says who agents are"
    )
    assert f"the database in {serving.state}" in said and "They cannot read memory" in said
    examined = json.loads(serving.perdure("doctor", "--json").stdout)["findings"]
    (finding,) = [each["message"] for each in examined if each["topic"] == "exposure"]
    assert finding.startswith("agents run as") and str(serving.state) in finding
    assert "canary" not in said + json.dumps(examined)
