"""After any fault of the disk, the file or the input there is one sentence. No change is left
incomplete, and nothing is lost."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from perdure import store as stores
from perdure.errors import NotFound, StoreError, UsageError
from perdure.host.system import linux
from perdure.model import Decision, RunState, TaskSpec
from perdure.model.events import Unrecognised
from perdure.store.dialect import SQL
from perdure.store.sqlite import file_system, refuse_network, sqlite_warning
from perdure.testing.stores.samples import AGAIN, claimed, place, submit
from tests.patience import PATIENCE_S

HERE = Path(__file__).parent
SOURCE = Path(stores.__file__).parents[2]

MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /proc rw - proc proc rw
24 22 0:40 / /home rw - nfs4 server:/home rw,vers=4.2
25 24 254:3 / /home/local\\040disk rw master:7 - xfs /dev/vdb rw
26 22 0:41 / /mnt/share rw - cifs //server/share rw
27 22 0:42 / /mnt/host rw - 9p host rw
28 22 0:43 / /mnt/ssh rw - fuse.sshfs me@server: rw
29 22 0:44 / /mnt/over rw - fuse.fuse-overlayfs overlay rw
30 22 0:45 / /mnt/both rw - nfs server:/x rw
31 22 0:46 / /mnt/both rw - tmpfs tmpfs rw
"""


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unprivileged(database: Path, wish: str) -> str:
    """Use the store in a process without root's rights over files, and return that process's
    output."""
    ran = subprocess.run(
        [sys.executable, str(HERE / "unprivileged.py"), str(database), wish],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


NO_TEMPORARY = """\
mount --bind "$1" /mnt
for place in /tmp /var/tmp; do mount --rbind $place $place; mount -o remount,bind,ro $place; done
cd /proc
shift
exec "$@"
"""


def test_without_a_directory_for_temporary_files(tmp_path: Path) -> None:
    """On a read-only system, such as a hardened container, the store needs only the state
    directory, however long the queue is."""
    with closing(stores.open(tmp_path / "perdure.db")) as store:
        for number in range(600):
            spec = TaskSpec(prompt="x", scope=f"scope-{number}")
            store.add(spec, f"{number:08d}", f"run-{number}", place(str(number)))
    claims = (
        "from perdure import store as stores; store = stores.open('/mnt/perdure.db')\n"
        "print(sum(store.claim('ann', 60.0).attempt for _ in range(60)))"
    )
    spaces = ["unshare", "--map-root-user", "--mount", "sh", "-euc", NO_TEMPORARY, "sh"]
    ran = subprocess.run(
        [*spaces, str(tmp_path), sys.executable, "-c", claims],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (0, "60\n"), ran.stderr


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """In a directory that cannot be written, no new database can be made, and an existing one can
    be read but not written. If the parent directory cannot be made, an error says so."""
    locked = tmp_path / "locked"
    store = stores.open(locked / "perdure.db")
    submit(store)
    store.close()
    locked.chmod(0o500)
    before = sorted(path.name for path in locked.iterdir())
    try:
        for database in (locked / "new.db", locked / "below" / "new.db", locked / "perdure.db"):
            said = unprivileged(database, "write")
            assert (
                said.startswith("StoreError: The ")
                and str(locked) in said
                and "choose another state directory" in said
            )
        assert unprivileged(locked / "perdure.db", "read") == "ok 1"
        assert sorted(path.name for path in locked.iterdir()) == before
    finally:
        locked.chmod(0o700)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """A database without write permission can be read, and a write says why it failed."""
    store = stores.open(tmp_path / "perdure.db")
    submit(store)
    store.close()
    (tmp_path / "perdure.db").chmod(0o400)
    assert unprivileged(tmp_path / "perdure.db", "write").startswith("StoreError: The database")
    assert unprivileged(tmp_path / "perdure.db", "read") == "ok 1"


def test_a_place_that_is_none(tmp_path: Path) -> None:
    """If the path of the file is a directory, or that of the directory is a file, an error says
    so."""
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path, tmp_path / "file" / "perdure.db"):
        with pytest.raises(StoreError, match=str(tmp_path)) as refused:
            stores.open(wrong)
        assert refused.value.hint
    with pytest.raises(StoreError, match="postgresql"):
        stores.open("postgresql://localhost/perdure")


@pytest.mark.parametrize(
    "content",
    [
        b"not a database, but long enough to be read as one" * 50,
        b"x",
        b"SQLite format 3\x00" + b"\xff" * 4096,
    ],
)
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes) -> None:
    """A file of another kind at the database's path is reported as damaged, for reading and
    writing, and is not changed."""
    (tmp_path / "perdure.db").write_bytes(content)
    for read_only in (False, True):
        with pytest.raises(StoreError, match="damaged") as refused:
            stores.open(tmp_path / "perdure.db", read_only=read_only)
        assert ".recover" in refused.value.hint
    assert (tmp_path / "perdure.db").read_bytes() == content


