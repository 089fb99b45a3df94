"""A background thread that repeats one action, a round, with pauses."""

from __future__ import annotations

import itertools
import queue
import threading

from perdure.host.rounds import Rounds

LONG_S = 3600.0


def test_a_round_that_fails_is_reported_and_others_follow() -> None:
    """The thread reports an error of a round and goes on with the next round. `wake` ends a pause,
    and `stop` calls `last`."""
    done: queue.Queue[str] = queue.Queue()
    errors: list[str] = []
    numbers = itertools.count(1)

    def work() -> float:
        done.put(f"round of {threading.current_thread().name}")
        if next(numbers) == 1:
            raise ValueError("the first one fails")
        return LONG_S

    def failed(error: Exception) -> None:
        errors.append(str(error))
        done.put("failed")

    rounds = Rounds("keeper", work, LONG_S, failed, last=lambda: done.put("last"))
    rounds.start()
    assert [done.get(timeout=60), done.get(timeout=60)] == ["round of keeper", "failed"]
    rounds.wake()
    assert done.get(timeout=60) == "round of keeper"
    rounds.wake()
    assert done.get(timeout=60) == "round of keeper"
    assert not rounds.is_over()
    rounds.stop()
    assert rounds.is_over() and errors == ["the first one fails"]
    assert done.get(timeout=60) == "last" and done.empty()


def test_the_pause_is_that_of_the_round() -> None:
    """The pause after a round is the one that the round returned. With 0 the next round follows at
    once; None means the usual pause."""
    pauses = iter([0.0, 0.0, None])
    reached = threading.Event()
    rounds_made: list[int] = []

    def work() -> float | None:
        rounds_made.append(1)
        pause_s = next(pauses)
        if pause_s is None:
            reached.set()
        return pause_s

    rounds = Rounds("keeper", work, LONG_S, lambda error: None)
    rounds.start()
    assert reached.wait(60)
    rounds.stop()
    assert len(rounds_made) == 3
