"""The shared part of the session cache, in Redis (redis-py 8): get, put, and notification of the
writes of other processes. Every call ends quickly, with or without an answer.

Every request has a time limit. After a failure, a circuit breaker skips Redis for a while. So a
stalled server delays only one request, by a fraction of a second. If a record could not be written
during that time, its name is kept in `_pending`, because the record in Redis may be outdated. All
such records are removed before the next request to Redis. Each kind of problem is reported once, in
a sentence without the password of the address, and never raised."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from perdure.config.passwords import without_password
from perdure.store.session_cache.records import LARGEST

LIMIT_S = 0.25
"""Timeout for connecting, and for each answer, in seconds."""
AWAY_S = 2.0
AWAY_AT_MOST_S = 60.0
"""Maximum time for which the circuit breaker skips Redis, in seconds. It skips Redis for AWAY_S
seconds after the first failure, and twice as long after each further one."""
FILLING_S = 2.0
"""Time in seconds that a caller has to store a record with `fill`, after its `get` found none."""
MAX_PENDING = 100_000
"""Maximum number of names in `_pending`. Beyond this limit, names are not added. The outdated
record of such a name may be used for at most `records.SURE_S` seconds."""

GET = """
local size = redis.pcall('STRLEN', KEYS[1])
if type(size) == 'table' or size > tonumber(ARGV[2]) then
  redis.call('DEL', KEYS[1], KEYS[2])
  return {1}
end
if size == 0 then
  redis.call('DEL', KEYS[2])
  redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
  return {0}
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return {2, redis.call('GET', KEYS[1])}
"""
"""Lua script of `get`. It returns a list. Its first item is one of these numbers:

- 0: there is no record; only the last caller that got this may store one with `fill`.
- 1: the value was too large or of another type; it was deleted.
- 2: the second item is the record; its time to live starts again.
"""

FILL = """
if redis.pcall('GET', KEYS[2]) ~= ARGV[3] then return 0 end
redis.call('DEL', KEYS[2])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
"""Lua script of `fill`. It stores nothing if the name was written or removed since `get` found no
record. In that case the record that the caller read from the store may be outdated."""

PUT = """
redis.call('DEL', KEYS[2])
local old = redis.pcall('GET', KEYS[1])
if type(old) == 'string' and #old <= tonumber(ARGV[5]) then
  local there, body = string.match(old, '^(%d+) %d+ %x+ (.*)$')
  if there and tonumber(there) > tonumber(ARGV[2]) then return 0 end
  local new = string.match(ARGV[1], '^%d+ %d+ %x+ (.*)$')
  if there and tonumber(there) == tonumber(ARGV[2]) and body ~= new then
    redis.call('DEL', KEYS[1])
    redis.call('PUBLISH', ARGV[4], KEYS[1])
    return 0
  end
end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
redis.call('PUBLISH', ARGV[4], KEYS[1])
return 1
"""
"""Lua script of `put`. An older record never replaces a newer one. If two records have the same
revision but differ, both are dropped."""

DROP = """
for _, name in ipairs(KEYS) do
  redis.call('DEL', name, name .. ':filling')
  redis.call('PUBLISH', ARGV[1], name)
end
return 1
"""


