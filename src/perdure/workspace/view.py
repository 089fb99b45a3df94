"""Inspects workdirs without trusting them, and saves their contents.

The git directory of an isolated workdir belongs to its agent: its configuration can name programs,
and its index can hide changes. So perdure inspects such a workdir with a git directory and an index
of perdure's own (a view), which borrows only the agent's objects. In a worktree of the user's
repository, git runs on the repository itself with hardened settings; only filters of the repository
can still run.

A rescue saves every tracked and untracked file as a commit. perdure reads the bytes and streams
them to fast-import, so no filter, hook or index of the workdir is used. Ignored files are left out;
files of nested repositories are included as plain files.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from perdure.errors import GitFailed, WorkspaceError
from perdure.host.git import Git, GitStatus, on_disk
from perdure.host.git.output import split_names
from perdure.host.system.files import walk
from perdure.model import Backend, Workspace
from perdure.workspace.identity import Places
from perdure.workspace.locks import (
    hold_lock,
    is_real_directory,
    make_private,
    quote_alternate,
    read,
    write_atomically,
)
from perdure.workspace.worktree import common_directory, git_directory

_T = TypeVar("_T")

SHOWN = 20
COUNTED = 10_000
"""Maximum number of files counted in a directory without git."""
_MOST_LISTED = 1 << 30
"""Maximum size of the list of a workdir's index, in bytes."""

_IN_PROGRESS = (
    ("MERGE_HEAD", "merge"),
    ("rebase-merge", "rebase"),
    ("rebase-apply", "rebase"),
    ("CHERRY_PICK_HEAD", "cherry-pick"),
    ("REVERT_HEAD", "revert"),
    ("BISECT_LOG", "bisect"),
)


class WorkdirState(Struct, frozen=True, kw_only=True):
    """A workdir as it is now. For a workdir without git, `head` and `branch` are empty and every
    file counts as untracked."""

    head: str = ""
    branch: str = ""
    changed: int = 0
    untracked: int = 0
    paths: tuple[str, ...] = ()
    """Names of the first 20 changed or untracked files, changed ones first, relative to the
    workdir."""
    in_progress: str = ""
    """Operation in progress: `merge`, `rebase`, `cherry-pick`, `revert`, `bisect`, or empty."""


def state(places: Places, workspace: Workspace, git: Git) -> WorkdirState:
    """Return the workdir's state. Raises WorkspaceError or GitFailed where the state cannot be
    read; it is never guessed."""
    return retry_with_new_view(places, workspace, lambda: _state(places, workspace, git))


def _state(places: Places, workspace: Workspace, git: Git) -> WorkdirState:
    with open_workdir_git(places, workspace, git) as workdir_git:
        if workdir_git is None:
            found = tuple(itertools.islice(files(Path(workspace.path)), COUNTED))
            return WorkdirState(untracked=len(found), paths=found[:SHOWN])
        status = workdir_git.status()
    return WorkdirState(
        head=workdir_git.head,
        branch=workdir_git.branch,
        changed=len(status.changed),
        untracked=len(status.untracked),
        paths=(status.changed + status.untracked)[:SHOWN],
        in_progress=workdir_git.in_progress,
    )


def rescue(places: Places, workspace: Workspace, why: str, git: Git) -> str:
    """Save all tracked and untracked files as a commit and return its ref. The workdir, its index
    and HEAD are not changed."""
    return retry_with_new_view(places, workspace, lambda: _rescue(places, workspace, why, git))


def _rescue(places: Places, workspace: Workspace, why: str, git: Git) -> str:
    ref = f"refs/perdure/rescue/{workspace.id}/{time.time_ns()}"
    with open_workdir_git(places, workspace, git) as workdir_git:
        if workdir_git is None:
            raise WorkspaceError(
                f"{workspace.path} is not in a git repository, so its changes cannot be saved.",
                "Copy the directory.",
            )
        listed = workdir_git.inspector.run(
            "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"
        ).stdout
        with tempfile.TemporaryFile(dir=make_private(places.scratch)) as stream:
            _write_import_stream(
                stream,
                ref,
                why,
                workdir_git.head,
                workdir_git.top,
                sorted(split_names(listed)),
            )
            stream.seek(0)
            if workdir_git.has_view:
                objects = {"GIT_OBJECT_DIRECTORY": str(workdir_git.git_dir / "objects")}
            else:
                objects = {}
            workdir_git.inspector.run(
                "fast-import",
                "--quiet",
                "--date-format=raw",
                stdin=stream,
                env=objects,
                timeout_s=1800.0,
            )
        if workdir_git.has_view:
            workdir_git.repository.set_ref(
                ref, workdir_git.inspector.commit(ref), f"perdure: {why}"
            )
    return ref


def retry_with_new_view(
    places: Places, workspace: Workspace, action: Callable[[], _T], *, alone: bool = False
) -> _T:
    """Call `action` and return its result. If git fails with the view, discard the view and call
    `action` once more. `alone`: `action` uses a view for every backend, not only for an isolated
    workdir."""
    try:
        return action()
    except GitFailed:
        if workspace.backend is not Backend.ISOLATED and not alone:
            raise
        with hold_lock(_lock(places, workspace)):
            shutil.rmtree(places.view(workspace.id), ignore_errors=True)
        return action()


