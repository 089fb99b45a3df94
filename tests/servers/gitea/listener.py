"""A receiver of webhooks inside a test: it stores each call unchanged and answers 200."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Call:
    """One delivery: the headers with their names in lower case, and the body as bytes."""

    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> str:
        return self.headers["x-gitea-event-type"]


@dataclass
class Listener:
    """Receives the calls. `calls` has them in the order in which they came."""

    calls: list[Call] = field(default_factory=list)
    address: str = ""


@contextmanager
def listening() -> Iterator[Listener]:
    """Run a listener on 127.0.0.1."""
    found = Listener()

    class Desk(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            found.calls.append(
                Call({name.lower(): value for name, value in self.headers.items()}, body)
            )
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *words: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Desk)
    server.daemon_threads = True
    found.address = f"http://127.0.0.1:{server.server_port}/webhooks/tea"
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    )
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
