"""Runs the HTTP server on its sockets and protects it against slow clients. The server has its own
thread; the main thread runs the pool and handles signals.

uvicorn limits the idle time between two requests, but not the time for the head of a request.
`StalledConnectionProtocol` limits this too. If there are too many connections, it closes one that
waits for a request: the oldest of the address with the most such connections. So a client with
hundreds of slow connections loses its own, and a health probe or a webhook is still accepted.

`notify` reports the state of the service to systemd.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
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
"""Maximum number of connections from one address. It does not apply to an address that many people
may share: a proxy, or this machine."""
DRAIN_S = 15
STUCK_S = 30.0
"""Time in seconds after which a connection is closed if the client does not read its answer.
Otherwise a stalled client would keep the connection forever."""
BACKLOG = 1024


class StalledConnectionProtocol(H11Protocol):
    """An HTTP connection with two more limits. It is closed if the head of a request takes longer
    than `head_s` seconds, or if the client does not read the answer."""

    _late: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None
    _since = 0.0
    """Time at which the wait for the current request began, by the event loop's clock in seconds.
    """

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
        if self.client:
            return self.client[0]
        return ""

    @property
    def is_waiting(self) -> bool:
        """Return whether the connection waits for a request. That is the case unless a complete
        request is being answered."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    def _finds_room(self) -> bool:
        """Return whether this new connection may stay. If there are too many connections, close
        another one that waits for a request, to make room."""
        others = []
        for each in self.connections:
            if isinstance(each, StalledConnectionProtocol) and each is not self:
                others.append(each)
        if not self._proxies.is_near(self.address):
            same = [each for each in others if each.address == self.address]
            if len(same) >= PER_ADDRESS_MOST:
                return self._closes_one(same)
        return len(others) < CONNECTIONS_MOST or self._closes_one(others)

    def _closes_one(self, others: list[StalledConnectionProtocol]) -> bool:
        """Close one of the connections that wait for a request: the oldest of the address with the
        most such connections. Return False if no connection waits."""
        waiting = [each for each in others if each.is_waiting]
        if not waiting:
            return False
        most = Counter(each.address for each in waiting).most_common(1)[0][0]
        fellows = [each for each in waiting if each.address == most]
        oldest = min(fellows, key=lambda each: each._since)
        # Stop counting the connection now, because the event loop reports its end only later.
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


class RunningServer:
    """An HTTP server as a context manager. On exit it accepts no new requests, and completes
    current ones for up to `DRAIN_S` seconds.

    `head_s` is the time limit in seconds for the head of a request. `proxies` are the trusted
    proxies.
    """

    def __init__(
        self,
        app: ASGIApp,
        sockets: list[socket.socket],
        proxies: Proxies | None = None,
        head_s: float = HEAD_S,
    ) -> None:
        protocol = cast(
            type[asyncio.Protocol],
            partial(StalledConnectionProtocol, head_s=head_s, proxies=proxies),
        )
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

    def __enter__(self) -> RunningServer:
        # Listen before the thread starts: clients may connect as soon as perdure reports that it
        # listens.
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
    """Parse `HOST:PORT` or `[IPV6]:PORT` into host and port. Raises ValueError."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%a-z]+)\]|([^\s:\[\]]+)):(\d{1,5})", text)
    if not found or int(found[3]) > 65535:
        raise ValueError("expected HOST:PORT, such as 127.0.0.1:8420")
    return found[1] or found[2], int(found[3])


def is_public(sockets: list[socket.socket]) -> bool:
    """Return whether other machines can reach the sockets."""
    for each in sockets:
        host = each.getsockname()[0].partition("%")[0]
        if not ipaddress.ip_address(host).is_loopback:
            return True
    return False


def bound(host: str, port: int) -> list[socket.socket]:
    """Return sockets that are bound to an address but do not listen yet. Raises UsageError."""
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
            # With port 0 the system chooses a port for the first socket, and all other sockets use
            # the same port.
            each.bind(
                (place[0], found[0].getsockname()[1] or port, *place[2:])
                if len(found) > 1
                else place
            )
    except (OSError, UnicodeError) as error:
        for each in found:
            each.close()
        if isinstance(error, OSError):
            why = error.strerror
        else:
            why = "no such host"
        raise UsageError(
            f"{host}:{port} cannot be listened on: {why}", "choose another with --listen HOST:PORT"
        ) from error
    return found


def notify(environ: Mapping[str, str], state: str) -> None:
    """Send systemd a state such as `READY=1` or `STOPPING=1`, as sd_notify(3) does: in a datagram
    to the socket named in NOTIFY_SOCKET. Do nothing if that variable is not set. Never raises,
    because nothing depends on the notification."""
    place = environ.get("NOTIFY_SOCKET", "")
    if place[:1] not in ("/", "@"):
        return
    with (
        suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end,
    ):
        end.sendto(state.encode(), f"\0{place[1:]}" if place.startswith("@") else place)
