"""A port on 127.0.0.1 for a server that is stopped and started again."""

from __future__ import annotations

import contextlib
import random
import socket
from contextlib import closing
from pathlib import Path


def free_port() -> int:
    """Below those that the system gives to connections: nobody takes it while the server is down,
    and no other process of the tests is given it while this one lives."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(10_000, max(lowest, 20_000))
        with closing(socket.socket()) as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            _reserve(port)
            return port


def _reserve(port: int) -> None:
    """By a name that one process can have at a time, and that goes with it. OSError if another has
    it."""
    with closing(socket.socket(socket.AF_UNIX)) as mark:
        mark.bind(f"\0perdure-port-{port}")
        mark.detach()
