"""A real git server on loopback: git-http-backend behind basic authentication, over http or
https."""

from __future__ import annotations

import base64
import contextlib
import http.server
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.workspace.yard import Yard, make_yard

USER, SECRET = "robot@example", "s3cret-kanarienvogel/+"
BACKEND = (
    Path(
        subprocess.run(
            ["git", "--exec-path"], capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    / "git-http-backend"
)


class Forge(http.server.ThreadingHTTPServer):
    """git-http-backend behind basic authentication. It records every Authorization header, and each
    fetch that it allows.

    `redirect`: the address to which callers are redirected; `tls`: a file with key and certificate;
    `anybody`: whether everybody may fetch.
    """

    daemon_threads = True

    def __init__(
        self, yard: Yard, redirect: str = "", tls: Path | None = None, anybody: bool = False
    ) -> None:
        self.yard, self.redirect, self.seen, self.fetches, self.anybody = (
            yard,
            redirect,
            list[str](),
            0,
            anybody,
        )
        super().__init__(("127.0.0.1", 0), Turn)
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.server_address[1]}/owner/repo"


class Turn(http.server.BaseHTTPRequestHandler):
    server: Forge

    def do_GET(self) -> None:
        authorization = self.headers.get("Authorization", "")
        self.server.seen.append(authorization)
        path, _, query = self.path.partition("?")
        if self.server.redirect:
            return self.answer(302, {"Location": self.server.redirect + self.path})
        if (
            not self.server.anybody
            and authorization != "Basic " + base64.b64encode(f"{USER}:{SECRET}".encode()).decode()
        ):
            return self.answer(401, {"WWW-Authenticate": 'Basic realm="forge"'})
        self.server.fetches += path.endswith("/info/refs")
        env = {
            "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(self.server.yard.top / "served"), "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command, "PATH_INFO": path, "QUERY_STRING": query, "REMOTE_USER": USER,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""), "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }  # fmt: skip
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(0.05)
        head, _, content = subprocess.run(
            [BACKEND], env=env, input=body, capture_output=True
        ).stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().splitlines())
        return self.answer(int(fields.pop("Status", "200").split()[0]), fields, content)

    do_POST = do_GET  # noqa: N815

    def answer(self, code: int, fields: dict[str, str], content: bytes = b"") -> None:
        self.send_response(code)
        for name, value in {**fields, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Write no log."""


@contextlib.contextmanager
def serving(
    yard: Yard, redirect: str = "", tls: Path | None = None, anybody: bool = False
) -> Iterator[Forge]:
    with Forge(yard, redirect, tls, anybody) as forge:
        thread = threading.Thread(target=forge.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield forge
        finally:
            forge.shutdown()
            thread.join()


def make_served_yard(top: Path) -> Yard:
    """Make a yard whose repository is served as owner/repo."""
    yard = make_yard(top)
    (yard.top / "served/owner").mkdir(parents=True)
    yard.git("clone", "-q", "--bare", str(yard.repo), str(yard.top / "served/owner/repo"))
    return yard
