"""After an interrupted upgrade the schema is always complete: the old one or the new one."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from perdure import store as stores
from perdure.errors import StoreError
from perdure.store.migrate import SCRIPTS, migrate, newest
from perdure.testing.stores.samples import submit
from tests.patience import PATIENCE_S

HERE = Path(__file__).parent
NOW = newest()
NOTES, MARKS = NOW + 1, NOW + 2
SOURCE = Path(stores.__file__).parents[2]


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """Return the directory with all migrations and two future ones: one with a table, a trigger and
    rows, one with a column."""
    scripts = tmp_path / "scripts"
    shutil.copytree(SCRIPTS, scripts)
    (scripts / f"{NOTES:04}_notes.sql").write_text(
        "-- A note; with a semicolon in a comment.\nCREATE TABLE notes (run TEXT PRIMARY KEY, text "
        "TEXT NOT NULL);\nCREATE TRIGGER notes_stay BEFORE DELETE ON notes\nBEGIN\n    SELECT "
        "RAISE(ABORT, 'no;');\nEND;\nINSERT INTO notes SELECT id, name || spec FROM runs;\n"
    )
    (scripts / f"{MARKS:04}_marks.sql").write_text(
        "ALTER TABLE notes ADD COLUMN mark TEXT;\nUPDATE notes SET mark = run;\n"
    )
    return scripts


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Make a database with the current schema and 50 runs, properly closed."""
    store = stores.open(tmp_path / "old" / "perdure.db")
    for _ in range(50):
        submit(store)
    store.close()
    return tmp_path / "old" / "perdure.db"


def test_a_kill_in_an_upgrade_leaves_old_or_new(tmp_path: Path, old: Path, scripts: Path) -> None:
    """An upgrade is killed at more than 150 points, between statements and in the middle of writes.
    The schema is always complete, and the upgrade can be continued."""
    (tmp_path / "scratch").mkdir()
    ran = subprocess.run(
        [sys.executable, str(HERE / "migrating_until_killed.py"), str(old), str(scripts), str(tmp_path / "scratch")],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert set(result["found"]) == {str(NOW), str(MARKS)}, result
    assert result["ends"]["killed: SIGKILL"] > 70 and result["ends"]["torn: SIGXFSZ"] > 70, result


def test_an_upgrade_runs_each_script_once(old: Path, scripts: Path) -> None:
    """An upgrade over two versions runs each script once. A second upgrade does nothing."""
    for _ in range(2):
        with closing(sqlite3.connect(old, isolation_level=None)) as connection:
            migrate(connection, str(old), scripts)
            assert connection.execute("PRAGMA user_version").fetchone()[0] == MARKS
            assert connection.execute("SELECT count(*), count(mark) FROM notes").fetchone() == (
                50,
                50,
            )


def test_a_failing_script_changes_nothing(old: Path, scripts: Path) -> None:
    """An error in the last statement of the last script undoes the whole upgrade."""
    (scripts / f"{MARKS:04}_marks.sql").write_text(
        "CREATE TABLE marks (x TEXT);\nINSERT INTO nowhere VALUES (1);\n"
    )
    with closing(sqlite3.connect(old, isolation_level=None)) as connection:
        with pytest.raises(sqlite3.OperationalError, match="nowhere"):
            migrate(connection, str(old), scripts)
        assert connection.execute("PRAGMA user_version").fetchone()[0] == NOW
        assert not connection.execute(
            "SELECT 1 FROM sqlite_master WHERE name IN ('notes', 'marks')"
        ).fetchone()


def test_a_newer_schema_is_refused(old: Path) -> None:
    """A database of a newer perdure is neither read nor written, and the error says what to do."""
    with closing(sqlite3.connect(old)) as connection:
        connection.execute(f"PRAGMA user_version = {newest() + 1}")
    for read_only in (False, True):
        with pytest.raises(StoreError, match="newer perdure") as refused:
            stores.open(old, read_only=read_only)
        assert "upgrade perdure" in refused.value.hint


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    """A database that perdure did not make is refused, and not a byte of it is changed."""
    strange = tmp_path / "photos.db"
    with closing(sqlite3.connect(strange)) as connection:
        connection.execute("CREATE TABLE photos (name TEXT)")
    before = strange.read_bytes()
    for read_only in (False, True):
        with pytest.raises(StoreError, match="another program"):
            stores.open(strange, read_only=read_only)
    assert strange.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == [
        "photos.db"
    ]


def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    """A kill between the creation of the file and that of the schema leaves an empty file. The next
    start makes the schema in it."""
    (tmp_path / "perdure.db").touch()
    reader = stores.open(tmp_path / "perdure.db", read_only=True)
    assert reader.find() == []
    reader.close()
    store = stores.open(tmp_path / "perdure.db")
    submit(store)
    store.close()
