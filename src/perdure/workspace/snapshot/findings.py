"""What one look at a workdir is about, and what it finds: the nouns that `scan` and `differences`
share, and `capture` remembers."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path

from perdure.lateclass import dataclass
from perdure.workspace.snapshot.escapes import unescape

Seen = tuple[int, list[str], list[tuple[str, str]]]
"""Of a directory: its change time (0: look again), names that git cannot keep, special files with
their kind."""


@dataclass(slots=True)
class Piece:
    """A directory to be taken, and what is known of it. `prefix` is its place in the whole tree,
    empty or ending in a slash."""

    root: Path
    index: Path
    prefix: str = ""
    seen: dict[str, Seen] = field(default_factory=dict)

    @property
    def outer(self) -> str:
        """`prefix` as it is on disk."""
        return "/".join(unescape(part) for part in self.prefix.split("/"))


@dataclass(slots=True)
class Findings:
    """What a scan found beside the files, by names as they are on disk, relative to the workdir."""

    empty: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason; a directory's name ends in a slash."""
    unsteady: list[str] = field(default_factory=list)
    """Files that changed each time they were read: the last reading is kept."""
    pieces: dict[str, dict[str, Seen]] = field(default_factory=dict)
    """What was seen of each piece, by its prefix: for the next look."""
    umask: int = 0
    """Modes that it gives are usual."""
    modes: dict[str, dict[str, int]] = field(default_factory=dict)
    """By piece: the modes that are not the usual ones, see `modes`."""
    recent: dict[str, list[str]] = field(default_factory=dict)
    """By piece: files that were touched shortly before the look, whose mode is looked at once
    more."""
    trees: dict[str, str] = field(default_factory=dict)
    idle: dict[str, list[str]] = field(default_factory=dict)
    """What is there in each piece and was not taken, empty directories among it."""
    settled: list[str] = field(default_factory=list)
    """Pieces whose index is younger than all their files."""
