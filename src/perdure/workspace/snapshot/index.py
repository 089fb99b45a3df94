"""Saves and restores two things of a workdir's own git directory: the git index, and the state of
an operation in progress such as a merge or a rebase.

`capture` saves the two, and `restore` puts them back. perdure's own git reads only a copy of the
index, and writes nothing into the original, which an agent may have changed. The entries of the
index become a tree. Conflicts, intent-to-add entries and flags that hide changes are kept as text,
because a tree cannot hold them. An operation in progress is kept as its small state files.
"""

from __future__ import annotations

import base64
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct, field

from perdure.errors import Conflict
from perdure.patterns import late_pattern
from perdure.workspace.locks import is_real_directory, sync
from perdure.workspace.snapshot.checkpoint_repository import CheckpointRepository, joined, split

_SINGLE = (
    "MERGE_HEAD",
    "MERGE_MSG",
    "MERGE_MODE",
    "MERGE_RR",
    "AUTO_MERGE",
    "CHERRY_PICK_HEAD",
    "REVERT_HEAD",
    "REBASE_HEAD",
    "SQUASH_MSG",
)
_BISECT = (
    "BISECT_LOG",
    "BISECT_START",
    "BISECT_TERMS",
    "BISECT_NAMES",
    "BISECT_EXPECTED_REV",
    "BISECT_ANCESTORS_OK",
    "BISECT_RUN",
)
FOLDERS = ("rebase-merge", "rebase-apply", "sequencer")
_NAME = late_pattern(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SMALL = 256 << 10
_MOST = 500
_OID = late_pattern(r"[0-9a-f]{40}|[0-9a-f]{64}")
_LARGEST_INDEX = 1 << 30


class Staged(Struct):
    """The content of an index: its tree, and the entries and flags that a tree cannot hold. All
    fields are empty where there is no index."""

    tree: str = ""
    stages: list[list[str]] = field(default_factory=list)
    """Mode, id, stage and name of each side of a conflict."""
    intent: list[str] = field(default_factory=list)
    """Names of entries without content, made by `git add --intent-to-add`."""
    assumed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [name for *_, name in self.stages] + self.intent + self.assumed + self.skipped

    @property
    def objects(self) -> list[str]:
        return list(dict.fromkeys(oid for mode, oid, _, _ in self.stages if mode != "160000"))


def signature(path: Path) -> list[int]:
    """Return a cheap signature of an index file, to detect changes; empty if there is no index."""
    try:
        seen = path.lstat()
    except OSError:
        return []
    if stat.S_ISREG(seen.st_mode):
        return [seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns]
    return []


def copied(admin: Path, to: Path) -> Path | None:
    """Copy the workdir's index, and shared index files that it may use. Return the copy's path, or
    None if there is no index."""
    if not _copy(admin / "index", to):
        return None
    for shared in admin.glob("sharedindex.*"):
        _copy(shared, to.with_name(shared.name))
    return to


def _copy(source: Path, target: Path) -> bool:
    try:
        fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    with os.fdopen(fd, "rb") as file:
        seen = os.fstat(fd)
        if not stat.S_ISREG(seen.st_mode) or seen.st_size > _LARGEST_INDEX:
            return False
        target.write_bytes(file.read(_LARGEST_INDEX))
    # git compares a file's time with that of the index, so a copy with a newer time would hide
    # changes.
    os.utime(target, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    return True


def staged(repo: CheckpointRepository, copy: Path) -> Staged:
    """Return the content of a copy of the workdir's index. Reading changes the copy, so it cannot
    be used again."""
    found, announced = Staged(), False
    empty = repo.write_object("blob", b"")
    for line in split(
        repo.run("ls-files", "-z", "-v", "--stage", index=copy, with_agent_objects=True).stdout
    ):
        tag, mode, rest = line.split(" ", 2)
        ids, _, name = rest.partition("\t")
        oid, _, stage = ids.partition(" ")
        if stage != "0":
            found.stages.append([mode, oid, stage, name])
            continue
        announced |= oid == empty
        if tag.islower():
            found.assumed.append(name)
        if tag in "Ss":
            found.skipped.append(name)
    if found.stages:
        names = list(dict.fromkeys(name for _, _, _, name in found.stages))
        repo.run(
            "update-index",
            "--force-remove",
            "-z",
            "--stdin",
            index=copy,
            stdin=joined(names),
            with_agent_objects=True,
        )
    found.tree = repo.run("write-tree", "--missing-ok", index=copy, with_agent_objects=True).text
    if announced:
        asked = (
            "diff-index",
            "--cached",
            "--ita-visible-in-index",
            "--name-only",
            "--no-renames",
            "--ignore-submodules=all",
            "-z",
        )
        found.intent = split(
            repo.run(*asked, found.tree, "--", index=copy, with_agent_objects=True).stdout
        )
    return found


def put_staged(repo: CheckpointRepository, wanted: Staged, tree: str, scratch: Path) -> None:
    """Write the workdir's index from this tree and the conflicts and flags in `wanted`. Raises
    Conflict while a git process is running in the workdir."""
    assert repo.admin is not None
    fresh = scratch / f"index-{secrets.token_hex(6)}"
    if tree:
        repo.run("read-tree", tree, index=fresh)
    if wanted.stages:
        lines = ""
        for mode, oid, stage, name in wanted.stages:
            lines += f"{mode} {oid} {stage}\t{name}\0"
        repo.run("update-index", "-z", "--index-info", index=fresh, stdin=os.fsencode(lines))
    if wanted.intent:
        there = []
        for name in wanted.intent:
            if (repo.top / name).is_file() and not (repo.top / name).is_symlink():
                there.append(name)
        if there:
            repo.run(
                "add",
                "--force",
                "--intent-to-add",
                "--pathspec-from-file=-",
                "--pathspec-file-nul",
                index=fresh,
                stdin=joined(there),
            )
    repo.run("update-index", "-q", "--refresh", index=fresh, good=(0, 1))
    for flag, names in (
        ("--assume-unchanged", wanted.assumed),
        ("--skip-worktree", wanted.skipped),
    ):
        if names:
            repo.run("update-index", flag, "-z", "--stdin", index=fresh, stdin=joined(names))
    content = fresh.read_bytes() if fresh.exists() else b""
    fresh.unlink(missing_ok=True)
    _exchange(repo.admin, "index", content)


def _exchange(admin: Path, name: str, content: bytes) -> None:
    """Replace a file of a git directory under git's own lock. Empty content removes the file."""
    lock = admin / f"{name}.lock"
    try:
        fd = os.open(
            lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666
        )
    except FileExistsError:
        raise Conflict(
            f"git is running in {admin}: {lock.name} exists.",
            "Wait for it to end, and try again.",
        ) from None
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
    if content:
        lock.replace(admin / name)
    else:
        (admin / name).unlink(missing_ok=True)
        lock.unlink()
    sync(admin)


def operation(admin: Path) -> dict[str, str]:
    """Return the state files of an operation in progress: base64 content by name. Empty if no
    operation is in progress."""
    found = dict[str, str]()
    for name in (*_SINGLE, *_BISECT):
        _gather(admin / name, name, found)
    for folder in FOLDERS:
        if is_real_directory(admin / folder):
            for path in sorted((admin / folder).iterdir()):
                if _NAME.fullmatch(path.name) and len(found) < _MOST:
                    _gather(path, f"{folder}/{path.name}", found)
    return found


def _gather(path: Path, name: str, found: dict[str, str]) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    with os.fdopen(fd, "rb") as file:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            content = file.read(_SMALL + 1)
            if len(content) <= _SMALL:
                found[name] = base64.b64encode(content).decode()


def commits(files: Mapping[str, str]) -> list[str]:
    """Return the commits that the state files of an operation name. The operation needs them to
    continue."""
    words: list[str] = []
    for name, content in files.items():
        if _names_commits(name):
            words += base64.b64decode(content).decode("utf-8", "replace").split()
    return list(dict.fromkeys(filter(_OID.fullmatch, words)))


def _names_commits(name: str) -> bool:
    return name.endswith("_HEAD") or name.rpartition("/")[2] in (
        "orig-head",
        "onto",
        "stopped-sha",
        "amend",
        "head",
        "squash-onto",
    )


def put_operation(admin: Path, wanted: Mapping[str, str]) -> None:
    """Replace the state files of the operation in progress by these. The old files are already
    saved in a checkpoint."""
    for name in operation(admin):
        if name not in wanted:
            (admin / name).unlink(missing_ok=True)
    for name, content in wanted.items():
        if not is_state(name):
            continue
        path = admin / name
        if not is_real_directory(path.parent):
            path.parent.unlink(missing_ok=True)
            path.parent.mkdir()
        fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        fd = os.open(
            fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666
        )
        with os.fdopen(fd, "wb") as file:
            file.write(base64.b64decode(content))
            file.flush()
            os.fsync(fd)
        fresh.replace(path)
        sync(path.parent)
    for folder in FOLDERS:
        if is_real_directory(admin / folder) and not any((admin / folder).iterdir()):
            (admin / folder).rmdir()


def is_state(name: str) -> bool:
    """Return whether a file of this name belongs to an operation in progress. Other names in a
    checkpoint are skipped, because a checkpoint from another machine is not trusted."""
    folder, _, file = name.rpartition("/")
    return (folder in FOLDERS and _NAME.fullmatch(file) is not None) or name in (
        *_SINGLE,
        *_BISECT,
    )


def may_run(name: str) -> bool:
    """Return whether a state file of this name may make git run a command. A rebase runs its `exec`
    lines, and the program of its merge strategy. Before version 2.35, `git bisect visualize` passed
    BISECT_NAMES to the shell's `eval`."""
    return name.partition("/")[0] in FOLDERS or name.casefold().startswith("bisect_")


def to_json(wanted: Staged) -> Mapping[str, object]:
    """Return the fields that a tree cannot hold, except empty ones."""
    parts = {
        "stages": wanted.stages,
        "intent": wanted.intent,
        "assumed": wanted.assumed,
        "skipped": wanted.skipped,
    }
    return {key: value for key, value in parts.items() if value}
