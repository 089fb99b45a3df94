"""Sessions are looked up through a real Redis. Writes of other processes are seen, lost or hostile
records are not used, and no lookup waits for Redis."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from perdure import store as stores
from perdure.errors import ConfigError
from perdure.model import Session, SessionKey, SessionState
from perdure.store import session_cache
from perdure.store.session_cache import lookups
from perdure.store.session_cache.records import LARGEST, SURE_S, SessionRecords
from perdure.store.sql import SqlStore
from perdure.testing.stores import StoreConformance
from tests.servers.redis import PATIENCE_S, RedisServer, server

KEY = SessionKey("claude", "plan:shop/main")
SESSION = Session(
    key=KEY, id="s-1", state=SessionState.CONFIRMED, created=1, updated=1, prompts=("00ff",)
)


@contextmanager
def cached(
    path: Path, redis: RedisServer, told: list[str] | None = None, **settings: float
) -> Iterator[SqlStore]:
    """Yield a store with its session cache, as in one process. Problems of the cache are appended
    to `told`."""
    with closing(stores.open(path)) as store:
        store.cache = session_cache.open(
            redis.url, store.identity(), (told if told is not None else []).append, **settings
        )
        yield store


@pytest.fixture
def two(tmp_path: Path, shared_redis: RedisServer) -> Iterator[tuple[SqlStore, SqlStore]]:
    """Yield the stores of two processes, on one database and one Redis."""
    with (
        cached(tmp_path / "perdure.db", shared_redis) as one,
        cached(tmp_path / "perdure.db", shared_redis) as other,
    ):
        yield one, other


def records(redis: RedisServer) -> list[bytes]:
    with redis.client() as client:
        return sorted(client.keys("perdure:*:session:*"))


def until(met: Callable[[], bool]) -> None:
    ended = threading.Event()
    for _ in range(int(PATIENCE_S * 100)):
        if met():
            return
        ended.wait(0.01)
    raise AssertionError("it never came")


def answers(store: SqlStore) -> bool:
    """Return whether the cache answers a lookup, without a query of the store's table."""
    asked: list[SessionKey] = []
    assert store.cache is not None

    def ask(key: SessionKey) -> Session | None:
        asked.append(key)
        return store.session(key)

    store.cache.session(KEY, ask)
    return not asked


class LookedUp(SqlStore):
    """A store whose `session` looks the session up, so that the store's public suite tests the
    cache."""

    def session(self, key: SessionKey) -> Session | None:
        assert self.cache is not None
        return self.cache.session(key, super().session)


class TestLookedUp(StoreConformance):
    """The public suite, with every live session looked up through the cache."""

    @pytest.fixture
    def store(self, tmp_path: Path, shared_redis: RedisServer) -> Iterator[SqlStore]:
        with closing(stores.open(tmp_path / "perdure.db")) as plain:
            store = LookedUp(plain._database)
            store.cache = session_cache.open(shared_redis.url, store.identity(), pytest.fail)
            yield store
            store.cache.close()


