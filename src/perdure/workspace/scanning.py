"""What lies in a directory, as a tree of git's: every file by its bytes, whatever the repository says about it.

`photograph` calls `scan` with an index of perdure's own, which knows from the last look what each file was: what has not changed is
not read. git walks, compares and reads (with conversions off, see `shelf`); perdure decides what is taken, follows what git never
lists, and looks again at what changed while it was being read.

git keeps nothing that is called `.git`. Such a part of a name gets a `%` at its end, as does one that looks like the result
(`.git%` becomes `.git%%`), so names stay distinct and come back as they were; so does a link called `.gitmodules`, which git refuses.
A directory of that name is a piece of its own with an index of its own, and what it became is put into the tree of the whole.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from perdure.errors import GitFailed, WorkspaceError
from perdure.git import Result
from perdure.workspace.identity import identify
from perdure.workspace.places import read
from perdure.workspace.removal import CACHE_TAG, REBUILDABLE
from perdure.workspace.shelf import Shelf, joined, split

LARGE = 10 << 20
MOST_FILES = 200_000
MOST_BYTES = 8 << 30
"""Without git, a directory that holds more is not photographed: it may be somebody's whole disk."""

_TRIES = 3
_RACY_NS = 2_000_000_000
_ODD = re.compile(r"\.git%*", re.IGNORECASE)
_ODD_LINK = re.compile(r"\.gitmodules%*", re.IGNORECASE)
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}

Seen = tuple[int, list[str], list[tuple[str, str]]]
"""Of a directory: its change time (0: look again), names that git cannot keep, special files with their kind."""


@dataclass(slots=True)
class Piece:
    """A directory to be taken, and what is known of it. `prefix` is its place in the whole tree, empty or ending in a slash."""

    root: Path
    index: Path
    prefix: str = ""
    seen: dict[str, Seen] = field(default_factory=dict)
    tree: str = ""


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
    trees: dict[str, str] = field(default_factory=dict)
    idle: dict[str, list[str]] = field(default_factory=dict)
    """What is there in each piece and was not taken, empty directories among it."""
    settled: list[str] = field(default_factory=list)
    """Pieces whose index is younger than all their files."""


def escape(part: str, link: bool = False) -> str:
    """One part of a name, as it stands in a tree."""
    return part + "%" if _ODD.fullmatch(part) or (link and _ODD_LINK.fullmatch(part)) else part


def unescape(name: str, link: bool = False) -> str:
    """A whole name, as it is on disk."""
    *above, last = name.split("/")
    ends = link and _ODD_LINK.fullmatch(last) and last.endswith("%")
    return "/".join([*map(_plain, above), last[:-1] if ends else _plain(last)])


def _plain(part: str) -> str:
    return part[:-1] if part.endswith("%") and _ODD.fullmatch(part) else part


def scan(shelf: Shelf, piece: Piece, known: Findings, found: Findings, policy: str, user_index: Path | None) -> str:
    """Brings the piece's index up to date, and returns the tree of all that is in it; what else there is goes into `found`.

    `known`: what the last look found. `policy`: which ignored files are taken (`small`, `all`, `none`). `user_index`: a copy of the
    workdir's own index. Raises WorkspaceError for a directory without git that is too large, GitFailed.
    """
    return _Scan(shelf, piece, known, found, policy, user_index).run()


