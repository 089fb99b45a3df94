"""`home status` and `home verify`: show perdure's record of a linked home, and check whether the
record matches the file system."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec import Struct

from perdure.errors import PerdureError
from perdure.host.homes.link import ASIDE
from perdure.host.homes.linked_homes import LINK, Linked
from perdure.host.homes.merge import CONFLICT
from perdure.host.homes.volume import volume_at


class HomeFinding(Struct, frozen=True):
    """The result of one check. `state`: `ok`, `warn` (works, with a limitation) or `bad` (a
    conversation would be lost)."""

    state: str
    message: str


def verify(home: Linked, environ: Mapping[str, str]) -> Iterator[HomeFinding]:
    """Check everything that a linked home needs, and yield the results. `environ` is the user's own
    environment."""
    try:
        volume_at(Path(home.volume), wanted=home.volume_id)
    except PerdureError as error:
        yield HomeFinding("bad", str(error))
        return
    yield HomeFinding("ok", f"the volume {home.volume_id} is at {home.volume}")
    target, place = Path(home.target), Path(home.place)
    if not target.is_dir() or not os.access(target, os.W_OK | os.X_OK):
        yield HomeFinding(
            "bad",
            f"{target} is missing or not writable: conversations would be lost silently",
        )
    yield from _way(home, place, target, environ)
    for outside in map(Path, home.beside):
        if outside.is_file() and not outside.is_symlink():
            yield HomeFinding(
                "warn",
                f"{outside} is a separate file that is not on the volume; perdure home link moves "
                f"it there",
            )
    beside = list(map(str, target.rglob(f"*{CONFLICT}*")))
    if beside:
        yield HomeFinding(
            "warn", f"{len(beside)} file(s) exist in two versions, such as {sorted(beside)[0]}"
        )
    dangling = [path for path in target.rglob("*") if path.is_symlink() and not path.exists()]
    if dangling:
        yield HomeFinding(
            "warn", f"{len(dangling)} dangling link(s), such as {sorted(dangling)[0]}"
        )


def _way(
    home: Linked, place: Path, target: Path, environ: Mapping[str, str]
) -> Iterator[HomeFinding]:
    if home.leaving:
        yield HomeFinding("warn", "perdure home unlink was interrupted: run it again")
    if home.way == LINK:
        if home.is_linked:
            yield HomeFinding("ok", f"{place} links to {target}")
        else:
            yield HomeFinding(
                "bad", f"{place} does not link to {target}: perdure home link repairs it"
            )
        return
    given = environ.get(home.variable, "")
    if given and os.path.normpath(given) not in (home.was, home.value):
        yield HomeFinding(
            "bad",
            f"{home.variable} is set to {given}, which overrides the volume: unset it, or set it "
            f"to {home.value}",
        )
    else:
        yield HomeFinding("ok", f"the attempts' {home.variable} is {home.value}")
    if os.path.lexists(place):
        yield HomeFinding(
            "warn", f"there is another home at {place}: perdure home link moves it to the volume"
        )
    if given != home.value:
        yield HomeFinding(
            "warn", f"for your own use of {home.agent}: export {home.variable}={home.value}"
        )


def kept_beside(home: Linked) -> list[str]:
    """Return the paths of old trees and files that were moved aside. perdure never deletes them."""
    found: list[str] = []
    for path in (Path(home.place), Path(home.target), *map(Path, home.beside)):
        if path.parent.is_dir():
            for each in path.parent.iterdir():
                if each.name.startswith(f"{path.name}{ASIDE}"):
                    found.append(str(each))
    return sorted(set(found))
