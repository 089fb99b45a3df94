"""SQLite under the store: opens a database, runs its transactions, and turns its errors into
sentences. Refuses a database on a network file system.

This is one implementation of `dialect.Database`; `postgres` is the other. Every write is BEGIN
IMMEDIATE in WAL with synchronous=FULL, so a committed change survives a kill and a power cut. There
is one connection with one transaction at a time; threads wait for each other. Do not use it across
a fork. Never open and close the file by other means: a process loses its POSIX locks on a file when
it closes any handle of that file.

SQLite's write-ahead log needs shared memory and reliable locks. On a network file system both fail
silently, and two hosts that write at the same time corrupt the database (sqlite.org/wal.html: "does
not work over a network filesystem"). So `connect` calls `refuse_network`. `perdure doctor` calls
`sqlite_warning`, which warns of a SQLite version with a known bug.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG

from perdure.errors import Conflict, StoreError, UsageError
from perdure.host.volumes import MOUNTS, Ballast, file_system
from perdure.store.migrate import migrate, newest, version_of

NETWORK = frozenset(
    """nfs nfs3 nfs4 cifs smb2 smb3 smbfs 9p afs auristorfs ceph coda davfs fhgfs beegfs
    glusterfs gpfs lustre ncpfs ocfs2 gfs2 orangefs pvfs2 pvfs virtiofs vboxsf prl_fs fuse
    fuse.vmhgfs-fuse afpfs webdav macfuse osxfuse""".split()
)
"""Types of file systems that are, or may be, shared with other machines: first on Linux, then on
macOS."""

LOCAL_FUSE = frozenset(
    """fuse.fuse-overlayfs fuse.mergerfs fuse.unionfs fuse.bindfs fuse.gocryptfs fuse.encfs
    fuse.cryfs fuse.ext4 fuse.ext2 fuse.ntfs-3g fuse.exfat fuse.zfs-fuse""".split()
)
"""FUSE types that are known to keep their data on this machine. All others are treated as network
file systems."""


def refuse_network(directory: Path, mounts: Path = MOUNTS) -> None:
    """Raise StoreError if the directory is on a network file system. Accepts it if the type of the
    file system is unknown."""
    kind = file_system(directory, mounts)
    if kind in NETWORK or (kind.startswith("fuse.") and kind not in LOCAL_FUSE):
        raise StoreError(
            f"The database cannot be in {directory}: SQLite loses data on a network file system "
            f"({kind})",
            "choose a state directory on a local disk",
        )


def sqlite_warning(version: tuple[int, int, int] = sqlite3.sqlite_version_info) -> str:
    """Return a warning sentence if this SQLite has the WAL-reset bug, otherwise an empty string.

    The bug affects 3.7.0 to 3.51.2: two connections that write and checkpoint at the same instant
    may, very rarely, corrupt the database. Fixed in 3.51.3 (sqlite.org/wal.html, 2026-03).
    """
    if version >= (3, 51, 3):
        return ""
    name = ".".join(map(str, version))
    return (
        f"SQLite {name} has a rare bug that can corrupt a database under two writers; 3.51.3 or "
        "later is free of it"
    )


BUSY_S = 30.0
"""Maximum wait for another process's write, in seconds."""

SMALLEST_PAGE = 512
"""SQLite's smallest page size, in bytes (sqlite.org/fileformat2.html)."""

ELSEWHERE = "make it writable, or choose another state directory"


