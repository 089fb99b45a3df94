"""Kills the move of a home at each of its steps. Checks what is left, and what the next call does
with it.

`make home-kills` kills at every named step and before every single change of the file system, in
all situations, and prints the counts. A sample of it runs in the suite. The process kills itself
with SIGKILL: at the n-th step that `tell` reports, or before the n-th call that changes something,
as Python's audit events name them. A kill counts only if it happened.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from perdure.agents.shared.homes import HOMES
from perdure.errors import PerdureError
from perdure.host.homes.link import Linking
from perdure.host.homes.linked_homes import LinkedHomes
from perdure.host.homes.unlink import unlink
from perdure.host.homes.volume import volume_at

CHANGES = (
    "os.rename",
    "os.link",
    "os.symlink",
    "os.mkdir",
    "os.rmdir",
    "os.remove",
    "os.chmod",
    "os.utime",
    "ctypes.call_function",
)
BEGINNING = '{"turn": "oth'
"""The beginning of a transcript whose longer version is on the other side. It may be missing after
a move."""
ENDED, REFUSED = 0, 7


@dataclass(frozen=True)
class World:
    """A user's home, a volume and perdure's state, all in one directory."""

    top: Path
    way: str

    @property
    def home(self) -> Path:
        return self.top / "home"

    @property
    def volume(self) -> Path:
        return self.top / "volume"

    @property
    def environ(self) -> dict[str, str]:
        return {"HOME": str(self.home)}

    def link(self, tell: Callable[[str], None] = lambda step: None) -> None:
        volume = volume_at(self.volume, make=True, new=True)
        call = Linking(
            volume=volume,
            state=self.top / "state",
            environ=self.environ,
            symlink=self.way == "symlink",
            tell=tell,
        )
        call.link("claude", HOMES["claude"])

    def unlink(self, tell: Callable[[str], None] = lambda step: None) -> None:
        unlink("claude", HOMES["claude"], self.top / "state", self.environ, tell=tell)

    def hashes(self, below: Path | None = None) -> set[str]:
        """Return the hashes of all files except perdure's own."""
        found = set()
        for directory, _, names in os.walk(below or self.top):
            for name in names:
                path = Path(directory, name)
                if (
                    path.is_file()
                    and not path.is_symlink()
                    and not {"state", ".perdure"} & set(path.relative_to(self.top).parts)
                ):
                    found.add(hashlib.sha256(path.read_bytes()).hexdigest())
        return found


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def database(path: Path, *words: str) -> None:
    """Make a database whose last rows are only in the WAL, as a killed agent leaves it."""
    with closing(sqlite3.connect(path)) as made:
        made.executescript(
            "pragma journal_mode=wal; pragma wal_autocheckpoint=0; create table said (words text);"
        )
        made.executemany("insert into said values (?)", [(word,) for word in words])
        made.commit()
        shutil.copy(path, f"{path}.c")
        shutil.copy(f"{path}-wal", f"{path}.c-wal")
    Path(f"{path}.c").replace(path)
    Path(f"{path}.c-wal").replace(f"{path}-wal")


