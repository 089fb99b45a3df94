"""Stores a directory as a git tree: every file as bytes, whatever the repository's settings.

`capture` calls `scan` with an index of perdure's own. The index has each file's state at the last
capture, so unchanged files are not read. git compares and reads files, with conversions off (see
`checkpoint_repository`), and `differences` decides what to save. This module reads files again that
changed while they were being read, and records modes. It also adds to the tree what git never
stores. A directory called `.git` becomes a separate `Piece` with its own index, under a name that
git accepts (see `trees.escape`)."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import time
from pathlib import Path

from perdure.errors import GitFailed
from perdure.host.git import GitResult
from perdure.workspace.identity import identify
from perdure.workspace.snapshot import trees
from perdure.workspace.snapshot.checkpoint_repository import CheckpointRepository, joined
from perdure.workspace.snapshot.differences import LARGE, Findings, Listing, Piece, Seen, above
from perdure.workspace.snapshot.trees import ODD, ODD_LINK, escape

_TRIES = 3
_RACY_NS = 2_000_000_000
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def scan(
    repo: CheckpointRepository,
    piece: Piece,
    known: Findings,
    found: Findings,
    policy: str,
    user_index: Path | None,
    *,
    kept: bool,
) -> str:
    """Update the piece's index and return the tree of everything in it. All other results go into
    `found`.

    `known`: the findings of the last capture. `policy`: the ignored files to include (`small`,
    `all`, `none`). `user_index`: a copy of the workdir's own index. `kept`: whether the next
    capture uses this index. Raises WorkspaceError for a directory without git that is too large,
    GitFailed.
    """
    return _Scan(repo, piece, known, found, policy, user_index, kept).run()


class _Scan:
    def __init__(
        self,
        repo: CheckpointRepository,
        piece: Piece,
        known: Findings,
        found: Findings,
        policy: str,
        user_index: Path | None,
        kept: bool,
    ) -> None:
        self.kept = kept
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
        self.fresh: set[str] = set()
        self.modes = dict(known.modes.get(piece.prefix, {}))

    def run(self) -> str:
        settled = self.piece.prefix in self.known.settled
        clock = 0 if settled or not self.kept else self._clock()
        started, listing = (
            time.time_ns(),
            Listing(self.repo, self.piece, self.known, self.found, self.policy, self.user_index),
        )
        names, gone = listing.run()
        self.fresh = listing.fresh
        moved = self._take(names, gone)
        self._recheck([*self.known.recent.get(self.piece.prefix, []), *names], started)
        self.found.idle[self.piece.prefix] = listing.idle()
        odd = self._directories(started)
        grafts = self._grafts(odd)
        if not moved and (settled or self._settle(clock)):
            self.found.settled.append(self.piece.prefix)
        before = self.known.trees.get(self.piece.prefix, "")
        if before and not moved:
            tree = before
        else:
            tree = self._git("write-tree").text
        # Grafts are entries that git cannot store under their own name; `_grafted` adds them to the
        # tree. No commit contains the tree without its grafts. gc may have removed it by the next
        # capture, so its id is not kept.
        self.found.trees[self.piece.prefix] = "" if grafts else tree
        self.found.pieces[self.piece.prefix] = self.piece.seen
        self.found.modes[self.piece.prefix] = self.modes
        if grafts:
            tree = self._grafted(tree, grafts)
        return tree

    def _git(self, *args: str, stdin: bytes = b"", good: tuple[int, ...] = (0,)) -> GitResult:
        return self.inspector.run(*args, index=self.piece.index, stdin=stdin, good=good)

    def _take(self, names: list[str], gone: list[str]) -> bool:
        """Update the index for these names. Return whether any name was updated or removed."""
        out = {name for name, _ in self.found.left_out}
        leaving = [*gone, *(name for name in names if self.outer + name in out)]
        if leaving:
            self._git("update-index", "--force-remove", "-z", "--stdin", stdin=joined(leaving))
        names = [name for name in dict.fromkeys(names) if self.outer + name not in out]
        waiting = names
        for _ in range(_TRIES):
            if not waiting:
                break
            before = {name: _sign(f"{self.piece.root}/{name}") for name in waiting}
            self._update(waiting)
            waiting = []
            for name, sign in before.items():
                if _sign(f"{self.piece.root}/{name}") != sign:
                    waiting.append(name)
        self.found.unsteady += [self.outer + name for name in waiting]
        for name in names:
            self.fresh.update(parent for parent in above(name) if parent not in self.piece.seen)
        return bool(names or leaving)

    def _recheck(self, names: list[str], started: int) -> None:
        """Record the modes of files that were updated in this capture, or that had changed
        shortly before the last one. git does not detect a change of the mode alone within the
        same second."""
        out, recent = {name for name, _ in self.found.left_out}, []
        for name in dict.fromkeys(names):
            sign = _sign(f"{self.piece.root}/{name}")
            self._note(name, sign[0] if sign and self.outer + name not in out else 0)
            if sign and sign[-1] > started - _RACY_NS:
                recent.append(name)
        self.found.recent[self.piece.prefix] = recent

    def _note(self, name: str, mode: int) -> None:
        """Record a mode if it does not follow from the umask. `mode`: the st_mode of a file or
        directory. A directory's name ends in a slash."""
        if (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and trees.kept(mode) != trees.usual(
            mode, self.found.umask
        ):
            self.modes[name] = trees.kept(mode)
        else:
            self.modes.pop(name, None)

    def _update(self, names: list[str]) -> None:
        """Add the files to the index through git. A file that git cannot read is found by bisection
        and handled alone."""
        try:
            self._git(
                "update-index",
                "--add",
                "--remove",
                "--replace",
                "-z",
                "--stdin",
                stdin=joined(names),
            )
            return
        except GitFailed as error:
            if (
                "No space left" in error.stderr
                or "Read-only file system" in error.stderr
                or error.code in (-9, -15)
            ):
                raise
            if len(names) == 1:
                self._update_alone(names[0])
                return
        half = len(names) // 2
        self._update(names[:half])
        self._update(names[half:])

    def _update_alone(self, name: str) -> None:
        """Save a file that git could not read. perdure reads it itself, or leaves it out. Raises
        GitFailed where nothing can be written."""
        path = self.piece.root / name
        self._git("update-index", "--force-remove", "-z", "--stdin", stdin=joined([name]))
        self._git("hash-object", "-w", "--stdin", stdin=os.urandom(16))
        if (content := _content(path)) is not None:
            mode = "100755" if os.access(path, os.X_OK) else "100644"
            line = f"{mode} {self.repo.write_object('blob', content)}\t{name}\0"
            self._git(
                "update-index", "--add", "--replace", "-z", "--index-info", stdin=os.fsencode(line)
            )
        elif _is_there(path):
            self._leave_out(name, "it could not be read")

    def _clock(self) -> int:
        """Return the current time in whole seconds, by the clock of the file system that stores the
        index; 0 if there is no index."""
        if not self.piece.index.exists():
            return 0
        with tempfile.TemporaryFile(dir=self.piece.index.parent) as probe:
            return int(os.fstat(probe.fileno()).st_mtime)

    def _settle(self, clock: int) -> bool:
        """Set the modification time of the index to `clock`, the second in which this capture
        began, if the index is older. Return whether the time was set.

        git reads a file again unless the file is older than the index, in whole seconds. This
        capture found every such file unchanged. A file that is changed later gets a time of that
        second or later, so git will read it.
        """
        if clock <= 0 or self.piece.index.stat().st_mtime >= clock:
            return False
        os.utime(self.piece.index, (clock, clock))
        return True

    def _directories(self, started: int) -> list[str]:
        """Search each directory that changed since the last capture for entries that git does not
        list. Return the names that git cannot store, such as `.git`."""
        seen, odd = self.piece.seen, list[str]()
        for name in [name for name in self.modes if ODD.fullmatch(name.rpartition("/")[2])]:
            del self.modes[name]
        for directory in sorted(seen.keys() | self.fresh):
            below = f"{directory}/" if directory else ""
            if directory:
                path = f"{self.piece.root}/{directory}"
            else:
                path = str(self.piece.root)
            try:
                there: os.stat_result | None = os.lstat(path)
            except OSError:
                there = None
            if there is None or not stat.S_ISDIR(there.st_mode):
                seen.pop(directory, None)
                self.modes.pop(below, None)
                continue
            if directory or not self.whole:
                self._note(below, there.st_mode)
            known = seen.get(directory)
            if known is None or known[0] != there.st_ctime_ns:
                try:
                    known = self._look_into(path, there, started)
                except OSError as error:
                    known = (0, [], [])
                    is_known = self.outer + below in dict(self.found.left_out)
                    if isinstance(error, PermissionError) and not is_known:
                        self._leave_out(
                            below, "it cannot be read: the version saved before is kept"
                        )
                seen[directory] = known
            odd += [below + name for name in known[1]]
            for name, kind in known[2]:
                self._leave_out(below + name, f"it is {kind}")
        return odd

    def _look_into(self, path: str, there: os.stat_result, started: int) -> Seen:
        odd, special = [], []
        with os.scandir(path) as entries:
            for entry in entries:
                name = entry.name
                if name[:1] == "." and (
                    ODD.fullmatch(name) or (ODD_LINK.fullmatch(name) and entry.is_symlink())
                ):
                    if not (
                        self.whole
                        and name == ".git"
                        and self.repo.admin is not None
                        and path == str(self.repo.top)
                    ):
                        odd.append(name)
                elif not (
                    entry.is_file(follow_symlinks=False)
                    or entry.is_symlink()
                    or entry.is_dir(follow_symlinks=False)
                ):
                    with contextlib.suppress(FileNotFoundError):
                        kind = _KINDS.get(
                            stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode),
                            "neither a file nor a link",
                        )
                        special.append((name, kind))
        # A directory that changed just before the capture may change again within one clock tick,
        # and keep its time. So 0 is recorded, and the next capture inspects it again.
        return (
            there.st_ctime_ns if there.st_ctime_ns < started - _RACY_NS else 0,
            sorted(odd),
            sorted(special),
        )

    def _grafts(self, odd: list[str]) -> list[tuple[str, str, str]]:
        """Return (mode, id, name in the tree) for each name in `odd` that still exists. git cannot
        store these files and directories under their own name."""
        grafts = []
        for name in odd:
            path = self.piece.root / name
            folder, _, last = name.rpartition("/")
            try:
                seen = path.lstat()
            except OSError:
                continue
            link = stat.S_ISLNK(seen.st_mode)
            if folder:
                place = f"{folder}/{escape(last, link)}"
            else:
                place = escape(last, link)
            if stat.S_ISDIR(seen.st_mode):
                prefix = f"{self.piece.prefix}{place}/"
                inner = Piece(
                    root=path,
                    index=self.piece.index.with_name(f"piece-{identify('piece', prefix)}"),
                    prefix=prefix,
                    seen=dict(self.known.pieces.get(prefix, {})),
                )
                grafts.append(
                    (
                        "040000",
                        scan(self.repo, inner, self.known, self.found, "all", None, kept=self.kept),
                        place,
                    )
                )
            elif link:
                grafts.append(
                    ("120000", self.repo.write_object("blob", os.fsencode(path.readlink())), place)
                )
            elif stat.S_ISREG(seen.st_mode):
                if (content := _content(path)) is None:
                    self._leave_out(name, "it cannot be read")
                else:
                    self._note(name, seen.st_mode)
                    grafts.append(
                        (
                            "100755" if seen.st_mode & 0o100 else "100644",
                            self.repo.write_object("blob", content),
                            place,
                        )
                    )
            else:
                self._leave_out(name, f"it is {_KINDS.get(stat.S_IFMT(seen.st_mode), 'special')}")
        return grafts

    def _grafted(self, tree: str, grafts: list[tuple[str, str, str]]) -> str:
        index = self.piece.index.with_name(f"{self.piece.index.name}.whole")
        self.inspector.run("read-tree", tree, index=index)
        lines = ""
        for mode, oid, place in grafts:
            if mode != "040000":
                lines += f"{mode} {oid}\t{place}\0"
        if lines:
            self.inspector.run(
                "update-index", "-z", "--index-info", index=index, stdin=os.fsencode(lines)
            )
        for mode, oid, place in grafts:
            if mode == "040000":
                self.inspector.run("read-tree", f"--prefix={place}/", oid, index=index)
        whole = self.inspector.run("write-tree", index=index).text
        index.unlink()
        return whole

    def _leave_out(self, name: str, why: str) -> None:
        self.found.left_out.append((self.outer + name, why))


def _sign(path: str) -> tuple[int, ...] | None:
    # The path is a string, because this function is called several times for every file. A Path
    # would take most of the time.
    try:
        seen = os.lstat(path)
    except OSError:
        return None
    return seen.st_mode, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        # A parent directory is unreadable, so it is not known whether the path exists. It counts as
        # existing.
        return True
    return True


def _content(path: Path) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as file:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            content = file.read(LARGE + 1)
        else:
            content = None
        if content is not None and len(content) <= LARGE:
            return content
        return None
