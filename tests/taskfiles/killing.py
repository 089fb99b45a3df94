"""Places task files in a child process that is killed, and completes them in another one that is
not. `test_kills` runs this program, which prints its findings as JSON.

At each step: the child kills itself at its n-th access to the file system, for every n until it
completes. At random: the parent kills the child at any moment. The journal is a file with one line
for each transaction.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from perdure.model import OnEdit
from perdure.model.codec import decode, encode
from perdure.model.events import AnyEvent, Record
from perdure.rules.placement import placement_of
from tests.taskfiles.scene import Scene

TOUCHES = {"open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.chmod", "tempfile.mkdtemp"}
BASE, OURS, THEIRS, BOTH = (
    b"1\n2\n3\n4\n5\n",
    b"1\n2\n3\n4\nfive\n",
    b"one\n2\n3\n4\n5\n",
    b"one\n2\n3\n4\nfive\n",
)
NAMES = ("merged", "d/merged", "replaced", "written", "new/deep/file")


class Kept(Scene):
    """A scene whose journal survives its process."""

    def load(self) -> None:
        path = self.directory / "journal"
        lines = path.read_text().splitlines() if path.exists() else []
        self.journal = [record for line in lines for record in decode(line, list[Record])]

    def record(self, events: list[AnyEvent]) -> None:
        before = len(self.journal)
        super().record(events)
        with (self.directory / "journal").open("a") as file:
            file.write(encode(self.journal[before:]) + "\n")


def ready(directory: Path) -> Kept:
    """Make a workdir with task files that the agent has edited, and a new version of each."""
    scene = Kept(directory)
    scene.give(dict.fromkeys(NAMES[:4], BASE))
    scene.place()
    for name in NAMES[:3]:
        scene.write(name, OURS)
    scene.give(dict.fromkeys(("merged", "d/merged", "written", "new/deep/file"), THEIRS))
    scene.give({"replaced": THEIRS}, OnEdit.REPLACE)
    return scene


def killed(scene: Kept, at: int = 0, after_s: float = 0.0) -> bool:
    """Place files in a child process. `at`: the number of the access at which it kills itself.
    `after_s`: the time after which it is killed otherwise. Return whether it was killed."""
    child = os.fork()
    if not child:
        if at:
            left = [at]

            def count(event: str, _: object) -> None:
                if event in TOUCHES:
                    left[0] -= 1
                    if not left[0]:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(count)
        try:
            scene.load()
            scene.place()
        finally:
            os._exit(0)
    if not at:
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def wrong(scene: Kept, *, meddled: str = "") -> list[str]:
    """Return the faults: first those that the kill left, then those after the next attempt has
    completed the work."""
    found = []
    for name in NAMES[:3]:
        if OURS not in [scene.read(name), *scene.backups()]:
            found.append(f"{name}: the agent's version is lost")
    scene.load()
    if meddled:
        planned = {change.name: change for change in placement_of(scene.journal).unfinished}
        scene.write(meddled, b"somebody else\n")
    scene.place()
    expected = {
        "merged": BOTH,
        "d/merged": BOTH,
        "replaced": THEIRS,
        "written": THEIRS,
        "new/deep/file": THEIRS,
    }
    if meddled and planned:
        expected[meddled] = b"somebody else\n"
        if scene.left() != (meddled,):
            found.append(f"{meddled}: nothing is said of it, but of {scene.left()}")
    elif meddled:
        del expected[meddled]
    found += [
        f"{name}: {scene.read(name)!r}"
        for name, content in expected.items()
        if scene.read(name) != content
    ]
    if meddled and b"somebody else\n" not in [scene.read(meddled), *scene.backups()]:
        found.append(f"{meddled}: what somebody else wrote is lost")
    found += [f"left behind: {name}" for name in scene.strays()]
    if scene.place():
        found.append("it was placed twice")
    return found


def main(way: str, seed: int, count: int, stride: int = 1) -> None:
    dice = random.Random(seed)
    trials, struck, found = 0, 0, []
    while trials < count:
        trials += 1
        with tempfile.TemporaryDirectory() as directory:
            scene = ready(Path(directory))
            after_s, at = (
                (dice.uniform(0, 0.05), 0) if way == "random" else (0, 1 + (trials - 1) * stride)
            )
            died = killed(scene, at, after_s)
            struck += died
            found += [
                f"{way} {trials}: {each}"
                for each in wrong(scene, meddled="d/merged" if way == "meddled" else "")
            ]
            if way != "random" and not died:
                break
    print(json.dumps({"trials": trials, "struck": struck, "wrong": found}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
