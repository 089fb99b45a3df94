"""Full disks: a task whose database, workdirs, agent's home or logs lie on a volume that has no room at some moment.

Run in a mount namespace of its own (`python -m tests.faults full N` starts itself in one): each trial mounts a small tmpfs, its size
swept from one page to more than is needed, or has one system call of the supervisor, and all later ones, answered with ENOSPC. Then
there is room again, and a plain `retry` must do.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from tests.faults.scene import RUN, Trial, goes_on, is_made, one_sentence, play
from tests.journeys.stage import PATIENCE_S, Done, Stage

PLACES = ("state", "workdirs", "home", "all")
SIZES = {"state": (64, 1200), "workdirs": (16, 400), "home": (32, 2400), "all": (128, 4000)}
"""KB between which each place is swept: too little to begin, up to a little more than enough."""
CALLS = "pwrite64,fsync,fdatasync,mkdir,rename,ftruncate,fallocate"
STRACED = 90
"""How many such calls a run makes, about."""
INSIDE = "PERDURE_TEST_INSIDE"


def in_a_namespace(words: list[str], *, as_root: bool = False) -> int:
    """Runs this package's command in a namespace where mounts are its own; `as_root`: with root's own rights, for loop mounts."""
    command = ["unshare", *([] if as_root else ["--map-root-user"]), "--mount", sys.executable, "-m", "tests.faults", *words]
    return subprocess.run(command, env={**os.environ, INSIDE: "1"}).returncode


def trial(number: int, count: int) -> Trial:
    """Trial `number` of `count`: every fifth by an injected error, the others by a size."""
    if number % 5 == 4:
        return play(number, "ENOSPC by call", _by_call)
    place = PLACES[number % 5]
    small, large = SIZES[place]
    size = small + (large - small) * number // max(count - 1, 1)
    return play(number, f"{place} full", lambda stage, dice, found: _by_size(stage, found, place, size))


def mount(place: Path, size_kb: int) -> None:
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kb}k,mode=755", "none", str(place)], check=True)


def _by_size(stage: Stage, found: Trial, place: str, size: int) -> None:
    where = {"state": stage.state, "workdirs": stage.home / ".local/share/perdure", "home": stage.agent_home, "all": stage.home}[place]
    kept = {path.relative_to(where): path.read_bytes() for path in where.rglob("*") if path.is_file()}
    mount(where, size)
    try:
        for name, content in kept.items():
            _fits(where / name, content)
        # The watermarks would refuse the task at the door: here it is to meet the wall.
        stage.environ["PERDURE_DISK_REFUSE"] = "0"
        _strike(stage, found, stage.perdure(*RUN))
        subprocess.run(["mount", "-o", "remount,size=1g", str(where)], check=True)
        for name, content in kept.items():
            _fits(where / name, content)
        goes_on(stage, found)
    finally:
        stage.close()
        subprocess.run(["umount", "--lazy", str(where)], check=True)


def _fits(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError:
        path.unlink(missing_ok=True)


def _by_call(stage: Stage, dice: random.Random, found: Trial) -> None:
    number = dice.randint(1, STRACED)
    log = stage.directory / "strace"
    inject = ["-e", f"trace={CALLS}", "-e", f"inject={CALLS}:error=ENOSPC:when={number}+"]
    words = ["strace", "-f", "-o", str(log), *inject, sys.executable, "-m", "perdure", *RUN]
    # Only the supervisor: the shim and the agent are other programs, started by it (`-f` follows its threads; exec ends it).
    words.remove("-f")
    done = subprocess.run(words, cwd=stage.repo, env=stage.environ, capture_output=True, text=True, timeout=PATIENCE_S)
    found.what += " (met)" if "INJECTED" in log.read_text(errors="replace") else " (later)"
    _strike(stage, found, Done(done.returncode, done.stdout, done.stderr))
    goes_on(stage, found)


def _strike(stage: Stage, found: Trial, done: Done) -> None:
    """What must hold while there is no room."""
    found.struck = done.code != 0
    if not one_sentence(done):
        found.wrong.append(f"a traceback: {done.err[-400:]}")
    for words in (("ls",), ("ls", "--json"), ("du",)):
        read = stage.perdure(*words)
        if "Traceback" in read.err or (words[0] == "ls" and read.code != 0 and is_made(stage)):
            found.wrong.append(f"{' '.join(words)} ended with {read.code}: {read.err[-300:]}")
