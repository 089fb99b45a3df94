"""Ends a request that takes too long, wherever it hangs. Called by `http`.

httpx2's timeouts are for silence: each byte in time begins one anew, and a forge that sends a
header now and then could hold a thread for days. So the connection itself is shut down, and with it
others of the same client: all of them lead to the forge that hangs, and who asked asks again.
"""

from __future__ import annotations

import socket
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any


class Cutting:
    """The connections of one client. `trace` is for each of its requests (extension `trace` of
    httpx2 2.16)."""

    def __init__(self) -> None:
        self._streams: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.Lock()

    def trace(self, name: str, about: Mapping[str, Any]) -> None:
        """Takes note of a connection that was made."""
        if name.endswith((".connect_tcp.complete", ".start_tls.complete")):
            with self._lock:
                self._streams.add(about["return_value"])

    @contextmanager
    def after(self, seconds: float) -> Iterator[None]:
        """What is still going on inside after this time gets an error from its connection."""
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
                # Below TLS: its own shutdown waits for the other side.
                socket.socket.shutdown(stream.get_extra_info("socket"), socket.SHUT_RDWR)
