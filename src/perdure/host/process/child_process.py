"""Runs a function in a child process, for work that could crash the caller, such as parsing hostile
files.

Used by `engine.attempt.project_map`. The caller sends questions and reads answers. Both are bytes,
preceded by their length. The child limits its own memory and time (see `answer_questions`), so
hostile input can end only the child. The child exits when its input ends.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from types import TracebackType
from typing import IO, Any

from perdure.host import system
from perdure.host.privileges import dropped

PATIENCE_S = 60.0
"""Timeout for one answer, in seconds. It is reached only if the child is suspended, because the
limit on processor time ends any other child long before."""
MOST_DEATHS = 3
MEMORY = 1 << 30
SECONDS = 5
"""Limit on processor time for one answer, in seconds."""
_LENGTH = 8


class ChildProcess:
    """The child process. It starts with the first question, and is restarted after a crash, until
    it has crashed `MOST_DEATHS` times. Not thread-safe."""

    def __init__(self, answer: str) -> None:
        """Set the function that the child calls for each question. `answer` names it as
        `module:name`. The function takes bytes and returns bytes."""
        self._argv = (sys.executable, "-P", "-m", "perdure.host.process.child_process", answer)
        self._child: subprocess.Popen[bytes] | None = None
        self._deaths = 0

    def __enter__(self) -> ChildProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    @property
    def over(self) -> bool:
        """Whether the child has crashed `MOST_DEATHS` times. No more questions are then asked."""
        return self._deaths >= MOST_DEATHS

    def ask(self, question: bytes) -> bytes | None:
        """Return the child's answer, or None if the child ended without one."""
        if self.over:
            return None
        if self._child is None:
            environ = {}
            for name in ("PATH", "LANG", "VIRTUAL_ENV", system.VARIABLE):
                if name in os.environ:
                    environ[name] = os.environ[name]
            pipe = subprocess.PIPE
            self._child = subprocess.Popen(
                self._argv,
                stdin=pipe,
                stdout=pipe,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=environ,
                bufsize=0,
                group=dropped(),
            )
        try:
            assert self._child.stdin is not None and self._child.stdout is not None
            _write(self._child.stdin, len(question).to_bytes(_LENGTH, "big") + question)
            deadline = time.monotonic() + PATIENCE_S
            size = int.from_bytes(_read(self._child.stdout, _LENGTH, deadline), "big")
            return _read(self._child.stdout, size, deadline)
        except (OSError, EOFError):
            self._deaths += 1
            self._end()
            return None

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
            child.wait()


def answer_questions(answer: Callable[[bytes], bytes]) -> None:
    """Answer questions from standard input until it ends. Runs in the child, and first limits the
    child's memory and time."""
    import resource

    # macOS refuses a limit on the address space.
    refusals = (ValueError, OSError) if system.IS_PORTABLE else ()
    with suppress(*refusals):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = resource.getrlimit(resource.RLIMIT_CPU)[1]
    while head := sys.stdin.buffer.read(_LENGTH):
        question = sys.stdin.buffer.read(int.from_bytes(head, "big"))
        used = resource.getrusage(resource.RUSAGE_SELF)
        resource.setrlimit(
            resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + SECONDS + 1, most)
        )
        said = answer(question)
        sys.stdout.buffer.write(len(said).to_bytes(_LENGTH, "big") + said)
        sys.stdout.buffer.flush()


def _write(pipe: IO[bytes], content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(pipe.fileno(), left) :]


def _read(pipe: IO[bytes], size: int, deadline: float) -> bytes:
    """Return the next `size` bytes. Raises EOFError if the child has ended, and TimeoutError (an
    OSError) after the deadline."""
    parts: list[Any] = []
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while size:
        if not poll.poll(max(0, int((deadline - time.monotonic()) * 1000))):
            raise TimeoutError
        part = os.read(pipe.fileno(), min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    answer_questions(getattr(import_module(module), name))
