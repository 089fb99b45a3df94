"""Costs that grow: a store of a million events, many agents at once, one very long line, and the
removal of a large workdir."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.measure import Row, command, interleaved, ms
from bench.rooms import ENVIRON, git, make_repository
from perdure import store
from perdure.host import process
from perdure.host.process import Lines
from perdure.model import Backend, Command, TaskSpec, Workspace
from perdure.model.events import Said
from perdure.workspace import Workspaces


def restart(directory: Path, events: int = 1_000_000) -> Iterator[Row]:
    """Measure the time after a kill to open a store with this number of events and find every
    running attempt, compared with `import sqlite3`."""
    path = directory / "million.db"
    database = store.open(path)
    place = Workspace(id="w", path="/w", backend=Backend.TASK)
    database.add(TaskSpec(prompt="x"), "r0", "run-0", place)
    claim = database.claim("w", 3600)
    assert claim is not None
    text = Said(text="x" * 200)
    for _ in range(events // 5_000):
        database.record(claim, [text] * 5_000)
    database.close()
    opens = (
        f"from perdure import store as stores; s = stores.open({str(path)!r}); assert len(s.claims()) == 1; "
        "s.close()"
    )
    words = [[sys.executable, "-c", opens], [sys.executable, "-c", "import sqlite3"]]
    ours, bare = interleaved(7, *(command(each, directory, ENVIRON) for each in words))
    path.unlink()
    yield Row(
        f"a store of {events:,} events opened, all leases known",
        ms(ours),
        "import sqlite3",
        ms(bare),
        ours / bare,
        10,
    )


def memory(directory: Path, agents: int = 50) -> Iterator[Row]:
    """Measure the memory of one more running agent: the supervisor's share, and the pages that only
    its shim has."""

    def resident(pid: int | str) -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    before = resident("self")
    begun = [
        process.start(
            Command(argv=("/bin/sleep", "600"), stdin=b""),
            directory=directory / f"m{n}",
            cwd=directory,
            env=ENVIRON,
            mark=f"mem.{n}",
            deadline_s=600,
        )
        for n in range(agents)
    ]
    share = max(1, (resident("self") - before) // agents)
    shims = [_private(each.shim.pid) for each in begun if each.shim is not None]
    for each in begun:
        each.kill()
    yield Row(
        "the supervisor's memory, one more agent",
        f"{share >> 10} KiB",
        "the goal",
        "64 KiB",
        share / 65536,
        1,
    )
    own = sum(shims) // len(shims)
    sleep = "import subprocess, time; time.sleep(600)"
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", sleep]) as python:
        time.sleep(1)
        least = _private(python.pid)
        python.kill()
    yield Row(
        "its shim's own memory",
        f"{own / 2**20:.1f} MiB",
        "the goal",
        "1 MiB",
        own / 2**20,
        1,
        note="Python with subprocess; one Claude Code takes 210 MB",
        limit=least / 2**20,
    )


def _private(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024


def long_line(directory: Path) -> Iterator[Row]:
    """Measure one complete line of 20 MB, compared with reading the bytes."""
    log = directory / "long"
    log.write_bytes(b'{"type":"assistant","text":"' + b"x" * 20_000_000 + b'"}\n')

    def floor() -> None:
        with log.open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass

    def follow() -> None:
        reader, found = Lines(log), list[bytes]()
        while not found:
            found = list(reader.read())
        assert len(found[0]) > 20_000_000

    def join() -> None:
        with log.open("rb", buffering=0) as file:
            pieces = list(iter(lambda: file.read(1 << 17), b""))
        assert b"".join(pieces).endswith(b"\n")

    ours, other, joined = interleaved(7, follow, floor, join)
    yield Row(
        "one line of 20 MB, whole",
        ms(ours),
        "os.read of the same bytes",
        ms(other),
        other / ours,
        0.3,
        least=True,
        note="os.read in pieces of 128 KiB, joined",
        limit=other / joined,
    )


def taken_away(directory: Path, files: int = 25_000) -> Iterator[Row]:
    """Measure moving a workdir to the trash, for which a person waits, compared with `git worktree
    remove`."""
    repo = make_repository(directory / "away", files)
    spaces = Workspaces(directory / "away-root", environ={**ENVIRON, "HOME": str(directory)})
    counter = iter(range(1_000))
    ready: list[Workspace] = []

    def make(_: int) -> Workspace:
        workspace = spaces.plan(TaskSpec(prompt="x", repo=str(repo)), f"run-{next(counter)}", repo)
        spaces.prepare(workspace, "claude")
        return workspace

    ready = [make(n) for n in range(4)]
    by_hand = [directory / f"by-hand-{n}" for n in range(4)]
    for path in by_hand:
        git(repo, "worktree", "add", "-q", "--detach", str(path))
    ours, hand, parse = interleaved(
        3,
        lambda: spaces.trash_workdir(ready.pop(), {}),
        lambda: git(repo, "worktree", "remove", str(by_hand.pop())),
        lambda: git(repo, "rev-parse", "HEAD"),
    )
    yield Row("a workdir taken away", ms(ours), "git rev-parse HEAD", ms(parse), ours / parse, 4)
    yield Row(
        "the same",
        ms(ours),
        "git worktree remove",
        ms(hand),
        hand / ours,
        10,
        least=True,
        note="how many times faster",
    )

    def first_ever() -> None:
        fresh = Workspaces(
            directory / f"r{next(counter)}", environ={**ENVIRON, "HOME": str(directory)}
        )
        fresh.prepare(
            fresh.plan(TaskSpec(prompt="x", repo=str(repo), backend="isolated"), "first", repo),
            "claude",
        )

    first, shallow = interleaved(
        3,
        first_ever,
        lambda: git(
            directory,
            "clone",
            "-q",
            "--depth=1",
            f"file://{repo}",
            str(directory / f"shallow-{next(counter)}"),
        ),
    )
    note = "a full cache, which every later workdir shares (decision 0006)"
    yield Row(
        "first-ever isolated dispatch",
        ms(first),
        "git clone --depth=1",
        ms(shallow),
        first / shallow,
        1.1,
        note=note,
    )


def spare(directory: Path, where: str, files: int = 25_000) -> Iterator[Row]:
    """Measure the first dispatch of a workdir that is made from a spare checkout and begins one
    commit later, compared with `git worktree add`. `where`: the kind of file system that
    `directory` is on."""
    repo = make_repository(directory / "spare", files)
    spaces = Workspaces(
        directory / "spare-root", environ={**ENVIRON, "HOME": str(directory)}, spares=1
    )
    counter = iter(range(1_000))

    def first() -> None:
        place = spaces.plan(TaskSpec(prompt="x", repo=str(repo)), f"run-{next(counter)}", repo)
        spaces.prepare(place, "claude")

    def by_hand() -> None:
        number = next(counter)
        path = str(directory / f"spare-hand-{number}")
        git(repo, "worktree", "add", "-q", "-b", f"hand-{number}", path)

    def compare() -> None:
        git(repo, "read-tree", "--reset", "-u", "main")

    first()
    acts = (first, by_hand, compare)
    measured: list[list[float]] = [[], [], []]
    for _ in range(5):
        assert spaces.make_spares() == 1
        _age(repo, 1)
        compare()
        time.sleep(1.1)  # git reads files that are as new as its index once more.
        git(repo, "update-index", "--force-write-index")
        for act, took in zip(acts, measured, strict=True):
            took.append(_seconds(act))
    mine, its, least = map(statistics.median, measured)
    yield Row(
        f"first dispatch from a spare checkout, {files:,} files, {where}",
        ms(mine),
        "git worktree add by hand",
        ms(its),
        its / mine,
        7,
        least=True,
        note="git's comparison of all files with the index, how many times faster",
        limit=its / least,
    )


COMMITS = 5_000
"""Number of commits of a history of some years."""


def fetched_again(directory: Path, files: int = 25_000, commits: int = COMMITS) -> Iterator[Row]:
    """Measure the re-dispatch of an isolated workdir whose remote has one new commit, compared with
    what a CI job does for it: a clone, a shallow clone, and git's own fetch into a clone."""
    repo = make_repository(directory / "years", files)
    _age(repo, commits)
    url = f"file://{repo}"
    spaces = Workspaces(directory / "years-root", environ={**ENVIRON, "HOME": str(directory)})
    task = TaskSpec(prompt="x", repo=url, backend="isolated")
    place = spaces.plan(task, "years", repo)
    spaces.prepare(place, "claude")
    for name in ("years", "checked"):
        git(directory, "clone", "-q", "--bare", url, str(directory / f"{name}.git"))
    counter = iter(range(1_000))

    def clone(*words: str) -> float:
        target = str(directory / f"years-{next(counter)}")
        return _seconds(lambda: git(directory, "clone", "-q", *words, url, target))

    def again() -> None:
        spaces.prepare(place, "claude")
        assert spaces.ahead(place, "main") is not None

    def fetch() -> None:
        git(directory / "years.git", "fetch", "-q", "origin", "+main:main")

    def checked_fetch() -> None:
        safe = ("-c", "fetch.fsckObjects=true", "-c", "core.fsync=all")
        git(directory / "checked.git", *safe, "fetch", "-q", "origin", "+main:main")

    acts = (again, fetch, checked_fetch)
    measured: list[list[float]] = [[], [], []]
    for number in range(9):
        _age(repo, 1)
        for which in range(3):
            measured[(which + number) % 3].append(_seconds(acts[(which + number) % 3]))
    whole = statistics.median(clone() for _ in range(3))
    shallow = statistics.median(clone("--depth=1") for _ in range(3))
    mine, its, safe = map(statistics.median, measured)
    yield Row(
        f"re-dispatch with a fetch, {files:,} files, {commits:,} commits",
        ms(mine),
        "git fetch",
        ms(its),
        mine / its,
        1.25,
        note="a fetch that checks the objects and flushes them",
        limit=safe / its,
    )
    for beside, took, goal in (("git clone", whole, 80), ("git clone --depth=1", shallow, 15)):
        yield Row(
            "the same",
            ms(mine),
            beside,
            ms(took),
            took / mine,
            goal,
            least=True,
            note="git fetch alone, how many times faster",
            limit=took / its,
        )


def _seconds(act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def _age(repo: Path, commits: int) -> None:
    """Add commits to the main branch, each with one changed file, without a checkout."""
    parts = ["feature done\n"]
    for number in range(commits):
        text = f"{number} {time.time_ns()}\n"
        parts.append(
            "commit refs/heads/main\ncommitter b <b@example.invalid> 1700000000 +0000\n"
            f"data {len('a change')}\na change\n"
            + ("from refs/heads/main^0\n" if number == 0 else "")
            + f"M 100644 inline d0000/f{number % 100:02}.txt\ndata {len(text)}\n{text}\n"
        )
    parts.append("done\n")
    subprocess.run(
        ["git", "fast-import", "--quiet"],
        cwd=repo,
        env={**ENVIRON, "HOME": str(repo)},
        input="".join(parts).encode(),
        check=True,
    )
