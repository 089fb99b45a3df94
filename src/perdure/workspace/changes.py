"""Compares a run's current workdir, committed or not, with the commit that the run began at.
Changes nothing.

The files are read through a view (see `view`) into a temporary object store. Then two trees are
compared in a bare repository without configuration. No filter, textconv, external diff or attribute
of the user's repository is used, and nothing is written into it. Untracked files count as new;
files ignored by a .gitignore of the tree are left out.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from perdure.errors import GitSaidTooMuch, UsageError
from perdure.host.git import Git, GitResult
from perdure.host.git.output import join_names
from perdure.model import Workspace
from perdure.workspace.identity import Places
from perdure.workspace.locks import is_real_directory, make_private, quote_alternate, write
from perdure.workspace.view import WorkdirGit, files, open_through_view, retry_with_new_view

DIFF_OPTIONS = (
    "--no-ext-diff",
    "--no-textconv",
    "--no-color",
    "--submodule=short",
    "--src-prefix=a/",
    "--dst-prefix=b/",
    "-M",
)
MAX_PATCH_BYTES = 1 << 30

Entry = tuple[str, str]
"""Mode and object id of one path in a tree."""


class ComparisonRepository(Struct, frozen=True, kw_only=True):
    """A temporary bare git repository for comparing trees. It writes objects and an index into its
    own directory, and borrows all other objects."""

    directory: Path
    git: Git

    @property
    def objects(self) -> Path:
        return self.directory / "objects"

    def run(
        self,
        *args: str,
        stdin: bytes = b"",
        good: tuple[int, ...] = (0,),
        workdir_git: WorkdirGit | None = None,
        index: str = "index",
        cap: int = MAX_PATCH_BYTES,
    ) -> GitResult:
        """Run git in this repository. With `workdir_git`, git reads the files of that workdir.
        Raises GitFailed if the output has more than `cap` bytes; the output is never cut off."""
        git = self.git if workdir_git is None else workdir_git.inspector
        own = {
            "GIT_OBJECT_DIRECTORY": str(self.objects),
            "GIT_INDEX_FILE": str(self.directory / index),
        }
        readable = (("core.quotePath", "false"),)
        return git.run(
            *args, stdin=stdin, good=good, env=own, settings=readable, timeout_s=1800.0, cap=cap
        )

    def entries(self, tree: str) -> dict[str, Entry]:
        """Return the entry (mode and object id) of every file in a tree, by path."""
        return entries(self.run("ls-tree", "-r", "-z", "--full-tree", tree).stdout)

    def write_workdir_tree(self, workdir_git: WorkdirGit) -> str:
        """Write the workdir's tracked and untracked files as a tree; return its id."""
        self.stage(workdir_git)
        return self.run("write-tree").text

    def stage(self, workdir_git: WorkdirGit) -> None:
        """Put the workdir's tracked and untracked files into the index."""
        status = workdir_git.status()
        view = workdir_git.inspector.git_dir
        assert view is not None
        # copy2 keeps the modification time of the index. git compares that time with those of the
        # files, so a newer time would hide changes.
        shutil.copy2(view / "index", self.directory / "index")
        names = list(status.changed)
        for name in status.untracked:
            path = workdir_git.top / name
            if is_real_directory(path):
                names += [f"{name.rstrip('/')}/{below}" for below in files(path)]
            else:
                names.append(name)
        if names:
            listed = join_names(names)
            self.run(
                "update-index",
                "--add",
                "--remove",
                "--replace",
                "-z",
                "--stdin",
                stdin=listed,
                workdir_git=workdir_git,
            )


def entries(out: bytes) -> dict[str, Entry]:
    """Parse the output of `git ls-tree -r -z`. Return the entry (mode and object id) of each file,
    by path."""
    found = {}
    for line in os.fsdecode(out).split("\0"):
        if line:
            facts, _, name = line.partition("\t")
            mode, _, oid = facts.split(" ")
            found[name] = (mode, oid)
    return found


@contextlib.contextmanager
def comparison_repository(
    places: Places, workdir_git: WorkdirGit, *borrowed: Path
) -> Iterator[ComparisonRepository]:
    """Yield a comparison repository that borrows the objects of the workdir and of the additional
    object stores."""
    view = workdir_git.inspector.git_dir
    assert view is not None
    with tempfile.TemporaryDirectory(dir=make_private(places.scratch), prefix="desk-") as made:
        directory = Path(made)
        (directory / "objects/info").mkdir(parents=True)
        write(
            directory / "objects/info/alternates",
            "".join(f"{quote_alternate(path)}\n" for path in (view / "objects", *borrowed)),
        )
        yield ComparisonRepository(
            directory=directory, git=replace(workdir_git.inspector, cwd=view, work_tree=None)
        )


class CapturedTree(Struct, frozen=True, kw_only=True):
    """A run's current files, stored in the index of a comparison repository, with the commit to
    compare them with."""

    repository: ComparisonRepository
    base: str
    """Merge base of HEAD and the commit that the run began at; HEAD if that commit is unknown."""

    def tree(self) -> str:
        """Write the files as a tree; return its id."""
        return self.repository.run("write-tree").text


@contextlib.contextmanager
def captured_tree(
    places: Places, workspace: Workspace, git: Git, pinned: str
) -> Iterator[CapturedTree]:
    """Yield the run's current files, with the commit to compare them with. `pinned` is the commit
    that the run began at. Raises UsageError for a workdir without git."""
    with open_through_view(places, workspace, git) as workdir_git:
        if workdir_git is None:
            raise UsageError(
                f"{workspace.path} is not in a git repository, so there is nothing to compare it "
                "with.",
                "Inspect the directory itself.",
            )
        with comparison_repository(places, workdir_git) as made:
            common = workdir_git.head
            if pinned not in ("", workdir_git.head):
                asked = made.run("merge-base", pinned, workdir_git.head, good=(0, 1)).text
                common = asked.partition("\n")[0]
            made.stage(workdir_git)
            yield CapturedTree(repository=made, base=common or pinned)


def diff(
    places: Places,
    workspace: Workspace,
    git: Git,
    pinned: str,
    *,
    stat: int = 0,
    binary: bool = False,
    most: int = MAX_PATCH_BYTES,
) -> bytes:
    """Return the changes as a patch in git's format. `stat`: return a summary of this width in
    columns instead. `binary`: return a patch that git apply accepts for binary files too. Raises
    UsageError if the patch has more than `most` bytes."""

    def make_patch() -> bytes:
        with captured_tree(places, workspace, git, pinned) as captured:
            form: tuple[str, ...]
            if stat:
                form = (f"--stat={stat}",)
            elif binary:
                form = ("--binary", "--full-index")
            else:
                form = ()
            try:
                asked = ("diff", "--cached", *DIFF_OPTIONS, *form, captured.base, "--")
                return captured.repository.run(*asked, cap=most).stdout
            except GitSaidTooMuch:
                raise UsageError(
                    f"The patch has more than {most:,} bytes", f"git diff, in {workspace.path}"
                ) from None

    return retry_with_new_view(places, workspace, make_patch, alone=True)
