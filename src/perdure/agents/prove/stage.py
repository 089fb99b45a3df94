"""The environment of one scene: a scratch home, an empty workdir, a rehearsed model, and the
agent's program.

Created by `prove` for each scene and closed after it. A stage starts programs only through
`perdure.host.process`, so no process of an agent outlives its scene. A stage reads the agent's data
only through the driver, and does not touch the user's home. The agent's environment has only PATH,
IS_SANDBOX, a fixed language, scratch directories, and the variables of
`agents.rehearsal.agents.environ`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from uuid import uuid4

from msgspec import Struct, field
from msgspec.structs import replace

from perdure.agents.rehearsal import Rehearsal, Request
from perdure.host import process
from perdure.model import (
    Command,
    Continuation,
    Exit,
    Launch,
    Outcome,
    OutcomeKind,
    Permissions,
    Program,
    Rung,
    Start,
    TaskSpec,
    Usage,
)
from perdure.model.events import AgentEvent, RetrySeen, SessionSeen, UsageSeen
from perdure.protocols import AgentDriver

PATIENCE_S = 120.0
"""Time limit of an agent's run, in seconds. It is long, so that the answers are the same on a slow
machine; OpenCode's own retries alone take 73 s."""
SHORT_S = 45.0
"""Time limit for a turn that some CLIs never end, in seconds."""
SETTLE_S = 10.0
"""Time limit for a program to write its transcript while it waits for the model's answer, in
seconds. Half of this time is the limit for a leftover process to end by itself."""
GRACE_S = 5.0
TICK_S = 0.05

MODELS = {"opencode": ("rehearsal/rehearsal", "rehearsal/some-model")}
"""Two model names for each CLI that only accepts configured names. All other CLIs pass any name on
to the service."""


class Interrupted(Exception):
    """Raised if the user asked perdure to stop."""


class Unseen(Exception):
    """Raised if an event that a scene waited for did not happen. The message is short and the same
    in every run, because `prove` compares messages between versions of an agent."""


class StageExit(Struct, frozen=True):
    """The result of one run of the agent's program."""

    session_id: str
    outcome: Outcome
    events: tuple[AgentEvent, ...]
    requests: tuple[Request, ...]
    """Requests that reached the model in this run, without side requests."""
    asked: str = ""
    """Id of the conversation that the program was told to use: a chosen id for a new conversation,
    or the id to resume or fork."""
    alive: int = 0
    """Number of processes of the attempt that were still running at its end; 0 is expected."""

    @property
    def ok(self) -> bool:
        return self.outcome.ok

    def reached(self, *words: str) -> bool:
        """Return whether the last request to the model contains all these words."""
        if self.requests:
            said = "\n".join(message.text for message in self.requests[-1].messages)
        else:
            said = ""
        return all(word in said for word in words)

    @property
    def usage(self) -> Usage | None:
        """Usage that the program reported; None if it reported none. If the program reports
        cumulative counts, this is the last count. Otherwise it is the sum of all counts."""
        seen = [event for event in self.events if isinstance(event, UsageSeen)]
        if not seen:
            return None
        if seen[-1].cumulative:
            return seen[-1].usage
        return sum((event.usage for event in seen), Usage())


