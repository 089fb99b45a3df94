"""`python -m bench [--quick]` runs all benchmarks, prints the table as Markdown, and names the
goals that were missed."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench import capsules, grown, plans, rivals, rooms, scale, service, warm, webhooks, whole
from bench.measure import Row, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a smaller repository and fewer rounds"
    )
    quick = parser.parse_args().quick
    directory = Path(
        tempfile.mkdtemp(
            prefix="perdure-bench-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None
        )
    )
    disk = Path(tempfile.mkdtemp(prefix="perdure-bench-"))
    try:
        rows = list(_rows(directory, disk, quick))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(disk, ignore_errors=True)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
        "workdirs on tmpfs, the store on disk\n"
    )
    print(table(rows))
    missed = [row for row in rows if not row.met]
    print(f"\n{len(rows) - len(missed)} of {len(rows)} goals met")
    return 0


def _rows(directory: Path, disk: Path, quick: bool) -> Iterator[Row]:
    yield from rooms.workdirs(directory, 3_000 if quick else 25_000)
    yield from rooms.durable(disk, 1_000 if quick else 5_000)
    yield from capsules.rows(directory, 1_000 if quick else 5_000, 20)
    yield from rooms.checkpoints(directory, 3_000 if quick else 30_000)
    yield from rooms.copies(disk)
    yield from rooms.at_once(directory)
    yield from rooms.store(disk)
    yield from rooms.lines(directory)
    yield from rooms.spawn(disk)
    yield from scale.long_line(directory)
    yield from scale.memory(disk)
    yield from scale.restart(disk, 100_000 if quick else 1_000_000)
    yield from scale.taken_away(directory, 3_000 if quick else 25_000)
    for place, where in ((directory, "tmpfs"), (disk, "disk")):
        yield from scale.spare(place, where, 3_000 if quick else 25_000)
    yield from scale.fetched_again(directory, *((3_000, 500) if quick else ()))
    yield from webhooks.rows(disk, 400 if quick else 3_000, 5 if quick else 20)
    yield from service.rows(disk, *((1_000, 400, 2) if quick else ()))
    yield from grown.rows(disk, *((10_000, 20) if quick else ()))
    yield from rivals.starts(disk)
    yield from whole.start_up(disk)
    yield from whole.refusal(disk)
    yield from whole.calls(disk)
    yield from whole.launch(disk)
    yield from whole.long_run(disk)
    yield from warm.rows(disk, 3 if quick else 9)
    yield from plans.rows(disk, 5.0 if quick else plans.REPLY_S)
    for agent in ("claude", "codex"):
        yield from whole.turns(disk, agent, 0, 3 if quick else 7)
        yield from whole.turns(disk, agent, 2, 3 if quick else 5)


if __name__ == "__main__":
    raise SystemExit(main())
