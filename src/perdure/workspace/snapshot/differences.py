"""What has changed in a directory since the last look, what is new in it, and what of that is to be
taken.

`scan` asks. git compares and names; perdure walks through what git knows nothing of, and leaves
out what is ignored and large, what can be built again, and what is neither a file nor a link.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from perdure.errors import WorkspaceError
from perdure.host.git import GitResult
from perdure.model.checkpoints import BUILT_AGAIN
from perdure.workspace.locks import read
from perdure.workspace.snapshot.escapes import ODD, ODD_LINK
from perdure.workspace.snapshot.findings import Findings, Piece
from perdure.workspace.snapshot.shelf import Shelf, joined, split

REBUILDABLE = frozenset(
    """node_modules __pycache__ .venv .tox .nox .mypy_cache .ruff_cache .pytest_cache .hypothesis
    .gradle .next .nuxt .turbo .parcel-cache .svelte-kit .eggs .DS_Store""".split()
)
"""Ignored names that a build makes again. A directory with a cache tag (bford.info/cachedir) counts
as well."""
CACHE_TAG = "Signature: 8a477f597d28d172789f06886806bc55"
LARGE = 10 << 20
MOST_BYTES = 8 << 30
"""Without git, a directory that holds more is not photographed; `Shelf.most_files` is the other
limit."""


class Listing:
    """One piece, listed. `fresh`: directories that were not known."""

    def __init__(
        self,
        shelf: Shelf,
        piece: Piece,
        known: Findings,
        found: Findings,
        policy: str,
        user_index: Path | None,
    ) -> None:
        self.shelf, self.piece, self.known, self.found, self.policy, self.user_index = (
            shelf,
            piece,
            known,
            found,
            policy,
            user_index,
        )
        self.eye = shelf.looking_at(piece.root)
        self.outer = piece.outer
        self.whole = not piece.prefix
        self.count = self.bytes = 0
        self.left, self.empty = len(found.left_out), len(found.empty)
        self.new: dict[str, os.stat_result] = {}
        self.suspects: dict[str, str] = {}
        self.fresh: set[str] = set()

    def run(self) -> tuple[list[str], list[str]]:
        """(names that are new or whose file may have changed; names that are to leave the index).
        Raises WorkspaceError, GitFailed."""
        changed, others = self._stirred() if self._still() else self._listed()
        if not self.piece.seen:
            changed_dirs = set(
                chain.from_iterable(
                    above(name) for name in split(self._git("ls-files", "-z").stdout)
                )
            )
            self.fresh |= {"", *changed_dirs}
        for name in others:
            self._other(name)
        gone = self._changed(changed)
        self._judge()
        return [*self.new, *(name for name in changed if name not in gone)], gone

    def idle(self) -> list[str]:
        """What is there and was not taken, empty directories among it: to be looked at again the
        next time."""
        left = [name for name, _ in self.found.left_out[self.left :]]
        return [
            name.removeprefix(self.outer)
            for name in (*left, *(f"{name}/" for name in self.found.empty[self.empty :]))
        ]

    def _git(self, *args: str, stdin: bytes = b"", good: tuple[int, ...] = (0,)) -> GitResult:
        return self.eye.run(*args, index=self.piece.index, stdin=stdin, good=good)

    def _listed(self) -> tuple[list[str], list[str]]:
        """(names whose file is no longer what the index knows, or gone; names that the index does
        not know)."""
        # diff-files also names a file of which only the mode or the time has changed; ls-files
        # would not.
        return self._stirred()[0], split(
            self._git("ls-files", "-z", "--others", "--directory").stdout
        )

    def _still(self) -> bool:
        """Whether no directory has changed since the last look: then no name has come or gone."""
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

    def _stirred(self) -> tuple[list[str], list[str]]:
        """As `_listed`, where only the content of files can have changed; what was not taken the
        last time is looked at again."""
        said = self._git("diff-files", "-z", "--name-only", "--ignore-submodules=all")
        return split(said.stdout), self.known.idle.get(self.piece.prefix, [])

    def _other(self, name: str) -> None:
        parts = name.rstrip("/").split("/")
        if any(ODD.fullmatch(part) for part in parts) or (self.whole and name == ".git/"):
            return
        if self.policy != "all" and any(part in REBUILDABLE for part in parts):
            self.suspects[name] = BUILT_AGAIN
        elif name.endswith("/"):
            self._walk(name.rstrip("/"))
        else:
            self._file(name)

    def _walk(self, directory: str, *, sure: bool = False) -> None:
        """Takes all files below a directory that the index does not know; directories that can be
        built again wait for judgement."""
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
                self._leave(f"{here}/", f"it cannot be read: {error.strerror}")
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
        if self.shelf.admin is None and (
            self.count > self.shelf.most_files or self.bytes > MOST_BYTES
        ):
            raise WorkspaceError(
                f"{self.shelf.top} holds more than {self.shelf.most_files:,} files or "
                f"{MOST_BYTES >> 30} GiB, too much to be saved without git.",
                "Work in a git repository, or in a smaller directory.",
            )

    def _changed(self, names: list[str]) -> list[str]:
        """Of the names that the index knows, those that are to leave it: gone behind a link,
        special, or odd."""
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
                # git lists nothing below a name that its index knows as a file.
                self._walk(name)
            if not (stat.S_ISREG(seen.st_mode) or link) or (
                link and ODD_LINK.fullmatch(name.rpartition("/")[2])
            ):
                leaving.append(name)
            elif self.policy == "small" and seen.st_size > LARGE:
                self.suspects[name] = f"it is ignored, and larger than {LARGE >> 20} MiB"
        return leaving

    def _judge(self) -> None:
        """Leaves out of the suspects what git ignores; the others are taken."""
        while self.suspects:
            asked, self.suspects = self.suspects, {}
            ignored = self._ignored(list(asked))
            for name, why in asked.items():
                if name in ignored:
                    self.new.pop(name, None)
                    self._leave(name, why)
                elif name.endswith("/"):
                    self._walk(name.rstrip("/"), sure=True)
                elif name not in self.new:
                    self._file(name)
                    self.suspects.pop(name, None)

    def _ignored(self, names: list[str]) -> set[str]:
        # Without git nothing is said to be ignored; then a name that can be built again is enough.
        built = {name for name in names if self.shelf.admin is None and name.endswith("/")}
        asked = [name for name in names if name not in built]
        if not asked:
            return built
        # With a dot before it, no name is read as a pattern.
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
        """Those of the names that the workdir's own repository keeps, whatever it ignores."""
        found = set[str]()
        if self.shelf.tree:
            found.update(
                split(
                    self.eye.run(
                        "ls-tree", "-z", "--name-only", self.shelf.tree, "--", *names, lent=True
                    ).stdout
                )
            )
        if self.user_index is not None:
            found.update(
                split(
                    self.eye.run(
                        "ls-files", "-z", "--", *names, index=self.user_index, lent=True
                    ).stdout
                )
            )
        return found

    def _leave(self, name: str, why: str) -> None:
        self.found.left_out.append((self.outer + name, why))


def above(name: str) -> Iterator[str]:
    """The directories above a name, the top (empty) among them."""
    while name:
        name = name.rpartition("/")[0]
        yield name


def _is_directory(root: Path, directory: str, known: dict[str, bool]) -> bool:
    if directory not in known:
        try:
            known[directory] = stat.S_ISDIR((root / directory).lstat().st_mode)
        except OSError:
            known[directory] = True  # Gone: git finds that out by itself.
    return known[directory]


def _rebuildable(root: Path, directory: str) -> bool:
    if directory.rpartition("/")[2] in REBUILDABLE:
        return True
    try:
        return read(root / directory / "CACHEDIR.TAG").startswith(CACHE_TAG)
    except OSError:
        return False  # Nobody may look into it: that is said when it is walked through.
