"""A user's machine in miniature: a scratch home, a repository, the real agent CLI with the
rehearsal, and the real `perdure` command.

The journeys and `kills` use it. Nothing outside of the stage's own directory is read or written.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perdure.agents import registry
from perdure.agents.rehearsal import Rehearsal
from perdure.host.system import VARIABLE
from tests.patience import PATIENCE_S
from tests.spread import apart

TOP = Path(__file__).parents[2]


def native(agent: str, modules: Path | None = None) -> Path:
    """Return the pinned native program of an agent, or the one below the directory `modules`. An
    error says how to install it."""
    modules = modules or Path(
        os.environ.get("PERDURE_TEST_AGENTS") or TOP / "agents" / "node_modules"
    )
    pattern = {
        "claude": "@anthropic-ai/claude-code-linux-*/claude",
        "codex": "@openai/codex-linux-*/vendor/*/bin/codex",
        "gemini": "@google/gemini-cli/bundle/gemini.js",
        "opencode": "opencode-linux-*64/bin/opencode",
    }[agent]
    found = [
        path for path in modules.glob(pattern) if "musl" not in path.parts[-2] or agent == "codex"
    ]
    assert found, f"{agent} is not installed below {modules}: run `make agents`"
    return found[0]


def passed_on() -> dict[str, str]:
    """Return the variable that chooses the host back end (`PERDURE_HOST`), if these tests were
    started with it."""
    return {VARIABLE: os.environ[VARIABLE]} if VARIABLE in os.environ else {}


@dataclass
class Stage:
    """One machine. `agent` is the CLI that runs on it."""

    directory: Path
    agent: str
    rehearsal: Rehearsal
    extra: dict[str, str] = field(default_factory=dict)
    subscription: bool = False
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.home, self.tmp, self.repo = (
            self.directory / "home",
            self.directory / "t",
            self.directory / "repo",
        )
        for path in (self.home, self.tmp, self.repo):
            path.mkdir(parents=True, exist_ok=True)
        apart(self.home, self.home / ".local/share", self.home / ".local/state")
        self.state = self.home / ".local/state/perdure"
        # OpenCode's data directory is set by XDG_DATA_HOME, which perdure reads as well. The usual
        # path keeps the data where the stage looks for them.
        self.agent_home = self.home / (
            ".local/share" if self.agent == "opencode" else f".{self.agent}"
        )
        self.environ = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "TMPDIR": str(self.tmp),
            "LANG": "C.UTF-8",
            "PERDURE_GRACE": "2s",
            "PERDURE_DISK_BALLAST": "0",
            # As root, Claude Code accepts full permissions only in a sandbox. A stage is one.
            "IS_SANDBOX": "1",
            f"PERDURE_{self.agent.upper()}": str(native(self.agent)),
            # With retries of its own, Gemini CLI would wait for the end of a short limit by itself.
            **self.rehearsal.environ(
                self.agent,
                home=self.agent_home,
                retries=0 if self.agent == "gemini" else 1,
                subscription=self.subscription,
            ),
            **passed_on(),
            **self.extra,
        }
        if not (self.repo / ".git").exists():
            self.make_repository()

    def make_repository(self) -> None:
        """A small real repository with one commit."""
        (self.repo / "greet.py").write_text("def greet(name):\n    return 'Hello ' + name\n")
        identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.invalid"]
        for words in (
            ["init", "-q", "-b", "main"],
            ["add", "."],
            [*identity, "commit", "-q", "-m", "first"],
        ):
            subprocess.run(["git", *words], cwd=self.repo, env=self.environ, check=True)

    # --- perdure
    # -------------------------------------------------------------------------------------------------

    def start(self, *words: str, prompt: str | None = None) -> subprocess.Popen[str]:
        """Start the perdure command in the background, and return its process."""
        command = [sys.executable, "-m", "perdure", *words]
        started = subprocess.Popen(
            command,
            cwd=self.repo,
            env=self.environ,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert started.stdin is not None
        # The command may have ended without reading its input, for example because its arguments
        # were refused.
        with contextlib.suppress(BrokenPipeError):
            started.stdin.write(prompt or "")
            started.stdin.close()
        started.stdin = None
        self.running.append(started)
        return started

    def finish(self, started: subprocess.Popen[str]) -> Done:
        """Wait for the command to end, and return its result."""
        out, err = started.communicate(timeout=PATIENCE_S)
        return Done(started.returncode, out, err)

    def perdure(self, *words: str, prompt: str | None = None) -> Done:
        """Run the perdure command to its end, and return its result."""
        return self.finish(self.start(*words, prompt=prompt))

    def show(self, name: str = "task") -> dict[str, Any]:
        """Return the output of `perdure show NAME --json`."""
        done = self.perdure("show", name, "--json")
        assert done.code == 0, done.err
        return done.json

    def until(self, met: Callable[[], Any], what: str) -> Any:
        """Wait until the condition returns a true value, and return that value."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            began = time.monotonic()
            # A directory may be removed while it is listed. Then the condition is checked again.
            with contextlib.suppress(FileNotFoundError):
                value = met()
                if value:
                    return value
            # If the condition runs a perdure command, most of the processor's time must be left to
            # the process that is waited for.
            time.sleep(max(0.02, 2 * (time.monotonic() - began)))
        raise AssertionError(f"not within {PATIENCE_S:g} s: {what}")

    # --- processes
    # -----------------------------------------------------------------------------------------------

    def attempt_directory(self, number: int) -> Path:
        """Return the directory in which attempt `number` of the only run keeps its files."""
        return self.until(
            lambda: next(iter(self.state.glob(f"runs/*/{number}/agent.json")), None),
            f"attempt {number} is launched",
        ).parent

    def agent_pid(self, number: int = 1) -> int:
        pid: int = json.loads((self.attempt_directory(number) / "agent.json").read_text())["pid"]
        return pid

    def agent_pid_cwd(self) -> Path:
        """Return the directory in which the agent works."""
        return Path(f"/proc/{self.agent_pid()}/cwd").readlink()

    def shim_pid(self, number: int = 1) -> int:
        pid: int = json.loads((self.attempt_directory(number) / "shim.json").read_text())["pid"]
        return pid

    def marked(self) -> list[int]:
        """Return the live processes that an attempt of this stage started, by the mark or the
        scratch home in their environment."""
        own = {os.getpid(), *(process.pid for process in self.running)}
        return [pid for pid in _live() if pid not in own and self._ours(pid)]

    def at_home(self) -> list[int]:
        """Return every process that uses this stage's home: agents, and the processes that an
        agent's own program leaves running."""
        found = []
        for pid in _live():
            with contextlib.suppress(OSError):
                if (
                    pid != os.getpid()
                    and b"HOME=" + os.fsencode(self.home) + b"\0"
                    in Path(f"/proc/{pid}/environ").read_bytes()
                ):
                    found.append(pid)
        return found

    def _ours(self, pid: int) -> bool:
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False
        return b"PERDURE_ATTEMPT=" in environ and os.fsencode(self.home) in environ

    def lose_machine(self, supervisor: subprocess.Popen[str]) -> None:
        """Kill everything at once, as a power cut would: the supervisor first, then every other
        process, until none is alive. All are stopped first, so that none notices another's end."""
        supervisor.kill()
        killed = set[int]()
        while pids := self.marked():
            killed.update(pids)
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in pids:
                    _send(pid, number)
        # A killed process loses its environment, and so its mark, before it releases its locks.
        self.until(lambda: not any(map(_is_live, killed)), "every killed process has ended")
        self.finish(supervisor)

    def nothing_survives(self) -> None:
        """Fail if processes of an attempt are still alive, with their command lines."""
        left = {pid: command_of(pid).replace(b"\0", b" ")[:120] for pid in self.marked()}
        left = {pid: command for pid, command in left.items() if _is_live(pid)}
        assert not left, left

    # --- conversations
    # -------------------------------------------------------------------------------------------

    def transcripts(self) -> list[Path]:
        """Return the agent's own transcripts: files, or the whole database with its side files."""
        pattern = {
            "claude": "projects/*/*.jsonl",
            "codex": "sessions/**/*.jsonl",
            "gemini": ".gemini/tmp/*/chats/session-*.jsonl",
            "opencode": "opencode/opencode.db*",
        }[self.agent]
        return sorted(self.agent_home.glob(pattern))

    def conversations(self) -> dict[str, bytes]:
        """Return the content of the agent's conversations on disk, by id."""
        if self.agent == "gemini":  # the name of the file holds eight letters of the id
            ids = {
                json.loads(path.read_bytes().split(b"\n", 1)[0])["sessionId"]
                for path in self.transcripts()
                if path.stat().st_size
            }
            found = {
                each: registry.load("gemini").transcript(self.agent_home / ".gemini", each)
                for each in ids
            }
            return {each: path.read_bytes() for each, path in found.items() if path is not None}
        if self.agent != "opencode":
            return {path.stem[-36:]: path.read_bytes() for path in self.transcripts()}
        database = self.agent_home / "opencode/opencode.db"
        if not database.exists():
            return {}
        with closing(
            sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=PATIENCE_S)
        ) as found:
            known = found.execute(
                "select name from sqlite_master where name = 'session'"
            ).fetchone()
            ids = [str(row[0]) for row in found.execute("select id from session")] if known else []
        return {each: registry.load(self.agent).archive.read(database, each) or b"" for each in ids}

    def copies(self) -> list[Path]:
        """Return perdure's own copies."""
        return sorted(self.state.glob("transcripts/*/*/main*"))

    def resume_by_hand(
        self, session: str, prompt: str, cwd: Path, *, full: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Continue a conversation as another person, in the agent's own program. `full`: the
        program may run every command."""
        everything = {
            "claude": ["--permission-mode", "bypassPermissions"],
            "gemini": ["--yolo"],
            "codex": ["--dangerously-bypass-approvals-and-sandbox"],
        }
        may = everything.get(self.agent, []) if full else []
        words = {
            "claude": [
                "-p",
                *may,
                "--output-format",
                "stream-json",
                "--verbose",
                "--resume",
                session,
            ],
            "gemini": [*may, "--output-format", "stream-json", "--resume", session],
            "opencode": ["run", "--format", "json", "--dir", str(cwd), "--session", session],
            "codex": ["exec", *may, "--json", "--skip-git-repo-check", "resume", session, "-"],
        }[self.agent]
        program, pipe = str(native(self.agent)), subprocess.PIPE
        return subprocess.run(
            [program, *words],
            cwd=cwd,
            env=self.environ,
            input=prompt,
            text=True,
            stdout=pipe,
            stderr=pipe,
            timeout=PATIENCE_S,
        )

    def close(self) -> None:
        """End the processes that a failed test left behind."""
        for started in self.running:
            if started.poll() is None:
                started.kill()
        # This must happen before the pipes are read to the end, because processes that a supervisor
        # started may hold them open.
        for pid in self.at_home():
            _send(pid, signal.SIGKILL)
        for started in self.running:
            started.communicate()


@dataclass(frozen=True)
class Done:
    """The result of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.out)
        return loaded


def said(messages: Any) -> str:
    """Return a conversation as the model saw it, one line a message."""
    return "\n".join(f"{message.role}: {message.text}" for message in messages)


def command_of(pid: int) -> bytes:
    """Return the command line of a process, each word ended by NUL, or an empty value if the
    process has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _live() -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and _is_live(int(entry.name)):
            yield int(entry.name)


def _is_live(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (
            b"Z",
            b"X",
        )
    except OSError:
        return False


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
