"""Finds changed and new names in a directory since the last capture, and decides which of them to
save (`Listing`, which `scan` runs).

git compares files and lists names; perdure walks through directories that git does not know. Some
files are left out: large ignored files, ignored files that a build recreates, and anything that is
neither a file nor a link.

`Piece` and `Findings` are the input and the results of a scan. The cache stores them until the next
capture.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from msgspec import Struct, field

from perdure.errors import WorkspaceError
from perdure.host.git import GitResult
from perdure.model.checkpoints import BUILT_AGAIN
from perdure.workspace.locks import read
from perdure.workspace.snapshot.checkpoint_repository import CheckpointRepository, joined, split
from perdure.workspace.snapshot.trees import ODD, ODD_LINK, unescape

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
        encoded. In the result, they are decoded."""
        return "/".join(map(unescape, self.prefix.split("/")))


class Findings(Struct):
    """Results of a scan, apart from the content of the files. Names are as on disk, relative to the
    workdir."""

    empty: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """Names that were not saved, each with the reason; a directory's name ends in a slash."""
    unsteady: list[str] = field(default_factory=list)
    """Files that changed each time while they were being read. The version that was read last is
    saved."""
    pieces: dict[str, dict[str, Seen]] = field(default_factory=dict)
    """State of each directory, by the prefix of the piece and the directory's name. The next
    capture uses it to find directories that have changed."""
    umask: int = 0
    """Umask of this process. A mode that follows from the umask is not recorded."""
    modes: dict[str, dict[str, int]] = field(default_factory=dict)
    """Modes that do not follow from the umask (see `trees.usual`), by the prefix of the piece and
    the name."""
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


REBUILDABLE = frozenset(
    """node_modules __pycache__ .venv .tox .nox .mypy_cache .ruff_cache .pytest_cache .hypothesis
    .gradle .next .nuxt .turbo .parcel-cache .svelte-kit .eggs .DS_Store""".split()
)
"""Names of ignored files and directories that a build recreates. A directory with a cache tag
(bford.info/cachedir) counts too."""
CACHE_TAG = "Signature: 8a477f597d28d172789f06886806bc55"
LARGE = 10 << 20
MOST_BYTES = 8 << 30
"""Maximum total size of the files in a directory without git, in bytes. A larger directory is not
saved. `CheckpointRepository.most_files` limits the number of files."""
_MOST_PASSED = 50
"""Maximum number of names passed to git as arguments. For more names than this in a repository of
100,000 files, `ls-files` takes longer than for the whole list (git 2.39)."""
_MOST_PASSED_LENGTH = 16_384
"""Maximum total length of the names passed to git as arguments, in characters."""