class Stage(Struct):
    """The environment of one scene. `agent_home` is the directory in which the agent is configured
    to store its conversations."""

    directory: Path
    driver: AgentDriver
    program: Program
    rehearsal: Rehearsal
    environ: Mapping[str, str]
    subscription: bool = False
    stopping: Callable[[], bool] = lambda: False
    running: list[process.Process] = field(default_factory=list)
    marks: tuple[str, ...] = ()
    """Hashes of the conversation's known items, for an agent whose transcripts perdure cannot read.
    """
    work: Path = Path()
    """The agent's working directory, created together with the stage."""
    agent_home: Path = Path()
    own_environ: dict[str, str] = field(default_factory=dict)
    """Environment variables of the agent's program."""

    def __post_init__(self) -> None:
        self.work = self.directory / "work"
        for folder in (self.work, self.directory / "home", self.directory / "tmp"):
            folder.mkdir(parents=True)
        self.set_home(self.directory / "home" / self.driver.name)

    def set_home(self, agent_home: Path) -> None:
        """Use this directory as the agent's home from now on. Settings are written into the
        directory so that the agent uses the rehearsal as its model."""
        self.agent_home = agent_home
        own = self.rehearsal.environ(
            self.driver.name, home=agent_home, subscription=self.subscription
        )
        kept = {}
        for name, value in self.environ.items():
            if name in ("PATH", "IS_SANDBOX"):
                kept[name] = value
        places = {
            "HOME": str(self.directory / "home"),
            "TMPDIR": str(self.directory / "tmp"),
            "LANG": "C.UTF-8",
        }
        self.own_environ = {**kept, **places, **own}

    def close(self) -> None:
        """End the remaining processes and the rehearsal."""
        for one in self.running:
            one.kill()
        self.rehearsal.stop()

    # Methods that run the agent's program

    def run(
        self,
        prompt: str,
        asked: Continuation | None = None,
        *,
        patience_s: float = PATIENCE_S,
        **options: str,
    ) -> StageExit:
        """Run the program to its end and return the result. `options` are passed to `launch`."""
        with self.begun(prompt, asked, **options) as begun:
            return begun.end(patience_s)

    @contextmanager
    def begun(
        self, prompt: str, asked: Continuation | None = None, **options: str
    ) -> Iterator[StageRun]:
        """Start the program and yield the running process. It is killed at the end of the `with`
        block."""
        launch = self.launch(prompt, asked, **options)
        command = self.driver.command(launch)
        argv, env = command.argv, command.env
        if options.get("permissions") == "":
            argv, env = self._without_permissions(launch)
        started = process.start(
            Command(argv=argv, stdin=command.stdin),
            directory=self.directory / "runs" / launch.mark,
            cwd=self.work,
            env={**env, **self.own_environ},
            mark=launch.mark,
            deadline_s=0,
            grace_s=GRACE_S,
        )
        self.running.append(started)
        try:
            yield StageRun(self, launch, started, len(self.rehearsal.requests))
        finally:
            started.kill()

    def launch(
        self,
        prompt: str,
        asked: Continuation | None = None,
        *,
        transcript: str = "",
        model: str = "",
        permissions: str = "edit",
    ) -> Launch:
        """Return the launch for a run. `asked` is the conversation to continue. Without it, the
        launch begins a new conversation, with a chosen id if the CLI accepts one. If `permissions`
        is empty, the launch has the level `edit`, and the caller must remove the arguments that set
        this level."""
        chosen = str(uuid4()) if self.driver.abilities.choose_id else ""
        return Launch(
            spec=TaskSpec(
                prompt=prompt,
                agent=self.driver.name,
                model=model,
                permissions=Permissions(permissions or "edit"),
            ),
            continuation=asked or Continuation(kind=Start.FRESH, session_id=chosen),
            prompt=prompt,
            cwd=str(self.work),
            home=str(self.home),
            program=self.program,
            transcript=transcript,
            marks=self.marks,
            mark=f"prove-{uuid4().hex}",
        )

    def _without_permissions(self, launch: Launch) -> tuple[tuple[str, ...], dict[str, str]]:
        """Return the launch's arguments and environment variables that are the same for every
        permissions level."""
        commands = []
        for level in Permissions:
            commands.append(
                self.driver.command(replace(launch, spec=replace(launch.spec, permissions=level)))
            )
        argv, env = list(commands[0].argv), dict(commands[0].env)
        for command in commands[1:]:
            argv = [word for word in argv if word in command.argv]
            env = {name: value for name, value in env.items() if command.env.get(name) == value}
        return tuple(argv), env

    # Methods that read and restore the agent's conversations

    @property
    def home(self) -> Path:
        return self.driver.home(self.own_environ)

    def history(self, session_id: str) -> bytes | None:
        """Return the content of the conversation as the CLI stores it; None if there is none."""
        if not session_id:
            return None
        if self.driver.archive is not None:
            return self.driver.archive.read(self.home, session_id)
        path = self.driver.transcript(self.home, session_id)
        if path:
            return path.read_bytes()
        return None

    def prompts(self, session_id: str) -> list[str]:
        """Return the prompts that the stored conversation contains."""
        return [prompt.text for prompt in self.driver.prompts(self.history(session_id) or b"")]

    def put_back(self, session_id: str, copy: bytes) -> None:
        """Restore a copy of the conversation to the place where the agent looks for it."""
        if self.driver.archive is None:
            kept = self.directory / "copy"
            kept.write_bytes(copy)
            place = self.driver.place(self.home, session_id, self.work, kept)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(copy)
            return
        command = self.driver.archive.restore(self.program, session_id, copy)
        mark = f"prove-{uuid4().hex}"
        folder = self.directory / "runs" / mark
        started = process.start(
            command,
            directory=folder,
            cwd=self.work,
            env=self.own_environ,
            mark=mark,
            deadline_s=PATIENCE_S,
        )
        self.running.append(started)
        while started.wait(0.2) is None:
            self.look_up()

    def look_up(self) -> None:
        if self.stopping():
            raise Interrupted

    def until(self, met: Callable[[], bool], patience_s: float) -> bool:
        """Wait until `met` returns true. Return False if that does not happen within `patience_s`
        seconds."""
        end = time.monotonic() + patience_s
        while not met():
            self.look_up()
            if time.monotonic() > end:
                return False
            time.sleep(TICK_S)
        return True


