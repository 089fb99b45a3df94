"""The event stream: every listener gets each record once and in order, even if it disconnects and
reconnects. One reader of the journal serves all listeners."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from perdure.config.files import load
from perdure.engine import sweeper
from perdure.engine.attempt.engine import EngineStore
from perdure.errors import StoreError
from perdure.model import TaskSpec, Token, TokenScope
from perdure.model.events import Record, RunSubmitted, Said
from perdure.protocols import RunStore
from perdure.server import journal as journals
from perdure.server import sockets as listening
from perdure.server.api import events
from perdure.server.api.routes import api
from perdure.server.api.verbs import AT_ONCE
from perdure.server.application import application
from perdure.server.context import Parts
from perdure.server.journal import Journal, Listener, SentRecord, new_records
from perdure.server.principal import Principals, new_token
from perdure.server.sockets import RunningServer, bound
from perdure.server.webhooks import WebhookIntake, Writer
from perdure.testing.stores.samples import claimed, submit
from perdure.wiring import open_engine, open_to_read
from perdure.workspace import Workspaces
from tests.web.listening import Stream, stream
from tests.web.serving import PATIENCE_S, Serving


class Counting:
    """A store that counts how often the journal is read, and fails on request."""

    def __init__(self, store: EngineStore) -> None:
        self.store, self.reads = store, 0
        self.broken: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def journal(self, after: int = 0, limit: int = 1000) -> Sequence[Record]:
        self.reads += 1
        if self.broken:
            raise self.broken
        return self.store.journal(after, limit)


class Hall:
    """A server in this process, to which listeners connect."""

    def __init__(self, home: Path, stack: ExitStack) -> None:
        environ = {"HOME": str(home), "PATH": "/usr/bin:/bin", "PERDURE_DISK_BALLAST": "0"}
        chosen = load(environ, home)
        self.engine = open_engine(chosen, environ)
        stack.callback(self.engine.store.close)
        self.store = self.engine.store
        self.reading: Any = Counting(open_to_read(chosen))
        stack.callback(self.reading.close)
        principals = Principals(self.reading, self.store)
        self.journal = Journal(self.reading)
        parts = Parts(
            engine=self.engine, store=self.reading, settings=chosen, principals=principals, journal=self.journal,
            seed=TaskSpec(prompt=""), checks=list,
        )  # fmt: skip
        sockets = bound("127.0.0.1", 0)
        desk = WebhookIntake({}, Writer(self.store.accept), lambda line: None)
        stack.enter_context(
            RunningServer(application(desk, list, (), principals, api(parts)), sockets)
        )
        stack.enter_context(self.journal)
        self.port = int(sockets[0].getsockname()[1])
        self.token, digest = new_token()
        self.store.add_token(Token(name="ear", scope=TokenScope.READ, created=0), digest)

    def until(self, met: Callable[[], Any], what: str) -> Any:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if value := met():
                return value
            time.sleep(0.02)
        raise AssertionError(f"not within {PATIENCE_S:g} s: {what}")

    def listeners(self) -> int:
        return len(self.journal._listeners)


@pytest.fixture
def hall(tmp_path: Path) -> Iterator[Hall]:
    with ExitStack() as stack:
        yield Hall(tmp_path, stack)


def numbers(told: Sequence[tuple[int, dict[str, Any]]]) -> list[int]:
    return [number for number, _ in told]


def take(listened: Stream, count: int) -> list[tuple[int, dict[str, Any]]]:
    return [next(iter(listened)) for _ in range(count)]


def test_who_comes_back_misses_nothing(serving: Serving) -> None:
    """A client that reconnects with the last id gets all later records once and in order, for all
    runs or for one. A record has the form that `perdure logs --json` prints."""
    token = serving.token("read")
    with closing(_store(serving)) as store:
        first, second = submit(store, name="first"), submit(store, name="second")
        claim = claimed(store, first)
        store.record(claim, [Said(text=f"line\n{number}") for number in range(5)])
        with stream(serving, "/api/v1/events", token, after=0) as listened:
            assert listened.status == 200 and listened.headers["content-type"].startswith(
                "text/event-stream"
            )
            begin = take(listened, 4)
        store.record(claim, [Said(text="while nobody listened")])
        with stream(serving, "/api/v1/events", token, after=begin[-1][0]) as listened:
            store.record(claim, [Said(text="while one listens")])
            rest = take(listened, 6)
        everything = [*store.history(first.id), *store.history(second.id)]
        assert numbers(begin + rest) == sorted(record.seq for record in everything)
        with stream(serving, "/api/v1/runs/first/events", token) as listened:
            of_one = take(listened, len(store.history(first.id)))
        assert [
            record["event"]["text"] for _, record in of_one if record["event"]["kind"] == "said"
        ][-1] == "while one listens"
        lines = [
            json.loads(line)
            for line in serving.perdure("logs", "first", "--json").stdout.splitlines()
        ]
        assert [record for _, record in of_one] == lines
        with stream(serving, "/api/v1/runs/second/events", token, after=10**12) as listened:
            store.request_cancel(second.id)
            assert [record["run"] for _, record in listened.until("run_finished")] == [
                second.id,
                second.id,
            ]
        store.request_cancel(first.id)


def _store(serving: Serving) -> Any:
    from perdure import store as stores

    return stores.open(serving.state / "perdure.db")


def test_one_reader_for_all(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of forty listeners gets everything, and the journal is read no more often than for one
    listener."""
    with ExitStack() as stack:
        monkeypatch.setattr(journals, "LOOK_S", 3600.0)
        ears = [stack.enter_context(_listen(hall)) for _ in range(40)]
        hall.until(lambda: hall.listeners() == 40, "all listen")
        run = submit(hall.store)
        claim = claimed(hall.store, run)
        for number in range(20):
            hall.store.record(claim, [Said(text=str(number))])
        before = hall.reading.reads
        hall.journal._rounds.wake()
        told = [take(each, 22) for each in ears]
        assert (
            all(each == told[0] for each in told) and len({number for number, _ in told[0]}) == 22
        )
        assert hall.reading.reads - before <= 3
    hall.until(lambda: hall.listeners() == 0, "who went away is forgotten")