class Sqlite:
    """An open SQLite database."""

    def __init__(
        self, connection: sqlite3.Connection, place: str, *, read_only: bool = False
    ) -> None:
        self.ballast: Ballast | None = None
        connection.row_factory = sqlite3.Row
        self.connection = connection
        self.place = place
        self.read_only = read_only
        self._turn = threading.RLock()
        # When the last connection is closed, SQLite moves the log into the database file. Python
        # closes no connection at the end of the process, so it is closed here.
        weakref.finalize(self, connection.close)

    def now(self) -> int:
        """Return the time in milliseconds since 1970, by this machine's clock."""
        return time.time_ns() // 1_000_000

    @contextmanager
    def writing(self, *, claimed: bool = False) -> Iterator[tuple[sqlite3.Cursor, int]]:
        """Open one durable transaction. Yield a cursor and the time of the transaction in ms.
        Everything is stored when the block ends; nothing is stored if the block raises. `claimed`
        makes no difference, because SQLite has one writer at a time. Raises StoreError, Conflict.
        """
        if self.read_only:
            raise StoreError(f"{self.place} was opened for reading only", transient=False)
        with self._turn, in_words(self.place, self.ballast):
            if self.ballast is not None:
                self.ballast.ease()
            cursor = self.connection.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor, self.now()
                cursor.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    cursor.execute("ROLLBACK")
                raise
            finally:
                cursor.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Cursor]:
        """Open one snapshot of the database, and yield a cursor that reads it. Writers are not
        blocked. Raises StoreError."""
        with self._turn, in_words(self.place):
            cursor = self.connection.cursor()
            cursor.execute("BEGIN")
            try:
                yield cursor
            finally:
                if self.connection.in_transaction:
                    cursor.execute("COMMIT")
                cursor.close()

    def problems(self) -> list[str]:
        """Return the errors that SQLite's quick check finds in the file; empty if there are none.
        This takes seconds on a large file."""
        try:
            with self.reading() as cursor:
                found = [str(row[0]) for row in cursor.execute("PRAGMA quick_check(10)")]
        except StoreError as error:
            return [str(error)]
        if found == ["ok"]:
            return []
        return found

    def close(self) -> None:
        """Close the connection. Closing twice is harmless."""
        with self._turn:
            self.connection.close()


def connect(
    path: Path,
    *,
    read_only: bool = False,
    allow_network: bool = False,
    ballast: Ballast | None = None,
) -> Sqlite:
    """Open the database, creating or upgrading it if needed. Raises StoreError with one sentence.

    `read_only` changes nothing in the database, except that an older schema is upgraded. If there
    is no database yet, the result is an empty one in memory. `allow_network` is for users who know
    that their network file system has reliable locks and shared memory. `ballast` is the file that
    is deleted to make room when the disk is full.
    """
    # Symbolic links are not resolved, so a state directory that was moved and linked keeps its path
    # in messages.
    path = Path(os.path.abspath(path))  # noqa: PTH100
    place = str(path)
    if not allow_network:
        refuse_network(path.parent)
    with in_words(place):
        _refuse_unlike(path, place)
        if read_only:
            return _open_for_reading(path, place)
        if ballast is not None:
            ballast.ease()
        _make_file(path)
        opened = _open_for_writing(path, place)
        opened.ballast = ballast
        return opened


def _open_for_writing(path: Path, place: str) -> Sqlite:
    connection = _raw(_uri(place, "mode=rw"))
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        # The version is checked before anything is changed. A database of another program must stay
        # as it is, including its journal mode.
        version = version_of(connection, place)
        _use_wal(connection, place)
        if version < newest():
            migrate(connection, place)
    except BaseException:
        connection.close()
        raise
    return Sqlite(connection, place)


def _open_for_reading(path: Path, place: str) -> Sqlite:
    if not path.exists():
        return _empty(place)
    connection = _readable(path, place)
    try:
        version = version_of(connection, place)
    except BaseException:
        connection.close()
        raise
    if version == newest():
        return Sqlite(connection, place, read_only=True)
    connection.close()
    if version == 0:
        return _empty(place)
    # The schema is from an older perdure. Upgrading it is the only write that a reader makes.
    _open_for_writing(path, place).close()
    return _open_for_reading(path, place)


def _readable(path: Path, place: str) -> sqlite3.Connection:
    connection = _raw(_uri(place, "mode=ro"))
    try:
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
        return connection
    except sqlite3.OperationalError as error:
        connection.close()
        log = Path(f"{place}-wal")
        empty = not log.exists() or not log.stat().st_size
        # SQLite cannot create its shared memory in a directory that is not writable. If the
        # write-ahead log is empty, SQLite can read the file without shared memory.
        if empty and (
            _no_room(error)
            or error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
        ):
            return _raw(_uri(place, "immutable=1"))
        if _no_room(error):
            return _alone(place)
        raise
    except BaseException:
        connection.close()
        raise


