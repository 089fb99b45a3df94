"""F8: a server that restarts, is killed, loses connections in the middle of a COMMIT, has no
connection left, or reports serialization failures.

In each trial four writers do what a host does in an attempt, on their own runs with known keys.
Every call must return as if nothing had happened. At the end each key has exactly one run, one
attempt and one outcome, and each event is stored once.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, TypeVar

import psycopg

from perdure import store as stores
from perdure.errors import StoreError
from perdure.model import Decision, Outcome, OutcomeKind, RunState, TaskSpec
from perdure.model.events import AttemptEnded, Said
from perdure.protocols import Ending
from perdure.store.sql import SqlStore
from perdure.testing.stores.samples import place
from tests.servers.postgres import DURABLE, Server
from tests.servers.proxy import Proxy

T = TypeVar("T")

WRITERS = 4
KEYS = 3
"""Number of keys for each writer."""
MOST = 24
"""Maximum number of connections that the server accepts."""
SERVER = {**DURABLE, "max_connections": str(MOST), "superuser_reserved_connections": "2"}
FAILED = "(xact_rollback > 0 OR sessions_killed > 0)"
"""SQL condition on pg_stat_database: whether the trial caused a failure. A trial without one would
prove nothing."""
KINDS = (
    "cut before COMMIT",
    "cut after COMMIT",
    "restart",
    "kill -9",
    "sessions ended",
    "no connection left",
    "serializable",
)


def trial(server: Server, kind: str, seed: int) -> list[str]:
    """Make one database with one kind of failure at a random moment. Return the promises that did
    not hold."""
    dice = random.Random(seed)
    url, proxy = server.database(), Proxy(server.port)
    name = url.rpartition("/")[2]
    through = server.url(name, port=proxy.port)
    if kind == "serializable":
        through += "?options=-c%20default_transaction_isolation%3Dserializable"
    begun = threading.Barrier(WRITERS + 1)
    with closing(proxy), closing(stores.open(url)), ThreadPoolExecutor(WRITERS) as pool:
        writers = [pool.submit(_write, through, f"{number}", begun) for number in range(WRITERS)]
        begun.wait()
        time.sleep(dice.uniform(0, 0.15))
        _trouble(server, proxy, kind, dice)
        wrong = [
            f"a call failed: {error}"
            for writer in writers
            if (error := writer.exception()) is not None
        ]
    if kind.startswith("cut") and not proxy.cuts:
        wrong.append("no connection was cut")
    if kind in ("sessions ended", "serializable") and not server.ask(
        f"SELECT 1 FROM pg_stat_database WHERE datname = '{name}' AND {FAILED}"
    ):
        wrong.append("no transaction failed")
    with closing(stores.open(url)) as store:
        return wrong + _looked(store)


def _trouble(server: Server, proxy: Proxy, kind: str, dice: random.Random) -> None:
    match kind:
        case "cut before COMMIT" | "cut after COMMIT":
            for _ in range(dice.randrange(3, 9)):
                proxy.cut_commit(kind.split()[1])
        case "restart":
            server.stop(signal.SIGINT)
            server.start()
        case "kill -9":
            server.kill()
            server.start()
        case "sessions ended":
            for _ in range(8):
                server.ask(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name "
                    "= 'perdure' AND random() < 0.3"
                )
                time.sleep(dice.uniform(0.02, 0.1))
        case "no connection left":
            taken = []
            for _ in range(MOST):
                try:
                    taken.append(psycopg.connect(server.url()))
                except psycopg.OperationalError:
                    break
            server.ask(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = "
                "'perdure'",
                by=taken[0],
            )
            time.sleep(dice.uniform(0.1, 0.5))
            for connection in taken:
                connection.close()


def _write(url: str, writer: str, begun: threading.Barrier) -> None:
    try:
        store = stores.open(url)
    finally:
        begun.wait()
    for number in range(KEYS):
        key = f"key-{writer}-{number}"
        spec = TaskSpec(prompt="x", key=key)
        run = _told(store.add, spec, f"id-{key}", f"run-{writer}-{number}", place(key))
        assert _told(store.add, spec, f"other-{key}", f"other-{key}", place(key)).id == run.id
        claim = _told(store.claim, f"worker-{writer}", 60.0, run.id)
        assert claim is not None, "a claim that stands was told as none"
        for line in range(4):
            _told(store.record, claim, [Said(text=f"{line}")])
            _told(store.renew, claim, 60.0)
        ending = Ending(
            outcome=Outcome(kind=OutcomeKind.SUCCEEDED), decision=Decision(state=RunState.SUCCEEDED)
        )
        assert _told(store.finish, claim, ending).state is RunState.SUCCEEDED
    store.close()


def _told(call: Callable[..., T], *words: Any) -> T:
    """Return the result of a call. If a call gave up because no server answered for a long time, it
    is repeated. Such a call reports that nothing was stored. If that were wrong, the data would
    then be stored twice."""
    for _ in range(20):
        try:
            return call(*words)
        except StoreError as error:
            if "cannot be reached" not in str(error) and "does not answer" not in str(error):
                raise
    return call(*words)


def _looked(store: SqlStore) -> list[str]:
    wrong = store.problems()
    rows = store.find(limit=1000)
    if Counter(row.name for row in rows) != Counter(
        f"run-{writer}-{number}" for writer in range(WRITERS) for number in range(KEYS)
    ):
        wrong.append(f"not one run for each key: {sorted(row.name for row in rows)}")
    for row in rows:
        events = [record.event for record in store.history(row.id)]
        said = [event.text for event in events if isinstance(event, Said)]
        ends = sum(isinstance(event, AttemptEnded) for event in events)
        if (
            row.state is not RunState.SUCCEEDED
            or said != ["0", "1", "2", "3"]
            or ends != 1
            or len(store.attempts(row.id)) != 1
        ):
            wrong.append(
                f"{row.name}: {row.state}, said {said}, {ends} ends, {len(store.attempts(row.id))} "
                "attempts"
            )
    return wrong