@pytest.fixture
def long_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the memory cache forget records only on request, and never because of their age."""
    monkeypatch.setattr(lookups, "MEMORY_S", 3600.0)


@pytest.mark.usefixtures("long_memory")
def test_what_one_writes_another_sees(two: tuple[SqlStore, SqlStore]) -> None:
    """Another process gets the newest version of a record from Redis. It also gets it from its own
    memory, because it is notified of each later version."""
    one, other = two
    assert other.look_up(KEY) is None
    one.put_session(SESSION)
    assert answers(other) and other.look_up(KEY) == SESSION
    for number in range(5):
        newer = replace(SESSION, tasks=number)
        one.put_session(newer)
        until(lambda newer=newer: other.look_up(KEY) == newer)  # type: ignore[misc]
    one.put_session(replace(SESSION, state=SessionState.RETIRED, cause="lost"))
    until(lambda: other.look_up(KEY) is None)
    one.put_session(replace(SESSION, id="s-2"))
    until(lambda: (other.look_up(KEY) or SESSION).id == "s-2")


@pytest.mark.usefixtures("long_memory")
def test_memory_answers_while_it_is_kept_in_step(
    two: tuple[SqlStore, SqlStore], shared_redis: RedisServer
) -> None:
    """When a process listens to changes, its second lookup is answered from memory, although the
    record in Redis is gone. If the record is written, the memory forgets it."""
    one, other = two
    one.put_session(SESSION)

    def from_memory() -> bool:
        other.look_up(KEY)
        with shared_redis.client() as client:
            client.flushall()
        return answers(other)

    until(from_memory)
    one.put_session(replace(SESSION, tasks=3))
    until(lambda: (other.look_up(KEY) or SESSION).tasks == 3)


def test_an_older_record_never_wins(
    two: tuple[SqlStore, SqlStore], shared_redis: RedisServer
) -> None:
    """If records reach Redis in the wrong order, the newest one stays. If two different records
    have the same revision, neither stays."""
    one, _ = two
    one.put_session(SESSION)
    one.put_session(replace(SESSION, tasks=2))
    assert one.cache is not None
    one.cache.stored([replace(SESSION, tasks=1, revision=1)])
    assert answers(one) and (one.look_up(KEY) or SESSION).tasks == 2
    one.cache.stored([replace(SESSION, tasks=9, revision=2)])
    assert not answers(one) and (one.look_up(KEY) or SESSION).tasks == 2


@pytest.mark.parametrize("lost", [True, False])
def test_a_lookup_never_fills_in_what_is_old(
    lost: bool, two: tuple[SqlStore, SqlStore], shared_redis: RedisServer
) -> None:
    """A record is written, and perhaps lost from Redis again, while a lookup has read the previous
    one from the store. That previous record is not written to Redis."""
    one, other = two
    one.put_session(SESSION)
    with shared_redis.client() as client:
        client.flushall()

        def ask(key: SessionKey) -> Session | None:
            old = one.session(key)
            other.put_session(replace(SESSION, tasks=8))
            if lost:
                client.flushall()
            return old

        assert one.cache is not None
        assert one.cache.session(KEY, ask) == SESSION
        assert bool(client.keys("perdure:*:session:*")) is not lost
    until(lambda: (one.look_up(KEY) or SESSION).tasks == 8)
    assert (other.look_up(KEY) or SESSION).tasks == 8


def test_the_time_to_live_begins_anew_with_each_use(
    tmp_path: Path, shared_redis: RedisServer
) -> None:
    """A record that is used stays in Redis. A record that is not used expires, and the next lookup
    reads the store."""
    with (
        cached(tmp_path / "perdure.db", shared_redis, ttl_s=100.0) as store,
        shared_redis.client() as client,
    ):
        store.put_session(SESSION)
        (name,) = client.keys(f"perdure:{store.identity()[0]}:*")
        client.pexpire(name, 20_000)
        assert answers(store) and 90_000 < int(client.pttl(name)) <= 100_000
        client.pexpire(name, 1)
        until(lambda: not client.exists(name))
        assert not answers(store) and store.look_up(KEY) == SESSION


@pytest.mark.parametrize("what", ["text", "forged", "moved", "list", "huge", "other store"])
def test_what_others_put_into_redis_is_not_believed(what: str, tmp_path: Path) -> None:
    """A record that this store did not sign is removed and reported once, and the lookup reads the
    store."""
    told: list[str] = []
    with (
        server() as redis,
        cached(tmp_path / "perdure.db", redis, told) as store,
        redis.client() as client,
    ):
        store.put_session(SESSION)
        (name,) = records(redis)
        good = bytes(client.get(name) or b"")
        forged = SessionRecords(store.identity()[0], b"x" * 32)
        stranger = replace(SESSION, id="s-evil", revision=2**52)
        elsewhere = SessionRecords(*store.identity()).write(
            replace(stranger, key=SessionKey("codex", "x")), 2**52
        )
        content = {
            "text": b"nonsense",
            "forged": forged.write(stranger, 2**52),
            "moved": elsewhere,
            "huge": b"9" * (LARGEST + 1),
        }
        client.delete(name)
        if what == "list":
            client.rpush(name, "a", "b")
        elif what == "other store":
            client.set(name, good.replace(b"s-1", b"s-2"))
        else:
            client.set(name, content[what])
        for _ in range(3):
            assert store.look_up(KEY) == SESSION
        assert len(told) == 1 and "removed" in told[0], told
        assert answers(store)


def test_a_record_is_sure_for_a_while_only() -> None:
    """A record that was read from the store too long ago, or in the future, is rejected, whatever
    its signature is."""
    signed = SessionRecords("x", b"k" * 32)
    record = signed.write(SESSION, 10**12)
    assert signed.read(KEY, record, 10**12 + 1000) == SESSION
    for now in (10**12 + int(SURE_S * 1000) + 1, 10**12 - int(SURE_S * 1000) - 1):
        assert signed.read(KEY, record, now) is None
    with pytest.raises(ValueError, match="signed"):
        signed.read(KEY, record.replace(b"1000000000000", b"1000000000001"), 10**12)


def test_what_is_too_old_is_read_anew(
    two: tuple[SqlStore, SqlStore], shared_redis: RedisServer
) -> None:
    """A record that was used all the time, but not read from the store again, becomes too old and
    is replaced by the store's record."""
    one, _ = two
    one.put_session(SESSION)
    signed = SessionRecords(*one.identity())
    with shared_redis.client() as client:
        client.set(signed.name(KEY), signed.write(replace(SESSION, id="s-old", revision=1), 10**12))
    assert one.look_up(KEY) == SESSION
    one.look_up(KEY)
    assert answers(one) and one.look_up(KEY) == SESSION


