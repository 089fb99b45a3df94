"""Input and results of one look at a workdir: types that `scan` and `differences` share and
`capture` stores."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct, field

from perdure.workspace.snapshot.escapes import unescape

Seen = tuple[int, list[str], list[tuple[str, str]]]
"""State of a directory: its change time (0: inspect again), names that git cannot store, and
special files with their kind."""


class Piece(Struct):
    """A directory to be saved, with the findings of earlier looks. `prefix` is its path in the
    whole tree, empty or ending in a slash."""

    root: Path
    index: Path
    prefix: str = ""
    seen: dict[str, Seen] = field(default_factory=dict)
    begun: list[str] | None = None
    """All names in the index, if it was just filled with names and ids only. git then knows nothing
    of the files, and would report each as changed. None for any other index."""

    @property
    def outer(self) -> str:
        """Return `prefix` as it is on disk."""
        return "/".join(unescape(part) for part in self.prefix.split("/"))


class Findings(Struct):
    """Findings of a scan besides the files themselves, by names as on disk, relative to the
    workdir."""

    empty: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason; a directory's name ends in a slash."""
    unsteady: list[str] = field(default_factory=list)
    """Files that changed each time they were read: the last version read is kept."""
    pieces: dict[str, dict[str, Seen]] = field(default_factory=dict)
    """State of each piece's directories, by its prefix, for the next look."""
    umask: int = 0
    """Umask of the process; modes that follow from it are not recorded."""
    modes: dict[str, dict[str, int]] = field(default_factory=dict)
    """By piece: the modes that do not follow from the umask, see `modes`."""
    recent: dict[str, list[str]] = field(default_factory=dict)
    """By piece: files that were touched shortly before the look, whose modes are checked again."""
    trees: dict[str, str] = field(default_factory=dict)
    idle: dict[str, list[str]] = field(default_factory=dict)
    """By piece: names that exist but were not saved, including empty directories."""
    settled: list[str] = field(default_factory=list)
    """Pieces whose index is younger than all their files."""
