"""Stores a workdir's checkpoints in a git directory, and inspects the workdir without trusting it.

perdure keeps one such git directory for each workdir: the workdir's checkpoint repository, which
lies next to the workdir's view. It holds what git needs to read the workdir: an index, and
attributes that turn off every conversion of content. For a workdir without a repository, or with a
repository that belongs to its agent, it also holds the objects and refs of the checkpoints. For a
workdir of the user's own repository, objects and refs are stored in that repository, so that its gc
keeps what a checkpoint needs. The objects are moved there as a pack, which gc does not touch until
a ref names its content.

`capture`, `restore` and `pack` use this module, under one lock for each workdir.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from msgspec import Struct, field
from msgspec.structs import replace

from perdure.errors import GitFailed, WorkspaceError
from perdure.host import system
from perdure.host.git import Git, GitResult
from perdure.host.git.output import join_names, one_a_line, split_names
from perdure.model import Backend, Workspace
from perdure.workspace.bare import is_whole, make_bare
from perdure.workspace.identity import Places
from perdure.workspace.locks import (
    flush_each,
    hold_lock,
    make_private,
    quote_alternate,
    read,
    sync,
    write,
    write_atomically,
)
from perdure.workspace.snapshot.refs import (
    LAST,
    OUTSIDE,
    REFS,
    common_of,
    locate_git,
    read_head,
    update_refs,
)

MOST_FILES = 200_000
"""Maximum number of files in a directory without git. A directory with more files is not saved,
because it may be a whole disk."""

_CAP = 1 << 30
FATAL = 128
"""Exit code of git for a fatal error."""
_ATTRIBUTES = "* -text -eol -ident -filter -working-tree-encoding\n"
_SETTINGS = (
    ("core.protectHFS", "false"),
    ("core.protectNTFS", "false"),
    ("core.fsync", "none"),
    ("transfer.fsckObjects", "false"),
    ("core.untrackedCache", "false"),
)
"""Settings for all git calls. A name that only another file system confuses with `.git` counts as
an ordinary name. git does not flush files itself: everything is flushed once, before a ref is
written."""


class CheckpointRepository(Struct, frozen=True, kw_only=True):
    """A workdir with the git directory of its checkpoints. Without git in the workdir, `repository`
    and `admin` are None, and `head` and `branch` are empty."""

    id: str
    top: Path
    directory: Path
    objects: Path
    """Directory that objects are written to."""
    inspector: Git
    """Git that reads the workdir's files through a git directory of perdure's own."""
    refs: Git
    """Git on the repository whose refs name the checkpoints."""
    form: str
    user_objects: Path | None = None
    """Objects directory of the user's own repository, if the checkpoints are kept in that
    repository."""
    repository: Git | None = None
    admin: Path | None = None
    """The workdir's own git directory, with HEAD, index and operation in progress."""
    agent_objects: Path | None = None
    """Objects directory of the agent's repository. It is read when a checkpoint's history is
    copied, but never listed as an alternate."""
    head: str = ""
    branch: str = ""
    pinned: str = ""
    checkout_note: Path | None = None
    """Path of the file that describes the kept git index of a new worktree (see `checkout`). None
    for other backends."""
    most_files: int = MOST_FILES
    cache_git: Git | None = None
    """Git on the cache that an isolated workdir borrows objects from."""
    trees: dict[str, str] = field(default_factory=dict)
    """Cached ids of trees, by commit."""
    broken: bool = False
    """Whether the workdir has a git directory that git cannot use. Then only files can be saved and
    restored."""

    def without_git(self) -> CheckpointRepository:
        """Return a copy that saves and restores only files, for a workdir whose git directory
        cannot be used."""
        return replace(
            self, repository=None, admin=None, agent_objects=None, head="", branch="", broken=True
        )

    @property
    def tree(self) -> str:
        """Return the id of HEAD's tree; empty before the first commit. Raises GitFailed."""
        if not self.head or self.repository is None:
            return ""
        if self.head not in self.trees:
            asked = ("rev-parse", "--verify", "--end-of-options", f"{self.head}^{{tree}}")
            self.trees[self.head] = self.repository.run(*asked).text
        return self.trees[self.head]

    def run(
        self,
        *args: str,
        index: Path | None = None,
        stdin: bytes = b"",
        good: tuple[int, ...] = (0,),
        with_agent_objects: bool = False,
        timeout_s: float = 1800.0,
    ) -> GitResult:
        """Run git in the checkpoint repository. `index`: the index to use. `with_agent_objects`:
        whether git may also read the agent's objects."""
        env = {
            "GIT_OBJECT_DIRECTORY": str(self.objects),
            "GIT_LITERAL_PATHSPECS": "0" if args[0] == "check-ignore" else "1",
        }
        if index is not None:
            env["GIT_INDEX_FILE"] = str(index)
        if with_agent_objects and self.agent_objects is not None:
            env["GIT_ALTERNATE_OBJECT_DIRECTORIES"] = quote_alternate(self.agent_objects)
        return self.inspector.run(
            *args,
            stdin=stdin,
            good=good,
            env=env,
            settings=_SETTINGS,
            timeout_s=timeout_s,
            cap=_CAP,
        )

    @property
    def checkpoint_objects(self) -> Path:
        """Return the objects directory in which the checkpoints are stored."""
        return self.user_objects or self.objects

    def for_directory(self, root: Path) -> CheckpointRepository:
        """Return a copy that reads the files of the directory `root` instead of the workdir's."""
        return replace(self, top=root, inspector=replace(self.inspector, cwd=root, work_tree=root))

    def ref(self, number: int) -> str:
        return f"{REFS}/{self.id}/{number}"

    def write_object(self, kind: str, content: bytes) -> str:
        """Write one small loose object without starting a process; return its id."""
        whole = f"{kind} {len(content)}\0".encode() + content
        oid = hashlib.new(self.form, whole).hexdigest()
        place = self.objects / oid[:2] / oid[2:]
        if not place.exists():
            place.parent.mkdir(exist_ok=True)
            fresh = place.with_name(f"tmp_obj_{secrets.token_hex(6)}")
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
            with os.fdopen(fd, "wb") as file:
                file.write(zlib.compress(whole, 1))
            fresh.replace(place)
        return oid

    def import_pack(self, pack: IO[bytes]) -> None:
        """Import a pack. git first checks each object and each link between objects in a quarantine
        directory. Raises GitFailed for a damaged pack, from which nothing is imported."""
        quarantine = self.checkpoint_objects / f"tmp_objdir-perdure-{secrets.token_hex(6)}"
        (quarantine / "pack").mkdir(parents=True, mode=0o700)
        env = {
            "GIT_OBJECT_DIRECTORY": str(quarantine),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": quote_alternate(self.checkpoint_objects),
        }
        try:
            self.inspector.run(
                "index-pack",
                "--stdin",
                "--strict",
                stdin=pack,
                env=env,
                settings=_SETTINGS,
                timeout_s=3600.0,
            )
            self._install_pack(quarantine / "pack")
        finally:
            shutil.rmtree(quarantine, ignore_errors=True)

    def _install_pack(self, packed: Path) -> None:
        """Move a pack to the directory where checkpoints are stored. A `.keep` file makes gc leave
        the pack alone; `release_packs` removes that file when a ref names the pack's content."""
        place = self.checkpoint_objects / "pack"
        place.mkdir(exist_ok=True)
        # Move the pack's index last: git sees a pack as soon as its index exists.
        for path in sorted(packed.iterdir(), key=lambda path: path.suffix == ".idx"):
            if path.suffix == ".pack" and self.user_objects is not None:
                path.with_suffix(".keep").write_text(self._keep_text)
                path.with_suffix(".keep").replace(place / path.with_suffix(".keep").name)
            path.replace(place / path.name)

    @property
    def _keep_text(self) -> str:
        return f"perdure {self.id}\n"

    def release_packs(self) -> None:
        """Let gc handle this workdir's packs again, because a ref names their content now."""
        for path in (self.checkpoint_objects / "pack").glob("pack-*.keep"):
            if read(path) == self._keep_text:
                path.unlink(missing_ok=True)

    def drop_packs(self) -> None:
        """Remove this workdir's packs that are still protected from gc, because no ref names their
        content."""
        for path in (self.checkpoint_objects / "pack").glob("pack-*.keep"):
            if read(path) == self._keep_text:
                # Remove the pack's index first: without it git does not see the pack.
                for suffix in (".idx", ".rev", ".pack", ".keep"):
                    path.with_suffix(suffix).unlink(missing_ok=True)

    def _copy_to_user_repository(self, commit: str, last: str) -> None:
        """Copy the new objects of a commit into the user's repository, as one pack. Raises
        GitFailed if an object is gone by now.

        Loose objects could be removed by a `git prune --expire=now` before a ref names them. A ref
        without its objects makes every later gc of the repository fail.
        """
        there = [f"^{last}^{{tree}}"] if last else []
        there += [f"^{self.head}", f"^{self.head}^{{tree}}"] if self.head else []
        self.receive(self, [commit, *there], "--window=0")

    def receive(
        self, source: CheckpointRepository, revisions: Sequence[str], *options: str
    ) -> None:
        """Copy objects from `source` into `checkpoint_objects`, as one pack. The pack has every
        object that the revisions need. Raises GitFailed.

        git writes a pack to a temporary file below GIT_OBJECT_DIRECTORY and renames it to its final
        path (2.39, builtin/pack-objects.c). The rename fails if the two are on different file
        systems, as perdure's git directory and the user's repository may be. So for this call
        GIT_OBJECT_DIRECTORY is a directory next to the final path.
        """
        stage = self.checkpoint_objects / f"incoming-{secrets.token_hex(6)}"
        stage.mkdir(mode=0o700)
        (stage / "pack").mkdir()
        env = {
            "GIT_OBJECT_DIRECTORY": str(stage),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": ":".join(
                map(quote_alternate, (source.objects, source.checkpoint_objects))
            ),
        }
        words = ("pack-objects", "-q", "--revs", "--non-empty", *options, str(stage / "pack/pack"))
        stdin = one_a_line(revisions).encode()
        try:
            source.inspector.run(*words, stdin=stdin, env=env, settings=_SETTINGS, timeout_s=1800.0)
            self._install_pack(stage / "pack")
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def commit_id(self, revision: str) -> str:
        """Return the id of the commit that `revision` names; empty if the checkpoint repository has
        no such commit."""
        return self.run(
            "rev-parse",
            "--verify",
            "--quiet",
            "--end-of-options",
            f"{revision}^{{commit}}",
            good=(0, 1, 128),
        ).text

    def is_outside(self, commit: str) -> bool:
        """Return whether a checkpoint came from another machine."""
        return bool(
            self.refs.run("for-each-ref", "--count=1", f"--points-at={commit}", OUTSIDE).text
        )

    def mark_outside(self, commit: str, name: str) -> None:
        self.update_refs(f"update {OUTSIDE}/{self.id}/{name} {commit}")

    def update_refs(self, *orders: str) -> None:
        """Write or delete refs, all of them or none: `update NAME COMMIT [OLD]`, `verify NAME
        COMMIT`, `delete NAME`. The caller holds the lock, so no other process writes these refs.
        Raises GitFailed."""
        update_refs(self.refs, self.directory, orders)

    def publish(self, name: str, commit: str, *, last: str = "") -> None:
        """Make the objects durable and set a ref to the commit. The ref is durable too when this
        returns. `last`: the commit of the last capture, whose cached state this commit was made
        from. Raises GitFailed if no ref keeps `last` any more, because objects of the new commit
        may then be gone."""
        if commit != last:
            if self.user_objects is not None:
                self._copy_to_user_repository(commit, last)
            # Two directories are flushed: the objects may be on another file system than perdure's
            # git directory, which has the indexes that `capture` made.
            flush_each(self.checkpoint_objects, self.directory)
        kept = f"{LAST}/{self.id}"
        orders = [
            f"update {name} {commit}",
            f"verify {kept} {last}"
            if commit == last
            else f"update {kept} {commit} {last}".rstrip(),
        ]
        self.update_refs(*orders)
        if self.user_objects is not None and commit != last:
            self.release_packs()
            for loose in self.objects.glob("[0-9a-f][0-9a-f]"):
                shutil.rmtree(loose, ignore_errors=True)
        assert self.refs.git_dir is not None
        place = (self.refs.git_dir / name).parent
        while place != self.refs.git_dir and place.is_dir():
            sync(place)
            place = place.parent


