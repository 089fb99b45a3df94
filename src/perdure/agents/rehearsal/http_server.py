"""The HTTP side of the rehearsal: sockets, threads, chunks. It is independent of scripts and
providers.

Each connection has a thread. An answer that pauses or hangs is ended if the client disconnects or
the server stops.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeAlias

from msgspec import Struct

from perdure.agents.rehearsal.conversation import (
    Dialect,
    PlannedReply,
    Refusal,
    ReplyBody,
    RequestBody,
    ScriptedConversation,
    Step,
)
from perdure.agents.rehearsal.script import Cut, Hang, Hold, Slow, TokenCounts

Answer: TypeAlias = Callable[
    [str, dict[str, str], RequestBody],
    tuple[Dialect, PlannedReply, ScriptedConversation, "AnswerRecord"] | None,
]
Other: TypeAlias = Callable[[str, str], None]


class AnswerRecord(Struct, frozen=True):
    """Functions that the HTTP server calls to report the usage of an answer."""

    begun: Callable[[TokenCounts], None]
    """Called with the full usage as soon as the first bytes are sent."""
    reported: Callable[[TokenCounts], None]
    """Called with the usage that has been sent to the client so far, once or several times for an
    answer."""


_MODEL = {
    "id": "rehearsal",
    "type": "model",
    "object": "model",
    "display_name": "Rehearsal",
    "created_at": "2026-01-01T00:00:00Z",
    "created": 1767225600,
    "owned_by": "perdure",
}
# Three lists of models have the same path: Anthropic's, OpenAI's, and the one that Codex reads
# (`models`). So the answer to this path has the fields of all three.
_MODELS = {
    "object": "list",
    "data": [_MODEL],
    "has_more": False,
    "first_id": "rehearsal",
    "last_id": "rehearsal",
    "models": [],
}


_HANGUP = getattr(select, "POLLRDHUP", 0)
"""Poll event for a client that disconnected, on Linux. Other systems report POLLHUP without being
asked, so the value is 0 there."""


class RehearsalHttpServer(ThreadingHTTPServer):
    """HTTP server of the rehearsal. It listens as soon as it is created, and calls the functions
    `answer` and `other` from many threads."""

    daemon_threads = True
    request_queue_size = 128
    allow_reuse_address = True

    def __init__(self, port: int, answer: Answer, other: Other) -> None:
        self.answer = answer
        self.other = other
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}
        super().__init__(("127.0.0.1", port), _Visit)
        self._listener = threading.Thread(
            target=self.serve_forever, args=(0.05,), name="rehearsal", daemon=True
        )
        self._listener.start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def stop(self) -> None:
        """End all answers, close all sockets and wait at most ten seconds for the threads."""
        if self.stopping.is_set():
            return
        self.stopping.set()
        self.shutdown()
        self._listener.join()
        self.server_close()
        with self._lock:
            left = dict(self._open)
        for connection in left:
            _shut(connection)
        deadline = time.monotonic() + 10
        for thread in left.values():
            thread.join(max(0.0, deadline - time.monotonic()))

    @contextlib.contextmanager
    def visit(self, connection: socket.socket) -> Iterator[None]:
        """Register the connection for the duration of the `with` block. `stop` closes registered
        connections."""
        with self._lock:
            self._open[connection] = threading.current_thread()
        if self.stopping.is_set():
            _shut(connection)
        try:
            yield
        finally:
            with self._lock:
                self._open.pop(connection, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the error. An error that only means that the client disconnected is not printed."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Visit(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: RehearsalHttpServer
    connection: socket.socket

    def handle(self) -> None:
        with self.server.visit(self.connection), contextlib.suppress(ConnectionError):
            super().handle()

    def do_HEAD(self) -> None:
        self.server.other("HEAD", self.path)
        self._whole(200, {})

    def do_GET(self) -> None:
        self.server.other("GET", self.path)
        known = self.path.partition("?")[0].rstrip("/").endswith("/models")
        self._whole(200, _MODELS if known else {"status": "ok"})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        path = self.path
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            self.server.other("POST", path)
            self._whole(
                400,
                {
                    "error": {
                        "type": "invalid_request_error",
                        "message": "The body is not a JSON object.",
                    }
                },
            )
            return
        if path.partition("?")[0].endswith("/count_tokens"):
            self.server.other("POST", path)
            self._whole(200, {"input_tokens": len(raw) // 4})
            return
        found = self.server.answer(
            path, {name.lower(): text for name, text in self.headers.items()}, body
        )
        if found is None:
            self.server.other("POST", path)
            self._whole(
                404,
                {
                    "error": {
                        "type": "not_found_error",
                        "message": f"The rehearsal does not serve {path}.",
                    }
                },
            )
            return
        self._play(*found)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing, because the server records every request."""

    def _play(
        self,
        dialect: Dialect,
        cue: PlannedReply,
        conversation: ScriptedConversation,
        record: AnswerRecord,
    ) -> None:
        if cue.failure:
            self._refuse(dialect.refusal(cue.failure, time.time()))
        elif cue.script is None and not cue.actions and not cue.waits:
            message = "No script of the rehearsal matches this conversation."
            self._whole(
                400,
                {"type": "error", "error": {"type": "invalid_request_error", "message": message}},
            )
        elif conversation.streamed:
            self._stream(dialect.stream(cue, conversation), cue.tokens, record)
        elif all(map(self._go_on, cue.pauses)):
            self._whole(200, dialect.whole(cue, conversation))
            record.begun(cue.tokens)
            record.reported(cue.tokens)

    def _stream(self, steps: Iterator[Step], tokens: TokenCounts, record: AnswerRecord) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("cache-control", "no-cache")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for step in steps:
            if isinstance(step, bytes):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(step), step))
                record.begun(tokens)
            elif isinstance(step, TokenCounts):
                record.reported(step)
            elif isinstance(step, Cut) and step.clean:
                break
            elif not self._go_on(step):
                return
        self.wfile.write(b"0\r\n\r\n")

    def _go_on(self, step: Slow | Hold | Hang | Cut) -> bool:
        """Carry out a pause or a disturbance. Return whether the answer continues afterward. If it
        does not continue, the connection is closed."""
        if isinstance(step, Cut):
            over = True
        elif isinstance(step, Hold):
            over = self._pause(None, Path(step.file))
        elif isinstance(step, Hang):
            over = self._pause(None)
        else:
            over = step.seconds != 0 and self._pause(step.seconds)
        if over:
            self.close_connection = True
            _shut(self.connection)
        return not over

    def _pause(self, seconds: float | None, file: Path | None = None) -> bool:
        """Wait until the time has passed or the file exists, then return False. Return True if the
        client disconnects or the server stops during the wait."""
        end = None if seconds is None else time.monotonic() + seconds
        gone = select.poll()
        gone.register(self.connection, select.POLLIN)
        while not self.server.stopping.is_set():
            left = 0.1 if end is None else min(0.1, end - time.monotonic())
            if left <= 0 or (file is not None and file.exists()):
                return False
            for _, event in gone.poll(1 + int(left * 1000)):
                # POLLIN is also reported when the client disconnects; the read is then empty.
                if event & ~select.POLLIN or self.connection.recv(1, socket.MSG_PEEK) == b"":
                    return True
                # The client has already sent its next request. That request is read after this
                # answer, so wait only for a disconnect from now on.
                gone.modify(self.connection, _HANGUP)
        return True

    def _refuse(self, refusal: Refusal) -> None:
        self._whole(refusal.status, refusal.body, refusal.headers)

    def _whole(self, status: int, body: ReplyBody, headers: dict[str, str] | None = None) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        for name, text in {
            **(headers or {}),
            "content-type": "application/json",
            "content-length": str(len(payload)),
        }.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
