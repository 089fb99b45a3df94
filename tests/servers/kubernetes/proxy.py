"""A proxy to the API server that causes faults: refusals, lost answers, silence. Only the programs
under test use it, never the cluster's own parts.

It uses the cluster's own certificate, so a kubeconfig differs only in the address. It forwards each
request with the caller's credentials. It speaks only HTTP/1.1, which the operator's clients use.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit

from tests.servers.kubernetes.cluster import Cluster

Fault = Callable[[str, str], "int | str | None"]
"""A function that returns the fault for a request, from method and path: a status to answer with;
`cut` to close before the request is forwarded; `lose` to lose the answer after it was carried out;
`hang` to wait until `heal`; None for no fault."""
REASONS = {
    409: "Conflict",
    410: "Expired",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}
EXPIRED = (
    json.dumps(
        {
            "type": "ERROR",
            "object": {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "message": "too old",
                "reason": "Expired",
                "code": 410,
            },
        }
    ).encode()
    + b"\n"
)
HOP = ("connection", "keep-alive", "transfer-encoding", "content-length")


class Proxy(ThreadingHTTPServer):
    """The proxy, as a context manager. `faults` is the number of requests with a fault, `count`
    that of all requests."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.fault: Fault | None = None
        self.on_request: Callable[[str, str, str], None] | None = None
        """Called with method, path and `before` or `after`: before a request is forwarded, and
        after it was carried out."""
        self.count = self.faults = 0
        self._lock = threading.Lock()
        self._healed = threading.Event()
        self._stopped = threading.Event()
        self._age = 0
        self._open: dict[socket.socket, int] = {}
        self._streams: set[_Relay] = set()
        super().__init__(("127.0.0.1", 0), _Relay)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cluster.plan.ca_file, cluster.plan.key_file)
        self.socket = context.wrap_socket(
            self.socket, server_side=True, do_handshake_on_connect=False
        )

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server_address[1]}"

    def heal(self) -> None:
        """Cut all connections that hang, and let no others hang until the next fault."""
        self._healed.set()

    def cut(self) -> int:
        """Close every connection, and return how many there were."""
        with self._lock:
            found = list(self._open)
        for each in found:
            _shut(each)
        return len(found)

    def silence(self) -> int:
        """Let the open connections deliver nothing more. New connections work. Return how many
        connections are silent."""
        with self._lock:
            self._age += 1
            return len(self._open)

    def expire(self) -> int:
        """Tell every open watch that its version is too old, by an event in the API server's form.
        Return how many watches there were."""
        with self._lock:
            found = list(self._streams)
        for each in found:
            each.end(EXPIRED)
        return len(found)

    # --- asked by relays
    # -----------------------------------------------------------------------------------------

    def entered(self, connection: socket.socket) -> None:
        with self._lock:
            self._open[connection] = self._age

    def left(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.pop(connection, None)

    def streaming(self, relay: _Relay, on: bool) -> None:
        with self._lock:
            (self._streams.add if on else self._streams.discard)(relay)

    def is_silent(self, connection: socket.socket) -> bool:
        return self._open.get(connection, self._age) < self._age

    def wait(self) -> None:
        """Wait until `heal`. To the client this looks like waiting forever."""
        self._stopped.wait()

    def hang(self) -> None:
        self._healed.clear()
        while not (self._healed.wait(0.1) or self._stopped.is_set() or self.fault is None):
            continue

    def ask(self, method: str, path: str) -> int | str | None:
        what = self.fault(method, path) if self.fault is not None else None
        with self._lock:
            self.count += 1
            self.faults += what is not None
        return what

    def tell(self, method: str, path: str, when: str) -> None:
        if self.on_request is not None:
            self.on_request(method, path, when)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a client that disconnects in the middle of a request."""

    def __enter__(self) -> Proxy:
        threading.Thread(target=self.serve_forever, args=(0.05,), name="proxy", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self.shutdown()
        self.cut()
        self.server_close()


class _Relay(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy
    connection: socket.socket
    upstream: http.client.HTTPSConnection | None = None
    last_words = b""

    def log_message(self, format: str, *args: object) -> None:
        """Write no log."""

    def handle(self) -> None:
        self.server.entered(self.connection)
        try:
            with contextlib.suppress(OSError, http.client.HTTPException):
                super().handle()
        finally:
            self.server.left(self.connection)
            if self.upstream is not None:
                self.upstream.close()

    def _relayed(self) -> None:
        body = self._body()
        if self.server.is_silent(self.connection):
            self.server.wait()
            return
        what = self.server.ask(self.command, self.path)
        if isinstance(what, int):
            self._refuse(what)
            return
        if what == "hang":
            self.server.hang()
        if what in ("cut", "hang"):
            self._cut()
            return
        self.server.tell(self.command, self.path, "before")
        answer = self._passed_on(body)
        if what == "lose":
            answer.read()
            self._cut()
            return
        self.server.tell(self.command, self.path, "after")
        self._answer(answer)

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _passed_on(self, body: bytes) -> http.client.HTTPResponse:
        """Forward the request and return the answer. An idle connection may have ended; then
        nothing was carried out, and another connection is tried."""
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
        for last in (False, True):
            try:
                if self.upstream is None:
                    there = urlsplit(self.server.cluster.plan.server)
                    trust = ssl.create_default_context(cafile=str(self.server.cluster.plan.ca_file))
                    self.upstream = http.client.HTTPSConnection(
                        str(there.hostname), there.port, context=trust
                    )
                self.upstream.request(self.command, self.path, body or None, headers)
                return self.upstream.getresponse()
            except (
                http.client.RemoteDisconnected,
                BrokenPipeError,
                ConnectionResetError,
                ssl.SSLError,
            ):
                if last:
                    raise
                if self.upstream is not None:
                    self.upstream.close()
                self.upstream = None
        raise AssertionError("unreachable")

    def _answer(self, answer: http.client.HTTPResponse) -> None:
        whole = answer.getheader("content-length")
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in HOP:
                self.send_header(name, value)
        self.send_header("content-length", whole) if whole is not None else self.send_header(
            "transfer-encoding", "chunked"
        )
        self.end_headers()
        if whole is not None:
            self._say(answer.read())
            return
        self.server.streaming(self, True)
        try:
            while piece := answer.read1(1 << 16):
                self._say(b"%x\r\n%s\r\n" % (len(piece), piece))
        except (OSError, ValueError, http.client.HTTPException):
            if not self.last_words:
                raise
        finally:
            self.server.streaming(self, False)
        if self.last_words:
            self._say(b"%x\r\n%s\r\n" % (len(self.last_words), self.last_words))
            self.close_connection = True
        self._say(b"0\r\n\r\n")

    def end(self, last_words: bytes) -> None:
        """End the stream here, after this data. This is called by another thread."""
        self.last_words = last_words
        if self.upstream is not None and self.upstream.sock is not None:
            _shut(self.upstream.sock)

    def _say(self, content: bytes) -> None:
        if self.server.is_silent(self.connection):
            self.server.wait()
        self.wfile.write(content)
        self.wfile.flush()

    def _refuse(self, status: int) -> None:
        message = "a fault of the tests"
        said = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "message": message,
            "reason": REASONS[status],
            "code": status,
        }
        content = json.dumps(said).encode()
        self.send_response_only(status)
        for name, value in {
            "content-type": "application/json",
            "content-length": str(len(content)),
        }.items():
            self.send_header(name, value)
        if status in (429, 503):
            self.send_header("retry-after", "1")
        self.end_headers()
        self._say(content)

    def _cut(self) -> None:
        self.close_connection = True
        _shut(self.connection)


for _method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"):
    setattr(_Relay, f"do_{_method}", _Relay._relayed)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