class Redis:
    """The connection of one process to one Redis. Threads may share it."""

    def __init__(self, url: str, channel: str, ttl_s: float, tell: Callable[[str], None]) -> None:
        """Prepare the client. Does not connect yet. Raises ValueError for an address that redis-py
        does not accept."""
        never = Retry(NoBackoff(), 0)
        self.place = without_password(url)
        self._client = redis.Redis.from_url(
            url,
            socket_timeout=LIMIT_S,
            socket_connect_timeout=LIMIT_S,
            retry=never,
            health_check_interval=0,
            decode_responses=False,
        )
        self._get, self._fill, self._put, self._drop = map(
            self._client.register_script, (GET, FILL, PUT, DROP)
        )
        self._channel, self._ttl_ms, self._tell = channel, int(ttl_s * 1000), tell
        self._turn = threading.Lock()
        self._pending: dict[str, None] = {}
        self._remover: threading.Thread | None = None
        self._ended = threading.Event()
        self._away_until, self._away_s = 0.0, AWAY_S
        self._told: set[str] = set()

    def get(self, name: str, token: str) -> bytes | None:
        """Return the record; None if there is none, or if Redis does not answer. If there is none,
        the caller may store one with `fill` and the same `token`. A value that is not a record is
        removed and reported."""
        found = self._ask(
            lambda: self._get(
                keys=_keys(name), args=[self._ttl_ms, LARGEST, token, int(FILLING_S * 1000)]
            )
        )
        if not found or found[0] == 0:
            return None
        if found[0] == 1:
            self.report_once("it had an entry that is not a session; the entry was removed")
            return None
        return bytes(found[1])

    def fill(self, name: str, record: bytes, token: str) -> None:
        """Store a record that the caller read from the database after `get` found none. Does
        nothing if the name was written or removed meanwhile."""
        if len(record) <= LARGEST:
            self._ask(lambda: self._fill(keys=_keys(name), args=[record, self._ttl_ms, token]))

    def put(self, name: str, revision: int, record: bytes) -> None:
        """Store a record that was written to the database, unless Redis has a newer one, and notify
        other processes. If Redis cannot be reached, add the name to `_pending`. The outdated record
        in Redis is then removed later."""
        if len(record) > LARGEST:
            self.drop(name)
            return
        args: list[bytes | str | int | float] = [
            record,
            revision,
            self._ttl_ms,
            self._channel,
            LARGEST,
        ]
        if self._ask(lambda: self._put(keys=_keys(name), args=args)) is None:
            self._queue_removal(name)

    def drop(self, name: str) -> None:
        """Remove a record. If Redis cannot be reached now, add its name to `_pending` for a later
        removal."""
        if self._ask(lambda: self._drop(keys=[name], args=[self._channel])) is None:
            self._queue_removal(name)

    def report_once(self, what: str) -> None:
        """Report a problem to the user, unless the same text was reported before."""
        if what not in self._told:
            self._told.add(what)
            self._tell(f"the session cache at {self.place}: {what}")

    def listener(self) -> Any:
        """Return a new subscription for the names of written records. Its methods raise the errors
        in `unreachable`."""
        return self._client.pubsub(ignore_subscribe_messages=False)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Remove the outdated records of the names in `_pending`, if Redis can be reached, and
        close the connections."""
        self._ended.set()
        remover = self._remover
        if remover is not None:
            remover.join()
        if self._pending:
            self._ask(lambda: True)
        self._client.close()

    def _queue_removal(self, name: str) -> None:
        """Add a name to `_pending`, because its record in Redis may be outdated. The next request
        to Redis removes the record. If no request follows, a thread removes it."""
        with self._turn:
            if len(self._pending) < MAX_PENDING:
                self._pending[name] = None
            if self._remover is None and not self._ended.is_set():
                self._remover = threading.Thread(
                    target=self._remove_pending, daemon=True, name="session-cache-removals"
                )
                self._remover.start()

    def _remove_pending(self) -> None:
        while not self._ended.wait(max(0.05, self._away_until - time.monotonic())):
            self._ask(lambda: True)
            with self._turn:
                if not self._pending:
                    self._remover = None
                    return

    def _ask(self, ask: Callable[[], Any]) -> Any:
        """Call `ask` and return its result. Returns None if the circuit breaker is open, or if
        Redis does not answer in time."""
        if time.monotonic() < self._away_until:
            return None
        try:
            self._flush_removals()
            answer = ask()
        except (redis.RedisError, OSError, ValueError) as error:
            with self._turn:
                self._away_until = time.monotonic() + self._away_s
                self._away_s = min(self._away_s * 2, AWAY_AT_MOST_S)
            self.report_once(
                f"it does not answer ({type(error).__name__}); the database is used instead"
            )
            return None
        with self._turn:
            self._away_s = AWAY_S
        return answer

    def _flush_removals(self) -> None:
        """Remove the outdated records of the names in `_pending`. Each name leaves `_pending`
        before its record is removed, because another thread may add it again meanwhile."""
        while self._pending:
            with self._turn:
                names = list(self._pending)[:1000]
                for name in names:
                    del self._pending[name]
            try:
                self._drop(keys=names, args=[self._channel])
            except BaseException:
                with self._turn:
                    self._pending.update(dict.fromkeys(names))
                raise


def _keys(name: str) -> list[str]:
    return [name, f"{name}:filling"]


unreachable = (redis.RedisError, OSError, ValueError)
"""Errors that a request to Redis may raise."""


def problem(url: str) -> str:
    """Return the reason why Redis cannot be used at an address, as the name of the error. Return an
    empty string if Redis can be used."""
    client = redis.Redis.from_url(
        url, socket_timeout=2, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0)
    )
    try:
        client.ping()
        return ""
    except unreachable as error:
        return type(error).__name__
    finally:
        client.close()