def repair_view(places: Places, workspace: Workspace, git: Git) -> None:
    """Check that the workdir can be inspected through its view. If the view is damaged, make a new
    one."""

    def check() -> None:
        with open_through_view(places, workspace, git) as workdir_git:
            if workdir_git is not None:
                # This git call reads the settings and the index, so it fails if the view is
                # damaged. It lists no files.
                workdir_git.inspector.run("ls-files", "--", ".git")

    retry_with_new_view(places, workspace, check, alone=True)


class WorkdirGit(Struct, frozen=True, kw_only=True):
    """Git access to a workdir. `repository` runs on the workdir's own git directory. `inspector` is
    the git that inspects the files: through a view if `has_view` is set, else on the workdir's own
    git directory."""

    repository: Git
    inspector: Git
    has_view: bool
    top: Path
    git_dir: Path
    head: str
    branch: str

    def status(self) -> GitStatus:
        """Return the files that differ from HEAD. A file that a sparse checkout left out does not
        count as deleted."""
        status = self.inspector.status(write_index=self.has_view)
        if not self.has_view:
            return status
        absent = {name for name in status.changed if not os.path.lexists(self.top / name)}
        if not absent:
            return status
        # The view's index has no flags. Only the workdir's own index marks the files that a sparse
        # checkout left out. If that index is damaged, as may happen in an agent's repository, every
        # absent file counts as deleted.
        listed = self.repository.run("ls-files", "-z", "-v", good=(0, 128), cap=_MOST_LISTED)
        lines = os.fsdecode(listed.stdout).split("\0")
        absent.intersection_update(line[2:] for line in lines if line[:2] in ("S ", "s "))
        changed = tuple(name for name in status.changed if name not in absent)
        return replace(status, changed=changed)

    @property
    def in_progress(self) -> str:
        """Return the operation in progress: `merge`, `rebase`, `cherry-pick`, `revert`, `bisect`,
        or empty."""
        for file, name in _IN_PROGRESS:
            if os.path.lexists(self.git_dir / file):
                return name
        return ""


@contextlib.contextmanager
def open_workdir_git(places: Places, workspace: Workspace, git: Git) -> Iterator[WorkdirGit | None]:
    """Yield git access to the workdir: through a view if its git directory belongs to an agent,
    else directly. Yields None for a workdir without git. Raises WorkspaceError where the workdir is
    missing."""
    path = Path(workspace.path)
    if not path.is_dir():
        raise WorkspaceError(
            f"The workdir {path} does not exist.",
            "Try: perdure restore NAME, which recreates it from its last checkpoint.",
        )
    if workspace.backend is Backend.ISOLATED:
        with _view(places, workspace, git) as workdir_git:
            yield workdir_git
        return
    if workspace.backend is Backend.TASK:
        yield None
        return
    if workspace.backend is Backend.WORKTREE:
        if (admin := git_directory(path)) is None:
            raise WorkspaceError(
                f"{path} is no longer a worktree of {workspace.repo}.",
                f"Try: git -C {workspace.repo} worktree repair {path}",
            )
        inside, top = git.at(path, path / ".git", path), path
    else:
        found = git.at(path).run("rev-parse", "--absolute-git-dir", good=(0, 128))
        if found.code:
            yield None
            return
        admin, top = Path(found.text), Path(git.at(path).run("rev-parse", "--show-toplevel").text)
        inside = git.at(top, admin, top)
    if inside.git_dir is not None:
        known = on_disk.head(inside.git_dir)
    else:
        known = None
    if known is None:
        known = inside.head() if inside.commit("HEAD") else ("", "")
    head, branch = known
    yield WorkdirGit(
        repository=inside,
        inspector=inside,
        has_view=False,
        top=top,
        git_dir=admin,
        head=head,
        branch=branch,
    )


@contextlib.contextmanager
def open_through_view(
    places: Places, workspace: Workspace, git: Git
) -> Iterator[WorkdirGit | None]:
    """Yield git access to the workdir through a view, whatever its backend is. So no filter or
    setting of the workdir's repository is used. Yields None for a workdir without git. Raises
    WorkspaceError if the repository has no commit yet."""
    with open_workdir_git(places, workspace, git) as workdir_git:
        if workdir_git is None or workdir_git.has_view:
            yield workdir_git
            return
        if not workdir_git.head:
            raise WorkspaceError(
                f"{workspace.path} has no commit yet.",
                "Make a first commit: git commit --allow-empty",
            )
        if workspace.backend is Backend.WORKTREE:
            common = common_directory(workspace.repo)
        else:
            asked = ("rev-parse", "--path-format=absolute", "--git-common-dir")
            common = Path(workdir_git.repository.run(*asked).text)
        with _with_view(places, workspace, git, workdir_git, common / "objects") as through:
            yield through