@contextlib.contextmanager
def open_checkpoint_repository(
    places: Places,
    workspace: Workspace,
    git: Git,
    *,
    cache: Path | None = None,
    pinned: str = "",
    most_files: int = MOST_FILES,
) -> Iterator[CheckpointRepository]:
    """Yield the workdir with its checkpoint repository, locked. `cache`: the clone cache that an
    isolated workdir borrows from; `pinned`: the commit that the workdir began at.

    For a worktree or isolated workdir whose git directory cannot be used, the result is marked as
    `broken`. Raises WorkspaceError where the workdir is missing, GitFailed.
    """
    path = Path(workspace.path)
    if not path.is_dir():
        raise WorkspaceError(
            f"The workdir {path} does not exist.",
            "Try: perdure restore NAME, which recreates it from its last checkpoint.",
        )
    with hold_lock(places.lock(f"{workspace.id}.shelf")) as fd:
        git = Git(
            cwd=path,
            ceiling=places.root,
            keep=(*git.keep, fd),
            environ=git.environ,
            memory=git.memory,
        )
        directory, isolated = (
            places.checkpoint_repository(workspace.id),
            workspace.backend is Backend.ISOLATED,
        )
        place, repository, broken = None, None, False
        head, tree, branch, form = "", "", "", "sha1"
        try:
            if place := locate_git(workspace, path, git):
                repository = git.at(
                    place[0],
                    place[1] if workspace.backend is Backend.HERE else path / ".git",
                    place[0],
                )
                head, tree, branch, form = read_head(repository)
        except (WorkspaceError, GitFailed) as error:
            if workspace.backend is Backend.HERE or (
                isinstance(error, GitFailed) and error.code != FATAL
            ):
                raise
            place, repository, broken = None, None, True
        common = place[2] if place else common_of(workspace)
        if broken:
            if common:
                form = git.at(common, common).run("rev-parse", "--show-object-format").text
            else:
                form = read(directory / "made") or form
        own = isolated or common is None
        lender = None if own else common
        if isolated:
            lender = cache
        _make(git, directory, form, lender, common)
        top, admin = place[:2] if place else (path, None)
        inspector = Git(
            cwd=top,
            git_dir=directory,
            work_tree=top,
            ceiling=places.root,
            keep=git.keep,
            environ=git.environ,
            memory=git.memory,
        )
        yield CheckpointRepository(
            id=workspace.id,
            top=top,
            directory=directory,
            objects=directory / "objects",
            inspector=inspector,
            user_objects=None if own or common is None else common / "objects",
            form=form,
            repository=repository,
            admin=admin,
            refs=inspector.at(directory, directory)
            if own or common is None
            else git.at(common, common),
            agent_objects=admin / "objects" if own and admin is not None else None,
            head=head,
            trees={head: tree} if tree else {},
            branch=branch,
            pinned=pinned,
            checkout_note=places.checkout(workspace.id)
            if workspace.backend is Backend.WORKTREE
            else None,
            most_files=most_files,
            cache_git=git.at(places.root, cache) if cache is not None else None,
            broken=broken,
        )


