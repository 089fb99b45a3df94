"""Ends a request that takes too long, wherever it hangs. Called by `http`.

httpx2's timeouts limit silence: each byte restarts them, so a forge that sends a header now and
then could hold a thread for days. Therefore the connection itself is shut down, together with the
client's other connections: all of them lead to the forge that hangs, and their callers ask again.
"""

from __future__ import annotations

import socket
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any


class ConnectionDeadline:
    """The connections of one client. Pass `trace` with each of its requests (extension `trace` of
    httpx2 2.16)."""

    def __init__(self) -> None:
        self._streams: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.Lock()

    def trace(self, name: str, about: Mapping[str, Any]) -> None:
        """Remember a connection that was made."""
        if name.endswith((".connect_tcp.complete", ".start_tls.complete")):
            with self._lock:
                self._streams.add(about["return_value"])

    @contextmanager
    def after(self, seconds: float) -> Iterator[None]:
        """Shut down the connections if the block is still running after this time."""
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
                # Shut down the socket below TLS: the shutdown of TLS waits for the other side.
                socket.socket.shutdown(stream.get_extra_info("socket"), socket.SHUT_RDWR)
