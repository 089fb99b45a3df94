"""The service under load: the board with ten thousand runs, two hundred readers of live events
while the pool runs, and many redeliveries at once.

    python -m bench.service [RUNS [LINES [TIMES]]]

The pool is measured with agents that only print a line every 4 ms (a real agent prints a few a
second). The time in which the pool stores these lines is compared, without a reader and with two
hundred readers on the same server, in turn. The readers are in a separate process.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from bench import webhooks
from bench.measure import Row, table
from perdure import store as stores
from perdure.model import OutcomeKind, RunState
from perdure.testing.stores.samples import begun, claimed, ending, submit

RUNS, LINES, TIMES = 10_000, 1_500, 20
READERS = 200
BOARD_S = 0.1
ROUNDS = 3
LOOKS = 40
JOBS = 2

SPEAKER = """#!%s
import json, os, sys, time
from pathlib import Path

if "--version" in sys.argv:
    sys.exit(print("2.1.329 (Claude Code)"))
RESULT = {"num_turns": 1, "duration_api_ms": 9, "total_cost_usd": 0.01, "usage": {"input_tokens": 100, "output_tokens": 7}}
prompt = sys.stdin.read()
session = next(word.partition("=")[2] for word in sys.argv if word.startswith("--session-id="))
place = Path.home() / ".claude/projects/bench"
place.mkdir(parents=True, exist_ok=True)
message = {"role": "user", "content": prompt}
words = {"role": "assistant", "content": [{"type": "text", "text": "It goes on, one step after the other. " * 4}]}
lines = [{"type": "user", "sessionId": session, "uuid": "u", "parentUuid": None, "cwd": os.getcwd(), "message": message}]
lines += [{"type": "assistant", "sessionId": session, "uuid": "a", "parentUuid": "u", "message": words}]
(place / f"{session}.jsonl").write_text("".join(json.dumps(each) + "\\n" for each in lines))
print(json.dumps({"type": "system", "subtype": "init", "session_id": session, "claude_code_version": "2.1.329", "model": "m"}))
for number in range(%d):
    time.sleep(0.004)
    print(json.dumps({"type": "assistant", "session_id": session, "message": words | {"id": f"m{number}"}}), flush=True)
