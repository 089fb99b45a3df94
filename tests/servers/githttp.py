"""git over HTTP on 127.0.0.1, as a forge serves it: `git http-backend` behind a password, for
fetches and pushes."""

from __future__ import annotations

import base64
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class GitHttp:
    """Serves the bare repositories below `root`. `asked` has the requests that came, and `users`
    the users who made them. While `down` is set, every request gets 503."""

    root: Path
    password: str
    port: int = 0
    host: str = "127.0.0.1"
    down: bool = False
    asked: list[str] = field(default_factory=list)
    users: set[str] = field(default_factory=set)
    done: Callable[[str], None] = lambda what: None
    """Called for each request, after it was carried out and before it is answered."""

    def url(self, name: str) -> str:
        return f"http://{self.host}:{self.port}/{name}.git"

    def make(self, name: str, origin: Path) -> Path:
        """Make a bare copy of a repository that accepts pushes."""
        place = self.root / f"{name}.git"
        place.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["git", "clone", "-q", "--bare", str(origin), str(place)],
            check=True,
            capture_output=True,
        )
        subprocess.run(["git", "-C", str(place), "config", "http.receivepack", "true"], check=True)
        return place


def _answer(
    server: GitHttp, request: BaseHTTPRequestHandler
) -> tuple[int, list[tuple[str, str]], bytes]:
    path, _, query = request.path.partition("?")
    body = request.rfile.read(int(request.headers.get("content-length") or 0))
    if request.headers.get("transfer-encoding") == "chunked":
        while size := int(request.rfile.readline(), 16):
            body += request.rfile.read(size)
            request.rfile.readline()
        request.rfile.readline()
    server.asked.append(f"{request.command} {request.path}")
    if server.down:
        return 503, [], b""
    user, _, given = (
        base64.b64decode(request.headers.get("authorization", "").removeprefix("Basic "))
        .decode()
        .partition(":")
    )
    if given != server.password:
        return 401, [("WWW-Authenticate", 'Basic realm="git"')], b""
    server.users.add(user)
    environ = {
        "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(server.root), "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": path,
        "QUERY_STRING": query, "REQUEST_METHOD": request.command, "CONTENT_TYPE": request.headers.get("content-type", ""),
        "CONTENT_LENGTH": str(len(body)), "REMOTE_USER": user, "HTTP_CONTENT_ENCODING": request.headers.get("content-encoding", ""),
        "HTTP_GIT_PROTOCOL": request.headers.get("git-protocol", ""), "HOME": str(server.root),
    }  # fmt: skip
    done = subprocess.run(
        ["git", "http-backend"], input=body, env=environ, capture_output=True, check=False
    )
    head, _, content = done.stdout.partition(b"\r\n\r\n")
    headers = [tuple(line.split(": ", 1)) for line in head.decode().split("\r\n") if ": " in line]
    status = next((int(value.split(" ")[0]) for name, value in headers if name == "Status"), 200)
    return status, [(name, value) for name, value in headers if name != "Status"], content


@contextmanager
def serving(root: Path, password: str, host: str = "127.0.0.1") -> Iterator[GitHttp]:
    """Serve the repositories inside the block."""
    found = GitHttp(root, password, host=host)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, headers, content = _answer(found, self)
            found.done(f"{self.command} {self.path}")
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Ignore the error of a client that was killed."""

    server = Server((host, 0), Handler)
    found.port = server.server_port
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    )
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
