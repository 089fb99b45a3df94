"""`home link`: moves an agent's home to the volume. On a new machine or in a new container, it
makes the agent use the home that is already on the volume.

There are three steps:

- The home is copied to the staging directory, compared, and put in place on the volume.
- The new location is recorded. Attempts then use it, if the agent takes the location of its home
  from an environment variable.
- The old tree is moved aside. If the agent needs a symbolic link, the link replaces the tree in the
  same step.

After a kill at any point, the next call finds the completed steps and does the rest. The old tree
is not changed before its copy is on the disk, and none of its files is ever deleted.

Before a move, `require_unused` searches for processes that use the home. If an agent still used the
home after the move, it would write to the old directory, and what it wrote would be lost.

A process uses the home in two cases. It has a file of the home open (Codex's locks and databases,
OpenCode's database, a transcript). Or it is the agent, and its environment names this home (Claude
Code and Gemini CLI keep no file open between turns). Processes of other users and on other machines
cannot be seen.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from perdure.errors import Conflict
from perdure.host import system
from perdure.host.homes import durable
from perdure.host.homes.inventory import HomeSituation, read_situation, signature
from perdure.host.homes.linked_homes import LINK, VARIABLE, Linked, LinkedHomes
from perdure.host.homes.merge import Merge, MergeResult, Tell
from perdure.host.homes.staged import HomeStage
from perdure.host.homes.volume import Volume, locked, refused
from perdure.protocols import Folder, Home

INTERPRETERS = ("node", "bun", "deno")


def require_unused(home: Home, folder: Folder, places: Sequence[Path]) -> None:
    """Raise Conflict, with a list of the processes, if any process uses the home."""
    if found := sorted(set(users(home, folder, places))):
        raise Conflict(
            f"This home is in use: {'; '.join(found[:5])}.",
            "Stop it (perdure stop), then try again.",
        )


def users(home: Home, folder: Folder, places: Sequence[Path]) -> Iterator[str]:
    """For each live process that uses a home, yield a sentence that says how it uses the home.
    `places`: all paths by which the home can be reached."""
    tops = set(chain.from_iterable((str(place), str(place.resolve())) for place in places))
    for pid in system.pids():
        if pid != os.getpid():
            if opened := _opened(pid, tops):
                yield f"process {pid} has {opened} open"
            elif _is_agent(pid, home) and _home_of(pid, folder) in tops:
                yield f"process {pid} is {home.programs[0]}"


def _opened(pid: int, tops: set[str]) -> str:
    """Return the path of a file that the process has open and that is below one of the directories
    `tops`. Return "" if there is none."""
    try:
        for path in system.open_files(pid):
            if any(path.startswith(f"{top}/") for top in tops):
                return path
    except OSError:
        pass  # The process belongs to another user, or has ended.
    return ""


def _is_agent(pid: int, home: Home) -> bool:
    """Return whether a process is the agent that the home belongs to. The name of its program
    decides; for an interpreter, the name of the script that it runs."""
    known = system.stat(pid)
    try:
        words = [os.fsdecode(word) for word in system.command(pid).split(b"\0") if word]
    except OSError:
        return False
    if known is None or known[0] in "ZX":
        return False
    if words and Path(words[0]).name in INTERPRETERS:
        words = [word for word in words[1:] if not word.startswith("-")]
    return bool(words) and Path(words[0]).name in home.programs


def _home_of(pid: int, folder: Folder) -> str:
    """Return the path of the home that a process uses; "" if its environment cannot be read."""
    try:
        environ = {}
        for pair in system.variables(pid).split(b"\0"):
            name, sign, value = pair.partition(b"=")
            if sign:
                environ[os.fsdecode(name)] = os.fsdecode(value)
    except OSError:
        return ""
    return os.path.realpath(folder.at(environ))


ASIDE = ".pre-perdure-"
ROUNDS = 3
"""Maximum number of times that a tree is copied. It is copied again if a file in it changed during
the copying. If that also happens the last time, an agent is assumed to be using the tree."""


def quiet(step: str) -> None:
    """Ignore a progress message."""


class MovedDirectory(Struct, kw_only=True):
    """The result of moving one directory of a home."""

    linked: Linked
    taken: MergeResult = field(default_factory=MergeResult)
    kept: list[str] = field(default_factory=list)
    """New paths of everything that was moved aside: the old tree, files next to it, old index
    files."""

    @property
    def line(self) -> str:
        """Line to add to the user's shell configuration; empty if none is needed."""
        if self.linked.way == VARIABLE:
            return f"export {self.linked.variable}={self.linked.value}"
        return ""


