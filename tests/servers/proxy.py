"""A TCP proxy that cuts and stalls connections to a database in the middle of a message.

`cut_commit` waits for the message that PostgreSQL's simple protocol has for COMMIT, and cuts the
connection before the message is forwarded (nothing is stored) or after (the data are stored, and
the client does not know). `stall` forwards nothing in either direction, and closes nothing.
"""

from __future__ import annotations

import socket
import threading
from contextlib import closing, suppress
from dataclasses import dataclass, field

COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"
"""Type, length and text of a simple query
(postgresql.org/docs/15/protocol-message-formats.html)."""


@dataclass
class _Link:
    """Two connections that belong together. `silent`: whether the next answer is held back.
    `answered` is set when that answer has come."""

    silent: bool = False
    answered: threading.Event = field(default_factory=threading.Event)


class Proxy:
    """Listens on 127.0.0.1:`port` for the server at `target`, until it is closed."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.cuts = 0
        self._armed: list[str] = []
        self._left = -1
        self._open = threading.Event()
        self._open.set()
        self._turn = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def cut_commit(self, when: str) -> None:
        """Cut the connection at the next COMMIT, `before` or `after` the server has it. Several
        calls cut one COMMIT after the other."""
        with self._turn:
            self._armed.append(when)

    def cut_message(self, number: int) -> None:
        """Cut the connection after this many messages of clients."""
        with self._turn:
            self._left = number

    def stall(self) -> None:
        """Forward nothing any more."""
        self._open.clear()

    def close(self) -> None:
        """Close the proxy, and wait until its thread has ended. A thread that still waited in
        accept() on the closed descriptor could take a connection from another server: when the
        kernel restarts that call, the descriptor's number may belong to that server. An ignored
        SIGCHLD is enough for that while another thread holds signals back, as posix_spawn does."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        self._open.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                client.close()
                continue
            link = _Link()
            threading.Thread(
                target=self._to_server, args=(client, server, link), daemon=True
            ).start()
            threading.Thread(
                target=self._to_client, args=(server, client, link), daemon=True
            ).start()

    def _to_server(self, client: socket.socket, server: socket.socket, link: _Link) -> None:
        with closing(client), closing(server):
            with suppress(OSError):
                self._pass_on(client, server, link)
            # `shutdown` comes before `close`, because the other thread waits in recv() on one of
            # the sockets.
            for side in (client, server):
                with suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)

    def _pass_on(self, client: socket.socket, server: socket.socket, link: _Link) -> None:
        while content := client.recv(1 << 16):
            self._open.wait()
            when = "now" if self._is_last() else self._wanted() if content.endswith(COMMIT) else ""
            if when == "after":
                link.silent = True
                server.sendall(content)
                link.answered.wait(60)  # when it has answered, the server has stored it
            if when:
                self.cuts += 1
                return
            server.sendall(content)

    def _to_client(self, server: socket.socket, client: socket.socket, link: _Link) -> None:
        with suppress(OSError):
            while content := server.recv(1 << 16):
                self._open.wait()
                if link.silent:
                    link.answered.set()
                    return
                client.sendall(content)
        # However the server's side ended, the client's connection is closed.
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def _wanted(self) -> str:
        with self._turn:
            return self._armed.pop(0) if self._armed else ""

    def _is_last(self) -> bool:
        with self._turn:
            self._left -= 1
            return self._left == -1
