"""The real agent CLIs in a scratch environment, and a raw HTTP client for the rehearsal."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from perdure.agents.rehearsal import Rehearsal
from tests.patience import PATIENCE_S

MODULES = Path(__file__).parents[2] / "agents" / "node_modules"
PROGRAMS = {
    "claude": MODULES / "@anthropic-ai/claude-code-linux-x64/claude",
    "codex": MODULES / "@openai/codex-linux-x64/vendor/x86_64-unknown-linux-musl/bin/codex",
}


@dataclass(frozen=True)
class Ended:
    """The end of a CLI's process."""

    code: int
    lines: list[dict[str, Any]]
    stderr: str

    @property
    def session(self) -> str:
        return next(
            line.get("session_id") or line.get("thread_id")
            for line in self.lines
            if "session_id" in line or "thread_id" in line
        )

    @property
    def result(self) -> dict[str, Any]:
        return self.lines[-1]


@dataclass(frozen=True)
class Agent:
    """One real CLI with its own home."""

    name: str
    scratch: Path

    def argv(self, resume: str = "") -> list[str]:
        if self.name == "claude":
            own = ["--dangerously-skip-permissions", *(["--resume", resume] if resume else [])]
            return [
                str(PROGRAMS["claude"]),
                "-p",
                "--output-format",
                "stream-json",
                "--verbose",
                *own,
            ]
        own = ["resume", "--json", resume] if resume else ["--json"]
        return [
            str(PROGRAMS["codex"]),
            "exec",
            "--dangerously-bypass-approvals-and-sandbox",
            *own,
            "-",
        ]

    def environ(self, rehearsal: Rehearsal, **options: Any) -> dict[str, str]:
        own = rehearsal.environ(self.name, self.scratch / "home" / self.name, **options)
        outer = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.scratch / "home"),
            "TMPDIR": str(self.scratch / "tmp"),
        }
        return {**outer, "LANG": "C.UTF-8", "IS_SANDBOX": "1", **own}

    @property
    def cwd(self) -> Path:
        return self.scratch / "work"

    def run(self, rehearsal: Rehearsal, prompt: str, resume: str = "", **options: Any) -> Ended:
        env = self.environ(rehearsal, **options)
        done = subprocess.run(
            self.argv(resume),
            input=prompt.encode(),
            env=env,
            cwd=self.cwd,
            capture_output=True,
            timeout=PATIENCE_S,
        )
        return Ended(
            done.returncode,
            [json.loads(line) for line in done.stdout.splitlines()],
            done.stderr.decode(),
        )

    def start(self, rehearsal: Rehearsal, prompt: str) -> subprocess.Popen[bytes]:
        """Start the CLI and leave it running, with its output discarded. Return its process."""
        text = self.scratch / "prompt"
        text.write_text(prompt)
        with text.open("rb") as stdin:
            return subprocess.Popen(
                self.argv(),
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=self.environ(rehearsal),
                cwd=self.cwd,
                start_new_session=True,
            )


@pytest.fixture
def an_agent(tmp_path: Path) -> Callable[[str], Agent]:
    def make(name: str) -> Agent:
        assert PROGRAMS[name].exists(), f"{name} is not installed: run `npm ci` in agents/"
        for folder in ("home", "tmp", "work"):
            (tmp_path / folder).mkdir()
        return Agent(name, tmp_path)

    return make


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Return the data of the server-sent events."""
        return [
            json.loads(line.removeprefix("data: "))
            for line in self.text.splitlines()
            if line.startswith("data: ")
        ]


def ask(
    rehearsal: Rehearsal,
    method: str,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """Send one request and return the answer. Raise http.client.IncompleteRead if the answer is
    cut."""
    connection = http.client.HTTPConnection("127.0.0.1", rehearsal.port, timeout=30)
    try:
        payload = (
            body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        )
        connection.request(method, path, payload, headers or {})
        response = connection.getresponse()
        return Answer(
            response.status,
            {k.lower(): v for k, v in response.getheaders()},
            response.read().decode(),
        )
    finally:
        connection.close()


def claude_body(*turns: str, stream: bool = True, **more: Any) -> dict[str, Any]:
    """Return a request of the Messages API in which user and assistant take turns."""
    messages = [
        {"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(turns)
    ]
    return {"model": "m", "max_tokens": 100, "stream": stream, "messages": messages, **more}


def codex_body(*turns: str, stream: bool = True, **more: Any) -> dict[str, Any]:
    """Return a request of the Responses API in which user and assistant take turns."""
    entries = [
        {
            "type": "message",
            "role": ("user", "assistant")[at % 2],
            "content": [{"type": ("input_text", "output_text")[at % 2], "text": turn}],
        }
        for at, turn in enumerate(turns)
    ]
    return {"model": "m", "stream": stream, "input": entries, **more}
