"""`home unlink`: moves a home back from the volume, including everything that was written there
since `home link`.

A complete copy is made next to the old place, compared, flushed to the disk, and put in place in
one step. The tree on the volume is then given another name, so that a later `home link` does not
take it for a second home. The old tree that `home link` had moved aside is left alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from perdure.errors import Conflict
from perdure.host.homes import durable
from perdure.host.homes.inventory import HomeSituation, read_situation, signature
from perdure.host.homes.link import (
    ASIDE,
    Linking,
    MovedDirectory,
    copy_into_volume,
    quiet,
    require_unused,
    stage_of,
    taking,
)
from perdure.host.homes.link import switch as put_aside
from perdure.host.homes.linked_homes import Linked, LinkedHomes
from perdure.host.homes.merge import Merge, Tell
from perdure.host.homes.staged import HomeStage
from perdure.host.homes.volume import locked, refused, volume_at
from perdure.protocols import Home

NEW = ".perdure-new"


def unlink(
    agent: str,
    home: Home,
    state: Path,
    environ: Mapping[str, str],
    tell: Tell = quiet,
    dry_run: bool = False,
) -> list[MovedDirectory]:
    """Move all linked directories of the agent's home back to their original paths. Return the
    result for each of them. Raises Conflict if a process uses the home, and WorkspaceError if the
    volume is missing or there is not enough space. In both cases the home stays on the volume."""
    note, done = LinkedHomes(state), []
    for folder in home.folders:
        before = note.one(folder.name)
        if before is None:
            continue
        volume = volume_at(Path(before.volume), wanted=before.volume_id)
        call = Linking(
            volume=volume, state=state, environ=environ, symlink=before.way != "variable", tell=tell
        )
        now = read_situation(
            agent.removeprefix("acp-"),
            folder,
            volume,
            state,
            {**environ, folder.variable: before.was},
            call.symlink,
        )
        try:
            if dry_run:
                merge = Merge(
                    now.target,
                    _new(now),
                    HomeStage(_stage(now)),
                    tell,
                    stays=(*folder.excluded, *folder.index),
                )
                things, taken = merge.plan()
                taken.count(things)
                done.append(MovedDirectory(linked=before, taken=taken))
                continue
            with locked(state), volume.held():
                done.append(_copy_home_back(call, home, now, before))
        except OSError as error:
            raise refused(error, now.place) from error
    return done


def _copy_home_back(
    call: Linking, home: Home, now: HomeSituation, before: Linked
) -> MovedDirectory:
    moved, note = MovedDirectory(linked=before), LinkedHomes(call.state)
    call.tell("checked")
    if not before.is_home_again:
        require_unused(home, now.folder, [now.place, now.target])
        if now.has_old:
            # A new home was created at the old place meanwhile. Merge it into the volume, as `home
            # link` does.
            now.require()
            copy_into_volume(call, now)
            moved.kept += put_aside(now, call.tell)
        _copy_back(call, now, moved)
        note.leaving(before)
        call.tell("noted")
        _switch(now)
        call.tell("switched")
    moved.kept += _restore_beside(before)
    call.tell("beside")
    if now.target.is_dir():
        moved.kept.append(str(_away(now.target)))
    call.tell("volume aside")
    taking(now).unlink(missing_ok=True)
    for stage in (stage_of(now), HomeStage(_stage(now))):
        stage.close()
    note.forget(before.name)
    call.tell("finished")
    return moved


def _new(now: HomeSituation) -> Path:
    return now.place.with_name(now.place.name + NEW)


def _stage(now: HomeSituation) -> Path:
    return now.place.with_name(f"{now.place.name}.perdure-stage")


def _copy_back(call: Linking, now: HomeSituation, moved: MovedDirectory) -> None:
    new = _new(now)
    if os.path.lexists(new):  # A killed call left this directory. Its copies may be outdated.
        moved.kept.append(str(_away(new)))
    new.parent.mkdir(parents=True, exist_ok=True)
    before = signature(now.target)
    merge = Merge(
        now.target,
        new,
        HomeStage(_stage(now)),
        call.tell,
        stays=(*now.folder.excluded, *now.folder.index),
    )
    things, taken = merge.plan()
    try:
        new.mkdir(mode=0o700)
        moved.taken = merge.run(things, taken)
    finally:
        merge.stage.close()
    if signature(now.target) != before:
        raise Conflict(
            f"{now.target} changed while it was copied: an agent is running.",
            "Stop it, then try again.",
        )


def _switch(now: HomeSituation) -> None:
    new = _new(now)
    if not now.place.is_symlink():
        durable.place_new(new, now.place)
    else:
        try:
            durable.exchange(new, now.place)
        except OSError as error:
            if not durable.is_unsupported(error):
                raise
            now.place.unlink()
            durable.place_new(new, now.place)
        if new.is_symlink():
            new.unlink()  # after the swap, `new` is the link to the volume
    durable.sync(now.place.parent)


def _restore_beside(before: Linked) -> list[str]:
    """Move the files that were originally next to the directory out of the directory again. `home
    link` had put them into it. Return the new paths of files that were in the way and were moved
    aside."""
    kept = []
    for outside in map(Path, before.beside):
        inside = Path(before.place) / outside.name
        if not inside.is_file():
            if outside.is_symlink():
                outside.unlink()  # The link leads to a file that was never created.
            continue
        if outside.is_symlink():
            inside.replace(outside)
            continue
        if outside.exists():
            kept.append(str(_away(outside)))
        durable.place_new(inside, outside)
    return kept


def _away(path: Path) -> Path:
    """Append the current time to the name of a file or directory. Return the new path."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    kept = path.with_name(f"{path.name}{ASIDE}{stamp}-{os.urandom(2).hex()}")
    durable.place_new(path, kept)
    return kept
