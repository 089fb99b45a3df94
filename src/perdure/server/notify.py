"""Notifies systemd with sd_notify(3), a datagram to the socket named in NOTIFY_SOCKET. Does nothing
if that variable is not set."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress


def notify(environ: Mapping[str, str], state: str) -> None:
    """Send a state such as `READY=1` or `STOPPING=1`. Never raises, because nothing depends on the
    notification."""
    place = environ.get("NOTIFY_SOCKET", "")
    if place[:1] not in ("/", "@"):
        return
    with (
        suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end,
    ):
        end.sendto(state.encode(), f"\0{place[1:]}" if place.startswith("@") else place)
