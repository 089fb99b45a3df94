"""The node agent's own port. It serves `kubectl logs`, which the API server forwards, and requests
of tests to evict a pod for lack of memory."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from tests.servers.kubernetes.node import Node
    from tests.servers.kubernetes.started import Started


def serve(node: Node, certificate: Path, key: Path) -> int:
    """Serve in the background until the process ends. Return the port."""

    class Asked(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = urlsplit(self.path)
            parts = address.path.strip("/").split("/")
            asked = {name: values[-1] for name, values in parse_qs(address.query).items()}
            life = (
                node.find(parts[1], parts[2])
                if len(parts) == 4 and parts[0] == "containerLogs"
                else None
            )
            started = life.log(parts[3], asked.get("previous") == "true") if life else None
            if started is None:
                self.send_error(404, "no such log")
                return
            self.send_response(200)
            self.send_header("content-type", "text/plain")
            self.end_headers()
            follow(started, asked, self.wfile.write)

        def do_POST(self) -> None:
            parts = self.path.strip("/").split("/")
            life = (
                node.find(parts[1], parts[2]) if len(parts) == 3 and parts[0] == "evict" else None
            )
            if life is not None:
                life.evict("The node was low on resource: memory.")
            self.send_response(204 if life else 404)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Asked)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def follow(started: Started, asked: dict[str, str], write: Callable[[bytes], object]) -> None:
    """Write a container's log to the client, from its beginning or its last lines, to its present
    end or until the container ends."""
    path = started.place / "log"
    sent = path.stat().st_size if path.exists() else 0
    content = path.read_bytes()[:sent] if path.exists() else b""
    if "tailLines" in asked:
        count = int(asked["tailLines"])
        content = b"".join(content.splitlines(keepends=True)[-count:]) if count else b""
    if "limitBytes" in asked:
        content = content[: int(asked["limitBytes"])]
    write(content)
    while asked.get("follow") == "true":
        ended = started.has_said_all()
        with path.open("rb") as file:
            file.seek(sent)
            more = file.read()
        sent += len(more)
        write(more)
        if ended:
            return
        time.sleep(0.1)
