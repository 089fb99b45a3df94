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
from perdure.model import Workspace
from perdure.workspace.identity import Places
from perdure.workspace.locks import alternate, is_real_directory, make_private, write
from perdure.workspace.view import Looker, again, files, looking_alone

PLAIN = (
    "--no-ext-diff",
    "--no-textconv",
    "--no-color",
    "--submodule=short",
    "--src-prefix=a/",
    "--dst-prefix=b/",
    "-M",
)
LARGEST = 1 << 30

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
        looker: Looker | None = None,
        index: str = "index",
        cap: int = LARGEST,
    ) -> GitResult:
        """Run git in this repository. With `looker`, git reads the files of that workdir. Raises
        GitFailed if the output has more than `cap` bytes; the output is never cut off."""
        git = self.git if looker is None else looker.eye
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

    def photograph(self, looker: Looker) -> str:
        """Write the workdir's tracked and untracked files as a tree; return its id."""
        self.stage(looker)
        return self.run("write-tree").text

    def stage(self, looker: Looker) -> None:
        """Put the workdir's tracked and untracked files into the index."""
        status = looker.status()
        view = looker.eye.git_dir
        assert view is not None
        shutil.copy2(
            view / "index",
            self.directory / "index",
            # copy2 keeps the modification time of the index. git compares that time with the
            # modification times of the files.
        )
        names = list(status.changed)
        for name in status.untracked:
            path = looker.top / name
            names += (
                [f"{name.rstrip('/')}/{below}" for below in files(path)]
                if is_real_directory(path)
                else [name]
            )
        if names:
            listed = b"".join(os.fsencode(name) + b"\0" for name in names)
            self.run(
                "update-index",
                "--add",
                "--remove",
                "--replace",
                "-z",
                "--stdin",
                stdin=listed,
                looker=looker,
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
    places: Places, looker: Looker, *borrowed: Path
) -> Iterator[ComparisonRepository]:
    """Yield a comparison repository that borrows the objects of the workdir and of the additional
    object stores."""
    view = looker.eye.git_dir
    assert view is not None
    with tempfile.TemporaryDirectory(dir=make_private(places.scratch), prefix="desk-") as made:
        directory = Path(made)
        (directory / "objects/info").mkdir(parents=True)
        write(
            directory / "objects/info/alternates",
            "".join(f"{alternate(path)}\n" for path in (view / "objects", *borrowed)),
        )
        yield ComparisonRepository(
            directory=directory, git=replace(looker.eye, cwd=view, work_tree=None)
        )


class CapturedTree(Struct, frozen=True, kw_only=True):
    """A run's current files, stored in the index of a comparison repository, with the commit to
    compare them with."""

    desk: ComparisonRepository
    base: str
    """Merge base of HEAD and the commit that the run began at; HEAD if that commit is unknown."""

    def tree(self) -> str:
        """Write the files as a tree; return its id."""
        return self.desk.run("write-tree").text


@contextlib.contextmanager
def captured_tree(
    places: Places, workspace: Workspace, git: Git, pinned: str
) -> Iterator[CapturedTree]:
    """Yield the run's current files, with the commit to compare them with. `pinned` is the commit
    that the run began at. Raises UsageError for a workdir without git."""
    with looking_alone(places, workspace, git) as looker:
        if looker is None:
            raise UsageError(
                f"{workspace.path} is not in a git repository, so there is nothing to compare it "
                "with.",
                "Inspect the directory itself.",
            )
        with comparison_repository(places, looker) as made:
            common = looker.head
            if pinned not in ("", looker.head):
                asked = made.run("merge-base", pinned, looker.head, good=(0, 1)).text
                common = asked.partition("\n")[0]
            made.stage(looker)
            yield CapturedTree(desk=made, base=common or pinned)


def diff(
    places: Places,
    workspace: Workspace,
    git: Git,
    pinned: str,
    *,
    stat: int = 0,
    binary: bool = False,
    most: int = LARGEST,
) -> bytes:
    """Return the changes as a patch in git's format. `stat`: return a summary of this width in
    columns instead. `binary`: return a patch that git apply accepts for binary files too. Raises
    UsageError if the patch has more than `most` bytes."""

    def look() -> bytes:
        with captured_tree(places, workspace, git, pinned) as seen:
            form: tuple[str, ...]
            if stat:
                form = (f"--stat={stat}",)
            elif binary:
                form = ("--binary", "--full-index")
            else:
                form = ()
            try:
                asked = ("diff", "--cached", *PLAIN, *form, seen.base, "--")
                return seen.desk.run(*asked, cap=most).stdout
            except GitSaidTooMuch:
                raise UsageError(
                    f"The patch has more than {most:,} bytes", f"git diff, in {workspace.path}"
                ) from None

    return again(places, workspace, look, alone=True)