def _listen(hall: Hall, after: int | None = None) -> Any:
    found: Any = type("Where", (), {"port": hall.port})()
    return stream(found, "/api/v1/events", hall.token, after)


def test_a_reader_that_does_not_keep_up_is_let_go(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection of a listener that does not keep up is closed, while the others get
    everything. When it reconnects, it continues after the last record that it had read."""
    monkeypatch.setattr(journals, "BEHIND_MOST", 20)
    monkeypatch.setattr(listening, "STUCK_S", 3.0)
    request = (
        "GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
        f"{hall.token}\r\n\r\n"
    )
    with (
        socket.create_connection(("127.0.0.1", hall.port), timeout=PATIENCE_S) as slow,
        _listen(hall) as quick,
    ):
        slow.sendall(request.encode())
        hall.until(lambda: hall.listeners() == 2, "both listen")
        claim = claimed(hall.store, submit(hall.store))
        seen = take(quick, 2)
        while hall.listeners() == 2:
            hall.store.record(claim, [Said(text="x" * 400_000) for _ in range(5)])
            seen += take(quick, 5)
        got = b""
        slow.settimeout(PATIENCE_S)
        try:
            while data := slow.recv(1 << 20):
                got += data
        except ConnectionResetError:
            pass
        last = max(
            (int(number) for number in re.findall(rb"id: (\d+)\ndata: [^\n]*\n\n", got)), default=0
        )
        assert last < seen[-1][0]
    with _listen(hall, last) as again:
        assert numbers(take(again, len([each for each in seen if each[0] > last]))) == [
            number for number, _ in seen if number > last
        ]


def test_a_token_that_is_taken_away_ends_its_stream(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream ends at the next keep-alive after its token was removed."""
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.05)
    with _listen(hall) as listened:
        while listened.answer.readline() != b": still here\n":
            pass
        hall.store.remove_token("ear")
        assert list(listened) == []
    hall.until(lambda: hall.listeners() == 0, "it is forgotten")


