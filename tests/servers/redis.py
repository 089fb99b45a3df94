"""A real Redis of a test, on a unix socket and without files. It ends with the process that made
it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import redis

from tests.patience import PATIENCE_S


class RedisServer:
    """One server. `start`, `kill`, `restart`, `stall` and `wake` may be called in any order. No
    data survives a restart."""

    def __init__(self, **settings: str) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="pr"))
        self.socket = self.top / "s"
        self.settings = {"save": "", "appendonly": "no", **settings}
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        password = self.settings.get("requirepass", "")
        return f"unix://{':' + password + '@' if password else ''}{self.socket}"

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        assert shutil.which("redis-server"), "redis-server is not installed; run `make tools`"
        words = [word for name, value in self.settings.items() for word in (f"--{name}", value)]
        # The server ends with the thread that started it (util-linux).
        command = [
            "setpriv",
            "--pdeathsig=KILL",
            "redis-server",
            "--port",
            "0",
            "--unixsocket",
            str(self.socket),
            "--dir",
            str(self.top),
        ]
        with (self.top / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except redis.ConnectionError:
                assert self.process.poll() is None and time.monotonic() < deadline, (
                    self.top / "log"
                ).read_text()
            time.sleep(0.01)

    def client(self) -> redis.Redis:
        """Return another connection, for checks and faults."""
        return redis.Redis.from_url(self.url, socket_timeout=PATIENCE_S)

    def kill(self) -> None:
        """Send SIGKILL to the server. Its data are lost."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            self.socket.unlink(missing_ok=True)

    def restart(self) -> None:
        self.kill()
        self.start()

    def stall(self) -> None:
        """Suspend the server, so that it accepts connections and answers nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def remove(self) -> None:
        """Stop the server, and remove its files."""
        self.kill()
        with suppress(OSError):
            shutil.rmtree(self.top)


@contextmanager
def server(**settings: str) -> Iterator[RedisServer]:
    """Run a server inside the block."""
    made = RedisServer(**settings)
    try:
        yield made
    finally:
        made.remove()
