"""One check's own machine: a scratch home, an empty workdir, a rehearsed model, and the agent's
program started in between.

Made by `prove` for each scene and closed after it. It starts programs only through `process`, so
nothing that an agent begins outlives its scene; it reads the agent only through its driver. The
user's home and environment are not touched: of the environment an agent gets PATH, the language,
IS_SANDBOX, and what `agents.rehearsal.agents.environ` gives it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field, replace
from itertools import chain
from pathlib import Path
from uuid import uuid4

from perdure.agents.rehearsal import Rehearsal, Request
from perdure.host import process
from perdure.lateclass import dataclass
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
"""An agent that has not ended by then is ended: long, so that a slow machine gives the same
answers. OpenCode's own retries alone take 73 s."""
SHORT_S = 45.0
"""For a turn that hangs for ever on some CLI."""
SETTLE_S = 10.0
"""How long a program that waits for its model has to write down what it knows, and an orphan to end
by itself."""
GRACE_S = 5.0
TICK_S = 0.05

MODELS = {"opencode": ("rehearsal/rehearsal", "rehearsal/some-model")}
"""Names of models that a CLI lets through to the service, where not every name does."""


class Interrupted(Exception):
    """Somebody asked perdure to end."""


class Unseen(Exception):
    """What a scene waited for did not come. The text is short and always the same: it is compared
    between versions."""


@dataclass(frozen=True, slots=True)
class StageExit:
    """One run of the agent's program, from its end."""

    session_id: str
    outcome: Outcome
    events: tuple[AgentEvent, ...]
    requests: tuple[Request, ...]
    """What reached the model in this run."""
    asked: str = ""
    """The id that it was given: chosen, resumed or forked from."""
    alive: int = 0
    """Processes of the attempt that live now: none should."""

    @property
    def ok(self) -> bool:
        return self.outcome.ok

    def reached(self, *words: str) -> bool:
        """Whether the last request told the model all of this."""
        said = (
            "\n".join(message.text for message in self.requests[-1].messages)
            if self.requests
            else ""
        )
        return all(word in said for word in words)

    @property
    def usage(self) -> Usage | None:
        """What the program said it used: the last count where it adds up by itself, else all counts
        together."""
        seen = [event for event in self.events if isinstance(event, UsageSeen)]
        if not seen:
            return None
        return (
            seen[-1].usage if seen[-1].cumulative else sum((event.usage for event in seen), Usage())
        )


@dataclass
class Stage:
    """`agent_home` is the directory that the agent is told to keep its conversations in."""

    directory: Path
    driver: AgentDriver
    program: Program
    rehearsal: Rehearsal
    environ: Mapping[str, str]
    subscription: bool = False
    stopping: Callable[[], bool] = lambda: False
    running: list[process.Process] = field(default_factory=list)
    marks: tuple[str, ...] = ()
    """What is known of the conversation, for an agent whose transcripts cannot be read."""

    def __post_init__(self) -> None:
        self.work = self.directory / "work"
        for folder in (self.work, self.directory / "home", self.directory / "tmp"):
            folder.mkdir(parents=True)
        self.live_in(self.directory / "home" / self.driver.name)

    def live_in(self, agent_home: Path) -> None:
        """From now on the agent's home is this one; what leads it to the rehearsal is written
        there."""
        self.agent_home = agent_home
        own = self.rehearsal.environ(
            self.driver.name, home=agent_home, subscription=self.subscription
        )
        kept = {
            name: value for name, value in self.environ.items() if name in ("PATH", "IS_SANDBOX")
        }
        places = {
            "HOME": str(self.directory / "home"),
            "TMPDIR": str(self.directory / "tmp"),
            "LANG": "C.UTF-8",
        }
        self.own_environ = {**kept, **places, **own}

    def close(self) -> None:
        """Ends what is left."""
        for one in self.running:
            one.kill()
        self.rehearsal.stop()

    # --- the agent's program
    # -------------------------------------------------------------------------------------

    def run(
        self,
        prompt: str,
        asked: Continuation | None = None,
        *,
        patience_s: float = PATIENCE_S,
        **options: str,
    ) -> StageExit:
        """Runs the program to its end. Options: those of `launch`."""
        with self.begun(prompt, asked, **options) as begun:
            return begun.end(patience_s)

    @contextmanager
    def begun(
        self, prompt: str, asked: Continuation | None = None, **options: str
    ) -> Iterator[StageRun]:
        """The program, running. It is ended with the block."""
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
        """Without a continuation a fresh one, with an id where the CLI takes one. `permissions`
        empty: no word about them."""
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
        """The command line and variables without those that differ from level to level: what is
        left says nothing of them."""
        commands = [
            self.driver.command(replace(launch, spec=replace(launch.spec, permissions=level)))
            for level in Permissions
        ]
        argv = tuple(
            word for word in commands[0].argv if all(word in command.argv for command in commands)
        )
        env = {
            name: value
            for name, value in commands[0].env.items()
            if all(command.env.get(name) == value for command in commands)
        }
        return argv, env

    # --- what it keeps
    # -------------------------------------------------------------------------------------------

    @property
    def home(self) -> Path:
        return self.driver.home(self.own_environ)

    def history(self, session_id: str) -> bytes | None:
        """The conversation as the CLI keeps it."""
        if not session_id:
            return None
        if self.driver.archive is not None:
            return self.driver.archive.read(self.home, session_id)
        path = self.driver.transcript(self.home, session_id)
        return path.read_bytes() if path else None

    def prompts(self, session_id: str) -> list[str]:
        """The prompts in it."""
        return [prompt.text for prompt in self.driver.prompts(self.history(session_id) or b"")]

    def put_back(self, session_id: str, copy: bytes) -> None:
        """Puts an own copy where a resume finds it."""
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
        """Waits for something; False if it did not come in time."""
        end = time.monotonic() + patience_s
        while not met():
            self.look_up()
            if time.monotonic() > end:
                return False
            time.sleep(TICK_S)
        return True