class Listing:
    """Lists the changed and new names of one `Piece`. `fresh`: directories that the last capture
    did not have. `suspects`: names that are left out if git ignores them, each with the reason."""

    def __init__(
        self,
        repo: CheckpointRepository,
        piece: Piece,
        known: Findings,
        found: Findings,
        policy: str,
        user_index: Path | None,
    ) -> None:
        self.repo, self.piece, self.known, self.found, self.policy, self.user_index = (
            repo,
            piece,
            known,
            found,
            policy,
            user_index,
        )
        self.inspector = repo.for_directory(piece.root)
        self.outer = piece.outer
        self.whole = not piece.prefix
        self.count = self.bytes = 0
        self.left, self.empty = len(found.left_out), len(found.empty)
        self.new: dict[str, os.stat_result] = {}
        self.suspects: dict[str, str] = {}
        self.fresh: set[str] = set()

    def run(self) -> tuple[list[str], list[str]]:
        """Return (names to add to the index or update in it, names to remove from it). Raises
        WorkspaceError, GitFailed."""
        if self._is_unchanged():
            changed, others = self._list_changed_contents()
        else:
            changed, others = self._list_all()
        if not self.piece.seen:
            names = self.piece.begun
            if names is None:
                names = split(self._git("ls-files", "-z").stdout)
            changed_dirs = set(chain.from_iterable(map(above, names)))
            self.fresh |= {"", *changed_dirs}
        for name in others:
            self._add_untracked(name)
        gone = self._changed(changed)
        self._leave_out_unwanted()
        return [*self.new, *(name for name in changed if name not in gone)], gone

    def idle(self) -> list[str]:
        """Return names that exist but were not saved, including empty directories. The next capture
        inspects them again."""
        left = [name for name, _ in self.found.left_out[self.left :]]
        found = []
        for name in (*left, *(f"{name}/" for name in self.found.empty[self.empty :])):
            found.append(name.removeprefix(self.outer))
        return found

    def _git(self, *args: str, stdin: bytes = b"", good: tuple[int, ...] = (0,)) -> GitResult:
        return self.inspector.run(*args, index=self.piece.index, stdin=stdin, good=good)

    def _list_all(self) -> tuple[list[str], list[str]]:
        """Return (names whose file differs from the index or is gone, names that are not in the
        index)."""
        if self.piece.begun is not None and self.piece.examined:
            return self._list_first()
        # diff-files is used because, unlike ls-files, it also names a file of which only the mode
        # or the time has changed.
        changed = self.piece.begun
        if changed is None:
            changed = self._list_changed_contents()[0]
        others = self._git("ls-files", "-z", "--others", "--directory").stdout
        return list(changed), split(others)

    def _list_first(self) -> tuple[list[str], list[str]]:
        """Return the same two lists as `_list_all` with one start of git. Files of which only the
        mode or the time has changed are not in the first list. The first capture examines the mode
        of every file anyway."""
        said = self._git(
            "ls-files", "-z", "-t", "--others", "--modified", "--deleted", "--directory"
        )
        changed, others = dict[str, None](), list[str]()
        for line in split(said.stdout):
            tag, _, name = line.partition(" ")
            if tag == "?":
                others.append(name)
            else:
                changed[name] = None
        # git follows a link that has replaced a directory, and finds the files below it unchanged.
        real: dict[str, bool] = {}
        for name in self.piece.begun or ():
            folder = name.rpartition("/")[0]
            if folder not in real:
                real[folder] = all(
                    _is_directory(self.piece.root, each, {}) for each in (folder, *above(folder))
                )
            if not real[folder]:
                changed[name] = None
        return list(changed), others

    def _is_unchanged(self) -> bool:
        """Return whether no directory has changed since the last capture. Then no name was added or
        removed."""
        for directory, (changed, _, _) in self.piece.seen.items():
            try:
                if (
                    os.lstat(
                        f"{self.piece.root}/{directory}" if directory else self.piece.root
                    ).st_ctime_ns
                    != changed
                ):
                    return False
            except OSError:
                return False
        return bool(self.piece.seen) and self.piece.prefix in self.known.idle

    def _list_changed_contents(self) -> tuple[list[str], list[str]]:
        """Return the same two lists as `_list_all`, for a directory in which only the content of
        files can have changed. Files that the last capture did not save are inspected again."""
        said = self._git("diff-files", "-z", "--name-only", "--ignore-submodules=all")
        return split(said.stdout), self.known.idle.get(self.piece.prefix, [])

    def _add_untracked(self, name: str) -> None:
        parts = name.rstrip("/").split("/")
        if any(map(ODD.fullmatch, parts)) or (self.whole and name == ".git/"):
            return
        if self.policy != "all" and any(part in REBUILDABLE for part in parts):
            self.suspects[name] = BUILT_AGAIN
        elif name.endswith("/"):
            self._walk(name.rstrip("/"))
        else:
            self._file(name)

    def _walk(self, directory: str, *, sure: bool = False) -> None:
        """Add all files below a directory that is not in the index. A directory that a build
        recreates is added to `suspects` and not entered. With `sure`, `directory` itself is always
        entered."""
        waiting = [(directory, sure)]
        while waiting:
            here, certain = waiting.pop()
            if not certain and self.policy != "all" and _rebuildable(self.piece.root, here):
                self.suspects[f"{here}/"] = BUILT_AGAIN
                continue
            self.fresh.add(here)
            taken = 0
            try:
                with os.scandir(self.piece.root / here) as entries:
                    for entry in sorted(entries, key=lambda entry: entry.name):
                        taken += 1
                        name = f"{here}/{entry.name}"
                        if ODD.fullmatch(entry.name):
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append((name, False))
                        else:
                            self._file(name)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                self._leave_out(f"{here}/", f"it cannot be read: {error.strerror}")
                continue
            if not taken:
                self.found.empty.append(self.outer + here)

    def _file(self, name: str) -> None:
        try:
            seen = os.lstat(f"{self.piece.root}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            return
        if stat.S_ISLNK(seen.st_mode) and ODD_LINK.fullmatch(name.rpartition("/")[2]):
            return
        if not (stat.S_ISREG(seen.st_mode) or stat.S_ISLNK(seen.st_mode)):
            return
        self.new[name] = seen
        if self.policy == "none" or (self.policy == "small" and seen.st_size > LARGE):
            self.suspects[name] = (
                "it is ignored"
                if self.policy == "none"
                else f"it is ignored, and larger than {LARGE >> 20} MiB"
            )
        self.count, self.bytes = self.count + 1, self.bytes + seen.st_size
        if self.repo.admin is None and (
            self.count > self.repo.most_files or self.bytes > MOST_BYTES
        ):
            raise WorkspaceError(
                f"{self.repo.top} holds more than {self.repo.most_files:,} files or "
                f"{MOST_BYTES >> 30} GiB, too much to save without git.",
                "Work in a git repository, or in a smaller directory.",
            )

    def _changed(self, names: list[str]) -> list[str]:
        """Return the names to remove from the index. Such a name is below a link, is a special
        file, or cannot be stored by git."""
        leaving, real = [], dict[str, bool]()
        for name in names:
            if not all(
                _is_directory(self.piece.root, parent, real) for parent in above(name) if parent
            ):
                leaving.append(name)
                continue
            try:
                seen = os.lstat(f"{self.piece.root}/{name}")
            except OSError:
                continue
            link = stat.S_ISLNK(seen.st_mode)
            if stat.S_ISDIR(seen.st_mode):
                # The index has this name as a file, but it is a directory now. git lists nothing
                # below such a name.
                self._walk(name)
            if not (stat.S_ISREG(seen.st_mode) or link) or (
                link and ODD_LINK.fullmatch(name.rpartition("/")[2])
            ):
                leaving.append(name)
            elif self.policy == "small" and seen.st_size > LARGE:
                self.suspects[name] = f"it is ignored, and larger than {LARGE >> 20} MiB"
        return leaving

    def _leave_out_unwanted(self) -> None:
        """Decide on each name in `suspects`: leave it out if git ignores it, otherwise add it."""
        while self.suspects:
            asked, self.suspects = self.suspects, {}
            ignored = self._ignored(list(asked))
            for name, why in asked.items():
                if name in ignored:
                    self.new.pop(name, None)
                    self._leave_out(name, why)
                elif name.endswith("/"):
                    self._walk(name.rstrip("/"), sure=True)
                elif name not in self.new:
                    self._file(name)
                    self.suspects.pop(name, None)

    def _ignored(self, names: list[str]) -> set[str]:
        # Without git there is no list of ignored names. So a name that a build recreates counts as
        # ignored.
        built = {name for name in names if self.repo.admin is None and name.endswith("/")}
        asked = [name for name in names if name not in built]
        if not asked:
            return built
        # The leading `./` keeps git from reading a name as a pattern.
        said = self._git(
            "check-ignore",
            "-z",
            "--stdin",
            "--no-index",
            stdin=joined([f"./{name}" for name in asked]),
            good=(0, 1),
        )
        ignored = {name.removeprefix("./") for name in split(said.stdout)}
        files = [name for name in ignored if not name.endswith("/")]
        if files and self.whole:
            ignored -= self._tracked(files)
        return ignored | built

    def _tracked(self, names: list[str]) -> set[str]:
        """Return the names that the workdir's own repository tracks, even if it ignores them."""
        # Only a few names are passed to git: thousands of ignored files do not fit on a command
        # line, and neither command reads names from its input (2.39).
        few = names
        if len(names) > _MOST_PASSED or sum(map(len, names)) > _MOST_PASSED_LENGTH:
            few = []
        found, wanted = set[str](), set(names)
        if self.repo.tree:
            listing = ("ls-tree", "-r", "-z", "--name-only", "--full-tree", self.repo.tree)
            listed = self.inspector.run(*listing, "--", *few, with_agent_objects=True)
            found.update(wanted.intersection(split(listed.stdout)))
        if self.user_index is not None:
            listed = self.inspector.run(
                "ls-files", "-z", "--", *few, index=self.user_index, with_agent_objects=True
            )
            found.update(wanted.intersection(split(listed.stdout)))
        return found

    def _leave_out(self, name: str, why: str) -> None:
        self.found.left_out.append((self.outer + name, why))


def above(name: str) -> Iterator[str]:
    """Yield the directories above a name, up to the top (empty)."""
    while name:
        name = name.rpartition("/")[0]
        yield name


def _is_directory(root: Path, directory: str, known: dict[str, bool]) -> bool:
    if directory not in known:
        try:
            known[directory] = stat.S_ISDIR((root / directory).lstat().st_mode)
        except OSError:
            # The directory is gone. It counts as a directory, because git itself reports that its
            # files are gone.
            known[directory] = True
    return known[directory]


def _rebuildable(root: Path, directory: str) -> bool:
    if directory.rpartition("/")[2] in REBUILDABLE:
        return True
    try:
        return read(root / directory / "CACHEDIR.TAG").startswith(CACHE_TAG)
    except OSError:
        return False  # The directory is unreadable. `_walk` reports that later.
