"""Measures single parts of perdure: workdirs, the store, processes and lines."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from unittest import mock

from msgspec.structs import replace

from bench.measure import Row, interleaved, ms
from perdure import store as stores
from perdure.agents import registry
from perdure.agents.transcripts import Copies
from perdure.host import process
from perdure.host.process import Lines
from perdure.host.redaction import Redactor
from perdure.model import Backend, Command, TaskSpec, Workspace
from perdure.model.events import Said
from perdure.workspace import Workspaces, worktree

ENVIRON = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "GIT_CONFIG_GLOBAL": "/dev/null"}


def git(cwd: Path, *words: str) -> bytes:
    """Run git, which must succeed, and return its output."""
    own = {**ENVIRON, "HOME": str(cwd)}
    return subprocess.run(
        ["git", "-c", "user.name=b", "-c", "user.email=b@example.invalid", *words],
        cwd=cwd,
        env=own,
        check=True,
        capture_output=True,
    ).stdout


def make_repository(directory: Path, files: int) -> Path:
    """Make a repository with this number of small files in folders of a hundred, and two commits.
    Return its path."""
    repo = directory / f"repo-{files}"
    for number in range(files):
        path = repo / f"d{number // 100:04}" / f"f{number % 100:02}.txt"
        if number % 100 == 0:
            path.parent.mkdir(parents=True)
        path.write_text(f"file {number}\n" * (5 + number % 40))
    git(repo, "init", "-q", "-b", "main")
    git(repo, "add", ".")
    git(repo, "commit", "-q", "-m", "first")
    (repo / "d0000/f00.txt").write_text("changed\n")
    git(repo, "commit", "-q", "-a", "-m", "second")
    return repo


def workdirs(directory: Path, files: int = 25_000) -> Iterator[Row]:
    """Measure the first dispatch and a re-dispatch of a workdir, compared with git's clone,
    worktree add and rev-parse."""
    repo = make_repository(directory, files)
    spaces = Workspaces(directory / "root", environ={**ENVIRON, "HOME": str(directory)})
    counter = iter(range(1_000_000))

    def planned() -> Workspace:
        return spaces.plan(TaskSpec(prompt="x", repo=str(repo)), f"run-{next(counter)}", repo)

    def first() -> None:
        spaces.prepare(planned(), "claude")

    def by_hand() -> None:
        number = next(counter)
        git(
            repo, "worktree", "add", "-q", "-b", f"hand-{number}", str(directory / f"hand-{number}")
        )

    def clone() -> None:
        git(directory, "clone", "-q", f"file://{repo}", str(directory / f"clone-{next(counter)}"))

    ours, hand, cloned = interleaved(3, first, by_hand, clone)
    what = f"first dispatch of a workdir, {files:,} files"
    yield Row(what, ms(ours), "git worktree add by hand", ms(hand), ours / hand, 1.1)
    known = planned()
    spaces.prepare(known, "claude")
    again, parse = interleaved(
        15,
        lambda: spaces.prepare(known, "claude"),
        lambda: git(Path(known.path), "rev-parse", "HEAD"),
    )
    yield Row(
        "re-dispatch in place, no network",
        ms(again),
        "git rev-parse HEAD",
        ms(parse),
        again / parse,
        6,
    )
    yield Row(
        "the same",
        ms(again),
        "git clone",
        ms(cloned),
        cloned / again,
        1000,
        least=True,
        note="how many times faster",
    )
    tree = _bytes(Path(known.path))
    own = tree + _bytes(repo / ".git" / "worktrees" / Path(known.path).name)
    yield Row(
        "disk for one more workdir",
        f"{own >> 20} MiB",
        "the tree itself",
        f"{tree >> 20} MiB",
        own / tree,
        1.03,
    )


def durable(disk: Path, files: int) -> Iterator[Row]:
    """Measure the cost of a new workdir that survives a power cut: each dispatch with a flush of
    its file system is compared with one without."""
    repo = make_repository(disk, files)
    spaces = Workspaces(disk / "durable-root", environ={**ENVIRON, "HOME": str(disk)})
    counter = iter(range(1_000_000))

    def first() -> float:
        place = spaces.plan(TaskSpec(prompt="x", repo=str(repo)), f"durable-{next(counter)}", repo)
        # Flush what other processes have written first, so that it does not count here.
        os.sync()
        begun = time.perf_counter()
        spaces.prepare(place, "claude")
        return time.perf_counter() - begun

    pairs = []
    for _ in range(9):
        with mock.patch.object(worktree, "flush_each"):
            without = first()
        pairs.append((first(), without))
    ours, other = (statistics.median(each) for each in zip(*pairs, strict=True))
    ratio = statistics.median(one / two for one, two in pairs)
    yield Row(
        f"first dispatch on a disk, {files:,} files",
        ms(ours),
        "the same without its flush",
        ms(other),
        ratio,
        1.5,
        note="by pairs",
    )


def checkpoints(directory: Path, files: int = 30_000) -> Iterator[Row]:
    """Measure the save of a workdir that has not changed, and of one with ten changed files,
    compared with git status of the same state."""
    repo = make_repository(directory / "saved", files)
    environ = {**ENVIRON, "HOME": str(directory)}
    spaces = Workspaces(directory / "saved-root", environ=environ)
    place = spaces.plan(TaskSpec(prompt="x", repo=str(repo)), "saved", repo)
    spaces.prepare(place, "claude")
    top, counter = Path(place.path), iter(range(1_000_000))

    def save() -> None:
        spaces.checkpoints.save(place, next(counter))

    def status() -> None:
        git(top, "status", "--porcelain")

    def change() -> None:
        mark = next(counter)
        for number in range(10):
            (top / f"d{number:04}" / "f05.txt").write_text(f"{mark} {number}\n" * 20)

    # Each round waits two seconds. Until then a file could have changed without a change of its
    # times, so git and perdure would read it again.
    for _ in range(2):
        time.sleep(2.1)
        save()
        status()
    ours, other = interleaved(9, save, status)
    yield Row(
        f"checkpoint of {files:,} unchanged files",
        ms(ours),
        "git status",
        ms(other),
        ours / other,
        1.3,
    )

    def snapshot() -> None:
        assert git(top, "stash", "create")

    taken: dict[str, list[float]] = {"save": [], "status": [], "stash": []}
    for _ in range(9):
        for name, work in (("save", save), ("status", status), ("stash", snapshot)):
            change()
            begun = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - begun)
    ours, other, stash = (statistics.median(each) for each in taken.values())
    yield Row(
        "checkpoint of 10 changed files",
        ms(ours),
        "git status",
        ms(other),
        ours / other,
        1.5,
        note="git stash create, which writes the same files into the object store",
        limit=stash / other,
    )


def _bytes(path: Path) -> int:
    return int(
        subprocess.run(
            ["du", "-s", "--block-size=1", str(path)], capture_output=True, check=True
        ).stdout.split()[0]
    )


def copies(directory: Path) -> Iterator[Row]:
    """Measure perdure's own copy of a 20 MB transcript that grew by 4 KB: the bytes written, and
    the time compared with reading the transcript once."""
    driver, transcript = registry.load("claude"), directory / "talk.jsonl"
    line = b'{"type":"assistant","message":{"content":"' + b"x" * 960 + b'"}}\n'
    transcript.write_bytes(line * 20_000)
    kept = Copies(directory / "copies", Redactor.of({"API_KEY": "sk-not-in-it-at-all"}))

    def take() -> None:
        with transcript.open("ab") as file:
            file.write(line * 4)
        kept.take(driver, "talk", transcript)

    def written() -> int:
        return int(
            next(
                each
                for each in Path("/proc/self/io").read_text().splitlines()
                if each.startswith("wchar")
            ).split()[1]
        )

    take()
    before, grew = written(), 4 * len(line)
    take()
    own = written() - before - grew
    yield Row(
        "bytes written for 4 KB more of a 20 MB transcript",
        f"{own:,}",
        "the new bytes",
        f"{grew:,}",
        own / grew,
        1.5,
    )
    ours, other = interleaved(7, take, lambda: hashlib.sha256(transcript.read_bytes()))
    yield Row(
        "the same, in time",
        ms(ours),
        "read and hash the transcript once",
        ms(other),
        ours / other,
        2,
    )


def at_once(directory: Path) -> Iterator[Row]:
    """Measure eight workdirs of one repository made at once, compared with one after the other."""
    repo = make_repository(directory / "eight", 3_000)
    spaces = Workspaces(directory / "eight-root", environ={**ENVIRON, "HOME": str(directory)})
    failures = 0

    def prepare(name: str) -> int:
        try:
            spaces.prepare(spaces.plan(TaskSpec(prompt="x", repo=str(repo)), name, repo), "claude")
        except Exception:
            return 1
        return 0

    serial, together = [], []
    for number in range(5):
        begun = time.perf_counter()
        failures += sum(prepare(f"s{number}-{n}") for n in range(8))
        serial.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        with ThreadPoolExecutor(8) as pool:
            failures += sum(pool.map(prepare, [f"p{number}-{n}" for n in range(8)]))
        together.append(time.perf_counter() - begun)
    one, other = statistics.median(together), statistics.median(serial)
    yield Row(
        f"8 workdirs at once ({failures} failures in 80)",
        ms(one),
        "one after the other",
        ms(other),
        one / other,
        0.75,
    )


def store(directory: Path) -> Iterator[Row]:
    """Measure durable events and claims, compared with one fdatasync on the same file system."""
    database = stores.open(directory / "bench.db")
    place = Workspace(id="w", path="/w", backend=Backend.TASK)
    database.add(TaskSpec(prompt="x"), "r0", "run-0", place)
    claim = database.claim("w", 3600)
    assert claim is not None
    probe = os.open(directory / "probe", os.O_WRONLY | os.O_CREAT)

    def sync() -> None:
        os.pwrite(probe, b"x" * 420, 0)
        os.fdatasync(probe)

    bare = _bare(directory / "bare.db")

    def insert(count: int) -> None:
        bare.execute("begin immediate")
        bare.executemany("insert into event (text) values (?)", [("x" * 420,)] * count)
        bare.execute("commit")

    text = Said(text="x" * 400)
    single, batch, floor, one, fifty = interleaved(
        60,
        lambda: database.record(claim, [text]),
        lambda: database.record(claim, [text] * 50),
        sync,
        lambda: insert(1),
        lambda: insert(50),
    )
    os.close(probe)
    bare.close()
    yield Row(
        "one durable event",
        ms(single),
        "one fdatasync",
        ms(floor),
        single / floor,
        2.2,
        note="a transaction of SQLite with one insert",
        limit=one / floor,
    )
    yield Row(
        "a durable event in a batch of 50",
        ms(batch / 50),
        "one fdatasync",
        ms(floor),
        batch / 50 / floor,
        0.1,
        note="a transaction of SQLite with fifty inserts",
        limit=fifty / 50 / floor,
    )
    for number in range(1, 2001):
        database.add(
            TaskSpec(prompt="x"), f"r{number}", f"run-{number}", replace(place, id=f"w{number}")
        )
    with multiprocessing.get_context("spawn").Pool(8) as pool:
        taken = pool.map(_claims, [str(directory / "bench.db")] * 8)
        work = [(str(directory / "bare.db"), time.time() + 1.0)] * 8
        bare_waits = sorted(chain(*pool.map(_bare_writes, work, chunksize=1)))
    waits = sorted(wait for waits, _ in taken for wait in waits)
    names = [name for _, claimed in taken for name in claimed]
    p99 = waits[int(len(waits) * 0.99)]
    what = f"claim by 8 processes, p99 ({len(names)} claims, {len(names) - len(set(names))} twice)"
    yield Row(
        what,
        ms(p99),
        "one fdatasync",
        ms(floor),
        p99 / floor,
        20,
        note="p99 of eight processes, each with 250 transactions of one update in SQLite",
        limit=bare_waits[int(len(bare_waits) * 0.99)] / floor,
    )
    database.close()


def _bare(path: Path) -> sqlite3.Connection:
    """Open a database with one table and the settings of perdure's store."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=60)
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = full")
    connection.execute("create table if not exists event (id integer primary key, text text)")
    return connection


