"""The rehearsal as a separate program, and the arguments for Codex."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from perdure.agents.rehearsal import Rehearsal
from perdure.errors import UsageError
from tests.patience import PATIENCE_S

from .conftest import Agent, ask, claude_body

PROGRAM = [sys.executable, "-m", "perdure.agents.rehearsal"]


def test_the_program_serves_until_it_is_told_to_end(tmp_path: Path):
    """The program writes its port, plays the script, records the requests, and exits with 0 on
    SIGTERM."""
    script, record = tmp_path / "script", tmp_path / "record.jsonl"
    script.write_text("say from a file")
    argv = [
        *PROGRAM,
        "--script",
        str(script),
        "--port-file",
        str(tmp_path / "port"),
        "--record",
        str(record),
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        port = int((tmp_path / "port").read_text())
        assert address == f"http://127.0.0.1:{port}"
        there = type("There", (), {"port": port})()
        assert (
            ask(there, "POST", "/v1/messages", claude_body("hello", stream=False)).json["content"][
                0
            ]["text"]
            == "from a file"
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    assert json.loads(record.read_text())["messages"] == [{"role": "user", "text": "hello"}]


@pytest.mark.parametrize(
    ("text", "code", "complaint"),
    [("shout", 2, "line 1: unknown action"), (None, 1, "No such file")],
)
def test_a_script_that_cannot_be_read_ends_the_program(
    tmp_path: Path, text: str | None, code: int, complaint: str
):
    """An unreadable script gives one sentence on stderr, nothing on stdout, and the exit code for
    that kind of error."""
    script = tmp_path / "script"
    if text is not None:
        script.write_text(text)
    done = subprocess.run([*PROGRAM, "--script", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "")
    assert complaint in done.stderr


def test_codex_can_be_configured_by_arguments_alone(an_agent):
    """`codex_args` gives Codex the same configuration as the file, for tests in which the Codex
    home must not be changed."""
    agent: Agent = an_agent("codex")
    home = agent.scratch / "plain"
    home.mkdir()
    with Rehearsal("say by arguments") as rehearsal:
        argv = agent.argv()
        argv[2:2] = rehearsal.codex_args()
        env = {**agent.environ(rehearsal), **rehearsal.environ("codex"), "CODEX_HOME": str(home)}
        done = subprocess.run(
            argv, input=b"hello", env=env, cwd=agent.cwd, capture_output=True, timeout=PATIENCE_S
        )
        assert done.returncode == 0
        assert rehearsal.prompts() == ["hello"]
        assert not (home / "config.toml").exists()


def test_the_codex_home_is_valid_toml(tmp_path: Path):
    """The file names the rehearsal as the only provider, and switches off features that would use
    another network."""
    with Rehearsal() as rehearsal:
        rehearsal.write_codex_home(tmp_path / "home")
        settings = tomllib.loads((tmp_path / "home" / "config.toml").read_text())
        assert settings["model_providers"]["rehearsal"]["base_url"] == f"{rehearsal.url}/v1"
        assert settings["features"] == {"plugins": False, "unbounded_connection_retries": False}


def test_an_unknown_agent_is_refused():
    """Only for agents that the rehearsal can serve there is an environment. Any other agent is
    refused."""
    with Rehearsal() as rehearsal, pytest.raises(UsageError, match="no agent named 'clod'"):
        rehearsal.environ("clod")


def test_a_taken_port_is_an_error():
    """Two rehearsals cannot share a port. The second reports it and leaves nothing open."""
    with Rehearsal() as rehearsal, pytest.raises(OSError):
        Rehearsal(port=rehearsal.port).start()
