"""Describes one directory of a home before a move: where it is, where it has to go, and what
prevents the move.

This module only reads. `link` and `unlink` act on the result.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from perdure.errors import Conflict, WorkspaceError
from perdure.host.homes.inventory import entry_at
from perdure.host.homes.linked_homes import LINK, VARIABLE, Linked, LinkedHomes
from perdure.host.homes.volume import Volume
from perdure.protocols import Folder


class HomeSituation(Struct, frozen=True, kw_only=True):
    """The state of one directory of a home. `place` is its old path, `target` its path on the
    volume, `linked` the record to be written, and `before` the record of an earlier `home link`."""

    folder: Folder
    volume: Volume
    place: Path
    target: Path
    linked: Linked
    before: Linked | None

    @property
    def is_linked(self) -> bool:
        """Whether `place` is a link to `target`."""
        return self.linked.is_linked

    @property
    def source(self) -> Path:
        """The real path of `place`, with all links resolved. Raises WorkspaceError if the links
        form a loop."""
        try:
            return self.place.resolve(strict=False)
        except (OSError, RuntimeError) as error:
            raise WorkspaceError(
                f"{self.place} is a symlink loop.", "Move the link aside, then try again."
            ) from error

    @property
    def has_old(self) -> bool:
        """Whether something other than a link to `target` is at `place`."""
        return os.path.lexists(self.place) and not self.is_linked

    @property
    def beside(self) -> list[Path]:
        """Files of the home that are next to `place` and have not been replaced by links yet."""
        paths = map(Path, self.linked.beside)
        return [path for path in paths if path.is_file() and not path.is_symlink()]

    @property
    def lost_its_link(self) -> bool:
        """Whether an earlier `home link` replaced `place` with a link. That call also replaced the
        files next to `place` with links. So a regular file that is next to `place` now is newer
        than its version on the volume."""
        return (
            self.before is not None
            and self.before.way == LINK
            and self.before.place == str(self.place)
        )

    def require(self) -> None:
        """Raise Conflict or WorkspaceError if the directory cannot be moved."""
        there = entry_at(self.target)
        if there is not None and not there.is_directory:
            raise WorkspaceError(
                f"{self.target} is not a directory.", "Move it aside, then try again."
            )
        if self.before is not None and (self.before.volume_id, self.before.target) != (
            self.volume.id,
            str(self.target),
        ):
            raise Conflict(
                f"The home of {self.linked.agent} is kept at {self.before.target}.",
                "Run perdure home unlink first.",
            )
        if self.is_linked:
            return
        source, target, found = self.source, self.target.resolve(), entry_at(self.place)
        if found is not None and not found.is_link and not found.is_directory:
            raise WorkspaceError(
                f"{self.place} is not a directory.", "Move it aside, then try again."
            )
        if source == target or source in target.parents or target in source.parents:
            raise Conflict(
                f"One of {self.place} and {self.target} is inside the other.",
                "Choose another directory for the volume.",
            )
        if source.exists() and source.stat().st_uid != os.geteuid():
            owner = source.stat().st_uid
            raise Conflict(
                f"{source} belongs to another user (uid {owner}).",
                "Run the command as that user: perdure does not change owners.",
            )


def read_situation(
    agent: str,
    folder: Folder,
    volume: Volume,
    state: Path,
    environ: Mapping[str, str],
    symlink: bool,
) -> HomeSituation:
    """Return the current state of one directory of a home. `environ` is the user's environment."""
    before = LinkedHomes(state).one(folder.name)
    value = volume.home(folder.name)
    target = value / folder.inner
    # The variable already names the target, because the user has added the `export` line to the
    # shell configuration. So the old path cannot be read from the environment.
    if folder.at(environ) == target:
        environ = {name: text for name, text in environ.items() if name != folder.variable}
        if before is not None:
            root = Path(before.was)
        else:
            root = folder.root(environ)
    else:
        root = folder.root(environ)
    place = Path(os.path.normpath(root / folder.inner))
    usual = folder.at({"HOME": environ.get("HOME", "/")})
    if not environ.get(folder.variable) or place == usual:
        beside = [Path(environ.get("HOME") or "/", name) for name in folder.extra_files]
    else:
        beside = []
    linked = Linked(
        agent=agent,
        name=folder.name,
        volume=str(volume.path),
        volume_id=volume.id,
        target=str(target),
        place=str(place),
        way=VARIABLE if folder.own and not symlink else LINK,
        variable=folder.variable,
        value=str(value),
        was=os.path.normpath(root),
        beside=tuple(map(str, beside)),
    )
    return HomeSituation(
        folder=folder, volume=volume, place=place, target=target, linked=linked, before=before
    )