class StageRun(Struct, frozen=True):
    """A started run of the agent's program."""

    stage: Stage
    launch: Launch
    process: process.Process
    before: int

    def events(self) -> list[AgentEvent]:
        """Return the events of the complete lines that the program has printed so far."""
        try:
            said = self.process.stdout.read_bytes()
        except OSError:
            return []
        over = (self.process.directory / "exit.json").exists()
        whole = said if over else said[: said.rfind(b"\n") + 1]
        lines = filter(None, whole.split(b"\n"))
        return list(chain.from_iterable(map(self.stage.driver.parse, lines)))

    def session_id(self, told_only: bool = False) -> str:
        """Return the conversation's id: the one that the program printed or, unless `told_only`,
        the one in the archive. Empty if there is none yet."""
        for event in reversed(self.events()):
            if isinstance(event, SessionSeen) and event.session_id:
                return event.session_id
        if told_only or self.stage.driver.archive is None:
            return ""
        return self.stage.driver.archive.find(self.stage.home, self.launch.mark)

    def asked_model(self) -> None:
        """Wait for the program's first request to the model. Raise Unseen if no request arrives."""
        come = self.stage.until(
            lambda: len(self.stage.rehearsal.requests) > self.before or not self.process.alive(),
            PATIENCE_S,
        )
        if not come or len(self.stage.rehearsal.requests) == self.before:
            raise Unseen("no request reached the model")

    def kill(self) -> None:
        """Send SIGKILL to the program only, as the kernel does when it runs out of memory."""
        pid = self.process.agent_pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)

    def leaves_processes(self) -> bool:
        """Kill the program and return whether processes that it started are still running. The shim
        would end them immediately, so it is stopped (SIGSTOP) during the test."""
        shim = self.process.shim
        if shim is None:
            return False
        shim.send(signal.SIGSTOP)
        try:
            self.kill()
            return not self.stage.until(
                lambda: not set(process.survivors(self.process.mark)) - {shim.pid}, SETTLE_S / 2
            )
        finally:
            shim.send(signal.SIGCONT)

    def end(self, patience_s: float = PATIENCE_S) -> StageExit:
        """Wait for the end of the program and return the result. The program is stopped if it
        exceeds the time limit or retries without limit."""
        until = time.monotonic() + patience_s
        found: Exit | None = None
        stopped = ""
        while found is None:
            found = self.process.wait(0.1)
            if found is None and not stopped:
                self.stage.look_up()
                if time.monotonic() > until:
                    stopped = "deadline"
                elif self.retries_without_limit():
                    stopped = "retrying"
                else:
                    stopped = ""
                if stopped:
                    self.process.stop(stopped)
        events = self.events()
        outcome = self.stage.driver.outcome(found, events)
        requests = tuple(self.stage.rehearsal.requests[self.before :])
        alive = len(process.survivors(self.process.mark))
        asked = self.launch.continuation.session_id
        return StageExit(self.session_id(), outcome, tuple(events), requests, asked, alive)

    def retries_without_limit(self) -> bool:
        """Return whether the program has reached the driver's limit of retries in a row. An answer
        between two retries resets the count. The engine uses the same rule."""
        enough = self.stage.driver.abilities.retries_in_a_row
        if enough:
            told = [event for event in self.events() if isinstance(event, (RetrySeen, UsageSeen))]
        else:
            told = []
        newest = told[-enough:]
        return len(told) >= enough > 0 and all(isinstance(event, RetrySeen) for event in newest)


def resume(session_id: str, rung: Rung = Rung.NATIVE) -> Continuation:
    return Continuation(kind=Start.RESUME, session_id=session_id, rung=rung)


def describe_end(ran: StageExit) -> str:
    """Return a short text that tells how a run ended. Runs that ended in the same way get the same
    text."""
    if ran.outcome.kind is OutcomeKind.TIMED_OUT:
        return "never ends"
    if ran.ok:
        return "succeeds"
    return f"ends as {ran.outcome.kind}"
