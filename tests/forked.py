"""Starts `perdure` without importing its modules each time.

One process of a pytest worker imports them once. Each command is a fork of that process, with the
arguments, the variables, the directory and the pipes of a process of its own: it can be killed, and
it has its own memory. A fork takes a tenth of the CPU that Python and the imports take, and the
suite starts perdure several thousand times. What the imports themselves must and must not do is
tested on processes that `exec` (`tests/journeys/test_starts.py`, `test_verbs.py`).

`tests/conftest.py` calls `allow`, so programs that are no tests, such as `tests.journeys.kills`,
start a Python of their own for each command. So does a command whose variables change how Python
starts. With PERDURE_TEST_FORKED=0 all of them do.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

SWITCH = "PERDURE_TEST_FORKED"
USUAL = {"LANG": "C.UTF-8"}
"""Variables that the server has, and that a command must have."""
STARTING = ("LD_", "LC_", "LANG", "MALLOC", "PERDURE_HOST", "PYTHON", "TZ")
"""Variables that Python, or perdure's choice of a host, reads only at the start."""
LOADED = (
    *("perdure.agents.claude", "perdure.agents.codex", "perdure.agents.shared"),
    *("perdure.cli.runs", "perdure.config", "perdure.engine.attempt", "perdure.host.process"),
    *("perdure.model", "perdure.rules", "perdure.store.sqlite", "perdure.workspace"),
)
"""Packages that are imported with all of their modules."""
PROGRAMS = ("__main__", "askpass", "codex_bridge", "hook", "message_hook", "questions")
"""Modules that are started as programs."""

_allowed: list[bool] = []


def allow() -> None:
    """Let this process's tests fork commands."""
    if sys.platform == "linux" and os.environ.get(SWITCH) != "0":
        _allowed.append(True)


def start(words: Sequence[str], cwd: Path, environ: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start `perdure WORDS` with pipes for input and output: forked where that makes no
    difference, with a Python of its own elsewhere."""
    kind: type[subprocess.Popen[str]] = subprocess.Popen
    special = {name: environ[name] for name in environ if name.startswith(STARTING)}
    if _allowed and special == USUAL:
        kind = Forked
    return kind(
        [sys.executable, "-m", "perdure", *words],
        cwd=cwd,
        env=dict(environ),
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


class Forked(subprocess.Popen[str]):
    """A process that the server forks. Only the making of the process and the wait for its end
    differ from those of `Popen`."""

    status: int
    """A pipe with the pid, and later with the status of `waitpid`."""

    def _execute_child(self, args: list[str], *more: Any) -> None:
        # The order of the arguments is the same in Python 3.11 to 3.14.
        cwd, environ = more[4], more[5]
        taken, _, _, out, _, error = more[9:15]
        sys.audit("subprocess.Popen", args[0], args, cwd, environ)  # for the guard of the real home
        self.status, status = os.pipe()
        umask = os.umask(0)
        os.umask(umask)
        with tempfile.TemporaryFile() as order:
            request = {"words": args[3:], "cwd": str(cwd), "environ": environ, "umask": umask}
            order.write(json.dumps(request).encode())
            order.flush()
            socket.send_fds(server(), [b"x"], [order.fileno(), taken, out, error, status])
        for fd in (taken, out, error, status):
            os.close(fd)
        self.pid = int.from_bytes(self._told(), "big")
        self._child_created = True
        self._closed_child_pipe_fds = True

    def _told(self) -> bytes:
        found = os.read(self.status, 8)
        if len(found) != 8:
            raise ChildProcessError("the process that forks perdure has ended")
        return found

    def _try_wait(self, flags: int) -> tuple[int, int]:
        if flags & os.WNOHANG and not select.select([self.status], [], [], 0)[0]:
            return 0, 0
        status = int.from_bytes(self._told(), "big")
        os.close(self.status)
        return self.pid, status

    def _internal_poll(self, _deadstate: Any = None, **_: Any) -> int | None:
        if self.returncode is None:
            pid, status = self._try_wait(os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


@cache
def server() -> socket.socket:
    """Return the connection to this process's server. The server ends when it is closed."""
    ours, other = socket.socketpair()
    with other:
        # The scratch home: only what a session's fixtures may use as well.
        environ = {**USUAL, "PATH": os.environ["PATH"], "HOME": os.environ["HOME"]}
        words = [sys.executable, __file__, str(other.fileno())]
        null, given = subprocess.DEVNULL, [other.fileno()]
        started = subprocess.Popen(words, env=environ, stdin=null, stdout=null, pass_fds=given)
    atexit.register(_end, started, ours)
    return ours


def _end(started: subprocess.Popen[bytes], connection: socket.socket) -> None:
    connection.close()
    started.wait()


# --- the server's process


def load() -> None:
    """Import what most commands use."""
    importlib.import_module("perdure.cli.main")
    for name in ("perdure.cli.compose", "perdure.engine.service", "perdure.engine.worker", *LOADED):
        package = importlib.import_module(name)
        below = pkgutil.walk_packages(getattr(package, "__path__", ()), f"{name}.")
        for module in below if name in LOADED else ():
            if module.name.rpartition(".")[2] not in PROGRAMS:
                importlib.import_module(module.name)


def serve(connection: socket.socket) -> dict[str, Any]:
    """Fork a process for each request. Returns only in those, with the request."""
    running = dict[int, tuple[int, int]]()
    while True:
        for ready in select.select([connection, *running], [], [])[0]:
            if ready is not connection:
                pid, status = running.pop(ready)
                os.close(ready)
                _tell(status, os.waitpid(pid, 0)[1])
                os.close(status)
                continue
            word, fds, _, _ = socket.recv_fds(connection, 1, 5)
            if not word:
                os._exit(0)
            pid = os.fork()
            if not pid:
                connection.detach()
                return _begin(fds)
            _tell(fds[4], pid)
            running[os.pidfd_open(pid)] = (pid, fds[4])
            for fd in fds[:4]:
                os.close(fd)


def _tell(pipe: int, number: int) -> None:
    # The pytest process may have ended.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    os.write(pipe, number.to_bytes(8, "big"))


def _begin(fds: list[int]) -> dict[str, Any]:
    with os.fdopen(fds[0], "rb") as file:
        file.seek(0)
        request: dict[str, Any] = json.loads(file.read())
    for number, fd in enumerate(fds[1:4]):
        os.dup2(fd, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(request["environ"])
    os.chdir(request["cwd"])
    os.umask(request["umask"])
    return request


def main() -> None:
    load()
    gc.collect()
    gc.freeze()
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    sys.path[0] = str(Path.cwd())
    sys.argv = [__file__, *request["words"]]
    from perdure.cli.main import main as perdure

    raise SystemExit(perdure())


if __name__ == "__main__":
    main()
