"""Runs a command that perdure itself starts, such as a task's verify command. Returns when the
command and all its descendants have ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

from perdure.host.process.launch import start
from perdure.host.process.lines import tail
from perdure.model import Command


def run_quick(
    command: str | Sequence[str],
    *,
    directory: Path,
    cwd: Path,
    env: Mapping[str, str],
    timeout_s: float,
    mark: str = "",
    lock_fd: int | None = None,
) -> tuple[int, str]:
    """Run a shell command (str) or a program (sequence) until it ends. Return its exit code and the
    last 4 KiB of its output. stdout and stderr are one stream.

    Three exit codes have a special meaning. 124: the command exceeded `timeout_s`. 128 + n: signal
    n ended it. 125: it ended in any other way. Like an agent, the command has a shim, a directory
    and a mark. So no process that it started outlives it, and `find` finds the command.
    """
    inner = ("/bin/sh", "-c", command) if isinstance(command, str) else tuple(command)
    argv = ("/bin/sh", "-c", 'exec 2>&1; exec "$@"', "sh", *inner)
    quick = Command(argv=argv, stdin=b"")
    mark = mark or f"quick-{uuid4().hex}"
    process = start(
        quick,
        directory=directory,
        cwd=cwd,
        env=env,
        mark=mark,
        deadline_s=timeout_s,
        grace_s=2.0,
        lock_fd=lock_fd,
    )
    end = process.wait()
    assert end is not None
    output = tail(process.stdout) or end.stderr_tail
    if end.cause != "exited":
        return (
            124 if end.cause == "deadline" else 125
        ), f"{output}\n[{end.cause} after {timeout_s:g} s]".lstrip()
    return (end.code if end.code is not None else 128 + (end.signal or 0)), output