def test_who_is_told_much_is_asked_for_the_token_too() -> None:
    """A stream with constant events ends with its token, like one without events."""

    async def told() -> int:
        listener, asked = Listener("", 0), [True, True, False]

        async def known() -> bool:
            return asked.pop(0)

        count = 0
        listener.tell([SentRecord(record(1), b"")])
        async for batch in new_records(listener, 0.0, known):
            count += len(batch)
            listener.tell([SentRecord(record(count + 1), b"")])
        return count

    assert asyncio.run(told()) == 2


def test_what_nobody_thought_of_does_not_end_the_telling(hall: Hall) -> None:
    """An unforeseen error in the reader's thread is logged once, and the reader continues.
    Afterwards the listeners get all records."""
    said: list[str] = []
    hall.journal._say = said.append
    with _listen(hall) as listened:
        hall.until(lambda: hall.listeners() == 1, "it listens")
        hall.reading.broken = RuntimeError("nobody thought of it")
        reads = hall.reading.reads
        run = submit(hall.store)
        hall.until(lambda: hall.reading.reads > reads + 2, "it is asked again")
        hall.reading.broken = None
        assert next(iter(listened))[1]["run"] == run.id
    assert len(said) == 1 and "nobody thought of it" in said[0]


def test_who_waits_for_the_disk_holds_up_nobody_else(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If more requests search the disk than may do so at once, other verbs are answered in the
    meantime, and all searches are answered in the end."""
    gate, walks = threading.Event(), list[int]()

    def usage(store: RunStore, workspaces: Workspaces, state: Path) -> Any:
        walks.append(1)
        assert gate.wait(PATIENCE_S)
        return found

    found = sweeper.usage(hall.engine.store, hall.engine.workspaces, hall.engine.state)
    monkeypatch.setattr(sweeper, "usage", usage)

    def ask(path: str) -> int:
        with closing(
            http.client.HTTPConnection("127.0.0.1", hall.port, timeout=PATIENCE_S)
        ) as connection:
            connection.request(
                "GET", f"/api/v1/{path}", headers={"authorization": f"Bearer {hall.token}"}
            )
            return connection.getresponse().status

    with ThreadPoolExecutor(AT_ONCE + 8) as pool:
        asked = [pool.submit(ask, "disk") for _ in range(AT_ONCE + 8)]
        try:
            hall.until(lambda: walks, "one walks")
            assert ask("runs") == 200 and len(walks) == 1
        finally:
            gate.set()
        assert {each.result() for each in asked} == {200}


def test_too_many_listeners_and_bad_ids(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener above the limit is asked to retry. A HEAD request takes no place. An invalid id is
    refused."""
    monkeypatch.setattr(journals, "LISTENERS_MOST", 1)
    with closing(
        http.client.HTTPConnection("127.0.0.1", hall.port, timeout=PATIENCE_S)
    ) as connection:
        connection.request(
            "HEAD", "/api/v1/events", headers={"authorization": f"Bearer {hall.token}"}
        )
        assert connection.getresponse().status == 200 and hall.listeners() == 0
    with _listen(hall) as listened:
        assert listened.status == 200
        with _listen(hall) as other:
            assert other.status == 503 and other.headers["retry-after"]
    for bad in ("x", "-2", "1.5", "9" * 30, "\u00b2"):
        with closing(
            http.client.HTTPConnection("127.0.0.1", hall.port, timeout=PATIENCE_S)
        ) as connection:
            sent = {"authorization": f"Bearer {hall.token}", "last-event-id": bad}
            connection.request(
                "GET",
                "/api/v1/events",
                headers={name: value.encode("utf-8") for name, value in sent.items()},
            )
            assert connection.getresponse().status == 400, bad


def test_the_end_of_the_service_ends_the_streams(serves: Callable[..., Serving]) -> None:
    """A stream ends properly when the service is asked to end, and the service does not wait for
    listeners."""
    serving = serves().start()
    token = serving.token("read")
    with stream(serving, "/api/v1/events", token) as listened:
        assert serving.process is not None
        serving.process.terminate()
        assert listened.answer.read().endswith(events.BEGIN)
    assert serving.stop() == 0


def test_a_service_that_was_restarted(serves: Callable[..., Serving]) -> None:
    """A listener that reconnects after a restart gets everything that was written in the meantime,
    once and in order."""
    serving = serves().start()
    token = serving.token("read")
    serving.kill()
    with closing(_store(serving)) as store:
        claim = claimed(store, submit(store))
        for number in range(3):
            store.record(claim, [Said(text=f"{number} {each}") for each in range(100)])
        there = [record.seq for record in store.journal(10)]
    serving.start()
    with stream(serving, "/api/v1/events", token, after=10) as listened:
        assert numbers(take(listened, len(there))) == there


def test_a_reader_that_has_just_started(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a start the journal is read again from some records before the newest. A client that
    reconnects at that time gets none of the records that it has read. An id that does not exist yet
    hides no new records."""
    hall.journal._rounds.stop()
    claim = claimed(hall.store, submit(hall.store))
    hall.store.record(claim, [Said(text=str(number)) for number in range(20)])
    newest = hall.store.newest_record()
    started = Journal(hall.reading)
    assert started.newest < newest
    monkeypatch.setattr(hall.journal, "listen", started.listen)
    monkeypatch.setattr(hall.journal, "leave", started.leave)
    with _listen(hall, newest) as listened, _listen(hall, 10**12) as ahead:
        hall.until(lambda: len(started._listeners) == 2, "both listen")
        hall.store.record(claim, [Said(text="new")])
        started._round()
        assert numbers(take(listened, 1)) == [newest + 1]
        assert numbers(take(ahead, 1)) == [newest + 1]


def test_a_database_that_is_away_for_a_while(hall: Hall) -> None:
    """While the database does not answer, listeners wait. They get the records of that time as soon
    as it answers again. A listener that asks for earlier records is disconnected properly."""
    submit(hall.store)
    hall.until(
        lambda: hall.journal.newest == hall.store.newest_record(), "what was before is known"
    )
    with _listen(hall) as listened:
        hall.until(lambda: hall.listeners() == 1, "it listens")
        hall.reading.broken = StoreError("The database is away")
        reads = hall.reading.reads
        submit(hall.store)
        hall.until(lambda: hall.reading.reads > reads + 2, "it is asked again")
        with _listen(hall, 0) as other:
            assert list(other) == []
        hall.reading.broken = None
        assert next(iter(listened))[1]["event"]["kind"] == "run_submitted"


def record(seq: int) -> Record:
    return Record("run", seq, 0, 0, RunSubmitted())


def test_a_gap_is_waited_at(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the number of a record is missing, the later records wait until that record arrives, or
    until it is certain that it never will."""
    found = Journal(hall.store)
    assert [each.seq for each in found._whole(4, [record(5), record(6)])] == [5, 6]
    assert [each.seq for each in found._whole(4, [record(5), record(7), record(8)])] == [5]
    assert found._whole(4, [record(6)]) == []
    assert [each.seq for each in found._whole(4, [record(5), record(6), record(7)])] == [5, 6, 7]
    found._whole(4, [record(6)])
    monkeypatch.setattr(journals, "SETTLE_S", 0.0)
    assert [each.seq for each in found._whole(4, [record(6), record(7)])] == [6, 7]


def test_who_begins_to_listen_is_told_nothing_twice(hall: Hall) -> None:
    """Some records arrive while a listener connects. It gets only those that are newer than the
    last one that it has read."""

    async def heard() -> list[int]:
        found = Journal(hall.store)
        found.newest = 5
        listener = found.listen()
        assert listener is not None and listener.since == 5
        found._spread([SentRecord(record(number), b"") for number in (4, 5, 6)])
        found._spread([SentRecord(record(3), b"")])
        assert found.newest == 6
        return [each.record.seq for each in await listener.next(PATIENCE_S)]

    assert asyncio.run(heard()) == [6]
