"""A real `perdure serve` with hundreds of slow connections from one sender, and with large
deliveries that it ignores."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from perdure.model.forge.deliveries import DeliveryState, Forge
from tests.forges import payloads
from tests.web.serving import PATIENCE_S, Serving

SLOW = 450


def test_slow_connections_starve_nobody(serving: Serving) -> None:
    """One sender holds hundreds of connections that never send a complete request. Every health
    probe and webhook is still answered."""
    with ExitStack() as stack:
        for number in range(SLOW):
            with contextlib.suppress(OSError):
                each = stack.enter_context(
                    socket.create_connection(("127.0.0.1", serving.port), timeout=PATIENCE_S)
                )
                head = b"POST /webhooks/hub HTTP/1.1\r\nHost: localhost\r\n"
                body = b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
                each.sendall(head + (body if number % 2 else b""))
        assert [serving.send("/healthz", b"", {}, "GET")[0] for _ in range(20)] == [200] * 20
        assert [serving.deliver("hub", number=number)[0] for number in range(100, 105)] == [202] * 5


def test_every_method_of_an_address_is_named(serving: Serving) -> None:
    """The `Allow` header of a 405 has all methods of the address, not only those of the first
    route."""
    token = serving.token()
    for path, methods in (
        ("/api/v1/runs", "GET, HEAD, POST"),
        ("/api/v1/trash/x", "DELETE"),
        ("/webhooks/hub", "POST"),
    ):
        connection = http.client.HTTPConnection("127.0.0.1", serving.port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request("PUT", path, headers={"authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("allow")) == (405, methods)


def memory(serving: Serving) -> int:
    """Return the server's resident memory, in bytes."""
    assert serving.process is not None
    status = Path(f"/proc/{serving.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def test_large_deliveries_leave_nothing_behind(serves: Callable[..., Serving]) -> None:
    """After large deliveries that are ignored, their memory is returned to the system, and the
    database has only their digests."""
    serving = serves().start()
    before, sent = memory(serving), list[int]()

    def deliver(number: int) -> None:
        def enlarge(body: Any) -> None:
            body["numbered"] = number
            body["commits"] = [
                {"id": f"{number}-{each}", "message": "x" * 400, "added": ["a"] * 8}
                for each in range(35_000)
            ]

        body = payloads.derived("github", "push", enlarge)
        sent.append(len(body))
        assert (
            serving.send(
                "/webhooks/hub",
                body,
                payloads.headers(Forge.GITHUB, "push", body, id=f"large-{number}"),
            )[0]
            == 202
        )

    threads = [threading.Thread(target=deliver, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = serving.inbox()
    assert [(each.state, each.kept) for each in kept] == [(DeliveryState.IGNORED, False)] * 6
    assert sorted(each.size for each in kept) == sorted(sent)
    assert sum(each.stat().st_size for each in serving.state.glob("perdure.db*")) < sum(sent) // 4
    serving.until(lambda: memory(serving) < before + sum(sent), "the memory is given back")
    shown = serving.perdure("inbox", "replay", str(kept[0].number))
    assert shown.returncode != 0 and "have the forge send it again" in shown.stderr
