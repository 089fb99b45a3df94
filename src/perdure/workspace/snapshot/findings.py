"""Input and results of one capture of a workdir: types that `scan` and `differences` share and
`capture` stores."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct, field

from perdure.workspace.snapshot.escapes import unescape

Seen = tuple[int, list[str], list[tuple[str, str]]]
"""State of a directory: its change time (0: inspect again), names that git cannot store, and
special files with their kind."""


class Piece(Struct):
    """A directory with its own git index: the whole workdir, or a directory that git cannot store,
    such as `.git`. `seen` has the findings of the last capture. `prefix` is the directory's path in
    the whole tree; it is empty or ends in a slash."""

    root: Path
    index: Path
    prefix: str = ""
    seen: dict[str, Seen] = field(default_factory=dict)
    begun: list[str] | None = None
    """All names in the index, if this is the first capture and the index was filled from HEAD. None
    for any other index."""
    examined: bool = True
    """Whether the index has the state of the files. Otherwise it has only names and ids, and git
    would report every file as changed."""

    @property
    def outer(self) -> str:
        """Return the path on the disk for `prefix`. In `prefix`, names that git cannot store are
        encoded; here they are decoded."""
        return "/".join(map(unescape, self.prefix.split("/")))


class Findings(Struct):
    """Results of a scan, apart from the content of the files. Names are as on disk, relative to the
    workdir."""

    empty: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """Names that were not saved, each with the reason; a directory's name ends in a slash."""
    unsteady: list[str] = field(default_factory=list)
    """Files that changed during every attempt to read them. The version that was read last is
    saved."""
    pieces: dict[str, dict[str, Seen]] = field(default_factory=dict)
    """State of each directory, by the prefix of the piece and the directory's name. The next
    capture uses it to find directories that have changed."""
    umask: int = 0
    """Umask of this process. A mode that follows from the umask is not recorded."""
    modes: dict[str, dict[str, int]] = field(default_factory=dict)
    """Modes that do not follow from the umask (see the module `modes`), by the prefix of the piece
    and the name."""
    recent: dict[str, list[str]] = field(default_factory=dict)
    """Names of files that were changed shortly before the capture, by the prefix of the piece. The
    next capture checks their modes again."""
    trees: dict[str, str] = field(default_factory=dict)
    idle: dict[str, list[str]] = field(default_factory=dict)
    """Names that exist but were not saved, including empty directories, by the prefix of the piece.
    """
    settled: list[str] = field(default_factory=list)
    """Prefixes of the pieces whose index is newer than all their files. git need not read these
    files again."""
