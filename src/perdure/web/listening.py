"""Sockets, and those who speak slowly on them. The server runs in a thread of its own; the main thread has the pool and the signals.

uvicorn bounds how long a connection may be idle between two requests, and not how long the head of a request may take: `Patient` does.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import threading
from functools import partial
from types import TracebackType
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from perdure.errors import UsageError

HEAD_S = 10.0
CONNECTIONS_MOST = 400
DRAIN_S = 15
STUCK_S = 30.0
"""A connection whose other end has taken nothing for so long is hung up on: a reader that has gone to sleep holds its place for ever."""
BACKLOG = 1024


class Patient(H11Protocol):
    """A connection whose every request has its head within `head_s`, and whose answers are taken."""

    def __init__(self, *args: Any, head_s: float = HEAD_S, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_s = head_s

    _late: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS_MOST:
            transport.abort()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()
        elif self._late is None:
            self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(STUCK_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unstick()

    def _unstick(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        self._unstick()
        super().connection_lost(exc)

    def _watch(self) -> None:
        self._late = self.loop.call_later(self._head_s, self.transport.abort)

    def _unwatch(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class Listening:
    """A server, from `with` to its end: then nothing new is taken, and what is under way is answered, for `DRAIN_S`.

    `head_s` is the time limit of the head of a request, in seconds.
    """

    def __init__(self, app: ASGIApp, sockets: list[socket.socket], head_s: float = HEAD_S) -> None:
        protocol = cast(type[asyncio.Protocol], partial(Patient, head_s=head_s))
        config = uvicorn.Config(
            app, http=protocol, loop="asyncio", lifespan="off", ws="none", access_log=False, log_config=None, server_header=False,
            proxy_headers=False, timeout_graceful_shutdown=DRAIN_S, h11_max_incomplete_event_size=64 * 1024,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._sockets = sockets
        self._thread = threading.Thread(target=self._go, name="web", daemon=True)
        self.broken: BaseException | None = None

    def _go(self) -> None:
        try:
            self._server.run(self._sockets)
        except BaseException as error:
            self.broken = error

    def __enter__(self) -> Listening:
        # At once, and not only in the thread: who is told that perdure listens may connect.
        for each in self._sockets:
            each.listen(BACKLOG)
        self._thread.start()
        return self

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.should_exit = True
        self._thread.join()


def address(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT` or `[IPV6]:PORT`. Raises ValueError."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%a-z]+)\]|([^\s:\[\]]+)):(\d{1,5})", text)
    if not found or int(found[3]) > 65535:
        raise ValueError("HOST:PORT is needed, such as 127.0.0.1:8420")
    return found[1] or found[2], int(found[3])


def is_public(sockets: list[socket.socket]) -> bool:
    """Whether others than this machine can reach them."""
    return any(not ipaddress.ip_address(each.getsockname()[0].partition("%")[0]).is_loopback for each in sockets)


def bound(host: str, port: int) -> list[socket.socket]:
    """Sockets that are bound and do not listen yet. Raises UsageError."""
    found: list[socket.socket] = []
    try:
        for family, kind, protocol, _, place in dict.fromkeys(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)):
            each = socket.socket(family, kind, protocol)
            found.append(each)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # Port 0: what the system gave to the first is asked for by the others.
            each.bind((place[0], found[0].getsockname()[1] or port, *place[2:]) if len(found) > 1 else place)
    except (OSError, UnicodeError) as error:
        for each in found:
            each.close()
        why = error.strerror if isinstance(error, OSError) else "no such host"
        raise UsageError(f"{host}:{port} cannot be listened on: {why}", "choose another with --listen HOST:PORT") from error
    return found
