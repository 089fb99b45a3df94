"""Decides whether a file system may hold a database. A local one may, a network file system may
not.

SQLite's write-ahead log needs shared memory and reliable locks. On a network file system both fail
silently, and two hosts that write at the same time corrupt the database (sqlite.org/wal.html: "does
not work over a network filesystem"). Called by `sqlite.connect`; `perdure doctor` calls
`sqlite_warning`.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from perdure.errors import StoreError
from perdure.host.volumes import MOUNTS, file_system

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
