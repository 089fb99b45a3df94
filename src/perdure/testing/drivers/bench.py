"""The test bench for a driver: the agent's CLI, its environment, and the rehearsal, which is its
model server.

All parts of the suite use it, and the tests of a single driver may use it too.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

import pytest
from msgspec import Struct
from msgspec.structs import replace

from perdure.agents.rehearsal import Rehearsal
from perdure.model import (
    Command,
    CompactAt,
    Continuation,
    Exit,
    Launch,
    Outcome,
    Rung,
    Start,
    TaskSpec,
)
from perdure.model.events import AgentEvent, RetrySeen, SessionSeen
from perdure.protocols import AgentDriver

PATIENCE_S = 300.0


class BenchRun(Struct, frozen=True):
    """The result of running the CLI once, as the driver interprets it."""

    events: list[AgentEvent]
    exit: Exit
    outcome: Outcome

    @property
    def session_id(self) -> str:
        for event in reversed(self.events):
            if isinstance(event, SessionSeen):
                return event.session_id
        return ""

    def seen(self, *kinds: type[AgentEvent]) -> list[AgentEvent]:
        return [event for event in self.events if isinstance(event, kinds)]


class Bench(Struct, frozen=True, kw_only=True):
    """The parts that a test of a driver needs: the driver, the environment of its CLI, the
    rehearsal (the model server that the CLI uses), and the directory in which the CLI works."""

    driver: AgentDriver
    environ: Mapping[str, str]
    rehearsal: Rehearsal
    cwd: Path

    @property
    def home(self) -> Path:
        return self.driver.home(self.environ)

    def launch(
        self,
        prompt: str,
        asked: Continuation | None = None,
        *,
        transcript: str = "",
        **spec: object,
    ) -> Launch:
        """Return a launch whose working directory is the bench's. Without a continuation (`asked`),
        it starts a new conversation. The id of this conversation is chosen here if the CLI accepts
        one."""
        first = Continuation(
            kind=Start.FRESH,
            session_id=str(uuid.uuid4()) if self.driver.abilities.choose_id else "",
        )
        task = TaskSpec(prompt=prompt, agent=self.driver.name, **spec)  # type: ignore[arg-type]
        program = self.driver.locate(self.environ)
        return Launch(
            spec=task,
            continuation=asked or first,
            prompt=prompt,
            cwd=str(self.cwd),
            home=str(self.home),
            program=program,
            transcript=transcript,
        )

    def run(
        self,
        prompt: str,
        asked: Continuation | None = None,
        *,
        transcript: str = "",
        compact_at: CompactAt | None = None,
        **spec: object,
    ) -> BenchRun:
        """Run the CLI to its end, and return the result."""
        launch = self.launch(prompt, asked, transcript=transcript, **spec)
        command = self.driver.command(replace(launch, compact_at=compact_at))
        with self._process(command) as process:
            out, err = process.communicate(command.stdin, timeout=PATIENCE_S)
        return self.read(process.returncode, out, err)

    def run_until(self, prompt: str, retries: int) -> BenchRun:
        """Run a CLI that would retry forever, stop it after `retries` retries, and return the
        result. If `retries` is 0, run it to its end."""
        if not retries:
            return self.run(prompt)
        events: list[AgentEvent] = []
        with self.running(prompt) as process:
            assert process.stdout is not None
            for line in process.stdout:
                events += self.driver.parse(line.rstrip(b"\n"))
                if sum(isinstance(event, RetrySeen) for event in events) >= retries:
                    break
        end = Exit(signal=signal.SIGTERM, cause="retrying", at=int(time.time() * 1000))
        return BenchRun(events, end, self.driver.outcome(end, events))

    def read(self, returncode: int, out: bytes, err: bytes) -> BenchRun:
        """Return the result that the driver derives from the CLI's output and exit status."""
        events = list(chain.from_iterable(map(self.driver.parse, out.split(b"\n"))))
        killed = -returncode if returncode < 0 else None
        end = Exit(
            code=None if killed else returncode,
            signal=killed,
            stderr_tail=err.decode("utf-8", "replace"),
            at=int(time.time() * 1000),
        )
        return BenchRun(events, end, self.driver.outcome(end, events))

    @contextmanager
    def running(
        self, prompt: str, asked: Continuation | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run the CLI until its request has reached the model, and yield its process. The process
        is killed at the end of the block."""
        command = self.driver.command(self.launch(prompt, asked))
        before = len(self.rehearsal.requests)
        with self._process(command) as process:
            assert process.stdin is not None
            process.stdin.write(command.stdin)
            process.stdin.close()
            process.stdin = None
            try:
                self.rehearsal.wait_for(before + 1, PATIENCE_S)
                yield process
            finally:
                process.kill()

    @contextmanager
    def _process(self, command: Command) -> Iterator[subprocess.Popen[bytes]]:
        pipe, environ = subprocess.PIPE, {**command.env, **self.environ}
        with subprocess.Popen(
            command.argv,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            cwd=self.cwd,
            env=environ,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                with suppress(ProcessLookupError):
                    process.kill()

    def content(self, session_id: str) -> bytes:
        """Return the content of the conversation on disk. Fails the test if there is none."""
        found = self.find(session_id)
        assert found is not None, f"no transcript of {session_id} in {self.home}"
        return found

    def find(self, session_id: str) -> bytes | None:
        """Return the content of the conversation, from its file or from the agent's archive; None
        if there is none."""
        if self.driver.archive is not None:
            return self.driver.archive.read(self.home, session_id)
        path = self.driver.transcript(self.home, session_id)
        if path:
            return path.read_bytes()
        return None

    def prompts(self, session_id: str) -> list[str]:
        """Return the prompts in the conversation's transcript."""
        return [prompt.text for prompt in self.driver.prompts(self.content(session_id))]

    def lose(self, session_id: str) -> None:
        """Delete the conversation's file. If the agent has an archive, delete the whole archive
        instead."""
        path = (
            self.home
            if self.driver.archive is not None
            else self.driver.transcript(self.home, session_id)
        )
        assert path is not None
        for each in [path, *path.parent.glob(f"{path.name}-*")]:
            each.unlink()

    def put_back(self, session_id: str, copy: Path) -> None:
        """Restore the conversation from a copy of its transcript. The driver defines where the file
        is put, or which command restores it."""
        if self.driver.archive is None:
            place = self.driver.place(self.home, session_id, self.cwd, copy)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(copy, place)
            assert self.driver.transcript(self.home, session_id) == place
            return
        command = self.driver.archive.restore(
            self.driver.locate(self.environ), session_id, copy.read_bytes()
        )
        with self._process(command) as process:
            process.communicate(command.stdin, timeout=PATIENCE_S)

    def reached_the_model(self) -> str:
        """Return the text of all messages in the last request that the model server received."""
        return "\n".join(message.text for message in self.rehearsal.last.messages)


def resume(session_id: str, rung: Rung = Rung.NATIVE) -> Continuation:
    return Continuation(kind=Start.RESUME, session_id=session_id, rung=rung)


Make = Callable[..., Bench]


class Suite:
    """Base class of all parts of the suite. It has the fixture, and values that a subclass changes
    if its agent needs others."""

    model = "some-model"
    """Name of any model, as the agent's CLI expects it."""

    def unknown_id(self) -> str:
        """Return an id that has the agent's format but belongs to no conversation."""
        return str(uuid.uuid4())

    @pytest.fixture
    def bench(self) -> Make:
        """Return a function that takes a script and makes a bench whose model server plays it.
        Subclasses must override this fixture."""
        raise NotImplementedError

    @staticmethod
    def _wait(met: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not met():
            assert time.monotonic() < end, "it did not come"
            time.sleep(0.05)
