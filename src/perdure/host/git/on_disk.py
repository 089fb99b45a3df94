"""Reads HEAD, branches and simple settings from a repository's files, without starting git.

`Git` tries these functions first, because starting a process is slow. They understand only the
layout that every git since 1.5 writes: HEAD, loose and packed refs, and a configuration of plain
lines. For anything else (an extension such as reftable or sha256, an include, a symbolic link, a
value with escapes) they return None, and the caller runs git. Nothing that is read here is
executed, and no symbolic link in a repository is followed.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from perdure.patterns import late_pattern

_OID = late_pattern(r"[0-9a-f]{40}")
_BRANCH = late_pattern(r"refs/heads/(?!\.)[^\x00-\x20\x7f~^:?*\[\\]+")
_UNFIT = late_pattern(r"\.\.|//|/\.|@\{|\.lock(/|$)|[/.]$")
"""Pattern of strings that git allows in no ref name. `/.` also matches the dummy HEAD of a reftable
repository (`refs/heads/.invalid`)."""
_SECTION = late_pattern(r'[ \t]*\[([A-Za-z0-9.-]+)(?:[ \t]+"([^"\\]*)")?\][ \t]*')
_SETTING = late_pattern(r"[ \t]*([A-Za-z][A-Za-z0-9-]*)[ \t]*(?:=[ \t]*(.*?))?[ \t]*")
_NOTHING = late_pattern(r"[ \t]*([#;].*)?")
_PLAIN = late_pattern(r'[^"#;\t]*')
_CAP = 1 << 20
_PACKED_CAP = 64 << 20


def head(git_dir: Path) -> tuple[str, str] | None:
    """Return the commit id and the branch of a git directory's HEAD. The branch is empty on a
    detached HEAD.

    `git_dir` may be the `.git` file of a linked worktree. Return None if the layout is not
    understood. The caller then has to run git.
    """
    try:
        found = _places(git_dir)
        if found is None or not _is_simple(found[1]):
            return None
        admin, common = found
        text = _text(admin / "HEAD") or ""
        name = text.removeprefix("ref: ").rstrip("\n")
        if name == text.rstrip("\n"):
            if _OID.fullmatch(name):
                return (name, "")
            return None
        if not _BRANCH.fullmatch(name) or _UNFIT.search(name):
            return None
        oid = _loose(common, name) or _packed(common, name)
    except (OSError, UnicodeError):
        return None
    if oid:
        return (oid, name.removeprefix("refs/heads/"))
    return None


def user(git_dir: Path | None, own: Path | None) -> dict[str, str] | None:
    """Return `user.name` and `user.email` from the configuration of a repository and of the user.

    `git_dir` is None if there is no repository. `own` is the user's configuration file. Return None
    if a file is not understood. The caller then has to run git.
    """
    found: dict[str, str] = {}
    files = [(own, True), (git_dir / "config" if git_dir is not None else None, False)]
    for path, follow in files:
        try:
            text = _text(path, follow=follow) if path is not None else ""
        except (OSError, UnicodeError):
            return None
        settings = _settings(text or "")
        if settings is None or any(name.startswith("extensions.") for name, _ in settings):
            return None
        for name, value in settings:
            if name in ("user.name", "user.email"):
                if value is None or not _PLAIN.fullmatch(value):
                    return None
                found[name] = value
    return found


def repository(start: Path) -> Path | None:
    """Return the git directory of the checkout that contains a directory.

    Return None if only git itself can find the answer. This is the case in a linked worktree, in a
    bare repository, if the files belong to another user (git refuses them, see safe.directory), and
    at a file system boundary. The caller then has to run git.
    """
    own, device = os.geteuid(), start.stat().st_dev
    for directory in (start, *start.parents):
        try:
            top = directory.stat()
            if top.st_dev != device or (directory / "HEAD").exists():
                return None
            kind = os.lstat(directory / ".git")
            if not stat.S_ISDIR(kind.st_mode) or {top.st_uid, kind.st_uid} != {own}:
                return None
            if _is_checkout(directory / ".git"):
                return directory / ".git"
            return None
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None


def refs(common: Path, top: str) -> dict[str, str] | None:
    """Return a dict that maps full names of refs to their object ids. It contains the ref `top`
    (such as `refs/heads/topic`) and all refs below it.

    `common` is the git directory that has the refs. Return None if the layout is not understood.
    The caller then has to run git.
    """
    found: dict[str, str] = {}
    try:
        if not _is_simple(common):
            return None
        for line in (_text(common / "packed-refs", cap=_PACKED_CAP) or "").split("\n"):
            oid, _, name = line.partition(" ")
            if name == top or name.startswith(f"{top}/"):
                found[name] = oid
        waiting = [top]
        while waiting:
            name = waiting.pop()
            kind = _kind(common / name)
            if stat.S_ISDIR(kind):
                below = [each.name for each in (common / name).iterdir()]
                for each in below:
                    if not each.endswith(".lock"):
                        waiting.append(f"{name}/{each}")
            elif stat.S_ISREG(kind):
                found[name] = (_text(common / name) or "").rstrip("\n")
            elif kind:
                return None
    except (OSError, UnicodeError):
        return None
    if all(map(_OID.fullmatch, found.values())):
        return found
    return None


def has_usual_worktrees(common: Path) -> bool:
    """Return whether the worktrees of a repository share everything except HEAD and the index. With
    a sparse checkout, for example, each worktree has additional settings of its own."""
    try:
        return _is_simple(common) and "core.sparsecheckout" not in dict(_configured(common))
    except (OSError, UnicodeError):
        return False


def is_outside(directory: Path) -> bool:
    """Return whether a directory is neither the top directory of a checkout nor a git directory."""
    return not any(os.path.lexists(directory / name) for name in (".git", "HEAD"))


def _places(git_dir: Path) -> tuple[Path, Path] | None:
    """Return two directories: the one that contains HEAD, and the one that contains the refs and
    the configuration. They differ in a linked worktree. Return None if `git_dir` is not
    understood."""
    kind = os.lstat(git_dir).st_mode
    admin = git_dir
    if stat.S_ISREG(kind):
        pointer = _text(git_dir) or ""
        if not pointer.startswith("gitdir: "):
            return None
        admin = Path(os.path.normpath(git_dir.parent / pointer[8:].rstrip("\n")))
    elif not stat.S_ISDIR(kind):
        return None
    shared = _text(admin / "commondir")
    if shared is None:
        return admin, admin
    return admin, Path(os.path.normpath(admin / shared.rstrip("\n")))


def _is_checkout(git_dir: Path) -> bool:
    """Return whether a `.git` directory belongs to an ordinary checkout, whose files are in the
    parent directory."""
    parts = (git_dir / "objects", git_dir / "refs")
    if not all(stat.S_ISDIR(_kind(part)) for part in parts) or not _is_simple(git_dir):
        return False
    named = dict(_configured(git_dir))
    return "core.worktree" not in named and named.get("core.bare") == "false"


def _kind(path: Path) -> int:
    """Return the st_mode of a file without following links; 0 if there is no file."""
    try:
        return os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _configured(common: Path) -> list[tuple[str, str | None]]:
    return _settings(_text(common / "config") or "") or []


def _is_simple(common: Path) -> bool:
    named = dict(_configured(common))
    if (common / "reftable").exists() or os.path.lexists(common / "commondir"):
        return False
    if named.get("core.repositoryformatversion") not in ("0", "1"):
        return False
    extensions = {name for name in named if name.startswith("extensions.")}
    # Precious objects are only protected against removal.
    return extensions <= {"extensions.preciousobjects"}


def _settings(text: str) -> list[tuple[str, str | None]] | None:
    """Return the settings of a configuration file as (name, value) pairs, in order. A quoted value
    keeps its quotation marks. Return None if a line is not a plain setting, or includes another
    file."""
    if "\r" in text or "\\" in text or text.startswith("\ufeff"):
        return None
    found: list[tuple[str, str | None]] = []
    section = ""
    for line in text.split("\n"):
        if _NOTHING.fullmatch(line):
            continue
        if begun := _SECTION.fullmatch(line):
            section = begun[1].lower() + (f".{begun[2]}" if begun[2] is not None else "")
            if section.startswith("include"):
                return None
            continue
        setting = _SETTING.fullmatch(line)
        if setting is None or not section or line.count('"') % 2:
            return None
        found.append((f"{section}.{setting[1].lower()}", setting[2]))
    return found


def _loose(common: Path, name: str) -> str:
    text = (_text(common / name) or "").rstrip("\n")
    if _OID.fullmatch(text):
        return text
    return ""


def _packed(common: Path, name: str) -> str:
    """Return the id of a ref in `packed-refs`, or "" if it is not there. Also return "" if a file
    for a loose ref of this name exists, because a loose ref takes precedence."""
    if os.path.lexists(common / name):
        return ""
    packed = "\n" + (_text(common / "packed-refs", cap=_PACKED_CAP) or "")
    place = packed.find(f" {name}\n")
    oid = packed[max(0, place - 40) : place] if place > 0 else ""
    if _OID.fullmatch(oid) and packed[place - 41] == "\n":
        return oid
    return ""


def _text(path: Path, *, cap: int = _CAP, follow: bool = False) -> str | None:
    """Return the text of a regular file; None if there is no such file. Raises OSError for other
    kinds of files, and for a file that is larger than `cap` bytes."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with os.fdopen(fd, "rb") as file:
        seen = os.fstat(fd)
        if not stat.S_ISREG(seen.st_mode) or seen.st_size > cap:
            raise OSError(f"{path} is not a small file")
        return os.fsdecode(file.read(cap))
