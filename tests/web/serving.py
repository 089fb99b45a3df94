"""A real `perdure serve` as a process in a scratch home, and clients that send requests to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from perdure import store as stores
from perdure.model.forge.deliveries import Delivery, Forge
from tests.forges import payloads
from tests.forges.payloads import SECRET, SIGNING
from tests.patience import PATIENCE_S

SOURCES = """
[webhooks.hub]
forge = "github"
secret_file = "{home}/secret"
[webhooks.tea]
forge = "gitea"
secret_file = "{home}/secret"
[webhooks.jo]
forge = "forgejo"
secret_env = "THE_SECRET"
[webhooks.lab]
forge = "gitlab"
secret_file = "{home}/secret"
[webhooks.signed]
secret_file = ["{home}/secret", "{home}/signing"]
[serve]
hosts = ["hooks.example.com"]
"""

EVENTS = {
    "hub": (Forge.GITHUB, "issue_comment", "issue_comment_created", SECRET),
    "tea": (Forge.GITEA, "issue_comment", "issue_comment_created", SECRET),
    "jo": (Forge.FORGEJO, "issue_comment", "issue_comment_created", SECRET),
    "lab": (Forge.GITLAB, "Note Hook", "issue_comment_create", SECRET),
    "signed": (Forge.GITLAB, "Note Hook", "issue_comment_create", SIGNING),
}


class Serving:
    """One `perdure serve`. `start` after `kill` continues in the same home."""

    def __init__(self, home: Path, config: str = SOURCES, **environ: str) -> None:
        self.home = home
        self.state = home / ".local/state/perdure"
        file = home / ".config/perdure/config.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(config.format(home=home))
        (home / "secret").write_text(f"{SECRET}\n")
        (home / "signing").write_text(SIGNING)
        self.environ = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(home), "LANG": "C.UTF-8", "PERDURE_DISK_BALLAST": "0",
            "THE_SECRET": SECRET, **environ,
        }  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None
        self.inside: list[str] = []
        """Words that start the server's command, for example as another user; empty if none are
        needed."""
        self.port = 0
        self.tokens = 0

    def start(self, *words: str) -> Serving:
        """Start the server, wait until it listens, and return this object."""
        log = self.home / "log"
        seen = log.stat().st_size if log.exists() else 0
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [*self.inside, sys.executable, "-m", "perdure", "serve", "--listen", "127.0.0.1:0", *(words or ("--jobs", "0"))],
                cwd=self.home, env=self.environ, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip
        found = self.until(
            lambda: re.search(rb"listening on http://[\d.]+:(\d+)", log.read_bytes()[seen:]),
            "it listens",
        )
        self.port = int(found[1])
        return self

    def until(self, met: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
        end = time.monotonic() + patience_s
        while time.monotonic() < end:
            if value := met():
                return value
            ended = None if self.process is None else self.process.poll()
            assert ended is None or "ended" in what, f"ended with {ended}: {self.said()}"
            time.sleep(0.02)
        raise AssertionError(f"not within {patience_s:g} s: {what}\n{self.said()}")

    def said(self) -> str:
        return (self.home / "log").read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop the server, and return its exit code."""
        if self.process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        self.process = None
        return code

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def perdure(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "perdure", *words], cwd=self.home, env=self.environ, capture_output=True, text=True, check=False,
            timeout=PATIENCE_S,
        )  # fmt: skip

    def token(self, scope: str = "admin") -> str:
        """Return the secret of a new token. It is made while the server runs, or before."""
        self.tokens += 1
        done = self.perdure("token", "new", f"{scope}-{self.tokens}", "--scope", scope)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def ask(
        self, method: str, path: str, token: str = "", body: object = None, **headers: str
    ) -> tuple[int, dict[str, Any]]:
        """Send one request to the API. Return status and JSON."""
        sent = b"" if body is None else json.dumps(body).encode()
        given = {} if body is None else {"content-type": "application/json"}
        given |= {"authorization": f"Bearer {token}"} if token else {}
        return self.send(
            path,
            sent,
            given | {name.replace("_", "-"): value for name, value in headers.items()},
            method,
        )

    # --- senders
    # -------------------------------------------------------------------------------------------------

    def send(
        self, path: str, body: bytes, headers: dict[str, str], method: str = "POST"
    ) -> tuple[int, dict[str, Any]]:
        """Send one request on a new connection. Return status and JSON."""
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        ) as connection:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"{}")

    def deliver(
        self, source: str, *, id: str = "", number: int = 0, **change: str
    ) -> tuple[int, dict[str, Any]]:
        """Send a recorded comment as its forge does. With another `number` it is another
        comment."""
        forge, event, name, secret = EVENTS[source]
        directory = "gitea" if forge is Forge.FORGEJO else forge.value
        body = (
            payloads.derived(directory, name, lambda found: found.update(numbered=number))
            if number
            else payloads.raw(directory, name)
        )
        return self.send(
            f"/webhooks/{source}", body, payloads.headers(forge, event, body, secret, id) | change
        )

    @contextlib.contextmanager
    def raw(self) -> Iterator[socket.socket]:
        """Open a connection for requests that violate HTTP."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as connection:
            yield connection

    def inbox(self) -> list[Delivery]:
        """Return the deliveries in the database, oldest first."""
        with contextlib.closing(stores.open(self.state / "perdure.db", read_only=True)) as store:
            return list(reversed(store.inbox(limit=100_000)))


def answered(connection: socket.socket) -> bytes:
    """Return everything that arrives until the other side closes the connection. A reset ends it
    too, and discards data that was not read yet."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            found += data
    return found


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
