"""A volume that cannot take a home: it is read-only, too small, or becomes full during the move.
This program runs in a namespace in which it may mount.

perdure is also killed at each step. In all cases the home stays complete at its old place. After
the volume is repaired, the next call succeeds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from perdure.host.homes.linked_homes import LinkedHomes
from perdure.host.homes.volume import volume_at
from tests.homes.killing import (
    ENDED,
    REFUSED,
    World,
    died_at,
    full,
    wrong_with,
    wrong_with_databases,
)

SMALL = ("size=1m",)
FEW = ("nr_inodes=14",)
LARGE = ("size=64m", "nr_inodes=1000")


def mount(place: Path, *options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", place], check=True)


def remount(place: Path, *options: str) -> None:
    # Only the given options are set. `mount` would otherwise repeat the options that it finds,
    # among them the owner, which has no name in the user namespace.
    words = ["--options-mode=ignore", "-o", ",".join(("remount", *options))]
    subprocess.run(["mount", *words, place], check=True)


def made(top: Path, kind: str, way: str) -> World:
    """Make a full home, and beside it a volume with its own file system, which then gets the fault
    `kind`."""
    world = World(top, way)
    world.home.mkdir(parents=True)
    world.volume.mkdir()
    mount(world.volume, *{"small": SMALL, "few": FEW}.get(kind, LARGE))
    full(world)
    if kind == "small":
        (world.home / ".claude/projects/-w/long.jsonl").write_bytes(b"x" * (4 << 20))
    volume_at(world.volume, make=True)
    if kind == "read-only":
        remount(world.volume, "ro")
    return world


def play(top: Path, kind: str, way: str) -> tuple[int, int, list[str]]:
    """Kill at every step until the call itself refuses. Return the number of kills, the exit code
    of the refusal, and the faults that were found."""
    wrong: list[str] = []
    number = 1
    while True:
        world = made(top / f"{kind}-{way}-{number}", kind, way)
        before = world.hashes()
        code = died_at(world.link, number, changes=False)
        again = died_at(world.link, 0, changes=False)
        if again != REFUSED:
            wrong.append(f"{kind}, {number}: the call ended with {again} and was not refused")
        if before - world.hashes(world.home) - world.hashes(world.volume):
            wrong.append(f"{kind}, {number}: lost")
        if (
            (world.home / ".claude").is_symlink()
            or not (world.home / ".claude").is_dir()
            or LinkedHomes(world.top / "state").all()
        ):
            wrong.append(f"{kind}, {number}: the home is not where it was")
        remount(world.volume, "rw", *LARGE)
        mended = died_at(world.link, 0, changes=False)
        if mended != ENDED:
            wrong.append(f"{kind}, {number}: with room again it ended with {mended}")
        wrong += [
            f"{kind}, {number}: {each}"
            for each in (
                *wrong_with(world, before, "link"),
                *wrong_with_databases(world, "full", "link"),
            )
        ]
        subprocess.run(["umount", world.volume], check=True)
        if code is not None:
            return number - 1, code, wrong
        number += 1


def main(top: Path) -> int:
    mount(top, "size=256m")
    told = [
        (kind, way, *play(top, kind, way))
        for kind in ("read-only", "small", "few")
        for way in ("variable", "symlink")
    ]
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