def _alone(place: str) -> sqlite3.Connection:
    """Open a database that has a write-ahead log on a disk without room for the shared memory. A
    single process may read the log without shared memory (sqlite.org/wal.html, "Use of WAL Without
    Shared-Memory"). The only writing that this connection does is to move the log into the
    database."""
    connection = _raw(_uri(place, "mode=rw"))
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
        connection.execute("PRAGMA query_only = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _empty(place: str) -> Sqlite:
    connection = _raw("file::memory:")
    migrate(connection, place)
    return Sqlite(connection, place, read_only=True)


def _uri(place: str, query: str) -> str:
    for character in "%?#":
        place = place.replace(character, f"%{ord(character):02x}")
    return f"file:{place}?{query}"


def _raw(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        uri, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False
    )
    # Keep temporary data in memory. Otherwise a write of several rows needs a directory for
    # temporary files, which a container with a read-only root may not have
    # (SQLITE_IOERR_GETTEMPPATH).
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection


def _use_wal(connection: sqlite3.Connection, place: str) -> None:
    """Turn the write-ahead log on. If another process has a lock, SQLite reports that immediately
    when the journal mode is changed. Therefore this function waits and tries again."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
            if mode != "wal":
                mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    if mode != "wal":
        raise StoreError(
            f"{place} is on a file system that does not support SQLite's write-ahead log",
            "choose a local disk",
        )


def _refuse_unlike(path: Path, place: str) -> None:
    """Raise StoreError if perdure must not create a database at this path. Either the path cannot
    be examined, and may be a database. Or its file is smaller than SQLite's smallest page, and
    SQLite would overwrite it."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(
            f"The state directory {path.parent} cannot be used: {_why(error)}", ELSEWHERE
        ) from error
    if S_ISREG(found.st_mode) and 0 < found.st_size < SMALLEST_PAGE:
        raise _damaged(place, "it is too short for a database")


def _make_file(path: Path) -> None:
    """Create an empty file that only its owner can read, because it will hold prompts and
    environment variables of agents."""
    if path.is_dir():
        raise StoreError(f"{path} is a directory, not a database", "name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StoreError(
            f"The state directory {path.parent} cannot be created: {_why(error)}", ELSEWHERE
        ) from error
    try:
        # With O_EXCL, an existing database is not opened and closed here, which would drop its
        # locks (see the module's docstring).
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise StoreError(
            f"The database {path} cannot be created: {_why(error)}", ELSEWHERE
        ) from error


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


@contextmanager
def in_words(place: str, ballast: Ballast | None = None) -> Iterator[None]:
    """Turn SQLite's errors in the block into sentences. If the disk was full, delete the ballast,
    so that the next try has room."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise _integrity(error, place) from error
    except sqlite3.DatabaseError as error:
        if ballast is not None and getattr(error, "sqlite_errorcode", 0) & 0xFF in (
            sqlite3.SQLITE_FULL,
            sqlite3.SQLITE_IOERR,
        ):
            ballast.give_up()
        raise _sentence(error, place) from error
    except UnicodeEncodeError as error:
        raise UsageError(
            "a text is not valid UTF-8", "check that the prompt is a text file"
        ) from error


def _integrity(error: sqlite3.IntegrityError, place: str) -> Conflict | StoreError:
    if error.sqlite_errorcode in (
        sqlite3.SQLITE_CONSTRAINT_UNIQUE,
        sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
    ):
        return Conflict(
            f"Another process has already stored the same record: {error}", "perdure ls"
        )
    return StoreError(
        f"The database {place} refused a change that violates a constraint: {error}",
        transient=False,
    )


def _sentence(error: sqlite3.DatabaseError, place: str) -> StoreError:
    code = getattr(error, "sqlite_errorcode", 0)
    match code & 0xFF:
        case _ if _no_room(error):
            return _full(place)
        case (
            sqlite3.SQLITE_READONLY
            | sqlite3.SQLITE_PERM
            | sqlite3.SQLITE_CANTOPEN
            | sqlite3.SQLITE_AUTH
        ):
            # SQLITE_CANTOPEN also occurs while the process has too many open files, so the error
            # counts as transient.
            transient = code & 0xFF == sqlite3.SQLITE_CANTOPEN
            return StoreError(
                f"The database {place} cannot be opened or written: {error}",
                ELSEWHERE,
                transient=transient,
            )
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_FORMAT:
            return _damaged(place, str(error))
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreError(
                f"Another process has held the database {place} for more than {BUSY_S:.0f} s",
                "end it, then try again",
            )
        case sqlite3.SQLITE_IOERR:
            return StoreError(
                f"The disk under {place} failed: {error} ({error.sqlite_errorname})",
                "check the disk and dmesg",
            )
        case _:
            return StoreError(f"The database {place} cannot be used: {error}")


def _no_room(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE


def _damaged(place: str, why: str) -> StoreError:
    hint = (
        f"keep a copy of it, then try: sqlite3 {place} .recover; or move it away and start with a "
        "new one"
    )
    return StoreError(f"The database {place} is damaged: {why}", hint, transient=False)


def _full(place: str) -> StoreError:
    return StoreError(
        f"The disk under {place} is full; nothing was stored, and existing data is kept",
        "free some space, then try again",
    )
