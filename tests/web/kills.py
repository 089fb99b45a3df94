"""`python -m tests.web.kills N [DIRECTORY]`: `perdure serve` is killed N times by SIGKILL at random
moments while webhooks come in.

Senders send numbered deliveries and repeat each delivery until it is acknowledged, as a person does
with "redeliver". After each kill the server is started again on the same data. At the end every
acknowledged delivery must be in the inbox exactly once, with the number that was acknowledged.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.web.serving import EVENTS, Serving

SENDERS = 4


@dataclass
class Found:
    """The result of a campaign."""

    kills: int
    sent: int = 0
    acknowledged: int = 0
    unknown: int = 0
    """Deliveries that were sent and had no answer because of a kill. They may or may not have been
    stored, and are sent again."""
    lost: list[int] = field(default_factory=list)
    twice: list[int] = field(default_factory=list)
    moved: list[int] = field(default_factory=list)
    """Deliveries that were acknowledged twice with different numbers."""


def campaign(serving: Serving, kills: int, seed: int) -> Found:
    """Kill the server this many times and count the results. The server is stopped properly at the
    end."""
    chance = random.Random(seed)
    found, acknowledged, turn = Found(kills), {}, threading.Lock()
    over = threading.Event()
    numbers = iter(range(1, 10**9))
    sources = list(EVENTS)

    def send() -> None:
        while not over.is_set():
            with turn:
                number = next(numbers)
            source = sources[number % len(sources)]
            for tries in range(10**6):
                with turn:
                    found.sent += 1
                try:
                    status, said = serving.deliver(
                        source,
                        number=number,
                        id=f"kill-{number}" if number % 3 else f"kill-{number}-{tries}",
                    )
                except (OSError, http.client.HTTPException, ValueError):
                    with turn:
                        found.unknown += 1
                    if over.wait(0.02):
                        return
                    continue
                assert status == 202, (status, said)
                with turn:
                    if acknowledged.setdefault(number, said["delivery"]) != said["delivery"]:
                        found.moved.append(number)
                break

    serving.start()
    senders = [threading.Thread(target=send, daemon=True) for _ in range(SENDERS)]
    for each in senders:
        each.start()
    for _ in range(kills):
        # Kill only after a delivery was acknowledged, and then at any moment.
        with turn:
            before = len(acknowledged)
        serving.until(
            lambda before=before: len(acknowledged) > before, "a delivery is acknowledged"
        )
        time.sleep(chance.random() * 0.3)
        serving.kill()
        serving.start()
    over.set()
    for each in senders:
        each.join()
    assert serving.stop() == 0
    # Every third delivery has another id at each try, so it is recognized by its text.
    kept = {each.number: each for each in serving.inbox()}
    named = Counter(int(each.id.split("-")[1]) for each in kept.values())
    found.acknowledged = len(acknowledged)
    found.lost = [
        number
        for number, at in acknowledged.items()
        if at not in kept or int(kept[at].id.split("-")[1]) != number
    ]
    found.twice = [number for number, count in named.items() if count > 1]
    return found


def storm(serving: Serving, deliveries: int, times: int, seed: int) -> tuple[int, int]:
    """Send each delivery this often, out of order, by several senders. Return how many deliveries
    the inbox has afterwards, and how often they came."""
    serving.start()
    wishes = [number for number in range(1, deliveries + 1) for _ in range(times)]
    random.Random(seed).shuffle(wishes)
    shares = [wishes[at::SENDERS] for at in range(SENDERS)]

    def send(share: list[int]) -> None:
        for at, number in enumerate(share):
            status, _ = serving.deliver(
                "hub", number=number, id=f"storm-{number}" if at % 3 else ""
            )
            assert status == 202

    senders = [threading.Thread(target=send, args=(share,)) for share in shares]
    for each in senders:
        each.start()
    for each in senders:
        each.join()
    assert serving.stop() == 0
    kept = serving.inbox()
    return len(kept), sum(each.times for each in kept)


def main() -> int:
    count, seed = int(sys.argv[1]), int(time.time())
    directory = (
        Path(sys.argv[2])
        if len(sys.argv) > 2
        else Path(tempfile.mkdtemp(prefix="perdure-webhooks-"))
    )
    print(f"seed {seed}, in {directory}", flush=True)
    with contextlib.ExitStack() as stack:
        for name in ("kills", "storm"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        killed = Serving(directory / "kills")
        stack.callback(killed.kill)
        found = campaign(killed, count, seed)
        print(found, flush=True)
        stormed = Serving(directory / "storm")
        stack.callback(stormed.kill)
        made, came = storm(stormed, 500, 20, seed)
        print(
            f"a storm of 500 deliveries, 20 times each: {made} in the inbox, counted {came} times"
        )
    return 1 if found.lost or found.twice or found.moved or (made, came) != (500, 10_000) else 0


if __name__ == "__main__":
    raise SystemExit(main())
