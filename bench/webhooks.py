"""Webhooks: how soon one is stored durably and answered at 200 a second; and how many a second are
possible, compared with a bare handler that makes one durable insert.

    python -m bench.webhooks [REQUESTS [SECONDS]]

Both servers are uvicorn with one process, on the same disk. Both get the same recorded bodies over
connections that stay open. Each body has another number, so that each is one insert.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.measure import Row, table

SECRET = "a secret of the bench, long enough"
RECORDED = (
    Path(__file__).parents[1]
    / "tests"
    / "forges"
    / "recorded"
    / "github"
    / "issue_comment_created.json"
)
CONNECTIONS = 16
RATE = 200
P99_S = 0.25

BARE = """
import sqlite3, sys, threading
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.routing import Route

database = sqlite3.connect(sys.argv[1], isolation_level=None, check_same_thread=False)
database.execute("PRAGMA journal_mode = WAL")
database.execute("PRAGMA synchronous = FULL")
database.execute("CREATE TABLE inbox (body TEXT)")
turn = threading.Lock()

def insert(body):
    with turn:
        database.execute("INSERT INTO inbox VALUES (?)", (body.decode(),))

async def take(request):
    await run_in_threadpool(insert, await request.body())
    return JSONResponse({"ok": True}, 202)

uvicorn.run(Starlette(routes=[Route("/webhooks/hub", take, methods=["POST"])]), port=int(sys.argv[2]), http="h11", access_log=False)
"""


def rows(disk: Path, requests: int, seconds: int) -> Iterator[Row]:
    """Yield the two rows of the table: the medians of three rounds of each, in turn."""
    with (
        tempfile.TemporaryDirectory(dir=disk) as place,
        _perdure(Path(place)) as ours,
        _bare(Path(place)) as bare,
    ):
        made = _requests(requests * 6 + RATE * seconds + 200)
        for port in (ours, bare):
            asyncio.run(_as_fast_as_they_go(port, [next(made) for _ in range(50)]))
        rates: dict[int, list[float]] = {ours: [], bare: []}
        for _ in range(3):
            for port, found in rates.items():
                batch = [next(made) for _ in range(requests)]
                begun = time.perf_counter()
                asyncio.run(_as_fast_as_they_go(port, batch))
                found.append(requests / (time.perf_counter() - begun))
        taken = asyncio.run(_at_a_rate(ours, [next(made) for _ in range(RATE * seconds)]))
    us, them = statistics.median(rates[ours]), statistics.median(rates[bare])
    p99 = statistics.quantiles(taken, n=100)[98]
    median = f"median {statistics.median(taken) * 1000:.1f} ms"
    yield Row(
        f"webhook to durable 2xx, p99 at {RATE}/s",
        f"{p99 * 1000:.1f} ms",
        "the goal",
        "250 ms",
        p99 / P99_S,
        1.0,
        note=median,
    )
    yield Row(
        "webhooks a second",
        f"{us:,.0f}",
        "bare Starlette, one durable insert each",
        f"{them:,.0f}",
        us / them,
        0.5,
        least=True,
    )


@contextmanager
def _perdure(place: Path) -> Iterator[int]:
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(place),
        "PERDURE_WEBHOOKS": "hub=github:$HUB_SECRET",
        "HUB_SECRET": SECRET,
        "PERDURE_DISK_BALLAST": "0",
    }
    words = [sys.executable, "-m", "perdure", "serve", "--listen", "127.0.0.1:0", "--jobs", "0"]
    with subprocess.Popen(
        words, env=environ, cwd=place, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as server:
        assert server.stderr is not None
        found = re.search(rb":(\d+) ", server.stderr.readline())
        assert found
        yield int(found[1])
        server.terminate()


@contextmanager
def _bare(place: Path) -> Iterator[int]:
    port = 18_000 + os.getpid() % 10_000
    with subprocess.Popen(
        [sys.executable, "-c", BARE, str(place / "bare.db"), str(port)], stderr=subprocess.PIPE
    ) as server:
        assert server.stderr is not None
        while b"Uvicorn running" not in server.stderr.readline():
            assert server.poll() is None
        yield port
        server.terminate()


def _requests(count: int) -> Iterator[bytes]:
    """Yield complete requests, each with a different body."""
    recorded = json.loads(RECORDED.read_bytes())
    for number in range(count):
        recorded["numbered"] = number
        body = json.dumps(recorded).encode()
        signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        head = (
            "POST /webhooks/hub HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
            "application/json\r\nX-GitHub-Event: issue_comment\r\nX-GitHub-Delivery: "
            f"{number}-{os.getpid()}\r\nX-Hub-Signature-256: sha256={signature}\r\nContent-Length: "
            f"{len(body)}\r\n\r\n"
        )
        yield head.encode() + body


async def _as_fast_as_they_go(port: int, requests: list[bytes]) -> None:
    shares = [requests[at::CONNECTIONS] for at in range(CONNECTIONS)]
    await asyncio.gather(*(_one_after_another(port, share) for share in shares))


async def _one_after_another(port: int, requests: list[bytes]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for each in requests:
        await _sent(reader, writer, each)
    writer.close()


async def _at_a_rate(port: int, requests: list[bytes]) -> list[float]:
    """Return for each request the seconds from the moment when it was due to its answer. So a
    server that falls behind cannot hide it."""
    idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    for _ in range(64):
        idle.put_nowait(await asyncio.open_connection("127.0.0.1", port))
    taken: list[float] = []
    begun = time.perf_counter() + 0.1

    async def send(due: float, request: bytes) -> None:
        await asyncio.sleep(due - time.perf_counter())
        line = await idle.get()
        try:
            await _sent(*line, request)
        except (OSError, asyncio.IncompleteReadError):
            # The server closes connections that were idle for 5 s.
            line = await asyncio.open_connection("127.0.0.1", port)
            await _sent(*line, request)
        taken.append(time.perf_counter() - due)
        idle.put_nowait(line)

    await asyncio.gather(*(send(begun + at / RATE, each) for at, each in enumerate(requests)))
    while not idle.empty():
        idle.get_nowait()[1].close()
    return taken


async def _sent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 202"), head
    found = re.search(rb"content-length: (\d+)", head)
    assert found
    await reader.readexactly(int(found[1]))


def main() -> int:
    requests, seconds = (*map(int, sys.argv[1:]), *(3_000, 20)[len(sys.argv) - 1 :])
    print(table(list(rows(Path(tempfile.gettempdir()), requests, seconds))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
