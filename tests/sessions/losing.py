"""Redis is lost at random moments, while three processes look up and write: `make redis-faults
N=500`.

In each trial (a point) three stores, each with a cache, use one database and one Redis. They look
up and change the sessions of four scopes. At a random moment the server is restarted without its
memory, emptied, made to expire everything, short of memory (it evicts), or stalled. Every lookup is
compared with the database before and after it. Four things must never happen: a lookup finds
nothing although a session existed all the time (a silent loss); it finds a retired session or one
that never existed (a second live one); a record is lost in the database; a cache stays out of date.
If a lookup returns a record that was the newest one just before, that is only counted.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from perdure import store as stores
from perdure.errors import Conflict
from perdure.model import Session, SessionKey, SessionState
from perdure.store import session_cache
from perdure.store.sql import SqlStore
from tests.servers.redis import PATIENCE_S, RedisServer, server

FAULTS = ("restart", "flush", "expire", "evict", "stall")
KEYS = [
    SessionKey(agent, f"plan:{number}/main") for agent in ("claude", "codex") for number in (1, 2)
]
STEPS = 60
"""Minimum number of steps for each process. It continues until the fault is over."""


@dataclass
class Point:
    """The result of one trial."""

    seed: int
    fault: str
    lookups: int = 0
    from_cache: int = 0
    late: int = 0
    writes: int = 0
    longest_s: float = 0.0
    told: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass
class Shared:
    """Data that the processes of a trial share: every session that was ever stored as live."""

    point: Point
    lock: threading.Lock = field(default_factory=threading.Lock)
    live: set[tuple[SessionKey, str]] = field(default_factory=set)
    acknowledged: dict[SessionKey, int] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)


def point(seed: int, fault: str, stall_s: float) -> Point:
    """Run one trial in a scratch directory, and return its result."""
    shared = Shared(Point(seed, fault))
    dice = random.Random(seed)
    directory = Path(tempfile.mkdtemp(prefix="pf"))
    try:
        with ExitStack() as stack:
            redis = stack.enter_context(server())
            each = [
                stack.enter_context(closing(_store(directory, redis, shared.point)))
                for _ in range(3)
            ]
            with ThreadPoolExecutor(len(each)) as pool:
                working = [
                    pool.submit(_work, store, shared, random.Random(dice.random()))
                    for store in each
                ]
                time.sleep(dice.uniform(0.02, 0.3))
                strike(redis, fault, stall_s)
                shared.over.set()
                for each_work in working:
                    each_work.result(PATIENCE_S)
            _in_step(each, shared)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return shared.point


def _store(directory: Path, redis: RedisServer, told: Point) -> SqlStore:
    store = stores.open(directory / "perdure.db")
    store.cache = session_cache.open(redis.url, store.identity(), told.told.append)
    return store


def strike(redis: RedisServer, fault: str, stall_s: float) -> None:
    """Cause one fault, from its beginning to its end."""
    if fault == "restart":
        redis.restart()
    elif fault == "stall":
        redis.stall()
        time.sleep(stall_s)
        redis.wake()
    else:
        with redis.client() as client:
            if fault == "flush":
                client.flushall()
            elif fault == "expire":
                for name in client.scan_iter("perdure:*:session:*"):
                    client.pexpire(name, 1)
            else:
                evict(redis)


def evict(redis: RedisServer) -> None:
    """Fill Redis until it has evicted all of perdure's records."""
    with redis.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + 256 * 1024)
        for number in range(200):
            client.set(f"stranger:{number}", b"x" * 8192)
        assert int(client.info("stats")["evicted_keys"])
        client.config_set("maxmemory", 0)


def _work(store: SqlStore, shared: Shared, dice: random.Random) -> None:
    steps = 0
    while steps < STEPS or not shared.over.is_set():
        steps += 1
        key = dice.choice(KEYS)
        _look(store, shared, key) if dice.random() < 0.7 else _write(store, shared, key, dice)


def _look(store: SqlStore, shared: Shared, key: SessionKey) -> None:
    """Look a session up, read the database before and after, and record a lookup that is wrong."""
    asked: list[SessionKey] = []

    def ask(key: SessionKey) -> Session | None:
        asked.append(key)
        return store.session(key)

    assert store.cache is not None
    before, began = store.session(key), time.monotonic()
    found = store.cache.session(key, ask)
    took, after = time.monotonic() - began, store.session(key)
    with shared.lock:
        told = shared.point
        told.lookups += 1
        told.from_cache += not asked
        told.longest_s = max(told.longest_s, took)
        if found is None:
            if before is not None and after is not None and before.revision == after.revision:
                told.wrong.append(f"silent forget: {key.scope} had {before.id}")
        elif found.state is SessionState.RETIRED or (key, found.id) not in shared.live:
            told.wrong.append(f"double-live: {key.scope}: {found.id} ({found.state})")
        else:
            told.late += before is not None and found.revision < before.revision