def check_can_store(scratch: Path, repository: Path, git: Git) -> None:
    """Test whether checkpoints of worktrees can be stored in a repository. Copies a small object
    from the directory `scratch` into it and removes the object again.

    `repository` is the git directory. Raises GitFailed or OSError where a checkpoint would fail.
    """
    there = git.at(repository, repository)
    form = there.run("rev-parse", "--show-object-format").text
    directory = scratch / "shelf.git"
    _make(git, directory, form, None, repository)
    repo = CheckpointRepository(
        id=f"doctor-{secrets.token_hex(6)}",
        top=scratch,
        directory=directory,
        objects=directory / "objects",
        inspector=git.at(directory, directory),
        refs=there,
        form=form,
        user_objects=repository / "objects",
    )
    tree = repo.write_object(
        "tree",
        b"100644 probe\0" + bytes.fromhex(repo.write_object("blob", secrets.token_bytes(16))),
    )
    who = "perdure <perdure@perdure.invalid> 0 +0000"
    try:
        repo.receive(
            repo,
            [
                repo.write_object(
                    "commit", f"tree {tree}\nauthor {who}\ncommitter {who}\n\nprobe\n".encode()
                )
            ],
        )
    finally:
        repo.drop_packs()


def _make(git: Git, directory: Path, form: str, cache: Path | None, common: Path | None) -> None:
    if not (directory / "made").exists():
        make_private(directory.parent)
        make_bare(git, directory, form)
        (directory / "info").mkdir(exist_ok=True)
        write(directory / "made", form)
    elif read(directory / "made") == form and not is_whole(directory):
        make_bare(git, directory, form)
    if read(directory / "made") != form:
        raise WorkspaceError(
            f"The repository now uses object ids of the format {form}, and perdure's git "
            f"directory {directory} another format.",
            "Move that directory away and try again.",
        )
    _remove_torn_objects(directory)
    _write_if_changed(directory / "info/attributes", _ATTRIBUTES)
    _write_if_changed(
        directory / "objects/info/alternates",
        f"{quote_alternate(cache / 'objects')}\n" if cache is not None else "",
    )
    if common is not None and (shallow := read(common / "shallow")):
        _write_if_changed(directory / "shallow", shallow)
    _write_if_changed(
        directory / "info/exclude", read(common / "info/exclude") if common is not None else ""
    )


def _remove_torn_objects(directory: Path) -> None:
    """Remove empty loose objects once after each start of the machine. A power cut may leave an
    object without its content, and git would use it again instead of writing it."""
    mark, boot = directory / "boot", system.boot_id()
    if read(mark) == boot:
        return
    for path in (directory / "objects").glob("[0-9a-f][0-9a-f]/*"):
        if not path.stat().st_size:
            path.unlink()
    write_atomically(mark, boot)


def _write_if_changed(path: Path, text: str) -> None:
    """Write this text to a file, unless the file has it already. The write need not be durable,
    because the file is checked each time the checkpoint repository is opened."""
    if read(path) != text:
        write_atomically(path, text)


def split(out: bytes) -> list[str]:
    """Return the names in the output of a git command with -z."""
    return split_names(out)


def joined(names: Sequence[str]) -> bytes:
    """Return the names as input for a git command with -z --stdin."""
    return join_names(names)
