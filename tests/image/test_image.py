"""The built container image of the Containerfile: its content, and a service in it that is killed
together with its agent and continues in a new container.

`make test-image` builds the image first.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from perdure.agents.rehearsal import Rehearsal
from perdure.model.forge.deliveries import Forge
from tests.forges import payloads
from tests.journeys.stage import said
from tests.patience import PATIENCE_S
from tests.servers.image.build import TOP
from tests.servers.image.container import ImageContainer, configuration
from tests.servers.kubernetes.images import PERDURE, images

pytestmark = pytest.mark.image

USER = 10001
SCRIPT = "by history\nrun echo one > one.txt\n---\nhang\nsay It is written.\n---\nsay Still here."
CONFIG = """
permissions = "full"
disk_ballast = "0"
[webhooks.tea]
forge = "gitea"
secret_file = "/run/hook-secret"
[agents.dev]
agent = "claude"
login = "dev-bot"
authors = ["unknwon"]
labels = ["agent"]
clone = "/srv/repository"
"""
PLAN = 'name = "two"\n[[tasks]]\nname = "first"\nprompt = "Begin."\n'
SERVE = ("perdure", "serve", "--listen", "127.0.0.1:0", "--jobs", "1")

Make = Callable[..., ImageContainer]


@pytest.fixture
def directory() -> Iterator[Path]:
    """Make a directory that the image's user may enter."""
    made = Path(tempfile.mkdtemp(prefix="pimage-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def make(directory: Path) -> Iterator[Make]:
    """Yield a function that makes containers with one shared volume."""
    made: list[ImageContainer] = []
    volume = directory / "volume"
    volume.mkdir()
    os.chown(volume, USER, USER)

    def one(**given: Any) -> ImageContainer:
        made.append(ImageContainer(volume, directory / "log", **given))
        return made[-1]

    yield one
    for each in made:
        each.remove()


def test_it_is_laid_out_as_the_pods_of_the_other_tests(tmp_path: Path) -> None:
    """The entry point, command, user, directory and variables of the built image equal those with
    which the tests on a control plane run pods. The image declares no volume."""
    found, pod = configuration(), images(tmp_path)[PERDURE]
    assert found["Entrypoint"] == list(pod.entrypoint)
    assert found["Cmd"] == list(pod.command)
    assert found["User"] == f"{pod.user}:{pod.group}" == f"{USER}:{USER}"
    assert (found["WorkingDir"], found["StopSignal"]) == (pod.directory, "SIGTERM")
    assert not found.get("Volumes")
    variables = dict(each.split("=", 1) for each in found["Env"])
    first, second, *_ = variables.pop("PATH").split(":")
    assert [first, second] == pod.environ["PATH"].split(":")[:2]
    places = ("LANG", "PERDURE_STATE", "PERDURE_ROOT")
    assert [variables[name] for name in places] == [pod.environ[name] for name in places]
    assert variables["HOME"] == "/home/perdure"


def test_it_holds_every_extra_the_pinned_agents_and_tools(make: Make, directory: Path) -> None:
    """The image has each extra's packages, each agent in the version of agents/package.json, and
    the tools of an ordinary project. It can read a plan."""
    plan = directory / "plan.toml"
    plan.write_text(PLAN)
    container = make(mounts={"/srv/plan.toml": plan}).start("sleep", "infinity")
    container.wait(lambda: b"sleep" in _commands(container), "its command runs")

    extras = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    wanted = {
        re.split(r"[\[>=<~]", each)[0].lower()
        for name, packages in extras["optional-dependencies"].items()
        if name not in ("all", "test", "test-kubernetes", "check", "bench")
        for each in packages
    }
    listed = container.execute("/opt/venv/bin/pip", "list", "--format=json")
    installed = {each["name"].lower().replace("_", "-") for each in json.loads(listed.stdout)}
    assert wanted <= installed
    assert container.execute("/opt/venv/bin/pip", "check").returncode == 0

    pins = json.loads((TOP / "agents/package.json").read_text())["dependencies"]
    programs = {
        "claude": "@anthropic-ai/claude-code",
        "codex": "@openai/codex",
        "gemini": "@google/gemini-cli",
        "opencode": "opencode-ai",
    }
    versions = {
        name: container.execute(name, "--version", directory="/tmp").stdout for name in programs
    }
    assert {name: pins[package] in versions[name] for name, package in programs.items()} == (
        dict.fromkeys(programs, True)
    ), versions
    for tool in ("git", "git-lfs", "ssh", "curl", "jq", "rg", "make", "patch", "unzip", "npm"):
        found = container.execute("sh", "-c", f"command -v {tool}")
        assert found.returncode == 0, tool
    assert container.execute("python3", "-m", "venv", "/tmp/venv").returncode == 0

    checked = container.execute("perdure", "plan", "check", "/srv/plan.toml")
    assert checked.returncode == 0, checked.stderr


def test_a_service_killed_with_its_agent_goes_on_in_a_new_container(
    make: Make, directory: Path
) -> None:
    """A webhook starts Claude Code, and the container is killed in the middle of a reply. A new
    container on the same volume continues the same conversation, with the receipt `native`. In a
    second shell `claude --resume` shows all of it."""
    own = repository(directory)
    mounts = {
        "/srv/repository": own,
        "/run/hook-secret": _owned(directory / "secret", payloads.SECRET),
        "/home/perdure/.config/perdure/config.toml": _owned(directory / "config.toml", CONFIG),
    }
    with Rehearsal(SCRIPT) as rehearsal:
        environ = rehearsal.environ("claude")
        first = make(mounts=mounts, environ=environ).start(*SERVE)
        assert _deliver(_port(first)) == 202, first.said()
        rehearsal.wait_for(2)
        name = json.loads(first.execute("perdure", "ls", "--json").stdout)["runs"][0]["name"]
        first.kill()

        second = make(mounts=mounts, environ=environ).start(*SERVE)
        report = second.wait(lambda: _succeeded(second, name), "the run has succeeded")
        before, after = report["attempts"][0], report["attempts"][-1]
        assert (after["session_id"], after["continuation"]) == (before["session_id"], "resume")
        assert after["receipt"]["verdict"] == "native", after["receipt"]
        workdir = report["workspace"]["path"]
        assert second.execute("cat", "one.txt", directory=workdir).stdout == "one\n"

        shell = second.execute(
            *("claude", "--resume", after["session_id"], "-p", "Are you there?"), directory=workdir
        )
        assert (shell.returncode, shell.stdout) == (0, "Still here.\n"), shell.stderr
        assert "echo one > one.txt" in said(rehearsal.last.messages)
        assert second.stop() == 0, second.said()


def _commands(container: ImageContainer) -> bytes:
    done = container.execute("sh", "-c", "cat /proc/[0-9]*/cmdline")
    return done.stdout.encode()


def _deliver(port: int) -> int:
    """Send a webhook about a new issue with the agent's label. Return the status of the answer."""

    def change(body: Any) -> None:
        payloads.gitea_labels(body)
        body["issue"] |= {"number": 7, "title": "Write one", "body": "The magic word is quercus."}

    body = payloads.derived("gitea", "issues_opened", change)
    headers = payloads.headers(Forge.GITEA, "issue_label", body)
    with closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as connection:
        connection.request("POST", "/webhooks/tea", body, headers)
        return connection.getresponse().status


def _port(container: ImageContainer) -> int:
    def look() -> re.Match[str] | None:
        return re.search(r"listening on http://[\d.]+:(\d+)", container.said())

    found: re.Match[str] = container.wait(look, "it listens")
    return int(found[1])


def _succeeded(container: ImageContainer, name: str) -> dict[str, Any] | None:
    done = container.execute("perdure", "show", name, "--json")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report if report["state"] == "succeeded" else None


def _owned(path: Path, text: str) -> Path:
    path.write_text(text)
    os.chown(path, USER, USER)
    path.chmod(0o400)
    return path


def repository(directory: Path, user: int = USER) -> Path:
    """Make a repository with one commit that belongs to the container's user."""
    path = directory / "repository"
    path.mkdir()
    (path / "greet.py").write_text("def greet():\n    return 'Hello'\n")
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.invalid"]
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", *identity, *words], cwd=path, check=True)
    subprocess.run(["chown", "-R", f"{user}:{user}", str(path)], check=True)
    return path
