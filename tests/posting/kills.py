"""Kills the process that reports to a forge at each of its requests, right after the forge has
carried it out, and checks the final state of the forge.

`make posting-kills` does this for every request of a whole story; the suite does it for a few.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.posting.bench import SHOP, Bench, environment, make_bench
from tests.servers.forge import Request

TOP = Path(__file__).parents[2]


@dataclass
class Killer:
    """Counts the requests to the forge and to git from 0, and kills its process at the request with
    the given number."""

    at: int
    seen: int = 0
    process: subprocess.Popen[bytes] | None = None
    fired: str = ""
    log: list[str] = field(default_factory=list)

    def forge(self, request: Request) -> None:
        self.one(f"{request.method} {request.path}")

    def one(self, what: str) -> None:
        if self.process is None:
            return
        self.log.append(what)
        if self.seen == self.at:
            self.fired = what
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.seen += 1


def answer(top: Path, bench: Bench, run_id: str, killer: Killer) -> None:
    """Run one process that reports the run, until it ends or is killed."""
    words = [
        "-m",
        "tests.posting.answering_once",
        str(top),
        bench.small.url,
        bench.http.url("{repository}"),
        run_id,
    ]
    killer.process = subprocess.Popen(
        [sys.executable, *words],
        cwd=TOP,
        env={**environment(top), "PYTHONPATH": str(TOP)},
        stderr=subprocess.PIPE,
    )
    _, said = killer.process.communicate()
    code, killer.process = killer.process.returncode, None
    assert code == (-signal.SIGKILL if killer.fired else 0), said.decode()


def story(top: Path, at: int) -> str:
    """Play a run that is accepted, works and is published. The process that reports it is killed at
    request number `at` and started again. Return that request, or an empty string if there are
    fewer. Raise AssertionError if anything is missing on the forge, or is there twice."""
    killer = Killer(at)
    with make_bench(top, killer.forge) as bench:
        bench.http.done = killer.one
        run = bench.dispatched()
        answer(top, bench, run.id, killer)
        bench.worked(run)
        if killer.fired:
            answer(top, bench, run.id, Killer(-1))
        else:
            answer(top, bench, run.id, killer)
            if killer.fired:
                answer(top, bench, run.id, Killer(-1))
        assert len(bench.comments) == 1 and "is done" in bench.comments[0], bench.comments
        assert len(bench.pulls) == 1 and bench.pulls[0].head == "perdure/dev-1"
        assert bench.issue.reactions == {("dev-bot", "eyes"), ("dev-bot", "rocket")}
        assert bench.git("rev-list", "--count", f"main..{bench.branch()}") == "1"
        assert bench.shop.statuses[bench.branch()][-1].state == "success"
        found = bench.posting(run)
        assert (found.tries, found.commit, found.pull) == (0, bench.branch(), bench.pulls[0].number)
        assert (
            f"[pull request {found.pull}]" in bench.comments[0]
            and bench.engine.store.postings_due() == []
        )
        assert bench.small.state.repositories[SHOP].items.keys() == {1, 2}
    return killer.fired


def main(numbers: Sequence[str]) -> None:
    killed: list[str] = []
    while True:
        with tempfile.TemporaryDirectory(prefix="pk") as directory:
            fired = story(Path(directory), len(killed))
        if not fired:
            break
        killed.append(fired)
        print(f"killed at request {len(killed)}: {fired}", flush=True)
    print(
        f"{len(killed)} kills, one at each request: one comment, one branch and one pull request "
        "each time"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
