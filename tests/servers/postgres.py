"""A real PostgreSQL of a test, made with `initdb`, on 127.0.0.1 and a unix socket. It ends with the
process that made it.

PostgreSQL does not run as root. If the tests do, the server runs as the user `postgres` (or
`nobody`). Its files are then in a separate directory below the system's temporary one, because only
root may enter the test's directory. `setpriv` (util-linux) changes the user, and ends the server
with the thread that started it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

from perdure import store
from tests.patience import PATIENCE_S
from tests.servers.ports import free_port

FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"}
"""Settings for tests whose data need not survive a crash."""
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}

_numbers = count()


def binaries() -> Path:
    """Return the directory of the programs of the newest PostgreSQL that Debian has installed."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3])
    )
    assert found, "PostgreSQL is not installed; run `make tools`"
    return found[-1].parent


def _account() -> pwd.struct_passwd | None:
    """Return the account for the server if the tests run as root, else None."""
    if os.getuid():
        return None
    with suppress(KeyError):
        return pwd.getpwnam("postgres")
    return pwd.getpwnam("nobody")


class Server:
    """One PostgreSQL server with its data directory. `start`, `stop` and `kill` may be called in
    any order."""

    def __init__(self, **settings: str) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="perdure-pg-"))
        self.account = _account()
        if self.account is not None:
            os.chown(self.top, self.account.pw_uid, self.account.pw_gid)
        self.settings = {**FAST, "max_connections": "60", "shared_buffers": "16MB", **settings}
        self.port = free_port()
        self._turn = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        command = [
            "initdb",
            "-D",
            "cluster",
            "-U",
            "perdure",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "-N",
            "--no-instructions",
        ]
        self._run(*command)

    def url(self, database: str = "postgres", *, port: int = 0) -> str:
        """Return the address of a database, or of a proxy to it."""
        return f"postgresql://perdure@127.0.0.1:{port or self.port}/{database}"

    def start(self) -> None:
        """Start the server, and wait until it accepts connections."""
        given = {
            **self.settings,
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.top),
        }
        options = [word for name, value in given.items() for word in ("-c", f"{name}={value}")]
        with (self.top / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command("postgres", "-D", "cluster", *options), cwd=self.top, env=_ENVIRON, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                assert self.process.poll() is None and time.monotonic() < deadline, (
                    self.top / "log"
                ).read_text()
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop the server properly: SIGINT ends all sessions at once, SIGTERM waits for them."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(PATIENCE_S)
            self.process = None

    def kill(self) -> None:
        """Kill the server's first process and all its children. This is like a power cut, except
        that the kernel's memory survives."""
        assert self.process is not None
        children = [
            int(pid)
            for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
            .read_text()
            .split()
        ]
        self.process.kill()
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process = None
        # A new server refuses to start as long as a process of the old one lives.
        deadline = time.monotonic() + PATIENCE_S
        while any(_is_postgres(pid) for pid in children):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def database(self, *, migrated: bool = False) -> str:
        """Make a new database, empty or with perdure's tables, and return its address."""
        with self._turn:
            if migrated and not self.ask("SELECT 1 FROM pg_database WHERE datname = 'migrated'"):
                self.ask("CREATE DATABASE migrated")
                store.open(self.url("migrated")).close()
        name = f"test_{os.getpid()}_{next(_numbers)}"
        self.ask(f"CREATE DATABASE {name} TEMPLATE {'migrated' if migrated else 'template1'}")
        return self.url(name)

    def ask(
        self, query: str, url: str = "", *, by: psycopg.Connection[Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """Run one statement, on a new connection or on the given one, and return its rows."""
        if by is not None:
            return by.execute(query.encode()).fetchall()
        with closing(psycopg.connect(url or self.url(), autocommit=True)) as connection:
            cursor = connection.execute(query.encode())
            return cursor.fetchall() if cursor.description else []

    def remove(self) -> None:
        """Stop the server, and remove its files."""
        with suppress(subprocess.TimeoutExpired):
            self.stop(signal.SIGQUIT)
        if self.process is not None:
            self.kill()
        shutil.rmtree(self.top)

    def _command(self, program: str, *words: str) -> list[str]:
        who = (
            [f"--reuid={self.account.pw_uid}", f"--regid={self.account.pw_gid}", "--clear-groups"]
            if self.account
            else []
        )
        return ["setpriv", *who, "--pdeathsig=INT", str(binaries() / program), *words]

    def _run(self, *command: str) -> None:
        ran = subprocess.run(
            self._command(*command),
            cwd=self.top,
            env=_ENVIRON,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr


_ENVIRON = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}


def _is_postgres(pid: int) -> bool:
    try:
        return b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@contextmanager
def running(**settings: str) -> Iterator[Server]:
    """Run a server inside the block."""
    server = Server(**settings)
    try:
        server.start()
        yield server
    finally:
        server.remove()
