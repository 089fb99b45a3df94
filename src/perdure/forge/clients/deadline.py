"""Ends a request that takes too long, at whatever point it hangs. Called by `http`.

The timeouts of httpx2 limit only the time without data, and start again with each byte. A forge
that sends a header now and then could therefore block a thread for days. So this module shuts down
the connection itself. The client's other connections are shut down too: they lead to the same
forge, and their callers retry.
"""

from __future__ import annotations

import socket
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any


class ConnectionDeadline:
    """Tracks the connections of one client, so that they can be shut down. The client must pass the
    method `trace` with each of its requests (extension `trace` of httpx2 2.16)."""

    def __init__(self) -> None:
        self._streams: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.Lock()

    def trace(self, name: str, about: Mapping[str, Any]) -> None:
        """Register a connection when httpx2 reports that it was made."""
        if name.endswith((".connect_tcp.complete", ".start_tls.complete")):
            with self._lock:
                self._streams.add(about["return_value"])

    @contextmanager
    def after(self, seconds: float) -> Iterator[None]:
        """Shut down the client's connections if the `with` block still runs after `seconds`."""
        timer = threading.Timer(seconds, self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _cut(self) -> None:
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            with suppress(OSError):
                # Shut down the plain socket, because the shutdown of TLS would wait for the other
                # side.
                socket.socket.shutdown(stream.get_extra_info("socket"), socket.SHUT_RDWR)
