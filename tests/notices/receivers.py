"""Receivers on loopback: a webhook that checks signatures, and a real SMTP server. Both count
messages by their ids."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Callable
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


class Hook:
    """The receiver of a webhook. `status` is its answer. `before` and `after` are called with the
    number of the request, before and after the answer."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.status = 204
        self.refused = 0
        self.before: Callable[[int], None] = lambda number: None
        self.after: Callable[[int], None] = lambda number: None
        self.changed = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.take(self, body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/hook"

    def take(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        number = sum(self.seen.values()) + self.refused + 1
        status = self.status
        with self.changed:
            if "webhook-id" in headers:
                try:
                    found = Webhook(SECRET).verify(body, headers)
                except WebhookVerificationError:
                    status = 401
            else:  # As Apprise sends it.
                found = json.loads(body)
                headers["webhook-id"] = f"apprise {number}"
            if status == 204:
                self.seen[headers["webhook-id"]] += 1
                self.bodies.append(found)
            else:
                self.refused += 1
            self.changed.notify_all()
        self.before(number)
        try:
            handler.send_response(status)
            handler.send_header("content-length", "0")
            handler.end_headers()
            handler.wfile.flush()
        except OSError:
            return  # The sender was killed in the meantime.
        self.after(number)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Post:
    """A mail server. `refused`: recipients that it does not know."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.mails: list[EmailMessage] = []
        self.refused: set[str] = set()
        self.taken: Callable[[], None] = lambda: None
        """Called when a mail is stored, before the answer."""
        # The controller connects to the port that it was given, so the port must not be 0.
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.controller = Controller(self, hostname="127.0.0.1", port=self.port)
        self.controller.start()

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.port}"

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: Any
    ) -> str:
        if address in self.refused:
            return "550 nobody of that name"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        mail = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        self.seen[str(mail["Message-ID"])] += 1
        self.taken()
        return "250 OK"

    def close(self) -> None:
        self.controller.stop()