def _write(store: SqlStore, shared: Shared, key: SessionKey, dice: random.Random) -> None:
    """Begin, use or replace a session, starting from the record that the store has."""
    live = store.session(key)
    if live is None:
        new = Session(
            key=key,
            id=f"{dice.getrandbits(64):x}",
            state=SessionState.PINNED,
            created=store.now(),
            updated=store.now(),
        )
        change = [new]
    elif dice.random() < 0.8:
        change = [replace(live, tasks=live.tasks + 1)]
    else:
        new = replace(live, id=f"{dice.getrandbits(64):x}", revision=0, parent=live.id)
        change = [replace(live, state=SessionState.RETIRED, cause="left"), new]
    with shared.lock:
        shared.live.add((key, change[-1].id))
    try:
        store.amend_sessions(change)
    except Conflict:
        return
    with shared.lock:
        shared.point.writes += 1
        shared.acknowledged[key] = shared.acknowledged.get(key, 0) + len(change)


def _in_step(each: list[SqlStore], shared: Shared) -> None:
    """Check the result: no acknowledged write is lost, each key has at most one live session, and
    the lookups of every process return what the database has."""
    for key in KEYS:
        truth = each[0].session(key)
        live = [
            session for session in each[0].lineage(key) if session.state is not SessionState.RETIRED
        ]
        if len(live) > 1:
            shared.point.wrong.append(f"double-live: {key.scope} has {len(live)} in the database")
        if (truth.revision if truth else 0) != shared.acknowledged.get(key, 0):
            shared.point.wrong.append(
                f"lost: {key.scope} was written {shared.acknowledged.get(key, 0)} times"
            )
        for store in each:
            if not _until(
                lambda store=store, key=key, truth=truth: _same(store.look_up(key), truth)
            ):  # type: ignore[misc]
                shared.point.wrong.append(
                    f"out of step: {key.scope}: {store.look_up(key)} is not {truth}"
                )


def _same(found: Session | None, truth: Session | None) -> bool:
    return found == truth and (found is None or truth is None or found.revision == truth.revision)


def _until(met: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if met():
            return True
        time.sleep(0.02)
    return False


def campaign(number: int, seed: int, jobs: int, stall_s: float) -> list[Point]:
    """Run a given number of trials, with the faults in turn, and return their results."""
    with ThreadPoolExecutor(jobs) as pool:
        return list(
            pool.map(lambda n: point(seed + n, FAULTS[n % len(FAULTS)], stall_s), range(number))
        )


def table(points: list[Point]) -> str:
    """Return the counts, and every trial that showed an error, with its seed."""
    kinds = ("silent forget", "double-live", "lost", "out of step")
    head = f"{'fault':10}{'points':>8}{'lookups':>9}{'cached':>8}{'late':>6}{'writes':>8}{'longest':>9}"
    lines = [head + "".join(f"{kind:>15}" for kind in kinds)]
    for fault in FAULTS:
        mine = [each for each in points if each.fault == fault]
        wrong = [what for each in mine for what in each.wrong]
        sums = [
            sum(values)
            for values in zip(
                *((p.lookups, p.from_cache, p.late, p.writes) for p in mine), strict=True
            )
        ] or [0] * 4
        longest = max((each.longest_s for each in mine), default=0.0)
        line = f"{fault:10}{len(mine):>8}{sums[0]:>9}{sums[1]:>8}{sums[2]:>6}{sums[3]:>8}{longest:>8.2f}s"
        lines.append(
            line + "".join(f"{sum(what.startswith(kind) for what in wrong):>15}" for kind in kinds)
        )
    lines += [f"seed {each.seed} ({each.fault}): {what}" for each in points for what in each.wrong]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="losing", description=__doc__)
    parser.add_argument("number", type=int, nargs="?", default=50)
    parser.add_argument("--seed", type=int, default=20_261_121)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--stall", type=float, default=5.0, help="seconds")
    arguments = parser.parse_args()
    points = campaign(arguments.number, arguments.seed, arguments.jobs, arguments.stall)
    print(table(points))
    return 1 if any(each.wrong for each in points) else 0


if __name__ == "__main__":
    sys.exit(main())