@dataclass(frozen=True)
class StageRun:
    """A program that was started."""

    stage: Stage
    launch: Launch
    process: process.Process
    before: int

    def events(self) -> list[AgentEvent]:
        """What it has said so far, in whole lines."""
        try:
            said = self.process.stdout.read_bytes()
        except OSError:
            return []
        over = (self.process.directory / "exit.json").exists()
        whole = said if over else said[: said.rfind(b"\n") + 1]
        return list(
            chain.from_iterable(
                self.stage.driver.parse(line) for line in whole.split(b"\n") if line
            )
        )

    def session_id(self, told_only: bool = False) -> str:
        """The conversation's id: as told, else as the archive has it."""
        told = next(
            (
                event.session_id
                for event in reversed(self.events())
                if isinstance(event, SessionSeen) and event.session_id
            ),
            "",
        )
        if told or told_only or self.stage.driver.archive is None:
            return told
        return self.stage.driver.archive.find(self.stage.home, self.launch.mark)

    def asks_the_model(self) -> None:
        """Waits for its first request."""
        come = self.stage.until(
            lambda: len(self.stage.rehearsal.requests) > self.before or not self.process.alive(),
            PATIENCE_S,
        )
        if not come or len(self.stage.rehearsal.requests) == self.before:
            raise Unseen("no request reached the model")

    def kill(self) -> None:
        """SIGKILL to the program alone, as the kernel does when memory is short."""
        pid = self.process.agent_pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)

    def leaves_something(self) -> bool:
        """Kills it, and whether what it started lives on by itself. The shim, which would end it at
        once, is held meanwhile."""
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
        """Waits for its end."""
        until = time.monotonic() + patience_s
        found: Exit | None = None
        stopped = ""
        while found is None:
            found = self.process.wait(0.1)
            if found is None and not stopped:
                self.stage.look_up()
                if time.monotonic() > until:
                    stopped = "deadline"
                elif self._asks_for_ever():
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

    def _asks_for_ever(self) -> bool:
        """The engine's own rule: so many retries, and no answer between them."""
        enough = self.stage.driver.abilities.retries_in_a_row
        told = (
            [event for event in self.events() if isinstance(event, (RetrySeen, UsageSeen))]
            if enough
            else []
        )
        return len(told) >= enough > 0 and all(
            isinstance(event, RetrySeen) for event in told[-enough:]
        )


def resume(session_id: str, rung: Rung = Rung.NATIVE) -> Continuation:
    return Continuation(kind=Start.RESUME, session_id=session_id, rung=rung)


def ended(ran: StageExit) -> str:
    """An ending in stable words."""
    if ran.outcome.kind is OutcomeKind.TIMED_OUT:
        return "never ends"
    return "succeeds" if ran.ok else f"ends as {ran.outcome.kind}"
