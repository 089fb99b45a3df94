"""A port on 127.0.0.1 for a server that is stopped and started again."""

from __future__ import annotations

import contextlib
import random
import socket
from contextlib import closing
from pathlib import Path


def free_port() -> int:
    """Return a port below the range from which the system takes ports for connections. So no
    connection takes it while the server is down. No other test process gets it while this process
    is alive."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(10_000, max(lowest, 20_000))
        with closing(socket.socket()) as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            _reserve(port)
            return port


def _reserve(port: int) -> None:
    """Reserve a port by binding a name that only one process can hold, and that is released when
    the process ends. Raise OSError if another process has it."""
    with closing(socket.socket(socket.AF_UNIX)) as mark:
        mark.bind(f"\0perdure-port-{port}")
        mark.detach()
