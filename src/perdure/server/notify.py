"""Notifies systemd by sd_notify(3), a datagram to the socket in NOTIFY_SOCKET. Does nothing without
that variable."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress


def notify(environ: Mapping[str, str], state: str) -> None:
    """Send `READY=1`, `STOPPING=1` or the like. Never raises, because a missing listener does no
    harm."""
    place = environ.get("NOTIFY_SOCKET", "")
    if place[:1] not in ("/", "@"):
        return
    with (
        suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end,
    ):
        end.sendto(state.encode(), f"\0{place[1:]}" if place.startswith("@") else place)