def words_in(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as opened:
        return [row[0] for row in opened.execute("select words from said")]


def home_at(place: Path) -> None:
    write(place / "projects/-w/one.jsonl", '{"turn": 1}\n{"turn": 2}\n')
    write(place / "settings.json", '{"mine": true}')
    write(place / "commands/a/deep.md", "deep\n")
    (place / "empty").mkdir()
    (place / "loose").symlink_to("../elsewhere/nothing")
    (place / "inner").symlink_to("settings.json")
    os.mkfifo(place / "pipe")
    database(place / "store.db", "one", "two")


def empty(world: World) -> None:
    """Leave the home missing, and the volume empty."""


def full(world: World) -> None:
    """Write files to home and volume, with different names."""
    home_at(world.home / ".claude")
    write(world.home / ".claude.json", '{"servers": []}')
    write(world.volume / "homes/claude/projects/-x/two.jsonl", '{"turn": "other"}\n')


def conflict(world: World) -> None:
    """Write files with the same names to home and volume: transcripts that are longer on one side
    or the other, and files that differ."""
    full(world)
    there = world.volume / "homes/claude"
    write(there / "projects/-w/one.jsonl", '{"turn": 1}\n')
    write(there / "settings.json", '{"theirs": true}')
    write(there / ".claude.json", '{"servers": ["theirs"]}')
    write(there / "commands", "a file where the home has a directory")
    write(there / "empty/not.md", "x")
    database(there / "store.db", "three")
    write(world.home / ".claude/projects/-x/two.jsonl", BEGINNING)


def dangling(world: World) -> None:
    """Make the home a link to a target that does not exist."""
    (world.home / ".claude").symlink_to("nowhere")
    write(world.home / ".claude.json", "{}")
    write(world.volume / "homes/claude/projects/-x/two.jsonl", '{"turn": "other"}\n')


def link_to_link(world: World) -> None:
    """Make the home a link to a link to a directory."""
    home_at(world.home / "dotfiles/claude")
    (world.home / "again").symlink_to(world.home / "dotfiles/claude")
    (world.home / ".claude").symlink_to("again")


SITUATIONS = {
    "empty": empty,
    "full": full,
    "conflict": conflict,
    "dangling": dangling,
    "link-to-link": link_to_link,
}


def made(top: Path, situation: str, way: str) -> World:
    world = World(top, way)
    world.home.mkdir(parents=True)
    world.volume.mkdir(exist_ok=True)
    SITUATIONS[situation](world)
    return world


def died_at(
    act: Callable[[Callable[[str], None]], None], number: int, *, changes: bool
) -> int | None:
    """Run `act` in a child process that kills itself at the n-th step or change. Return its exit
    code, or None if it was killed."""
    pid = os.fork()
    if pid == 0:
        left = [number]

        def strike(*_: object) -> None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        if changes:
            sys.addaudithook(lambda event, arguments: strike() if event in CHANGES else None)
        try:
            act((lambda step: None) if changes else strike)
            os._exit(ENDED)
        except PerdureError as error:
            os._exit(error.exit_code)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(99)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return None
    return os.waitstatus_to_exitcode(status)


def sweep(
    top: Path, situation: str, way: str, verb: str, *, changes: bool, stride: int = 1
) -> Iterator[tuple[int, list[str]]]:
    """Kill at one step after the other until the action completes. Yield the number of each kill,
    with the faults that were found after it."""
    number = 1
    while True:
        world = made(top / f"{situation}-{way}-{verb}-{changes:d}-{number}", situation, way)
        before = world.hashes()
        if situation == "conflict":
            before.discard(hashlib.sha256(BEGINNING.encode()).hexdigest())
        if verb == "unlink":
            world.link()
        act = world.link if verb == "link" else world.unlink
        code = died_at(act, number, changes=changes)
        wrong = [
            f"after the kill: {len(lost)} file(s) lost"
            for lost in [before - world.hashes()]
            if lost
        ]
        again = died_at(act, 0, changes=False) if code is None else code
        if again != ENDED:
            wrong.append(f"the next call ended with {again}")
        wrong += [*wrong_with(world, before, verb), *wrong_with_databases(world, situation, verb)]
        if code is not None:
            assert not wrong, (situation, way, verb, wrong)
            shutil.rmtree(world.top)
            return
        yield number, wrong
        shutil.rmtree(world.top)
        number += stride


def wrong_with(world: World, before: set[str], verb: str) -> Iterator[str]:
    """Check the home and the volume after a completed call. Yield each fault."""
    if lost := before - world.hashes():
        yield f"{len(lost)} file(s) lost"
    place, target = world.home / ".claude", world.volume / "homes/claude"
    note = LinkedHomes(world.top / "state").one("claude")
    if verb == "link":
        if missing := before - world.hashes(target):
            yield f"{len(missing)} file(s) are not on the volume"
        if note is None or note.leaving:
            yield "it is not noted"
        if world.way == "symlink" and place.resolve() != target:
            yield "the place does not lead to the volume"
        if world.way == "variable" and os.path.lexists(place):
            yield "the old place is still there"
    else:
        if note is not None:
            yield "it is still noted"
        if place.is_symlink() or not place.is_dir():
            yield "the home is not back"
        if missing := before - world.hashes(world.home):
            yield f"{len(missing)} file(s) did not come back"
    for left in (
        *world.volume.glob(".perdure/taking-*"),
        *world.volume.glob(".perdure/stage/*"),
        *world.home.glob("*.perdure-stage"),
    ):
        yield f"{left.name} was left over"


def wrong_with_databases(world: World, situation: str, verb: str) -> Iterator[str]:
    """Check that the databases have all their rows, also those in the WAL. If there were two
    databases, each must have its own rows. Yield each fault."""
    place = world.volume / "homes/claude" if verb == "link" else world.home / ".claude"
    wanted = {
        "full": [["one", "two"]],
        "conflict": [["one", "two"], ["three"]],
        "link-to-link": [["one", "two"]],
    }.get(situation, [])
    there = [path for path in place.glob("store.db*") if not path.name.endswith(("-wal", "-shm"))]
    found = sorted(words_in(path) for path in there)
    if found != sorted(wanted):
        yield f"the databases say {found}"


def main(top: Path, chosen: list[str], changes_stride: int, steps_stride: int) -> int:
    """Run the kills on a file system in memory, so that durable writes cost nothing, and return the
    exit code. With a stride of 1 every step is tested, with 3 every third."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", top], check=True)
    fired = bad = 0
    for situation in chosen or SITUATIONS:
        for way in ("variable", "symlink"):
            for verb in ("link", "unlink"):
                for changes, stride in ((False, steps_stride), (True, changes_stride)):
                    for number, wrong in sweep(
                        top, situation, way, verb, changes=changes, stride=stride
                    ):
                        fired += 1
                        bad += bool(wrong)
                        if wrong:
                            print(json.dumps([situation, way, verb, changes, number, wrong]))
    print(f"{fired} kills, {bad} with something wrong after the next call")
    return 1 if bad else 0


def command(program: str, top: Path, *words: str) -> list[str]:
    """Return the command that runs this program, or `refusing.py`, in a user and mount namespace,
    which needs no rights."""
    return [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        sys.executable,
        "-m",
        f"tests.homes.{program}",
        str(top),
        *words,
    ]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[4:], int(sys.argv[2]), int(sys.argv[3])))
