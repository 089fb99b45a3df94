"""Full disks: the database, workdirs, repository or agent's home of a task are on a volume that
becomes full at some moment.

Runs in a mount namespace (`python -m tests.faults full N` starts itself in one). Each trial mounts
a small tmpfs with room for a part of what the task writes there (`full`), or lets one kind of
program get no space from some call on (`calls`, see `wall`). Then there is room again, and a
`retry` must succeed. A trial counts only if a call was really answered with ENOSPC.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from tests.faults.scene import RUN, Trial, goes_on, one_sentence, play
from tests.faults.wall import PROGRAMS, Injected, met, seen
from tests.journeys.stage import PATIENCE_S, Done, Stage

NEEDED = {"state": 192, "workdirs": 200, "repository": 64, "home": 1450, "all": 1800}
"""Approximate amount that the task writes to each place, in KB (Codex 0.169.0). Each trial has room
for only a part of it."""
PLACES = tuple(NEEDED)
LEAST, MOST = 0.02, 0.97
DRAWS = 5
"""Number of tries for one trial. A program may end before it reaches the chosen call; then another
call is chosen."""
INSIDE = "PERDURE_TEST_INSIDE"


def in_a_namespace(words: list[str], *, as_root: bool = False) -> int:
    """Run this package's command in a mount namespace and return its exit code. `as_root`: with
    root's own rights, which loop mounts need."""
    command = [
        "unshare",
        *([] if as_root else ["--map-root-user"]),
        "--mount",
        sys.executable,
        "-m",
        "tests.faults",
        *words,
    ]
    return subprocess.run(command, env={**os.environ, INSIDE: "1"}).returncode


def trial(number: int, count: int) -> Trial:
    """Make trial `number` of `count`. The trials use the places in turn, each with sizes from
    nearly nothing to nearly enough."""
    place = PLACES[number % len(PLACES)]
    step, steps = number // len(PLACES), max((count - 1) // len(PLACES), 1)
    size = int(NEEDED[place] * (LEAST + (MOST - LEAST) * step / steps))
    return play(
        number, f"{place} full", lambda stage, dice, found: _by_size(stage, found, place, size)
    )


def by_call(number: int, count: int) -> Trial:
    """Make trial `number` with one of the programs, in turn. Repeat it until a call of that program
    has failed for lack of space."""
    program = PROGRAMS[number % len(PROGRAMS)]
    for draw in range(DRAWS):
        seed = number + draw * 10_000
        found = play(
            seed,
            f"no room for {program}",
            lambda stage, dice, found: _by_call(stage, dice, found, program),
        )
        if found.struck or found.wrong:
            break
    return found


def mount(place: Path, size_kb: int) -> None:
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k,mode=755", "none", str(place)], check=True
    )


def resize(place: Path, size_kb: int) -> None:
    # Only the given options are set. `mount` would otherwise repeat the options that it finds,
    # among them the owner, which has no name in the user namespace.
    words = ["--options-mode=ignore", "-o", f"remount,size={size_kb}k", str(place)]
    subprocess.run(["mount", *words], check=True)


def _by_size(stage: Stage, found: Trial, place: str, size: int) -> None:
    where = {
        "state": stage.state, "workdirs": stage.home / ".local/share/perdure", "repository": stage.repo, "home": stage.agent_home,
        "all": stage.home,
    }[place]  # fmt: skip
    _more_files(stage)
    kept = {
        path.relative_to(where): path.read_bytes() for path in where.rglob("*") if path.is_file()
    }
    mount(where, 1 << 20)
    log = stage.directory / "seen"
    try:
        for name, content in kept.items():
            (where / name).parent.mkdir(parents=True, exist_ok=True)
            (where / name).write_bytes(content)
        space = os.statvfs(where)
        size += (space.f_blocks - space.f_bfree) * space.f_frsize // 1024
        resize(where, size)
        before = dict(stage.environ)
        # perdure's limits on free space would refuse the task at its start, but here it must run
        # until the disk is full.
        stage.environ["PERDURE_DISK_REFUSE"] = "0"
        done = _run(stage, [*seen(log), sys.executable, "-m", "perdure"])
        found.met = met(log)
        found.struck = bool(found.met)
        _strike(stage, found, done)
        resize(where, 1 << 20)
        stage.environ.clear()
        stage.environ.update(before)
        goes_on(stage, found)
    finally:
        stage.close()
        subprocess.run(["umount", "--lazy", str(where)], check=True)


def _more_files(stage: Stage) -> None:
    """Add enough files to the repository that it can fill volumes of all sizes."""
    for number in range(20):
        (stage.repo / f"part{number:02}.txt").write_text(f"{number:08}\n" * 900)
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.invalid"]
    for words in (["add", "."], [*identity, "commit", "-q", "-m", "more"]):
        subprocess.run(["git", *words], cwd=stage.repo, env=stage.environ, check=True)


def _by_call(stage: Stage, dice: random.Random, found: Trial, program: str) -> None:
    injected = Injected.draw(program, dice, stage.directory / "injected")
    before = dict(stage.environ)
    done = _run(stage, injected.put(stage))
    fired = injected.fired()
    found.struck = fired > 0
    found.met[program] += fired
    stage.environ.clear()
    stage.environ.update(before)
    _strike(stage, found, done)
    goes_on(stage, found)


def _run(stage: Stage, words: list[str]) -> Done:
    done = subprocess.run(
        [*words, *RUN],
        cwd=stage.repo,
        env=stage.environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def _strike(stage: Stage, found: Trial, done: Done) -> None:
    """Check the promises that hold while the disk is full."""
    found.ended = done.code != 0
    if not one_sentence(done):
        found.wrong.append(f"a traceback: {done.err[-400:]}")
    for words in (("ls",), ("ls", "--json"), ("du",)):
        read = stage.perdure(*words)
        if "Traceback" in read.err or (words[0] == "ls" and read.code != 0):
            found.wrong.append(f"{' '.join(words)} ended with {read.code}: {read.err[-300:]}")
