"""The tests' proxy leaves no thread behind."""

from __future__ import annotations

import threading

from tests.servers.proxy import Proxy


def test_a_closed_proxy_waits_for_nobody() -> None:
    """After the proxy is closed, none of its threads is left in accept(). Such a thread would take
    the connections of the server that gets its descriptor's number next."""
    before = set(threading.enumerate())
    proxy = Proxy(9)
    assert set(threading.enumerate()) - before
    proxy.close()
    assert not set(threading.enumerate()) - before
