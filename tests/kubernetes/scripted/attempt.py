"""An attempt's pod without an agent, for trials in which the operator, the cluster or the network
between them fails.

It replaces `perdure work --run --order DIR` and has the same contract. It reads the order, keeps a
conversation on the volume (a line for each attempt that began, durable before anything else), and
leaves its result as its termination message. The first word of its instructions says what it does:

    works S           succeeds after so many seconds fails N S         fails in its first N
    attempts, and then works hangs N S         does not end by itself in its first N attempts, and
    then works eats N S          is ended by the kernel, as one that takes too much memory is, in
    its first N attempts, and then works

With the word `saved` at the end it says that its work is saved elsewhere as well. If two attempts
run on one volume at the same time, or an attempt begins a second time, that is recorded in the
conversation.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from perdure.kubernetes import order as orders
from perdure.kubernetes.result import AttemptResult, ReceiptResult, encode, exit_code
from perdure.kubernetes.termination import session_line
from perdure.model import Outcome, OutcomeKind, Usage, Verdict

DATA = Path(os.environ.get("SCRIPTED_DATA", "/data"))
MESSAGE = Path(os.environ.get("SCRIPTED_MESSAGE", "/dev/termination-log"))
MOST_EATEN_MB = 256


class Attempt:
    """One attempt, from its order to its result."""

    def __init__(self, directory: Path) -> None:
        self.order, texts = orders.read(lambda name: (directory / name).read_bytes())
        self.words = str(texts[-1]).split()
        self.book = DATA / "conversation"
        self.before = (
            [json.loads(line) for line in self.book.read_text().splitlines()]
            if self.book.exists()
            else []
        )
        self.session = self.before[0]["session"] if self.before else f"session-{self.order.run}"

    def begin(self) -> None:
        """Lock the volume, and record that the attempt began."""
        self.lock = os.open(DATA / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            alone = False
        again = any(
            line["attempt"] == self.order.attempt and line["run"] == self.order.run
            for line in self.before
        )
        line = {
            "run": self.order.run,
            "attempt": self.order.attempt,
            "version": self.order.contexts[-1],
            "session": self.session,
        }
        with self.book.open("a") as out:
            out.write(json.dumps({**line, "alone": alone, "again": again}) + "\n")
            out.flush()
            os.fsync(out.fileno())
        print(session_line(self.order.attempt, self.session), flush=True)

    def play(self) -> NoReturn:
        kind, *rest = (word for word in self.words if word != "saved")
        turns = int(rest[0]) if kind != "works" else 0
        seconds = float(rest[-1]) if rest else 0.0
        mine = len(
            [
                line
                for line in self.before
                if line["version"] == self.order.contexts[-1] and line["run"] == self.order.run
            ]
        )
        if mine < turns:
            if kind == "hangs":
                while True:
                    signal.pause()
            if kind == "eats":
                eat()
            time.sleep(seconds)
            self.leave(Outcome(kind=OutcomeKind.FAILED, detail="as it was told to", code=1))
        time.sleep(seconds)
        self.leave(Outcome(kind=OutcomeKind.SUCCEEDED))

    def leave(self, outcome: Outcome) -> NoReturn:
        verdict = Verdict.NATIVE if self.before else Verdict.FRESH
        result = AttemptResult(
            attempt=self.order.attempt, outcome=outcome, session_id=self.session, receipt=ReceiptResult(verdict=verdict),
            usage=Usage(input=100, output=7), context_version=self.order.contexts[-1], saved="saved" in self.words,
        )  # fmt: skip
        MESSAGE.write_bytes(encode(result))
        os._exit(exit_code(result))


def eat() -> NoReturn:
    """Use memory until the kernel kills the process. If there is no limit, exit with the code that
    such a kill gives."""
    taken = []
    for _ in range(MOST_EATEN_MB):
        taken.append(b"x" * (1 << 20))
    # The first process of a pid namespace cannot kill itself by a signal.
    os._exit(128 + signal.SIGKILL)


def main() -> NoReturn:
    if "--as-relay" in sys.argv:
        from perdure.cli.main import main as perdure

        sys.exit(perdure())
    attempt = Attempt(Path(sys.argv[sys.argv.index("--order") + 1]))

    def asked_to_go(number: int, frame: FrameType | None) -> None:
        attempt.leave(Outcome(kind=OutcomeKind.LOST, detail="its pod was asked to end"))

    signal.signal(signal.SIGTERM, asked_to_go)
    attempt.begin()
    attempt.play()


if __name__ == "__main__":
    main()