def _bare_writes(work: tuple[str, float]) -> list[float]:
    """Return the time of each of 250 transactions that change one row, in seconds. All processes
    begin at the same time."""
    path, at = work
    connection, waits = _bare(Path(path)), list[float]()
    time.sleep(max(0.0, at - time.time()))
    for number in range(250):
        begun = time.perf_counter()
        connection.execute("begin immediate")
        connection.execute("update event set text = ? where id = 1", (f"{number}" * 100,))
        connection.execute("commit")
        waits.append(time.perf_counter() - begun)
    connection.close()
    return waits


def _claims(path: str) -> tuple[list[float], list[str]]:
    database = stores.open(path)
    waits, names = list[float](), list[str]()
    while True:
        begun = time.perf_counter()
        claim = database.claim(f"w{os.getpid()}", 3600)
        waits.append(time.perf_counter() - begun)
        if claim is None:
            database.close()
            return waits, names
        names.append(claim.run.id)


def lines(directory: Path) -> Iterator[Row]:
    """Measure following an agent's output, compared with reading the bytes."""
    log = directory / "log"
    line = b'{"type":"assistant","text":"' + b"x" * 1970 + b'"}\n'
    log.write_bytes(line * 50_000)

    def floor() -> None:
        with log.open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass

    def follow() -> None:
        reader = Lines(log)
        while reader.read():
            pass

    def split() -> None:
        with log.open("rb", buffering=0) as file:
            while piece := file.read(1 << 20):
                piece.split(b"\n")

    ours, other, cut = interleaved(5, follow, floor, split)
    yield Row(
        "100 MB of 2 kB lines followed",
        ms(ours),
        "os.read of the same bytes",
        ms(other),
        other / ours,
        0.3,
        least=True,
        note="os.read, and split of the bytes at their line ends",
        limit=other / cut,
    )


def spawn(directory: Path) -> Iterator[Row]:
    """Measure a trivial agent under its shim, compared with the bare program."""
    counter = iter(range(1_000_000))

    def under_shim() -> None:
        begun = process.start(
            Command(argv=("/bin/sh", "-c", "echo hello"), stdin=b""),
            directory=directory / f"a{next(counter)}",
            cwd=directory,
            env=ENVIRON,
            mark=f"bench.{next(counter)}",
            deadline_s=60,
        )
        begun.wait()

    words = ["/bin/sh", "-c", "echo hello"]
    ours, other, python = interleaved(
        15,
        under_shim,
        lambda: subprocess.run(words, capture_output=True, check=True),
        lambda: subprocess.run(
            [sys.executable, "-I", "-S", "-c", "import subprocess"], capture_output=True, check=True
        ),
    )
    yield Row(
        "a trivial program under its shim, extra ms",
        ms(ours - other),
        "the bare program",
        ms(other),
        (ours - other) * 1000,
        4,
        note="Python that starts and imports subprocess, once an attempt",
        limit=python * 1000,
    )
