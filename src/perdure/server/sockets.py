"""Sockets, and those who speak slowly on them. The server runs in a thread of its own; the main
thread has the pool and the signals.

uvicorn bounds how long a connection may be idle between two requests, and not how long the head of
a request may take: `Patient` does. It also makes room where too many are open: of those that have
not sent a whole request yet, the oldest one of the address with most of them is closed. So whoever
holds hundreds of slow connections loses its own, and a health probe or a webhook finds a place.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import threading
from collections import Counter
from functools import partial
from types import TracebackType
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from perdure.errors import UsageError
from perdure.server.proxies import Proxies

HEAD_S = 10.0
CONNECTIONS_MOST = 400
PER_ADDRESS_MOST = 100
"""Connections from one address, unless many may stand behind it: a proxy, or a program on this
machine."""
DRAIN_S = 15
STUCK_S = 30.0
"""A connection whose other end has taken nothing for so long is hung up on: a reader that has gone
to sleep holds its place for ever."""
BACKLOG = 1024


class Patient(H11Protocol):
    """A connection whose every request has its head within `head_s`, and whose answers are
    taken."""

    _late: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None
    _since = 0.0
    """When it began to wait for the request that it has now."""

    def __init__(
        self, *args: Any, head_s: float = HEAD_S, proxies: Proxies | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._head_s, self._proxies = head_s, proxies or Proxies()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = self.loop.time()
        if self._finds_room():
            self._watch()
        else:
            transport.abort()

    @property
    def address(self) -> str:
        return self.client[0] if self.client else ""

    @property
    def is_waiting(self) -> bool:
        """Whether its request is not complete yet, or there is none."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    def _finds_room(self) -> bool:
        """Return whether this connection may stay; one that waits is closed for it where there are
        too many."""
        others = [
            each for each in self.connections if isinstance(each, Patient) and each is not self
        ]
        if not self._proxies.is_near(self.address):
            same = [each for each in others if each.address == self.address]
            if len(same) >= PER_ADDRESS_MOST:
                return self._closes_one(same)
        return len(others) < CONNECTIONS_MOST or self._closes_one(others)

    def _closes_one(self, others: list[Patient]) -> bool:
        """Close the oldest waiting connection of the address with most of them. Return whether
        there was one."""
        waiting = [each for each in others if each.is_waiting]
        if not waiting:
            return False
        most = Counter(each.address for each in waiting).most_common(1)[0][0]
        oldest = min(
            (each for each in waiting if each.address == most), key=lambda each: each._since
        )
        # Not counted any more, though the loop tells it of its end only later.
        self.connections.discard(oldest)
        oldest.transport.abort()
        return True

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
    """A server, from `with` to its end: then nothing new is taken, and what is under way is
    answered, for `DRAIN_S`.

    `head_s` is the time limit of the head of a request, in seconds. `proxies` are those whose
    senders are many.
    """

    def __init__(
        self,
        app: ASGIApp,
        sockets: list[socket.socket],
        proxies: Proxies | None = None,
        head_s: float = HEAD_S,
    ) -> None:
        protocol = cast(type[asyncio.Protocol], partial(Patient, head_s=head_s, proxies=proxies))
        config = uvicorn.Config(
            app,
            http=protocol,
            loop="asyncio",
            lifespan="off",
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=DRAIN_S,
            h11_max_incomplete_event_size=64 * 1024,
        )
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
    return any(
        not ipaddress.ip_address(each.getsockname()[0].partition("%")[0]).is_loopback
        for each in sockets
    )


def bound(host: str, port: int) -> list[socket.socket]:
    """Sockets that are bound and do not listen yet. Raises UsageError."""
    found: list[socket.socket] = []
    try:
        for family, kind, protocol, _, place in dict.fromkeys(
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        ):
            each = socket.socket(family, kind, protocol)
            found.append(each)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # Port 0: what the system gave to the first is asked for by the others.
            each.bind(
                (place[0], found[0].getsockname()[1] or port, *place[2:])
                if len(found) > 1
                else place
            )
    except (OSError, UnicodeError) as error:
        for each in found:
            each.close()
        why = error.strerror if isinstance(error, OSError) else "no such host"
        raise UsageError(
            f"{host}:{port} cannot be listened on: {why}", "choose another with --listen HOST:PORT"
        ) from error
    return found