@pytest.mark.parametrize("fault", ["stalled", "dead"])
def test_nobody_waits_for_a_redis_that_does_not_answer(fault: str, tmp_path: Path) -> None:
    """While Redis does not answer, lookups and writes use the database. The writes are in Redis
    afterwards. The problem is reported once, without the password."""
    told: list[str] = []
    with ExitStack() as stack:
        redis = stack.enter_context(server(requirepass="open-sesame"))
        one, other = (
            stack.enter_context(cached(tmp_path / "perdure.db", redis, told)) for _ in range(2)
        )
        one.put_session(SESSION)
        assert answers(one)
        redis.stall() if fault == "stalled" else redis.kill()
        for number in range(1, 40):
            one.put_session(replace(SESSION, tasks=number))
            assert (one.look_up(KEY) or SESSION).tasks == number
            assert other.session(KEY) == one.session(KEY)
        assert len(told) == 1 and "does not answer" in told[0] and "sesame" not in told[0], told
        redis.wake() if fault == "stalled" else redis.start()
        until(
            lambda: (
                (one.look_up(KEY) or SESSION).tasks == 39
                and (other.look_up(KEY) or SESSION).tasks == 39
            )
        )
        until(lambda: answers(one))
        until(lambda: answers(other))


def test_two_stores_share_one_redis(tmp_path: Path, shared_redis: RedisServer) -> None:
    """The same scope in another database is another conversation, although both databases use one
    Redis."""
    with (
        cached(tmp_path / "a.db", shared_redis) as one,
        cached(tmp_path / "b.db", shared_redis) as other,
    ):
        one.put_session(SESSION)
        other.put_session(replace(SESSION, id="s-9"))
        assert (one.look_up(KEY), other.look_up(KEY)) == (SESSION, replace(SESSION, id="s-9"))


def test_an_address_that_is_none(tmp_path: Path) -> None:
    """An address that redis-py refuses is reported by a sentence without the password."""
    with pytest.raises(ConfigError) as refused:
        session_cache.open("redis://:sesame@host:port/0", ("x", b"k"), print)
    assert "sesame" not in str(refused.value)
