"""Watches TaskRuns, their Jobs and their pods with kopf, and keeps the queue of TaskRuns to
reconcile. Each event updates the cache and puts the TaskRun into the queue. `operator` starts both
parts; `reconciler` decides what is to be done.

Only kopf's watching is used: list and watch, bookmarks, 410, reconnection after silence. Only
`on.event` is registered, so kopf sets no finalizers or annotations, posts no Events, and does no
peering. The time of every received byte of a watch is recorded, including bookmarks, which the API
server sends about once a minute. This distinguishes a broken watch from a cluster in which nothing
happens.

`Queue` hands TaskRuns to workers. A TaskRun is processed soon after an event about it, and again at
the time that its last reconcile returned. Only one worker at a time processes a given TaskRun. A
TaskRun that is put into the queue while a worker processes it is processed once more afterwards. A
TaskRun that is put twice while it waits is processed once. After a failure it is retried with a
growing delay. The delay starts from the shortest again once a write for the TaskRun has succeeded.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import aiohttp
import kopf

from perdure.kubernetes.memory import ClusterCache, Key
from perdure.kubernetes.snapshot import UID_LABEL, job_seen, pod_seen
from perdure.kubernetes.status import safe_line
from perdure.kubernetes.wanted import GROUP, PLURAL, VERSION

SILENT_S = 70.0
"""Time in seconds without a received byte after which a watch is restarted. Bookmarks arrive once a
minute (kube-apiserver 1.36, cacher.go)."""
SERVER_S = 300
"""Maximum duration of a watch request in seconds. The API server accepts only a whole number."""
CHUNK = 500


class WatchActivity:
    """Records when each watch last received a byte (monotonic clock, in seconds)."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.last_byte: dict[str, float] = {}

    def record(self, what: str) -> None:
        self.last_byte[what] = time.monotonic()

    def age_s(self, wanted: int = 3) -> float:
        """Return for how many seconds the most silent watch has received nothing. While fewer than
        `wanted` watches have received a byte, return the time since the start instead."""
        if len(self.last_byte) >= wanted:
            last = min(self.last_byte.values())
        else:
            last = self.began
        return time.monotonic() - last


class _CountedContent:
    """Wraps the content of an HTTP response and calls `record` for each piece that is read."""

    def __init__(self, content: Any, record: Callable[[], None]) -> None:
        self._content, self._record = content, record

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        async for piece in self._content.iter_chunked(size):
            self._record()
            yield piece


def _session(info: Any, activity: WatchActivity) -> aiohttp.ClientSession:
    """Return an HTTP session like the one that kopf makes itself. In addition, it records in
    `activity` when each watch received a byte."""

    class Response(aiohttp.ClientResponse):
        async def start(self, connection: Any) -> aiohttp.ClientResponse:
            await super().start(connection)
            if self.status == 200 and self.url.query.get("watch") == "true":
                path = self.url.path
                activity.record(path)
                counted = _CountedContent(self.content, lambda: activity.record(path))
                self.content = counted  # type: ignore[assignment]
            return self

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
        headers={**info.as_http_headers(), "User-Agent": "perdure-operator"},
        response_class=Response,
    )  # fmt: skip


def registry(
    memory: ClusterCache,
    put: Callable[[Key], None],
    gone: Callable[[Key], None],
    activity: WatchActivity,
    login: Callable[[], Any],
) -> Any:
    """Return a kopf registry with the handlers for the login and for events."""
    found = kopf.OperatorRegistry()

    @kopf.on.login(registry=found)
    async def _login(**_: Any) -> Any:
        info = login()
        return kopf.AiohttpSession(server=info.server, aiohttp_session=_session(info, activity))

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=found)
    async def _run(event: Any, **_: Any) -> None:
        body = event["object"]
        if event["type"] == "DELETED":
            key = (body["metadata"]["namespace"], body["metadata"]["name"])
            memory.forget(key, body["metadata"]["uid"])
            gone(key)
        else:
            put(memory.keep(body))

    @kopf.on.event("batch", "v1", "jobs", registry=found)
    async def _job(event: Any, **_: Any) -> None:
        seen = job_seen(event["object"])
        if seen is not None and (key := memory.keep_job(seen, gone=event["type"] == "DELETED")):
            put(key)

    @kopf.on.event("", "v1", "pods", registry=found)
    async def _pod(event: Any, **_: Any) -> None:
        seen = pod_seen(event["object"], gone=event["type"] == "DELETED")
        if seen is not None and (key := memory.keep_pod(seen)):
            put(key)

    return found


