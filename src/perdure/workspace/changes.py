"""What a run changed: its workdir as it is now, committed or not, against the commit that it began
at. Only looks.

The files are taken into a view (see `view`) and into a store of objects that is gone afterwards,
then tree is compared with tree in a bare repository without configuration: no filter, textconv,
external diff or attribute of the repository takes part, and nothing is written into it. Untracked
files are new ones; ignored ones (by a .gitignore of the tree) are left out.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from perdure.errors import GitSaidTooMuch, UsageError
from perdure.host.git import Git, GitResult
from perdure.lateclass import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRepository:
    """A place to work on trees: a bare git that writes its objects and its index here, and borrows
    all others."""

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
        """git on this desk; with `looker` it sees the files of that workdir. Of more than `cap`
        bytes nothing is taken."""
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
        """Every file of a tree."""
        return entries(self.run("ls-tree", "-r", "-z", "--full-tree", tree).stdout)

    def photograph(self, looker: Looker) -> str:
        """The workdir's tracked and untracked files as a tree: its id."""
        status = looker.status()
        view = looker.eye.git_dir
        assert view is not None
        shutil.copy2(
            view / "index", self.directory / "index"
        )  # With its time: git compares it with the files'.
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
        return self.run("write-tree").text


def entries(out: bytes) -> dict[str, Entry]:
    """Reads `git ls-tree -r -z`."""
    found = {}
    for line in os.fsdecode(out).split("\0"):
        if line:
            facts, _, name = line.partition("\t")
            mode, _, oid = facts.split(" ")
            found[name] = (mode, oid)
    return found


@contextlib.contextmanager
def desk(places: Places, looker: Looker, *borrowed: Path) -> Iterator[ComparisonRepository]:
    """A desk over the objects that the looker sees, and over further stores of objects."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """A run's files, side by side with what they began as: two trees on one desk."""

    desk: ComparisonRepository
    base: str
    """The commit that the run began at, or where its branch left it."""
    tree: str


@contextlib.contextmanager
def shot(places: Places, workspace: Workspace, git: Git, pinned: str) -> Iterator[Shot]:
    """The run's changes as trees. `pinned` is the commit that it began at. Raises UsageError
    without git."""
    with looking_alone(places, workspace, git) as looker:
        if looker is None:
            raise UsageError(
                f"{workspace.path} is not in a git repository, so there is nothing to compare it "
                "with.",
                "Look at the directory.",
            )
        with desk(places, looker) as made:
            common = (
                made.run("merge-base", pinned, looker.head, good=(0, 1)).text.partition("\n")[0]
                if pinned
                else looker.head
            )
            yield Shot(desk=made, base=common or pinned, tree=made.photograph(looker))


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
    """The changes as git writes them: a patch, or with `stat` the summary in so many columns.
    `binary`: whole, for git apply. Raises UsageError where that is more than `most` bytes."""

    def look() -> bytes:
        with shot(places, workspace, git, pinned) as seen:
            form: tuple[str, ...]
            if stat:
                form = (f"--stat={stat}",)
            elif binary:
                form = ("--binary", "--full-index")
            else:
                form = ()
            try:
                return seen.desk.run(
                    "diff", *PLAIN, *form, seen.base, seen.tree, "--", cap=most
                ).stdout
            except GitSaidTooMuch:
                raise UsageError(
                    f"The patch has more than {most:,} bytes", f"git diff, in {workspace.path}"
                ) from None

    return again(places, workspace, look, alone=True)
