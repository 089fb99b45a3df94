"""Moves staged files to their final paths without ever overwriting different content. If a file has
two versions, both are kept.

If source and target both have a file of the same name, the version that gets the name is:

- the longer one, if it continues the other (its bytes begin with the other's);
- the one that changed, if an interrupted call had copied the file and only one version has changed
  since;
- otherwise the one at the target. The other one is kept beside it as `<name>.conflict-<first 12
  digits of its hash>`, where no agent reads it.

Every step is one rename or link. A completed step is not repeated.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct, field

from perdure.host.homes import durable
from perdure.host.homes.inventory import (
    PIECE,
    SIDES,
    HomeEntry,
    entry_at,
    open_file,
    parents,
    side,
    survey,
)
from perdure.host.homes.staged import HomeStage, copy_file

CONFLICT = ".conflict-"
Tell = Callable[[str], None]


class MergeResult(Struct):
    """The result of merging the files of one tree."""

    files: int = 0
    """Number of files and links that were put in place."""
    bytes: int = 0
    same: int = 0
    """Number of files and links that the target already had, in the same or a later version."""
    conflicts: list[str] = field(default_factory=list)
    """Names of files that were kept as a second version, next to the file with the original
    name."""
    left: list[str] = field(default_factory=list)
    """Names of entries that were not moved: sockets, pipes, and files that match a pattern in
    `Merge.stays`."""

    def count(self, entries: Sequence[HomeEntry]) -> None:
        """Set the number of files and of bytes to those of these entries."""
        self.files = sum(not each.is_directory for each in entries)
        self.bytes = sum(each.bytes for each in entries)

    def add(self, other: MergeResult) -> None:
        self.files, self.bytes, self.same = (
            self.files + other.files,
            self.bytes + other.bytes,
            self.same + other.same,
        )
        self.conflicts += [name for name in other.conflicts if name not in self.conflicts]
        self.left += [name for name in other.left if name not in self.left]


class Merge(Struct):
    """A merge of one directory tree into another. `known` has, by file name, the hashes of the
    versions that an interrupted call copied."""

    source: Path
    target: Path
    stage: HomeStage
    tell: Tell
    stays: Sequence[str] = ()
    known: Mapping[str, Sequence[str]] = field(default_factory=dict)
    only: Sequence[str] = ()
    """Names of the files to merge; empty: the whole tree."""
    wins: bool = False
    """Whether the source's version always keeps the original name if the two versions differ."""
    touched: set[Path] = field(default_factory=set)

    def plan(self) -> tuple[list[HomeEntry], MergeResult]:
        """Return the entries to copy, and a result that already counts all other entries. Writes
        nothing."""
        if not self.only:
            things, left = survey(self.source, self.stays)
        else:
            things, left = ([], [])
        for name in self.only:
            found = entry_at(self.source / name, name)
            if found is not None and found.is_file:
                things.append(found)
        taken = MergeResult(left=left)
        wanted = []
        for thing in things:
            if not self._is_there(thing):
                wanted.append(thing)
            elif not thing.is_directory:
                taken.same += 1
        return wanted, taken

    def run(self, things: Sequence[HomeEntry], taken: MergeResult) -> MergeResult:
        """Copy the entries, compare the copies, put them in place, and flush them to the disk.
        `things` and `taken` come from `plan`. Return the completed result."""
        self.stage.require_room([thing for thing in things if thing.is_file])
        for thing in things:
            if thing.is_file:
                self.stage.copy(thing)
                self.tell(f"copied {thing.name}")
        durable.sync(self.stage.directory)
        self.tell("staged")
        for thing in things:
            self._put(thing, taken)
            self.tell(f"placed {thing.name}")
        for directory in sorted(self.touched, reverse=True):
            durable.sync(directory)
        self.tell("durable")
        return taken

    def _is_there(self, thing: HomeEntry) -> bool:
        """Return whether the target has this version of an entry or a later one, under the same
        name or as a second version."""
        there = entry_at(self.target / thing.name)
        if there is None or self._blocked(thing.name):
            return False
        if there.kind != thing.kind:
            return not thing.is_directory and os.path.lexists(second_path(there.path, thing))
        if thing.is_directory:
            return True
        if thing.is_link and os.fsencode(there.path.readlink()) == self._link_destination(thing):
            return True
        if thing.is_file:
            verdict = self._verdict(thing, there)
        else:
            verdict = "differs"
        return verdict in ("same", "later") or (
            verdict == "differs" and os.path.lexists(second_path(there.path, thing))
        )

    def gets_name(self, thing: HomeEntry) -> bool:
        """Return whether the entry keeps its own name in the target. If not, it is put into the
        target as a second version with another name, or not at all."""
        there = entry_at(self.target / thing.name)
        return not self._blocked(thing.name) and (
            there is None
            or (there.is_file and thing.is_file and self._verdict(thing, there) == "earlier")
        )

    def _blocked(self, name: str) -> bool:
        """Return whether the target has something other than a directory at the path of one of the
        name's parent directories."""
        for parent in parents(name):
            found = entry_at(self.target / parent)
            if found is not None and not found.is_directory:
                return True
        return False

    def _verdict(self, ours: HomeEntry, there: HomeEntry) -> str:
        """Compare a version (`ours`) with the one at the target (`there`). Return `same`, `later`
        (`there` continues `ours`), `earlier` (`ours` continues `there`), or `differs`. If the
        versions differ, one that an interrupted call copied counts as the older one; with `wins`,
        `there` always does."""
        if (
            ours.size == there.size
            and ours.sides == there.sides
            and ours.digest() == there.digest()
        ):
            return "same"
        known = self.known.get(ours.name, ())
        if self.wins or (known and there.digest() in known):
            return "earlier"
        if known and ours.digest() in known:
            return "later"
        if not ours.sides and not there.sides:
            if 0 < there.size < ours.size and begins_with(ours.path, there.path, there.size):
                return "earlier"
            if ours.size < there.size and begins_with(there.path, ours.path, ours.size):
                return "later"
        return "differs"

    def _put(self, thing: HomeEntry, taken: MergeResult) -> None:
        place = self._parent(thing.name) / Path(thing.name).name
        if thing.is_directory:
            self._directory(place, thing.mode)
            return
        there = entry_at(place)
        if there is None:
            self._publish(thing, place)
        elif thing.is_file and there.is_file and self._verdict(thing, there) == "same":
            return
        elif thing.is_file and there.is_file and self._verdict(thing, there) == "earlier":
            self._keep(there, taken)
            self._replace(thing, place)
        else:
            place = second_path(place, thing)
            if not os.path.lexists(place):
                self._publish(thing, place)
            taken.conflicts.append(str(place.relative_to(self.target)))
        taken.files += 1
        taken.bytes += thing.bytes

    def _parent(self, name: str) -> Path:
        """Return the target directory for a name. A missing directory is created. If something
        other than a directory has that path, a directory with another name is created next to it.
        Links are never followed."""
        place = self.target
        self._directory(place, 0o700)
        for each in parents(name):
            place /= Path(each).name
            place = self._directory(place, stat.S_IMODE((self.source / each).lstat().st_mode))
        return place

    def _directory(self, place: Path, mode: int) -> Path:
        found = entry_at(place)
        if found is None:
            place.mkdir(mode=mode & 0o777 | 0o700, parents=True)
            self.touched |= {place, place.parent}
        elif not found.is_directory:
            return self._directory(place.with_name(f"{place.name}{CONFLICT}directory"), mode)
        return place

    def _publish(self, thing: HomeEntry, place: Path) -> None:
        """Move a staged entry to a path that is free. The files that belong to a database are moved
        before the database, so that the database never exists without them."""
        self.touched.add(place.parent)
        if thing.is_link:
            place.symlink_to(os.fsdecode(self._link_destination(thing)))
            return
        staged = self.stage.place(thing)
        for suffix in SIDES:
            in_the_way = side(place, suffix)
            if os.path.lexists(in_the_way) and staged.exists():
                # The file belongs to a database that no longer exists, or was left by a killed
                # call. SQLite must not read it as part of the new database.
                in_the_way.rename(side(place, f"{suffix}{CONFLICT}{os.urandom(6).hex()}"))
        for suffix in thing.sides:
            durable.place_new(side(staged, suffix), side(place, suffix))
        durable.place_new(staged, place)

    def _keep(self, there: HomeEntry, taken: MergeResult) -> None:
        """Give the target's version of a file a second name, as a hard link. The caller then
        replaces the file under its original name."""
        kept = second_path(there.path, there)
        taken.conflicts.append(str(kept.relative_to(self.target)))
        for suffix in (*there.sides, ""):
            if not os.path.lexists(side(kept, suffix)):
                second_name(side(there.path, suffix), side(kept, suffix))
        durable.sync(there.path.parent)

    def _replace(self, thing: HomeEntry, place: Path) -> None:
        self.touched.add(place.parent)
        staged = self.stage.place(thing)
        for suffix in SIDES:
            # No content is lost: `_keep` has already given this file a second name.
            side(place, suffix).unlink(missing_ok=True)
        for suffix in thing.sides:
            durable.place_new(side(staged, suffix), side(place, suffix))
        staged.replace(place)

    def _link_destination(self, link: HomeEntry) -> bytes:
        """Return the destination of a link after its move. A link to a file outside the home still
        leads to that file. A link to a file in the home leads to the copy of that file."""
        told = link.path.readlink()
        inside = self.source.resolve()
        if told.is_absolute():
            for top in (self.source, inside):
                with suppress(ValueError):
                    return os.fsencode(
                        os.path.relpath(
                            self.target / told.relative_to(top), (self.target / link.name).parent
                        )
                    )
            return os.fsencode(told)
        meant = Path(os.path.normpath(inside / Path(link.name).parent / told))
        return os.fsencode(told if meant == inside or inside in meant.parents else meant)


def second_path(place: Path, thing: HomeEntry) -> Path:
    """Return the path for a second version of a file: the original name, `.conflict-` and the
    beginning of the hash."""
    return place.with_name(f"{place.name}{CONFLICT}{thing.digest()[:12]}")


def second_name(path: Path, other: Path) -> None:
    """Make a hard link `other` to the file at `path`. Copy the file if the file system has no hard
    links."""
    try:
        os.link(path, other, follow_symlinks=False)
    except OSError:
        copy_file(path, other)


def begins_with(path: Path, shorter: Path, size: int) -> bool:
    """Return whether a file begins with the first `size` bytes of another file (`shorter`)."""
    one, other = open_file(path), open_file(shorter)
    try:
        while size > 0:
            piece = os.read(other, PIECE)
            if not piece or os.read(one, len(piece)) != piece:
                return False
            size -= len(piece)
        return True
    finally:
        os.close(one)
        os.close(other)