print(json.dumps({"type": "result", "subtype": "success", "is_error": False, "session_id": session, "result": "Done.", **RESULT}))
"""


def rows(disk: Path, runs: int = RUNS, lines: int = LINES, times: int = TIMES) -> Iterator[Row]:
    """Yield all rows, each group measured on a separate server."""
    with tempfile.TemporaryDirectory(dir=disk) as place:
        yield from _board(Path(place), runs)
    with tempfile.TemporaryDirectory(dir=disk) as place:
        yield from _readers(Path(place), lines)
    with tempfile.TemporaryDirectory(dir=disk) as place:
        yield from _storm(Path(place), times)


def _board(place: Path, runs: int) -> Iterator[Row]:
    fill(place, runs)
    with (
        serving(place, {}, 0) as (port, token),
        closing(http.client.HTTPConnection("127.0.0.1", port)) as line,
    ):
        pages = {
            path: looked(line, path, token)
            for path in ("/", "/?state=succeeded", "/?q=run-99", "/healthz")
        }
    for path, what in (
        ("/", "the board"),
        ("/?state=succeeded", "one list of it"),
        ("/?q=run-99", "a search in it"),
    ):
        took = pages[path]
        note = f"an answer without a page {pages['/healthz'] * 1000:.1f} ms"
        yield Row(
            f"{what}, {runs:,} runs",
            f"{took * 1000:.1f} ms",
            "the goal",
            "100 ms",
            took / BOARD_S,
            1.0,
            note=note,
        )


def fill(place: Path, runs: int) -> None:
    """Fill a store with runs: three in four have succeeded, one in ten has failed, and the others
    wait."""
    with closing(stores.open(state_directory(place) / "perdure.db")) as store:
        for number in range(runs):
            run = submit(store, name=f"run-{number}", where=f"place-{number}")
            if number % 20 < 17:
                claim = claimed(store, run)
                store.begin(claim, begun(run))
                failed = number % 20 < 2
                kind, state = (
                    (OutcomeKind.FAILED, RunState.FAILED)
                    if failed
                    else (OutcomeKind.SUCCEEDED, RunState.SUCCEEDED)
                )
                store.finish(claim, ending(kind, state, reason="it ended with 1" if failed else ""))


def looked(line: http.client.HTTPConnection, path: str, token: str) -> float:
    """Return the median time of an answer on a connection that stays open, in seconds."""
    taken = []
    for _ in range(LOOKS):
        at = time.perf_counter()
        line.request(
            "GET", path, headers={"authorization": f"Bearer {token}", "accept": "text/html"}
        )
        answer = line.getresponse()
        body = answer.read()
        taken.append(time.perf_counter() - at)
        assert answer.status == 200, (path, answer.status, body[:300])
    return statistics.median(taken)


def _readers(place: Path, lines: int) -> Iterator[Row]:
    speaker = place / "claude"
    speaker.write_text(SPEAKER % (sys.executable, lines))
    speaker.chmod(0o700)
    heard = 0
    taken: dict[int, list[float]] = {0: [], READERS: []}
    with serving(place, {"PERDURE_CLAUDE": str(speaker)}, JOBS) as (port, token):
        _work(place, port, token, "warm")
        for turn in range(ROUNDS):
            for readers, found in taken.items():
                with _reading(port, token, readers) as counted:
                    found.append(_work(place, port, token, f"t{turn}-{readers}"))
                heard += counted[0]
    alone, beside = (statistics.median(found) for found in taken.values())
    rate = JOBS * lines
    note = f"{heard / ROUNDS / READERS:,.0f} events for each reader in a round"
    yield Row(
        f"events that the pool stores, beside {READERS} readers",
        f"{rate / beside:,.0f}/s",
        "with nobody",
        f"{rate / alone:,.0f}/s",
        alone / beside,
        0.8,
        least=True,
        note=note,
    )


def _work(place: Path, port: int, token: str, name: str) -> float:
    """Return the seconds in which the pool completes as many tasks as it can run at once."""
    begun_at = time.perf_counter()
    names = [f"{name}-{number}" for number in range(JOBS)]
    for each in names:
        task = {
            "name": each,
            "service": "bench",
            "task": each,
            "prompt": "Speak.",
            "agent": "claude",
        }
        status, said = _asked(port, "POST", "/api/v1/runs", token, task)
        assert status in (200, 201, 202), said
    with closing(stores.open(state_directory(place) / "perdure.db", read_only=True)) as store:
        while any((run := store.get(each)).state is not RunState.SUCCEEDED for each in names):
            assert not run.reason, run.reason
            time.sleep(0.02)
    return time.perf_counter() - begun_at


@contextmanager
def _reading(port: int, token: str, readers: int) -> Iterator[list[int]]:
    """Run this number of readers of all events inside the block. Yield a list whose only item is,
    after the block, the number of events that they received together."""
    counted = [0]
    if not readers:
        yield counted
        return
    words = [sys.executable, "-m", "bench.service", "read", str(port), str(readers)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
    ) as reading:
        assert reading.stdin is not None and reading.stdout is not None
        reading.stdin.write(f"{token}\n".encode())
        reading.stdin.flush()
        assert reading.stdout.readline() == b"all read\n"
        yield counted
        reading.stdin.close()
        counted[0] = int(reading.stdout.readline())


async def _read(port: int, token: str, readers: int) -> None:
    """Read the events as many readers at once, until the input of this process is closed. This is
    the readers' process."""
    counted = 0

    async def one(begun: asyncio.Event) -> None:
        nonlocal counted
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            "GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
            f"{token}\r\n\r\n".encode()
        )
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        begun.set()
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                counted += data.count(b"\ndata: ")

    begun = [asyncio.Event() for _ in range(readers)]
    tasks = [asyncio.create_task(one(each)) for each in begun]
    for each in begun:
        await each.wait()
    print("all read", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(counted, flush=True)


def _storm(place: Path, times: int, deliveries: int = 500) -> Iterator[Row]:
    environ = {"PERDURE_WEBHOOKS": "hub=github:$HUB_SECRET", "HUB_SECRET": webhooks.SECRET}
    wishes = list(webhooks._requests(deliveries)) * times
    random.Random(20).shuffle(wishes)
    with serving(place, environ, 0) as (port, _):
        begun_at = time.perf_counter()
        asyncio.run(webhooks._as_fast_as_they_go(port, wishes))
        took = time.perf_counter() - begun_at
    with closing(stores.open(state_directory(place) / "perdure.db", read_only=True)) as store:
        kept = store.inbox(limit=10 * deliveries)
    counted = sum(each.times for each in kept)
    note = f"{len(wishes) / took:,.0f} a second, counted {counted:,} times"
    ratio = len(kept) / deliveries if counted == len(wishes) else 0.0
    yield Row(
        f"{deliveries} deliveries sent {times} times each, out of order",
        f"{len(kept)}",
        "sent",
        f"{deliveries}",
        ratio,
        1.0,
        note=note,
    )


@contextmanager
def serving(place: Path, environ: dict[str, str], jobs: int) -> Iterator[tuple[int, str]]:
    """Run a real `perdure serve`. Yield its port and an admin's token."""
    own = {
        "PATH": os.environ["PATH"],
        "HOME": str(place),
        "PERDURE_DISK_BALLAST": "0",
        "IS_SANDBOX": "1",
        **environ,
    }
    program = [sys.executable, "-m", "perdure"]
    token = subprocess.run(
        [*program, "token", "new", "bench", "--scope", "admin"],
        env=own,
        cwd=place,
        capture_output=True,
        check=True,
        text=True,
    )
    with (place / "log").open("wb") as log:
        words = [*program, "serve", "--listen", "127.0.0.1:0", "--jobs", str(jobs)]
        server = subprocess.Popen(
            words, env=own, cwd=place, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        while not (
            found := re.search(rb"listening on http://[\d.]+:(\d+)", (place / "log").read_bytes())
        ):
            assert server.poll() is None, (place / "log").read_text()
            time.sleep(0.02)
        yield int(found[1]), token.stdout.strip()
    finally:
        server.terminate()
        server.wait()


def _asked(port: int, method: str, path: str, token: str, body: object) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", port)) as line:
        line.request(
            method,
            path,
            json.dumps(body),
            {"authorization": f"Bearer {token}", "content-type": "application/json"},
        )
        answer = line.getresponse()
        return answer.status, answer.read()


def state_directory(place: Path) -> Path:
    return place / ".local/state/perdure"


def main() -> int:
    if sys.argv[1:2] == ["read"]:
        asyncio.run(_read(int(sys.argv[2]), sys.stdin.readline().strip(), int(sys.argv[3])))
        return 0
    given = [int(word) for word in sys.argv[1:]]
    print(table(list(rows(Path(tempfile.gettempdir()), *given))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