class Linking(Struct, frozen=True, kw_only=True):
    """The settings of one call of `home link`. `environ` is the user's own environment, without the
    variables that perdure adds for linked homes. `symlink`: make a symbolic link at the home's old
    path even if an environment variable would be enough. `tell` is called with the name of each
    step."""

    volume: Volume
    state: Path
    environ: Mapping[str, str]
    symlink: bool = False
    dry_run: bool = False
    tell: Tell = quiet

    def link(self, agent: str, home: Home) -> list[MovedDirectory]:
        """Move all directories of the agent's home to the volume. Return the result for each of
        them. Raises WorkspaceError if the home cannot be moved, and Conflict if a process uses the
        home. The home then stays where it was, except after a Conflict of `_check_unchanged`, which
        runs after the move."""
        agent = agent.removeprefix("acp-")
        try:
            if self.dry_run:
                return [self._plan(self._read_situation(agent, folder)) for folder in home.folders]
            with locked(self.state), self.volume.held():
                found = []
                for folder in home.folders:
                    found.append(self._make(home, self._read_situation(agent, folder)))
                return found
        except OSError as error:
            raise refused(error, self.volume.path) from error

    def _read_situation(self, agent: str, folder: Folder) -> HomeSituation:
        found = read_situation(agent, folder, self.volume, self.state, self.environ, self.symlink)
        found.require()
        return found

    def _plan(self, now: HomeSituation) -> MovedDirectory:
        moved = MovedDirectory(linked=now.linked)
        for merge in self._merges(now, {}):
            things, taken = merge.plan()
            taken.count(things)
            moved.taken.add(taken)
        return moved

    def _make(self, home: Home, now: HomeSituation) -> MovedDirectory:
        moved, tell = MovedDirectory(linked=now.linked), self.tell
        tell("checked")
        now.target.mkdir(mode=0o700, parents=True, exist_ok=True)
        known = self.volume.last_used_as(now.folder.name) == now.linked.value
        if now.has_old or now.beside or not known:
            require_unused(home, now.folder, [now.place, now.target])
            moved.taken = copy_into_volume(self, now)
        if moved.taken.files or not known:
            moved.kept += index_aside(now)
            tell("index aside")
        self.volume.note_use(now.folder.name)
        LinkedHomes(self.state).put(now.linked)
        tell("noted")
        moved.kept += switch(now, tell)
        if moved.kept:
            self._check_unchanged(home, now, moved)
        taking(now).unlink(missing_ok=True)
        stage_of(now).close()
        tell("finished")
        return moved

    def _merges(self, now: HomeSituation, known: Mapping[str, list[str]]) -> list[Merge]:
        """Return the merges to do. Files next to the directory are merged first, so that they keep
        their names if there is a conflict. The agent uses these files, not files of the same name
        in the directory."""
        stage = stage_of(now)
        stays = (*now.folder.excluded, *now.folder.index)
        found = []
        for each in now.beside:
            found.append(
                Merge(
                    each.parent,
                    now.target,
                    stage,
                    self.tell,
                    only=[each.name],
                    known=known,
                    wins=now.lost_its_link,
                )
            )
        if now.has_old and now.source.is_dir():
            found.append(Merge(now.source, now.target, stage, self.tell, stays=stays, known=known))
        return found

    def _check_unchanged(self, home: Home, now: HomeSituation, moved: MovedDirectory) -> None:
        """Copy files that were written to the old tree just before it was moved aside. Raises
        Conflict if a process still uses that tree."""
        for kept in map(Path, moved.kept):
            if kept.is_dir() and not kept.is_symlink() and (late := _late(self, now, kept)):
                require_unused(home, now.folder, [kept])
                moved.taken.add(late)


def stage_of(now: HomeSituation) -> HomeStage:
    return HomeStage(now.volume.own / "stage" / now.folder.name.replace("/", "-"))


def copy_into_volume(call: Linking, now: HomeSituation) -> MergeResult:
    """Merge the files at the old path into the volume, and return the result. Files that the volume
    already has are not copied. Raises Conflict if the old path is still being written to after
    `ROUNDS` copies."""
    known = _known(now)
    for _ in range(ROUNDS):
        before = signature(now.source)
        taken = MergeResult()
        for merge in call._merges(now, known):
            things, one = merge.plan()
            call.tell("planned")
            digests = {}
            for thing in things:
                if thing.is_file and merge.gets_name(thing):
                    digests[thing.name] = thing.digest()
            _note_taking(now, known, digests)
            call.tell("taking")
            try:
                taken.add(merge.run(things, one))
            finally:
                merge.stage.close()
        if signature(now.source) == before:
            return taken
    raise Conflict(
        f"{now.place} changed while it was copied: an agent is running.", "Stop it, then try again."
    )


