"""Looks up the live session of a key as quickly as possible: in this process's memory, then in
Redis, then in the store.

A session in memory is trusted for a few seconds, and only while this process is notified of the
writes of other processes (by a subscription in its own thread). The absence of a session is never
cached, so it is always the store that reports it.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from perdure.errors import ConfigError
from perdure.host.extras import install_command
from perdure.model import Session, SessionKey, SessionState
from perdure.store.session_cache.records import SessionRecords

TTL_S = 3600.0
"""Time after which an unused record in Redis expires, in seconds. Each use restarts this time."""
MEMORY_S = 5.0
SUBSCRIPTION_TIMEOUT_S = 3.0
"""Maximum time in seconds since the last message from Redis. After that, this process no longer
trusts the sessions in its memory."""
LARGEST_MEMORY = 1024
PING_S = 1.0


class SharedCache(Protocol):
    """The interface of the cache that processes share. `redis.Redis` implements it."""

    def get(self, name: str, token: str) -> bytes | None: ...

    def fill(self, name: str, record: bytes, token: str) -> None: ...

    def put(self, name: str, revision: int, record: bytes) -> None: ...

    def drop(self, name: str) -> None: ...

    def report_once(self, what: str) -> None: ...

    def close(self) -> None: ...


class CachedLookups:
    """The session cache of one process for one store. Threads may share it."""

    def __init__(
        self,
        records: SessionRecords,
        far: SharedCache,
        hear: Callable[[LocalCache, threading.Event], None],
    ) -> None:
        """Set up the cache. `hear` is called in a thread, with the LocalCache and an event. Until
        the event is set, it follows the writes of other processes and updates the LocalCache."""
        self._records, self._far, self._hear = records, far, hear
        self._memory = LocalCache()
        self._ended = threading.Event()
        self._listener: threading.Thread | None = None
        self._asked = 0

    def session(
        self, key: SessionKey, ask: Callable[[SessionKey], Session | None]
    ) -> Session | None:
        """Return the live session of a key, or None. If the session is not in the cache, call
        `ask`, which reads it from the store."""
        name = self._records.name(key)
        found = self._memory.get(name)
        if found is not None:
            return found
        self._listen()
        mark, token = self._memory.mark(), secrets.token_hex(8)
        found = self._from_far(key, name, token)
        if found is None:
            found = ask(key)
            if found is None:
                return None
            self._far.fill(name, self._records.write(found, _now()), token)
        self._memory.put(name, found, mark)
        return found

    def stored(self, sessions: Sequence[Session]) -> None:
        """Update the cache with sessions that were just committed. Retired sessions are stored in
        Redis too. Their higher revision prevents an older record of the session from being stored
        later."""
        for session in sessions:
            name = self._records.name(session.key)
            self._memory.drop(name)
            self._far.put(name, session.revision, self._records.write(session, _now()))

    def close(self) -> None:
        """Stop the thread and close the connections."""
        self._ended.set()
        if self._listener is not None:
            self._listener.join()
        self._far.close()

    def _from_far(self, key: SessionKey, name: str, token: str) -> Session | None:
        content = self._far.get(name, token)
        if content is None:
            return None
        try:
            found = self._records.read(key, content, _now())
            if found is None:
                self._far.drop(name)
            if found is not None and found.state is not SessionState.RETIRED:
                return found
            return None
        except ValueError as error:
            self._far.drop(name)
            self._far.report_once(f"it had an invalid record ({error}), which was removed")
            return None

    def _listen(self) -> None:
        """Start the subscription at the second lookup. A program that looks up only once does not
        need the sessions in memory, and so needs no subscription."""
        self._asked += 1
        if self._asked == 2:
            self._listener = threading.Thread(
                target=self._hear,
                args=(self._memory, self._ended),
                daemon=True,
                name="session-cache",
            )
            self._listener.start()


class LocalCache:
    """The sessions that this process looked up recently. They are trusted only while the
    subscription works."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[Session, float]] = OrderedDict()
        self._turn = threading.Lock()
        self._heard = float("-inf")
        self._dropped = 0

    def get(self, name: str) -> Session | None:
        """Return the session of a name. Return None if it is not in memory, or too old to be
        trusted."""
        now = time.monotonic()
        with self._turn:
            found = self._kept.get(name)
            if (
                found is None
                or now - self._heard > SUBSCRIPTION_TIMEOUT_S
                or now - found[1] > MEMORY_S
            ):
                return None
            self._kept.move_to_end(name)
            return found[0]

    def mark(self) -> int:
        """Return the number of calls that dropped names so far. Read it before a lookup, and pass
        it to `put`. If the number has changed by then, the session may be outdated, and `put` does
        not keep it."""
        return self._dropped

    def put(self, name: str, session: Session, mark: int) -> None:
        """Keep a live session in memory, unless any name was dropped since `mark` was read."""
        with self._turn:
            if mark != self._dropped or session.state is SessionState.RETIRED:
                return
            self._kept[name] = (session, time.monotonic())
            self._kept.move_to_end(name)
            while len(self._kept) > LARGEST_MEMORY:
                self._kept.popitem(last=False)

    def drop(self, name: str) -> None:
        """Drop the session of a name, because this process or another one has written it to the
        store."""
        with self._turn:
            self._dropped += 1
            self._kept.pop(name, None)

    def alive(self) -> None:
        """Record that Redis has sent a message just now."""
        self._heard = time.monotonic()

    def lost(self) -> None:
        """Drop all sessions, because notifications of writes may have been missed."""
        with self._turn:
            self._dropped += 1
            self._heard = float("-inf")
            self._kept.clear()


def open(  # noqa: A001
    url: str, identity: tuple[str, bytes], tell: Callable[[str], None], ttl_s: float = TTL_S
) -> CachedLookups:
    """Return a cache in the Redis at this address, for the store with this identity. Does not
    connect yet. Raises ConfigError if `redis` is not installed or does not accept the address."""
    try:
        from perdure.store.session_cache.redis import Redis, unreachable
    except ImportError as error:
        raise ConfigError(
            ["session_cache: the library `redis` is not installed"], install_command("redis")
        ) from error
    records = SessionRecords(*identity)
    try:
        far = Redis(url, records.channel, ttl_s, tell)
    except ValueError as error:
        raise ConfigError(
            ["session_cache: redis-py does not accept this address"],
            "redis://host:6379/0, unix:///path",
        ) from error

    def hear(memory: LocalCache, ended: threading.Event) -> None:
        while not ended.is_set():
            listener = far.listener()
            try:
                listener.subscribe(records.channel)
                _follow(listener, memory, ended)
            except unreachable:
                memory.lost()
                ended.wait(PING_S)
            finally:
                memory.lost()
                listener.close()

    return CachedLookups(records, far, hear)


def _follow(listener: Any, memory: LocalCache, ended: threading.Event) -> None:
    """Process the messages of one subscription, until it breaks or the cache is closed."""
    pinged = time.monotonic()
    while not ended.is_set():
        message = listener.get_message(timeout=0.1)
        if time.monotonic() - pinged >= PING_S:
            pinged = time.monotonic()
            listener.ping()
        if message is None:
            continue
        memory.alive()
        if message["type"] == "message":
            memory.drop(bytes(message["data"]).decode("utf-8", "replace"))


def _now() -> int:
    return time.time_ns() // 1_000_000