def settings() -> Any:
    """Return settings that switch off everything in kopf except watching."""
    found = kopf.OperatorSettings()
    found.posting.enabled = False
    found.posting.loggers = False
    found.peering.standalone = True
    found.scanning.disabled = True
    found.watching.inactivity_timeout = SILENT_S
    found.watching.server_timeout = SERVER_S
    found.watching.chunk_size = CHUNK
    found.watching.label_selectors["batch", "v1", "jobs"] = UID_LABEL
    found.watching.label_selectors["", "v1", "pods"] = UID_LABEL
    found.networking.connect_timeout = 10.0
    found.queueing.idle_timeout = 1.0
    return found


async def listen(
    registered: Any,
    namespaces: Sequence[str],
    stop: asyncio.Event,
    ready: asyncio.Event,
    said: Callable[[str], None],
) -> None:
    """Watch until `stop` is set. kopf handles SIGTERM and SIGINT itself while it runs, so if one of
    them ends kopf, this function sets `stop`. If an error ends kopf, report the error and start
    kopf again."""
    logging.getLogger("kopf").setLevel(logging.CRITICAL + 1)
    logging.getLogger("kopf").propagate = False
    while not stop.is_set():
        try:
            await kopf.operator(
                registry=registered,
                settings=settings(),
                standalone=True,
                clusterwide=not namespaces,
                namespaces=list(namespaces),
                stop_flag=stop,
                ready_flag=ready,
            )
            if not stop.is_set():
                said("operator: stopping")
                stop.set()
        except Exception as error:
            said(
                f"the watches ended and are restarted: {type(error).__name__}: "
                f"{safe_line(str(error), 300)}"
            )
        if not stop.is_set():
            await asyncio.sleep(1.0)


FIRST_S, LONGEST_S = 1.0, 300.0


class Queue:
    """A queue of keys. Its workers call `work` with each key. `work` returns the delay in seconds
    after which it is to be called with this key again, or None to wait for the next `put`. An
    exception of `work` counts as a failure.

    The queue may be used only in the thread of its event loop.
    """

    def __init__(
        self,
        work: Callable[[Key], Awaitable[float | None]],
        failed: Callable[[Key, Exception], None],
    ) -> None:
        self._work, self._failed = work, failed
        self._due: deque[Key] = deque()
        self._waiting: set[Key] = set()
        self._busy: set[Key] = set()
        self._once_more: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._something = asyncio.Event()
        self._since: dict[Key, float] = {}
        """Time at which a worker began to process each key (monotonic clock, in seconds)."""

    def __len__(self) -> int:
        return len(self._due)

    @property
    def slowest_s(self) -> float:
        """Return how long the slowest worker has been processing its current key, in seconds; 0 if
        no worker is busy."""
        if self._since:
            return time.monotonic() - min(self._since.values())
        return 0.0

    def put(self, key: Key) -> None:
        """Schedule the key for processing as soon as a worker is free."""
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key in self._busy:
            self._once_more.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._due.append(key)
            self._something.set()

    def put_later(self, key: Key, seconds: float) -> None:
        """Schedule the key for processing after this delay in seconds, or earlier if `put` is
        called."""
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key not in self._waiting:
            self._timers[key] = asyncio.get_running_loop().call_later(
                max(seconds, 0.0), self.put, key
            )

    def moved(self, key: Key) -> None:
        """Record that the processing of a key made progress. The key's next failure is then retried
        after the shortest delay."""
        self._failures.pop(key, None)

    def forget(self, key: Key) -> None:
        if timer := self._timers.pop(key, None):
            timer.cancel()
        self._failures.pop(key, None)

    async def worker(self) -> None:
        """Process keys until cancelled. Cancellation may interrupt the processing of a key."""
        while True:
            while not self._due:
                self._something.clear()
                await self._something.wait()
            key = self._due.popleft()
            self._waiting.discard(key)
            self._busy.add(key)
            self._since[key] = time.monotonic()
            later: float | None = None
            try:
                later = await self._work(key)
                self._failures.pop(key, None)
            except Exception as error:  # An error of one TaskRun must not stop the others.
                count = self._failures[key] = self._failures.get(key, 0) + 1
                later = min(FIRST_S * 2 ** min(count - 1, 12), LONGEST_S) * (
                    0.8 + 0.4 * random.random()
                )
                self._failed(key, error)
            finally:
                self._busy.discard(key)
                del self._since[key]
            if key in self._once_more:
                self._once_more.discard(key)
                self.put(key) if later is None or key not in self._failures else self.put_later(
                    key, later
                )
            elif later is not None:
                self.put_later(key, later)

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
