"""`codex app-server`, used as the CLI's own terminal uses it: to remove the last turns, and to
compact on request."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class CodexTerminal:
    """A thread that is open in the CLI's own terminal."""

    def __init__(self, program: str, thread: str, cwd: Path, environ: Mapping[str, str]) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [program, "app-server", "--disable=plugins"],
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.DEVNULL,
            cwd=cwd,
            env=dict(environ),
        )
        self.thread, self.asked = thread, 0
        about = {"name": "test", "title": "test", "version": "1"}
        self.call("initialize", clientInfo=about, capabilities={"experimentalApi": True})
        self._write({"method": "initialized"})
        self.turns = [
            turn["id"] for turn in self.call("thread/resume", threadId=thread)["thread"]["turns"]
        ]

    def _write(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def _read(self, wanted: Any) -> dict[str, Any]:
        assert self.process.stdout is not None
        return next(message for line in self.process.stdout if wanted(message := json.loads(line)))

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.asked += 1
        self._write({"id": self.asked, "method": method, "params": params})
        answer = self._read(
            lambda message: message.get("id") == self.asked and "method" not in message
        )
        assert "error" not in answer, answer
        return answer["result"] or {}

    def go_back(self, turns: int) -> None:
        """Remove the last turns, as a person does by pressing Esc twice."""
        self.call("thread/revert", threadId=self.thread, beforeTurnId=self.turns[-turns])

    def compact(self) -> None:
        self.call("thread/compact/start", threadId=self.thread)
        self._read(lambda message: message.get("method") == "turn/completed")

    def close(self) -> None:
        self.process.communicate()
