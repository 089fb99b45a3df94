"""`python -m tests.hosts database|holders|all N` runs N trials of a kind and prints the counts. The
exit code is 1 if a promise did not hold.

`all N` runs N/2 trials with failures of the database (F8), and N with holders of a lease (F10).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.hosts import database, holders
from tests.servers.postgres import Server, running

AT_ONCE = 4


def main(words: list[str]) -> int:
    kind, count = words[0], int(words[1])
    if kind == "all":
        return max(main(["database", str(max(count // 2, 1))]), main(["holders", str(count)]))
    if kind == "database":
        with running(**database.SERVER) as server:
            return _summary(
                "F8", [_one(database.trial, server, database.KINDS, seed) for seed in range(count)]
            )
    with running(max_connections="200") as server, ThreadPoolExecutor(AT_ONCE) as pool:
        return _summary(
            "F10",
            list(
                pool.map(
                    lambda seed: _one(holders.trial, server, holders.KINDS, seed), range(count)
                )
            ),
        )


def _one(
    trial: Callable[[Server, str, int], list[str]], server: Server, kinds: Sequence[str], seed: int
) -> tuple[str, bool]:
    kind = kinds[seed % len(kinds)]
    wrong = trial(server, kind, seed)
    for sentence in wrong:
        print(f"seed {seed}, {kind}: {sentence}", flush=True)
    return kind, bool(wrong)


def _summary(name: str, results: list[tuple[str, bool]]) -> int:
    made, bad = (
        Counter(kind for kind, _ in results),
        Counter(kind for kind, wrong in results if wrong),
    )
    for kind in made:
        print(f"{name}  {kind:34} {made[kind]:5} trials  {bad[kind]:3} violations")
    print(f"{name}  {'all':34} {made.total():5} trials  {bad.total():3} violations")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
