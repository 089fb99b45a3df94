"""On a system without prctl(2), a bridge leaves no server process of its agent running, however the
bridge ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from perdure.agents.codex import codex_bridge
from perdure.agents.gemini import gemini_bridge
from perdure.agents.opencode import opencode_bridge
from perdure.agents.rehearsal import Rehearsal
from tests.journeys.stage import native
from tests.process.agents import gone, until

ORDERS = {
    "codex": (codex_bridge, ["app-server"], {"thread": "", "sandbox": "read-only"}),
    "opencode": (
        opencode_bridge,
        ["serve", "--hostname=127.0.0.1", "--port=0"],
        {"session": "", "fork": False, "title": "t"},
    ),
    "gemini": (gemini_bridge, ["--acp", "--skip-trust"], {"session": "", "home": "", "hold": ""}),
}


@pytest.mark.parametrize("agent", ORDERS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_bridge_leaves_no_server(
    agent: str, number: signal.Signals, tmp_path: Path
) -> None:
    """The CLI's real server ends when its bridge is killed, even if the kernel does not signal
    it."""
    bridge, words, fields = ORDERS[agent]
    command = [str(native(agent)), *words]
    order = {"command": command, "cwd": str(tmp_path), "model": "", "requests": "", **fields}
    with Rehearsal("hang\nsay Never.\n") as rehearsal:
        home = tmp_path / "home"
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            **rehearsal.environ(agent, home=home),
        }
        started = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                str(bridge.__file__),
                json.dumps({**order, "portable": True}),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd=tmp_path,
            env=environ,
        )
        try:
            assert started.stdin is not None
            if agent != "codex":  # its server starts when the prompt is read
                started.stdin.write(b"Write a file.")
                started.stdin.close()
            server = until(lambda: server_of(started.pid, command))
            started.send_signal(number)
            started.wait()
            until(lambda: gone(server))
        finally:
            started.kill()
            started.wait()
            started.stdin.close()


def server_of(bridge: int, command: list[str]) -> int:
    """Return the process id of the server below the bridge; 0 if it has not started."""
    for each in psutil.Process(bridge).children(recursive=True):
        # Gemini CLI's script comes after the words that start node, so only the end of the command
        # line is compared.
        if each.cmdline()[-len(command) :] == command:
            return each.pid
    return 0
