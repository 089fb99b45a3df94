"""Measures the disk usage of perdure by agent, repository and class, in one walk. A file with
several hard links counts once."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct, field

from perdure.model.disk_reports import DiskReport, UsageRow
from perdure.protocols import RunStore
from perdure.workspace import Workspaces, trash

BLOCK = 512
"""Number of bytes in one unit of `st_blocks` (stat(2))."""


class DiskUsage(Struct):
    """Bytes on disk and number of files. The keys of both counters are tuples: class, agent,
    repository or service, role."""

    bytes: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    files: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    seen: set[tuple[int, int]] = field(default_factory=set)

    def add(self, top: Path, cls: str, agent: str = "", owner: str = "", role: str = "") -> None:
        """Count everything below `top`, without following links or entering other volumes."""
        key = (cls, agent, owner, role)
        for size, fresh in _sizes(top, self.seen, self.unreadable):
            self.bytes[key] += size if fresh else 0
            self.files[key] += 1

    def by(self, part: int) -> list[tuple[str, int]]:
        """Return the bytes on disk as pairs of name and bytes, largest first. `part` selects what
        they are summed by: class (0), agent (1), repository or service (2) or role (3). Entries
        without a name are left out."""
        sums: Counter[str] = Counter()
        for key, size in self.bytes.items():
            sums[key[part]] += size
        found = []
        for name, size in sums.most_common():
            if name:
                found.append((name, size))
        return found

    @property
    def total(self) -> int:
        return sum(self.bytes.values())

    def report(self) -> DiskReport:
        """Return the object that `perdure du --json` prints."""
        rows = []
        for key, count in self.bytes.items():
            cls, agent, owner, role = key
            rows.append(
                UsageRow(
                    class_=cls,
                    agent=agent,
                    owner=owner,
                    role=role,
                    bytes=count,
                    files=self.files[key],
                )
            )
        return DiskReport(
            schema_version=1, bytes=self.total, rows=rows, unreadable=list(self.unreadable)
        )


def usage(store: RunStore, workspaces: Workspaces, state: Path) -> DiskUsage:
    """Return the disk usage of everything below the root and the state directory."""
    found = DiskUsage()
    runs = store.placed()
    by_path = {run.workspace.path: run for run in runs}
    by_id = {run.id: run for run in runs}
    root = workspaces.root
    for thing in workspaces.contents():
        if thing.kind == "workdir":
            run = by_path.get(str(thing.path))
        else:
            run = None
        cls = {
            "workdir": "workdirs",
            "view": "views",
            "shelf": "checkpoints",
            "cache": "caches",
        }.get(thing.kind, thing.kind)
        owner = (run.workspace.repo or _service(run.scope)) if run else ""
        found.add(thing.path, cls, run.agent if run else "", owner, run.role if run else "")
    found.add(root / ".perdure/locks", "locks")
    for entry in [*trash.entries(workspaces.trash), *trash.entries(state / "trash")]:
        put = by_id.get(
            next(iter(map(str, entry.about.get("runs") or [entry.about.get("id", "")])), "")
        )
        found.add(
            entry.path,
            "trash",
            put.agent if put else "",
            put.workspace.repo if put else "",
            put.role if put else "",
        )
    for path in _entries(state / "runs"):
        run = by_id.get(path.name)
        found.add(
            path,
            "logs",
            run.agent if run else "",
            (run.workspace.repo or _service(run.scope)) if run else "",
            run.role if run else "",
        )
    for path in _entries(state / "transcripts"):
        found.add(path, "copies", path.name)
    for path in _entries(state):
        if path.name not in ("runs", "transcripts", "trash"):
            if path.name.startswith("perdure.db"):
                cls = "database"
            elif path.name == "ballast":
                cls = "ballast"
            else:
                cls = "other"
            if path.name in ("given", "backups"):
                cls = "task files"
            found.add(path, cls)
    return found


def size_of(path: Path) -> int:
    """Return the size on disk of a file, or of everything below a directory, in bytes."""
    return sum(size for size, fresh in _sizes(path, set(), []) if fresh)


def _sizes(
    top: Path, seen: set[tuple[int, int]], unreadable: list[str]
) -> Iterator[tuple[int, bool]]:
    """Yield a pair for `top` and for each file and directory below it: its size on disk in bytes,
    and whether this size counts. The size of a file with several hard links counts only the first
    time."""
    try:
        status = top.lstat()
    except OSError:
        return
    yield status.st_blocks * BLOCK, True
    if not stat.S_ISDIR(status.st_mode):
        return
    waiting = [str(top)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as listed:
                for each in listed:
                    found = each.stat(follow_symlinks=False)
                    fresh = True
                    if stat.S_ISDIR(found.st_mode):
                        if found.st_dev == status.st_dev:
                            waiting.append(each.path)
                    elif found.st_nlink > 1:
                        name = (found.st_dev, found.st_ino)
                        fresh = name not in seen
                        seen.add(name)
                    yield found.st_blocks * BLOCK, fresh
        except FileNotFoundError:
            continue
        except OSError as error:
            unreadable.append(str(error.filename))


def _service(scope: str) -> str:
    if scope.startswith("task:"):
        return scope.removeprefix("task:").partition("/")[0]
    return ""


def _entries(directory: Path) -> list[Path]:
    if directory.is_dir():
        return sorted(directory.iterdir())
    return []