@contextlib.contextmanager
def _view(places: Places, workspace: Workspace, git: Git) -> Iterator[WorkdirGit]:
    path = Path(workspace.path)
    admin = path / ".git"
    if not all(map(is_real_directory, (admin, admin / "objects", admin / "refs"))):
        raise WorkspaceError(
            f"{path} has lost its git directory.",
            "Nothing was changed. Inspect it, or move it away.",
        )
    repository = git.at(path, admin, path)
    head, branch = repository.head()
    direct = WorkdirGit(
        repository=repository,
        inspector=repository,
        has_view=False,
        top=path,
        git_dir=admin,
        head=head,
        branch=branch,
    )
    with _with_view(places, workspace, git, direct, admin / "objects") as through:
        yield through


@contextlib.contextmanager
def _with_view(
    places: Places, workspace: Workspace, git: Git, direct: WorkdirGit, objects: Path
) -> Iterator[WorkdirGit]:
    """Yield git access to the same workdir through its view. The view borrows the objects in
    `objects`."""
    directory, top = places.view(workspace.id), direct.top
    with hold_lock(_lock(places, workspace)) as fd:
        inspector = Git(
            cwd=top,
            git_dir=directory,
            work_tree=top,
            ceiling=places.root,
            keep=(*git.keep, fd),
            environ=git.environ,
            memory=git.memory,
        )
        _update_view(inspector, directory, objects, direct.head)
        yield replace(direct, inspector=inspector, has_view=True)


def _lock(places: Places, workspace: Workspace) -> Path:
    return places.lock(f"{workspace.id}.view")


def _update_view(inspector: Git, directory: Path, objects: Path, head: str) -> None:
    """Point the view at a commit. The index of the view keeps the state of unchanged files, so that
    the next inspection reads few files. The view need not be durable: git refuses a damaged view,
    and perdure then makes a new one."""
    if not (directory / "made").exists():
        shutil.rmtree(directory, ignore_errors=True)
        make_private(directory.parent)
        form = "sha256" if len(head) == 64 else "sha1"
        from perdure.workspace.bare import make_bare

        make_bare(inspector, directory, form)
        write_atomically(directory / "objects/info/alternates", f"{quote_alternate(objects)}\n")
        write_atomically(directory / "made", "")
    (directory / "index.lock").unlink(missing_ok=True)
    if read(directory / "HEAD").strip() != head or not (directory / "index").exists():
        # A file may have been changed at the last inspection and committed since. The view's index
        # still has the file's old content. Without -i, git 2.39 refuses the merge, because such a
        # file is not "up to date".
        inspector.run("read-tree", "-i", "-m", head)
        write_atomically(directory / "HEAD", f"{head}\n")


def _write_import_stream(
    stream: IO[bytes], ref: str, why: str, head: str, top: Path, listed: list[str]
) -> None:
    message = f"perdure: {why}\n".encode("utf-8", "surrogateescape")
    who = f"perdure <perdure@perdure.invalid> {int(time.time())} +0000"
    stream.write(
        f"commit {ref}\nauthor {who}\ncommitter {who}\ndata {len(message)}\n".encode() + message
    )
    stream.write((f"from {head}\n" if head else "").encode() + b"deleteall\n")
    for name in listed:
        path = top / name
        if is_real_directory(path):
            for below in files(path):
                _write_file(stream, path / below, f"{name.rstrip('/')}/{below}")
        else:
            _write_file(stream, path, name)
    stream.write(b"\n")


def _quoted_byte(byte: int) -> bytes:
    if byte < 32 or byte in b'"\\' or byte > 126:
        return b"\\%03o" % byte
    return bytes([byte])


def _write_file(stream: IO[bytes], path: Path, name: str) -> None:
    """Write one file or link in fast-import's format. A special file, or one that is gone, is
    skipped."""
    quoted = b'"%b"' % b"".join(map(_quoted_byte, os.fsencode(name)))
    try:
        kind = path.lstat().st_mode
        if stat.S_ISLNK(kind):
            content = os.fsencode(path.readlink())
            stream.write(b"M 120000 inline %s\ndata %d\n%s\n" % (quoted, len(content), content))
            return
        if not stat.S_ISREG(kind):
            return
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    with os.fdopen(fd, "rb") as file:
        size = os.fstat(fd).st_size
        stream.write(
            b"M %s inline %s\ndata %d\n" % (b"100755" if kind & 0o100 else b"100644", quoted, size)
        )
        left = size
        while left and (chunk := file.read(min(left, 1 << 20))):
            stream.write(chunk)
            left -= len(chunk)
        if left:
            raise WorkspaceError(
                f"{path} became shorter while it was saved.",
                "Try again when no program writes there.",
            )
        stream.write(b"\n")


def files(top: Path) -> Iterator[str]:
    """Yield all files and links below a directory, as sorted relative paths. Git directories are
    skipped; links are never followed."""
    for directory, folders, names in walk(top):
        here = Path(directory)
        linked = [folder for folder in folders if (here / folder).is_symlink()]
        folders[:] = sorted(set(folders) - {".git", *linked})
        for name in sorted({*names, *linked} - {".git"}):
            yield str((here / name).relative_to(top))
