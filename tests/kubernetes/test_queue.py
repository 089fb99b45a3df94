"""The operator's queue: when a TaskRun is processed again after its step failed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from perdure.kubernetes.memory import Key
from perdure.kubernetes.watches import LONGEST_S, Queue


def waits(tries: int, moves: Callable[[int], bool], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the waiting times, in seconds, after this many failures in a row. `moves`: whether a
    write succeeded before the failure with this number."""

    async def main() -> list[float]:
        loop, found, over = asyncio.get_running_loop(), list[float](), asyncio.Event()

        def later(seconds: float, call: Callable[..., object], *words: Any) -> asyncio.Handle:
            found.append(seconds)
            if len(found) == tries:
                over.set()
            return loop.call_soon(call, *words)

        async def work(key: Key) -> float | None:
            if moves(len(found)):
                queue.moved(key)
            raise OSError("no")

        monkeypatch.setattr(loop, "call_later", later)
        queue = Queue(work, lambda key, error: None)
        worker = asyncio.create_task(queue.worker())
        queue.put(("default", "fix"))
        await over.wait()
        worker.cancel()
        queue.close()
        return found

    return asyncio.run(main())


def test_each_failure_is_waited_for_longer_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waiting times are about 1, 2, 4 s and so on, and never much more than the longest."""
    found = waits(12, lambda failures: False, monkeypatch)
    assert all(0.8 * 2**number <= wait <= 1.2 * 2**number for number, wait in enumerate(found[:8]))
    assert all(0.8 * LONGEST_S <= wait <= 1.2 * LONGEST_S for wait in found[9:])


def test_what_moved_on_begins_with_the_shortest_wait_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a successful write, the next failure counts as a new one."""
    found = waits(6, lambda failures: failures == 4, monkeypatch)
    assert found[3] >= 6.4 and found[4] <= 1.2 and found[5] <= 2.4