def _late(call: Linking, now: HomeSituation, kept: Path) -> MergeResult | None:
    """Copy to the volume the files that were written to the old tree (now at `kept`) after the tree
    was copied. Return the result; None if there are no such files."""
    stage = stage_of(now)
    merge = Merge(
        kept,
        now.target,
        stage,
        call.tell,
        stays=(*now.folder.excluded, *now.folder.index),
        known=_known(now),
    )
    things, taken = merge.plan()
    things = [thing for thing in things if thing.is_file]
    if not things:
        return None
    try:
        return merge.run(things, taken)
    finally:
        stage.close()


def switch(now: HomeSituation, tell: Tell) -> list[str]:
    """Move the old tree aside, and make the symbolic link if the agent needs one. The link replaces
    the tree in one step if the file system supports that. Return the new paths of everything that
    was moved."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    kept = []
    for each in now.beside:
        kept.append(str(_rename_aside(each, stamp)))
        if now.linked.way == LINK:
            each.symlink_to(now.target / each.name)
        tell(f"aside {each.name}")
    for each in map(Path, now.linked.beside if now.linked.way == LINK else ()):
        # Make the link even if the volume has no such file yet: Claude Code 2.1.329 creates the
        # file through the link. Without the link, the first login in a new container would be
        # written outside the volume.
        if not os.path.lexists(each):
            each.symlink_to(now.target / each.name)
    if now.linked.way == VARIABLE:
        if now.has_old or now.is_linked:
            kept.append(str(_rename_aside(now.place, stamp)))
    elif now.has_old:
        kept.append(str(_exchange(now, stamp)))
    elif not now.is_linked:
        now.place.parent.mkdir(parents=True, exist_ok=True)
        now.place.symlink_to(now.target)
    if now.place.parent.is_dir():
        durable.sync(now.place.parent)
    tell("switched")
    return kept


def _rename_aside(path: Path, stamp: str) -> Path:
    """Rename a file or directory to an unused name in the same directory. Return the new path."""
    for number in range(100):
        suffix = f"-{number}" if number else ""
        kept = path.with_name(f"{path.name}{ASIDE}{stamp}{suffix}")
        try:
            durable.place_new(path, kept)
        except FileExistsError:
            continue
        return kept
    raise Conflict(
        f"There are too many old versions beside {path}.", "Remove those that you do not need."
    )


def _exchange(now: HomeSituation, stamp: str) -> Path:
    """Swap the names of the link and the old tree, and return the new path of the old tree. The
    home's path exists at every moment, unless the file system cannot swap names."""
    kept = now.place.with_name(f"{now.place.name}{ASIDE}{stamp}-{os.urandom(2).hex()}")
    kept.symlink_to(now.target)
    try:
        durable.exchange(now.place, kept)
    except OSError as error:
        kept.unlink()
        if not durable.is_unsupported(error):
            raise
        kept = _rename_aside(now.place, stamp)
        now.place.symlink_to(now.target)
    return kept


def index_aside(now: HomeSituation) -> list[str]:
    """Move aside the agent's index files on the volume, and return the new paths. An index file may
    contain old paths, or lack files that were just copied. The agent builds a new one."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    found = []
    for each in sorted(now.target.iterdir()):
        if any(fnmatchcase(each.name, one) for one in now.folder.index):
            found.append(each)
    result = []
    for each in found:
        if ASIDE not in each.name:
            result.append(str(_rename_aside(each, stamp)))
    return result


def taking(now: HomeSituation) -> Path:
    """Return the path of the file in which `home link` lists the files that it is copying. The file
    is removed when the call completes."""
    return now.volume.own / f"taking-{now.folder.name.replace('/', '-')}.json"


def _identity(now: HomeSituation) -> str:
    state = now.source.stat() if now.source.exists() else None
    if state:
        return f"{state.st_dev}:{state.st_ino}:{now.place}"
    return str(now.place)


def _known(now: HomeSituation) -> dict[str, list[str]]:
    """Return the hashes of the file versions that an interrupted call copied from the same old
    path, by file name. Return {} if no call was interrupted."""
    try:
        note: Any = json.loads(taking(now).read_bytes())
        if note["from"] == _identity(now):
            return {str(name): list(map(str, hashes)) for name, hashes in note["files"].items()}
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _note_taking(
    now: HomeSituation, known: Mapping[str, list[str]], digests: Mapping[str, str]
) -> None:
    files = {}
    for name in {*known, *digests}:
        files[name] = sorted({*known.get(name, ()), *({digests[name]} if name in digests else ())})
    durable.write(taking(now), json.dumps({"from": _identity(now), "files": files}))