class _Scan:
    def __init__(self, shelf: Shelf, piece: Piece, known: Findings, found: Findings, policy: str, user_index: Path | None) -> None:
        self.shelf, self.piece, self.known, self.found, self.policy, self.user_index = shelf, piece, known, found, policy, user_index
        self.eye = shelf.looking_at(piece.root)
        self.outer = "/".join(unescape(part) for part in piece.prefix.split("/"))
        self.whole = not piece.prefix
        self.count = self.bytes = 0
        self.new: dict[str, os.stat_result] = {}
        self.suspects: dict[str, str] = {}
        self.fresh: set[str] = set()

    def run(self) -> str:
        started, left, empty = time.time_ns(), len(self.found.left_out), len(self.found.empty)
        changed, others = self._stirred() if self._still() else self._listed()
        if not self.piece.seen:
            changed_dirs = {parent for name in split(self._git("ls-files", "-z").stdout) for parent in _above(name)}
            self.fresh |= {"", *changed_dirs}
        for name in others:
            self._other(name)
        gone = self._changed(changed)
        self._judge()
        moved = self._take([*self.new, *(name for name in changed if name not in gone)], gone)
        idle = [name.removeprefix(self.outer) for name, _ in self.found.left_out[left:]]
        self.found.idle[self.piece.prefix] = [*idle, *(f"{name.removeprefix(self.outer)}/" for name in self.found.empty[empty:])]
        odd = self._directories(started)
        grafts = self._grafts(odd)
        self._settle(moved)
        before = self.known.trees.get(self.piece.prefix, "")
        tree = before if before and not moved else self._git("write-tree").text
        self.found.trees[self.piece.prefix] = tree
        self.found.pieces[self.piece.prefix] = self.piece.seen
        if grafts:
            tree = self._grafted(tree, grafts)
        return tree

    def _git(self, *args: str, stdin: bytes = b"", good: tuple[int, ...] = (0,)) -> Result:
        return self.eye.run(*args, index=self.piece.index, stdin=stdin, good=good)

    def _listed(self) -> tuple[list[str], list[str]]:
        """(names whose file is no longer what the index knows, or gone; names that the index does not know)."""
        changed: dict[str, None] = {}
        others = []
        for line in split(self._git("ls-files", "-z", "-t", "--modified", "--deleted", "--others", "--directory").stdout):
            tag, _, name = line.partition(" ")
            if tag == "?":
                others.append(name)
            else:
                changed[name] = None
        return list(changed), others

    def _still(self) -> bool:
        """Whether no directory has changed since the last look: then no name has come or gone."""
        for directory, (changed, _, _) in self.piece.seen.items():
            try:
                if os.lstat(f"{self.piece.root}/{directory}" if directory else self.piece.root).st_ctime_ns != changed:
                    return False
            except OSError:
                return False
        return bool(self.piece.seen) and self.piece.prefix in self.known.idle

    def _stirred(self) -> tuple[list[str], list[str]]:
        """As `_listed`, where only the content of files can have changed; what was not taken the last time is looked at again."""
        said = self._git("diff-files", "-z", "--name-only", "--ignore-submodules=all")
        return split(said.stdout), self.known.idle[self.piece.prefix]

    def _other(self, name: str) -> None:
        parts = name.rstrip("/").split("/")
        if any(_ODD.fullmatch(part) for part in parts) or (self.whole and name == ".git/"):
            return
        if self.policy != "all" and any(part in REBUILDABLE for part in parts):
            self.suspects[name] = "it can be built again"
        elif name.endswith("/"):
            self._walk(name.rstrip("/"))
        else:
            self._file(name)

    def _walk(self, directory: str, *, sure: bool = False) -> None:
        """Takes all files below a directory that the index does not know; directories that can be built again wait for judgement."""
        waiting = [(directory, sure)]
        while waiting:
            here, certain = waiting.pop()
            if not certain and self.policy != "all" and _rebuildable(self.piece.root, here):
                self.suspects[f"{here}/"] = "it can be built again"
                continue
            self.fresh.add(here)
            taken = 0
            try:
                with os.scandir(self.piece.root / here) as entries:
                    for entry in sorted(entries, key=lambda entry: entry.name):
                        taken += 1
                        name = f"{here}/{entry.name}"
                        if _ODD.fullmatch(entry.name):
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
            seen = (self.piece.root / name).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return
        if stat.S_ISLNK(seen.st_mode) and _ODD_LINK.fullmatch(name.rpartition("/")[2]):
            return
        if not (stat.S_ISREG(seen.st_mode) or stat.S_ISLNK(seen.st_mode)):
            return
        self.new[name] = seen
        if self.policy == "none" or (self.policy == "small" and seen.st_size > LARGE):
            self.suspects[name] = "it is ignored" if self.policy == "none" else f"it is ignored, and larger than {LARGE >> 20} MiB"
        self.count, self.bytes = self.count + 1, self.bytes + seen.st_size
        if self.shelf.admin is None and (self.count > MOST_FILES or self.bytes > MOST_BYTES):
            raise WorkspaceError(
                f"{self.shelf.top} holds more than {MOST_FILES:,} files or {MOST_BYTES >> 30} GiB, too much to be saved without git.",
                "Work in a git repository, or in a smaller directory.",
            )

    def _changed(self, names: list[str]) -> list[str]:
        """Of the names that the index knows, those that are to leave it: gone behind a link, special, or odd."""
        leaving, real = [], dict[str, bool]()
        for name in names:
            if not all(_is_directory(self.piece.root, parent, real) for parent in _above(name) if parent):
                leaving.append(name)
                continue
            try:
                seen = (self.piece.root / name).lstat()
            except OSError:
                continue
            link = stat.S_ISLNK(seen.st_mode)
            if stat.S_ISDIR(seen.st_mode):
                # git lists nothing below a name that its index knows as a file.
                self._walk(name)
            if not (stat.S_ISREG(seen.st_mode) or link) or (link and _ODD_LINK.fullmatch(name.rpartition("/")[2])):
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
        said = self._git("check-ignore", "-z", "--stdin", "--no-index", stdin=joined([f"./{name}" for name in asked]), good=(0, 1))
        ignored = {name.removeprefix("./") for name in split(said.stdout)}
        files = [name for name in ignored if not name.endswith("/")]
        if files and self.whole:
            ignored -= self._tracked(files)
        return ignored | built

    def _tracked(self, names: list[str]) -> set[str]:
        """Those of the names that the workdir's own repository keeps, whatever it ignores."""
        found = set[str]()
        if self.shelf.tree:
            found.update(split(self.eye.run("ls-tree", "-z", "--name-only", self.shelf.tree, "--", *names, lent=True).stdout))
        if self.user_index is not None:
            found.update(split(self.eye.run("ls-files", "-z", "--", *names, index=self.user_index, lent=True).stdout))
        return found

    def _take(self, names: list[str], gone: list[str]) -> bool:
        """Brings the index up to date with these names. Returns whether there was anything to do."""
        out = {name for name, _ in self.found.left_out}
        leaving = [*gone, *(name for name in names if self.outer + name in out)]
        if leaving:
            self._git("update-index", "--force-remove", "-z", "--stdin", stdin=joined(leaving))
        names = [name for name in dict.fromkeys(names) if self.outer + name not in out]
        waiting = names
        for _ in range(_TRIES):
            if not waiting:
                break
            before = {name: _sign(self.piece.root / name) for name in waiting}
            self._update(waiting)
            waiting = [name for name, sign in before.items() if _sign(self.piece.root / name) != sign]
        self.found.unsteady += [self.outer + name for name in waiting]
        for name in names:
            self.fresh.update(parent for parent in _above(name) if parent not in self.piece.seen)
        return bool(names or leaving)

    def _update(self, names: list[str]) -> None:
        """git reads the files. What it cannot read is found by halving, and left out."""
        try:
            self._git("update-index", "--add", "--remove", "--replace", "-z", "--stdin", stdin=joined(names))
            return
        except GitFailed as error:
            if "No space left" in error.stderr or "Read-only file system" in error.stderr or error.code in (-9, -15):
                raise
            # A file that is cut while git has it mapped ends git where it stands (SIGBUS), its lock held.
            self.piece.index.with_name(f"{self.piece.index.name}.lock").unlink(missing_ok=True)
            if len(names) == 1:
                self._update_alone(names[0])
                return
        half = len(names) // 2
        self._update(names[:half])
        self._update(names[half:])

    def _update_alone(self, name: str) -> None:
        """A file that git could not take: perdure reads it as far as it is there. Raises GitFailed where nothing can be written."""
        path = self.piece.root / name
        self._git("update-index", "--force-remove", "-z", "--stdin", stdin=joined([name]))
        self._git("hash-object", "-w", "--stdin", stdin=os.urandom(16))
        if (content := _content(path)) is not None:
            mode = "100755" if os.access(path, os.X_OK) else "100644"
            line = f"{mode} {self.shelf.put('blob', content)}\t{name}\0"
            self._git("update-index", "--add", "--replace", "-z", "--index-info", stdin=os.fsencode(line))
        elif os.path.lexists(path):
            self._leave(name, "it could not be read")

    def _settle(self, moved: bool) -> None:
        """git reads a file again as long as its time is not older than the index's, in whole seconds: so an index is written once more
        when the second in which it was made has passed."""
        prefix = self.piece.prefix
        settled = prefix in self.known.settled and not moved
        if not (moved or settled) and self.piece.index.exists() and self.piece.index.stat().st_mtime < int(time.time()):
            self._git("update-index", "-q", "--refresh", "--force-write-index", good=(0, 1))
            settled = True
        if settled:
            self.found.settled.append(prefix)

    def _directories(self, started: int) -> list[str]:
        """Looks into each directory that changed since the last look for what git does not list: returns names that it cannot keep."""
        seen, odd = self.piece.seen, list[str]()
        for directory in sorted(seen.keys() | self.fresh):
            path = f"{self.piece.root}/{directory}" if directory else str(self.piece.root)
            try:
                there = os.lstat(path)
            except OSError:
                seen.pop(directory, None)
                continue
            if not stat.S_ISDIR(there.st_mode):
                seen.pop(directory, None)
                continue
            known = seen.get(directory)
            if known is None or known[0] != there.st_ctime_ns:
                known = self._look_into(path, there, started)
                seen[directory] = known
            odd += [f"{directory}/{name}" if directory else name for name in known[1]]
            for name, kind in known[2]:
                self._leave(f"{directory}/{name}" if directory else name, f"it is {kind}")
        return odd

    def _look_into(self, path: str, there: os.stat_result, started: int) -> Seen:
        odd, special = [], []
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    name = entry.name
                    if name[:1] == "." and (_ODD.fullmatch(name) or (_ODD_LINK.fullmatch(name) and entry.is_symlink())):
                        if not (self.whole and name == ".git" and self.shelf.admin is not None and path == str(self.shelf.top)):
                            odd.append(name)
                    elif not (entry.is_file(follow_symlinks=False) or entry.is_symlink() or entry.is_dir(follow_symlinks=False)):
                        kind = _KINDS.get(stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode), "neither a file nor a link")
                        special.append((name, kind))
        except OSError:
            return (0, odd, special)
        # What changed in the very moment of the look may change again within one tick of the clock.
        return (there.st_ctime_ns if there.st_ctime_ns < started - _RACY_NS else 0, sorted(odd), sorted(special))

    def _grafts(self, odd: list[str]) -> list[tuple[str, str, str]]:
        """(mode, id, name in the tree) of everything that git cannot keep under its own name."""
        grafts = []
        for name in odd:
            path = self.piece.root / name
            above, _, last = name.rpartition("/")
            try:
                seen = path.lstat()
            except OSError:
                continue
            link = stat.S_ISLNK(seen.st_mode)
            place = f"{above}/{escape(last, link)}" if above else escape(last, link)
            if stat.S_ISDIR(seen.st_mode):
                prefix = f"{self.piece.prefix}{place}/"
                inner = Piece(
                    root=path,
                    index=self.piece.index.with_name(f"piece-{identify('piece', prefix)}"),
                    prefix=prefix,
                    seen=dict(self.known.pieces.get(prefix, {})),
                )
                grafts.append(("040000", scan(self.shelf, inner, self.known, self.found, "all", None), place))
            elif link:
                grafts.append(("120000", self.shelf.put("blob", os.fsencode(path.readlink())), place))
            elif stat.S_ISREG(seen.st_mode):
                if (content := _content(path)) is None:
                    self._leave(name, "it cannot be read")
                else:
                    grafts.append(("100755" if seen.st_mode & 0o100 else "100644", self.shelf.put("blob", content), place))
            else:
                self._leave(name, f"it is {_KINDS.get(stat.S_IFMT(seen.st_mode), 'special')}")
        return grafts

    def _grafted(self, tree: str, grafts: list[tuple[str, str, str]]) -> str:
        index = self.piece.index.with_name(f"{self.piece.index.name}.whole")
        self.eye.run("read-tree", tree, index=index)
        lines = "".join(f"{mode} {oid}\t{place}\0" for mode, oid, place in grafts if mode != "040000")
        if lines:
            self.eye.run("update-index", "-z", "--index-info", index=index, stdin=os.fsencode(lines))
        for mode, oid, place in grafts:
            if mode == "040000":
                self.eye.run("read-tree", f"--prefix={place}/", oid, index=index)
        whole = self.eye.run("write-tree", index=index).text
        index.unlink()
        return whole

    def _leave(self, name: str, why: str) -> None:
        self.found.left_out.append((self.outer + name, why))


def _above(name: str) -> Iterator[str]:
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
    return directory.rpartition("/")[2] in REBUILDABLE or read(root / directory / "CACHEDIR.TAG").startswith(CACHE_TAG)


def _sign(path: Path) -> tuple[int, ...] | None:
    try:
        seen = path.lstat()
    except OSError:
        return None
    return seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_mode


def _content(path: Path) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as file:
        content = file.read(LARGE + 1) if stat.S_ISREG(os.fstat(fd).st_mode) else None
        return content if content is not None and len(content) <= LARGE else None
