"""Upgrades copies of a database, and is killed during each upgrade, at one point after the other.
test_store_migrations.py runs it.

argv: the old database, the scripts, a scratch directory. Each try is a fork that is killed after N
instructions of SQLite's virtual machine, or by the system when one of its files exceeds N bytes (in
the middle of a write). The parent then checks the database. Prints JSON: how the tries ended, and
the schema versions that were found complete.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sqlite3
import sys
from collections import Counter
from pathlib import Path

from perdure.store.migrate import migrate, newest


def main(old: Path, scripts: Path, scratch: Path) -> None:
    last = newest(scripts)
    whole = {
        version: _reference(old, scripts, scratch / f"whole-{version}", version)
        for version in range(last - 2, last + 1)
    }
    assert len({json.dumps(schema) for schema in whole.values()}) == 3
    ends: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for number, (method, point) in enumerate(_points(old, scripts, scratch)):
        database = scratch / f"try-{number}" / "perdure.db"
        _copy(old, database)
        pid = os.fork()
        if pid == 0:
            _die_at(database, scripts, method, point)
        _, status = os.waitpid(pid, 0)
        ends[
            f"{method}: "
            f"{signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else 'finished'}"
        ] += 1
        version, schema = _look(database)
        found[str(version) if schema == whole[version] else f"between, near {version}"] += 1
        with_rest = sqlite3.connect(database, isolation_level=None)
        migrate(with_rest, str(database), scripts)
        with_rest.close()
        assert _look(database) == (last, whole[last])
        shutil.rmtree(database.parent)
    print(json.dumps({"ends": ends, "found": found}))


def _points(old: Path, scripts: Path, scratch: Path) -> list[tuple[str, int]]:
    """Return the points at which an upgrade is killed: after a number of instructions, or of bytes
    in its log."""
    database = scratch / "measured" / "perdure.db"
    _copy(old, database)
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    connection = _open(database)
    connection.set_progress_handler(count, 1)
    migrate(connection, str(database), scripts)
    log = Path(f"{database}-wal").stat().st_size
    connection.close()
    by_steps = [("killed", point) for point in range(1, steps + steps // 80, max(1, steps // 80))]
    return by_steps + [("torn", point) for point in range(0, log + log // 80, max(1, log // 80))]


def _die_at(database: Path, scripts: Path, method: str, point: int) -> None:
    left = point
    connection = _open(database)

    def step() -> int:
        nonlocal left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    if method == "killed":
        connection.set_progress_handler(step, 1)
    else:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (point, point))
    migrate(connection, str(database), scripts)
    os._exit(0)


def _open(database: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _copy(old: Path, database: Path) -> None:
    database.parent.mkdir()
    shutil.copy(old, database)


def _reference(old: Path, scripts: Path, directory: Path, version: int) -> list[str]:
    some = directory / "scripts"
    _copy(old, directory / "perdure.db")
    some.mkdir()
    for script in scripts.glob("*.sql"):
        if int(script.name[:4]) <= version:
            shutil.copy(script, some)
    connection = _open(directory / "perdure.db")
    migrate(connection, "reference", some)
    connection.close()
    return _look(directory / "perdure.db")[1]


def _look(database: Path) -> tuple[int, list[str]]:
    """Return the version of the database, its schema, and the rows that the upgrade makes."""
    connection = sqlite3.connect(database)
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    seen = [
        str(row)
        for row in connection.execute(
            "SELECT type, name, sql FROM sqlite_master ORDER BY type, name"
        )
    ]
    if any("'notes'" in line for line in seen):
        seen += [str(row) for row in connection.execute("SELECT * FROM notes ORDER BY run")]
    seen += [str(row) for row in connection.execute("PRAGMA integrity_check")]
    connection.close()
    return version, seen


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
