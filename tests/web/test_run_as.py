"""`run_as`: an agent of `perdure serve` runs under a separate account, which has no entry in the
system, and searches everywhere for the service's secrets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.agents.rehearsal import Rehearsal
from perdure.errors import UsageError
from perdure.model.forge.deliveries import Forge
from tests.conftest import Scratch
from tests.forges import payloads
from tests.journeys.stage import TOP, native, said
from tests.web.separation import GROUP, USER, Separated

SECRET = "canary-of-the-webhook-0001"
CONFIG = """
run_as = "{user}:{group}"
permissions = "full"
[webhooks.tea]
forge = "gitea"
secret_file = "{{home}}/hook"
[agents.dev]
agent = "claude"
login = "dev-bot"
authors = ["unknwon"]
labels = ["agent"]
clone = "{repo}"
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="pr"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def config(directory: Path) -> str:
    return CONFIG.format(user=USER, group=GROUP, repo=directory / "repo")


def served(directory: Path, rehearsal: Rehearsal) -> Separated:
    """Return a service with a secret and a repository that is not started yet."""
    made = Separated(
        directory,
        config(directory),
        PERDURE_CLAUDE=str(native("claude")),
        IS_SANDBOX="1",
        **rehearsal.environ("claude"),
    )
    (made.home / "hook").write_text(SECRET)
    os.chown(made.home / "hook", 0, GROUP)
    (made.home / "hook").chmod(0o640)
    repo = directory / "repo"
    repo.mkdir()
    (repo / "greet.py").write_text("def greet():\n    return 'Hello'\n")
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.invalid"]
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", *identity, *words], cwd=repo, check=True)
    subprocess.run(["chown", "-R", f"{USER}:{USER}", str(repo)], check=True)
    return made


def deliver(serving: Separated) -> None:
    body = payloads.derived("gitea", "issues_opened", payloads.gitea_labels)
    headers = payloads.headers(Forge.GITEA, "issue_label", body, SECRET, "one")
    status, answer = serving.send("/webhooks/tea", body, headers)
    assert status == 202, answer


@pytest.mark.root
def test_an_agent_finds_nothing_of_the_service_and_goes_on_after_a_kill(directory: Path) -> None:
    """The agent cannot read the database, the settings, the secret file, or the memory, environment
    and open files of any process of perdure. It cannot regain the group of perdure. After
    everything is killed in the middle of a reply, the conversation continues with the receipt
    `native`. `serve` says what agents can reach."""
    state, service = directory / "state", directory / "service"
    files = [service / "hook", service / ".config/perdure/config.toml", state, state / "perdure.db"]
    look = f"{sys.executable} -I {TOP}/tests/web/spy.py found.json {os.getpid()} can+ary-"
    words = " ".join(map(str, files))
    script = f"by history\nrun {look} {words} && id\n---\nhang\nsay It is done."
    with Rehearsal(script) as rehearsal:
        serving = served(directory, rehearsal)
        try:
            serving.start("--jobs", "1")
            assert serving.process is not None
            deliver(serving)
            rehearsal.wait_for(2)
            (report,) = (serving.agents / "root").rglob("found.json")
            found = json.loads(report.read_text())
            assert (found["found"], found["open"]) == ([], []), found
            assert found["gids"] == [USER] * 3 and found["groups"] == [], found
            assert (found["uid"], found["regained"]) == (USER, False)
            assert report.stat().st_uid == USER
            assert f"agents run as the user {USER} without the group {GROUP}" in serving.said()
            (run,) = json.loads(serving.perdure("ls", "--json").stdout)["runs"]
            serving.kill_all()

            serving.start("--jobs", "1")
            ended = serving.until(lambda: _succeeded(serving, run["name"]), "the run has succeeded")
            first, last = ended["attempts"][0], ended["attempts"][-1]
            assert (last["session_id"], last["continuation"]) == (first["session_id"], "resume")
            assert last["receipt"]["verdict"] == "native", last["receipt"]
            assert "spy.py" in said(rehearsal.last.messages)
            transcripts = list(serving.agents.rglob(f"{last['session_id']}.jsonl"))
            assert [each.stat().st_uid for each in transcripts] == [USER]
        finally:
            serving.kill_all()


def _succeeded(serving: Separated, name: str) -> dict[str, Any] | None:
    report = serving.show(name)
    return report if report["state"] == "succeeded" else None


def test_a_program_does_not_start_agents_with_more_than_the_command_would(scratch: Scratch) -> None:
    """`perdure.open` cannot start agents under another account, so it refuses if `run_as` is
    set."""
    environ = {**scratch.environ, "PERDURE_RUN_AS": f"{USER}:{GROUP}"}
    with pytest.raises(UsageError, match="run_as"):
        perdure.open(scratch.tmp, environ)


@pytest.mark.root
def test_what_would_keep_nothing_from_agents_is_refused(directory: Path) -> None:
    """A state directory that agents can open, a home that is not the agents' own, a group of
    perdure that agents have, and a start without root are each refused with a sentence and code 2.
    Nothing is made."""
    with Rehearsal("say Done.") as rehearsal:
        serving = served(directory, rehearsal)
    state = directory / "state"
    serving.environ["HOME"] = str(directory)
    done = serving.perdure("config", "show")
    assert "is not a home of user 61234" in done.stderr, done
    assert not state.exists()
    serving.environ["HOME"] = str(serving.agents)
    state.mkdir(mode=0o755)
    done = serving.perdure("config", "show")
    assert done.returncode == 2 and f"chown root:{GROUP} {state}" in done.stderr, done.stderr
    state.rmdir()
    serving.environ["PERDURE_STATE"] = str(serving.agents / "state")
    assert "above" in serving.perdure("config", "show").stderr
    serving.environ |= {"PERDURE_STATE": str(state), "PERDURE_RUN_AS": f"{USER}:{USER}"}
    assert "must not be a member of the group" in serving.perdure("config", "show").stderr
    serving.environ["PERDURE_RUN_AS"] = f"{USER}:{GROUP}"
    serving.inside += ["setpriv", "--reuid=61234", f"--regid={GROUP}", "--clear-groups"]
    assert "started as root" in serving.perdure("config", "show").stderr
    serving.inside = serving.inside[:-4]
    assert serving.perdure("config", "show").returncode == 0
    assert (state.stat().st_uid, state.stat().st_gid, state.stat().st_mode & 0o777) == (
        (0, GROUP, 0o770)
    )