def test_a_damaged_database(tmp_path: Path) -> None:
    """Pages were overwritten with random data. The check reports the damage, and reading raises a
    StoreError instead of returning wrong rows."""
    database = tmp_path / "perdure.db"
    store = stores.open(database)
    for _ in range(200):
        submit(store, TaskSpec(prompt="x" * 500))
    store.close()
    with database.open("r+b") as file:
        pages = database.stat().st_size // 4096
        file.seek(pages // 2 * 4096)
        file.write(os.urandom((pages - pages // 2) * 4096))
    store = stores.open(database)
    assert store.problems()
    with pytest.raises(StoreError, match="damaged"):
        for row in store.find(limit=1000):
            store.get(row.id)
            store.history(row.id)
    store.close()


def test_a_full_disk(tmp_path: Path) -> None:
    """On a full disk (SQLITE_FULL) a write fails as a whole, and everything stored can be read.
    When there is space again, the same claim continues."""
    store = stores.open(tmp_path / "perdure.db")
    run = submit(store)
    claim = claimed(store, run)
    connection = store._database.connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    long = [Unrecognised(text="x" * 16_000)] * 20
    before = store.history(run.id)
    with pytest.raises(StoreError, match="full") as refused:
        store.record(claim, long)
    assert "space" in refused.value.hint
    assert store.history(run.id) == before and store.get(run.id).state is RunState.RUNNING
    connection.execute("PRAGMA max_page_count = 1000000")
    store.record(claim, long)
    assert store.finish(claim, AGAIN).state is RunState.QUEUED
    assert store.problems() == []
    store.close()


def test_a_database_that_another_process_holds(tmp_path: Path) -> None:
    """A wait for another writer ends with a sentence. Reads are never blocked."""
    store = stores.open(tmp_path / "perdure.db")
    run = submit(store)
    store._database.connection.execute("PRAGMA busy_timeout = 20")
    with closing(sqlite3.connect(tmp_path / "perdure.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert store.get(run.id) == run
        with pytest.raises(StoreError, match="Another process"):
            store.claim("ann", 60.0)
    claimed(store, run)
    store.close()


@pytest.mark.parametrize(
    ("directory", "kind", "refused"),
    [
        ("/srv/state", "ext4", False),
        ("/home/me/.local/state", "nfs4", True),
        ("/home/local disk/state", "xfs", False),
        ("/homely", "ext4", False),
        ("/mnt/share", "cifs", True),
        ("/mnt/host/deep/er", "9p", True),
        ("/mnt/ssh/state", "fuse.sshfs", True),
        ("/mnt/over/state", "fuse.fuse-overlayfs", False),
        ("/mnt/both/state", "tmpfs", False),
    ],
)
def test_network_file_systems_are_refused(
    tmp_path: Path, directory: str, kind: str, refused: bool
) -> None:
    """The file system on which a directory is mounted decides: NFS, SMB, 9p and unknown FUSE are
    refused by name, and local file systems are not."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert file_system(Path(directory), mounts) == kind
    if refused:
        with pytest.raises(StoreError, match=kind) as error:
            refuse_network(Path(directory), mounts)
        assert "local disk" in error.value.hint
    else:
        refuse_network(Path(directory), mounts)


def test_a_mount_point_of_any_name_is_read(tmp_path: Path) -> None:
    """A mount point of any name is read, although the kernel escapes only newlines in it. Lines
    that are not records are ignored."""
    point = "/mnt/a\u2028b\x85c\rd"
    table = tmp_path / "mountinfo"
    table.write_bytes(
        f"short\n30 20 0:40 / {point} rw - nfs4 server:/ rw\n".encode()
        + b"31 20 0:41 / /mnt/\xff rw shared:1 - ext4 /dev/sda rw\n"
    )
    assert linux.mounts(table) == [(point, "nfs4"), ("/mnt/\udcff", "ext4")]


def test_the_mounts_of_this_machine_are_read() -> None:
    """The type of a directory's file system is found in the real /proc. If the system does not report
    one, the directory is accepted."""
    assert file_system(Path("/proc/self")) == "proc"
    assert file_system(Path("/proc/self"), Path("/nonexistent")) == ""
    refuse_network(Path("/proc/self"), Path("/nonexistent"))


def test_reading_changes_nothing(tmp_path: Path) -> None:
    """Reading creates no database, and does not change the bytes of an existing one. Neither kind
    of reader can write."""
    missing = stores.open(tmp_path / "none" / "perdure.db", read_only=True)
    assert missing.find() == []
    with pytest.raises(NotFound):
        missing.get("calm-owl")
    with pytest.raises(StoreError, match="reading only"):
        submit(missing)
    missing.close()
    assert list(tmp_path.iterdir()) == []
    store = stores.open(f"sqlite://{tmp_path}/a #?%41/perdure.db")
    run = submit(store)
    store.close()
    database = tmp_path / "a #?%41" / "perdure.db"
    before = digest(database)
    reader = stores.open(database, read_only=True)
    assert reader.get(run.id) == run
    with pytest.raises(StoreError, match="reading only"):
        reader.claim("ann", 60.0)
    reader.close()
    assert digest(database) == before


def test_a_reader_sees_what_was_just_written(tmp_path: Path) -> None:
    """A read-only store reads each commit of a writing store at once."""
    store = stores.open(tmp_path / "perdure.db")
    reader = stores.open(tmp_path / "perdure.db", read_only=True)
    for count in range(1, 4):
        submit(store)
        assert len(reader.find()) == count
    reader.close()
    store.close()


def test_texts_and_numbers_that_do_not_fit(tmp_path: Path) -> None:
    """A lone surrogate is a usage error that stores nothing. NUL and every other character are read
    back unchanged. Times outside the range are limited to it."""
    store = stores.open(tmp_path / "perdure.db")
    with pytest.raises(UsageError, match="UTF-8"):
        submit(store, TaskSpec(prompt="bad \udcff"))
    assert store.find() == []
    run = submit(
        store, TaskSpec(prompt="a\x00b \U0001f9ea'; DROP TABLE runs; --", env={"A": "\x01"})
    )
    with pytest.raises(UsageError, match="UTF-8"):
        store.update(run.id, "bad \udcff")
    assert store.get(run.id) == run and len(store.contexts(run.id)) == 1
    late = replace(AGAIN, decision=Decision(state=RunState.QUEUED, run_after=10**30))
    assert store.finish(claimed(store, run), late).run_after == 2**53
    store.close()


def test_events_of_a_newer_perdure_are_shown(tmp_path: Path) -> None:
    """A record of an unknown kind is read as Unrecognised, with its text."""
    store = stores.open(tmp_path / "perdure.db")
    run = submit(store)
    with closing(sqlite3.connect(tmp_path / "perdure.db")) as connection, connection:
        connection.execute(
            "INSERT INTO records (run, attempt, at, kind, event) VALUES (?, 0, 1, 'sung', ?)",
            (run.id, '{"kind":"sung"}'),
        )
    assert store.history(run.id)[-1].event == Unrecognised(text='{"kind":"sung"}')
    store.close()


def test_what_does_not_decode_is_a_store_error(tmp_path: Path) -> None:
    """A record that cannot be decoded is reported in a sentence, not as a traceback."""
    store = stores.open(tmp_path / "perdure.db")
    run = submit(store)
    with closing(sqlite3.connect(tmp_path / "perdure.db")) as connection, connection:
        connection.execute("UPDATE runs SET spec = '{\"prompt\": 5}'")
    with pytest.raises(StoreError, match="cannot read"):
        store.get(run.id)
    assert [row.id for row in store.find()] == [run.id]
    store.close()


def test_an_old_sqlite_is_told() -> None:
    """For a version of SQLite with the WAL-reset bug, `perdure doctor` prints one sentence. For
    later versions it prints none."""
    assert "3.40.1" in sqlite_warning((3, 40, 1)) and "3.51.3" in sqlite_warning((3, 51, 2))
    assert sqlite_warning((3, 51, 3)) == "" and sqlite_warning((4, 0, 0)) == ""
    assert stores.sqlite_warning() == sqlite_warning(sqlite3.sqlite_version_info)


def test_the_settings_that_durability_rests_on(tmp_path: Path) -> None:
    """An open store uses WAL with synchronous=FULL, waits up to 30 s for other writers, and checks
    its references."""
    store = stores.open(tmp_path / "perdure.db")
    read = {
        name: store._database.connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "foreign_keys")
    }
    assert read == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    assert store._database.connection.execute("PRAGMA busy_timeout").fetchone()[0] == 30_000
    plan = store._database.connection.execute(
        "EXPLAIN QUERY PLAN " + SQL["claim_next"],
        {"worker": "", "now": 0, "lease_until": 0, "host": "", "left_alone": 0},
    ).fetchall()
    assert not [
        row["detail"]
        for row in plan
        if "TEMP B-TREE" in row["detail"] or row["detail"].startswith("SCAN")
    ]
    store.close()


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("import perdure.store", {"msgspec", "asyncio", "subprocess", "sqlite3"}),
        ("import perdure.store.sql", {"perdure.model.codec", "asyncio", "subprocess"}),
        (
            "from perdure import store as stores; s = stores.open({path!r}, read_only=True); assert "
            "len(s.find()) == 1; s.close()",
            {"asyncio", "subprocess", "perdure.model.codec"},
        ),
    ],
)
def test_a_list_of_runs_is_cheap(tmp_path: Path, code: str, forbidden: set[str]) -> None:
    """The part of `perdure ls` that reads the store decodes no JSON of the nouns, and imports no
    event loop and no subprocess."""
    store = stores.open(tmp_path / "perdure.db")
    submit(store)
    store.close()
    program = (
        code.format(path=str(tmp_path / "perdure.db"))
        + "; import sys; print(' '.join(sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    assert not forbidden & set(ran.stdout.split())
