"""Copies a checkpoint to another workdir of this machine, or exports it as one pack for a capsule.

A pack holds the checkpoint's commit with all its files, and the run's own commits. The history in a
pack is cut at the commit that the run began at. If a pack is unpacked into an empty directory, the
repository there is shallow. A clone of the run's repository already has the history before the cut.
Files can be left out of the checkpoint. If such a file is committed, the history in the pack still
has it, and `Packed.kept` names it. Unpacking runs nothing and checks that the pack is complete;
`restore` checks the content.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from msgspec import Struct

from perdure.errors import Conflict, GitFailed, WorkspaceError
from perdure.host.git import Git
from perdure.host.git.output import excluded, one_a_line
from perdure.host.system.files import flush
from perdure.patterns import late_pattern
from perdure.workspace.identity import Places
from perdure.workspace.locks import make_directory, make_private, sync, write
from perdure.workspace.snapshot.capture import copy_commit
from perdure.workspace.snapshot.checkpoint_repository import CheckpointRepository, joined, split
from perdure.workspace.snapshot.restore import copy_to_agent_repository, load
from perdure.workspace.snapshot.trees import commit_of, tree_of, unescape

_OID = late_pattern(r"[0-9a-f]{40}|[0-9a-f]{64}")
_LINK = "120000"


class PackedFacts(Struct, frozen=True, kw_only=True):
    """Facts about a pack that its receiver needs. `commit` differs from the requested commit if
    files were left out."""

    commit: str
    shallow: tuple[str, ...] = ()
    """Commits whose parents are not in the pack."""
    head: str = ""
    branch: str = ""
    form: str = "sha1"
    """Hash algorithm of object ids: `sha1` or `sha256`."""


class Packed(Struct, frozen=True, kw_only=True):
    """A checkpoint as a pack in git's format."""

    facts: PackedFacts
    kept: tuple[str, ...]
    """Names that were to be left out, but that are committed, so that the history still has them.
    """
    left_out: tuple[str, ...]
    """Names that were left out of the checkpoint, as on disk."""
    file: IO[bytes]


@contextlib.contextmanager
def pack(
    places: Places,
    repo: CheckpointRepository,
    commit: str,
    without: Sequence[str],
    *,
    began: str = "",
    have: Sequence[str] = (),
    blobs: Mapping[str, str] | None = None,
) -> Iterator[Packed]:
    """Yield the checkpoint as a pack. The pack's file is removed at the end of the `with`
    statement. `without`: names to leave out, as on disk. A directory is left out with everything
    below it.

    `blobs`: ids of contents to leave out, each with a name to report. Every file with one of these
    contents is left out. If the pack has a content nevertheless, its name is added to `kept`.

    `began`: the commit at which history is cut (default: where the workdir began). `have`:
    checkpoints that the receiver already has; unknown ones are skipped.
    """
    checkpoint = load(repo, commit)
    scratch = make_private(places.scratch) / f"pack-{secrets.token_hex(8)}"
    scratch.mkdir(mode=0o700)
    try:
        kept, left_out = list[str](), tuple[str, ...]()
        oid, unwanted = checkpoint.commit, blobs or {}
        if without or unwanted:
            oid, left_out = _without(repo, oid, without, unwanted, scratch)
            if checkpoint.head:
                kept += [plain for _, plain in _chosen(repo, checkpoint.head, without, ())]
        shallow = _cut(repo, oid, began or repo.pinned)
        known = [each for each in have if repo.commit_id(each)]
        asked = "".join(f"--shallow {edge}\n" for edge in shallow) + "\n".join(
            [oid, "--not", *known, ""]
        )
        words = (
            "pack-objects",
            "-q",
            "--revs",
            "--window=0",
            "--compression=1",
            str(scratch / "pack"),
        )
        name = repo.run(*words, stdin=asked.encode()).text
        if unwanted:
            # A content that was to be left out may still be in the pack, because a commit of the
            # run, a stash or a side of a conflict has it.
            packed = _ids_in(repo, scratch / f"pack-{name}.idx")
            for blob, plain in unwanted.items():
                if blob in packed:
                    kept.append(plain)
        with (scratch / f"pack-{name}.pack").open("rb") as file:
            facts = PackedFacts(
                commit=oid,
                shallow=tuple(shallow),
                head=checkpoint.head,
                branch=checkpoint.branch,
                form=repo.form,
            )
            yield Packed(facts=facts, kept=tuple(kept), left_out=left_out, file=file)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _cut(repo: CheckpointRepository, commit: str, began: str) -> list[str]:
    """Return the commits at which history is cut: the commit that the run began at, and all other
    commits with a parent that is not in the pack."""
    base = began if began and repo.commit_id(began) else ""
    if base:
        before = repo.run("rev-parse", f"{base}^@", good=(0, 128)).text.split()
    else:
        before = []
    parents = {}
    for line in repo.run("rev-list", "--parents", commit, "--not", *before).text.split("\n"):
        oid, *above = line.split(" ")
        parents[oid] = above
    return [oid for oid, above in parents.items() if any(parent not in parents for parent in above)]


def _ids_in(repo: CheckpointRepository, index: Path) -> set[str]:
    """Return the ids of all objects in a pack. `index` is the pack's index file."""
    lines = repo.run("show-index", stdin=index.read_bytes()).text.split("\n")
    return {line.split(" ")[1] for line in lines if line}


def _chosen(
    repo: CheckpointRepository, tree: str, names: Sequence[str], blobs: Container[str]
) -> list[tuple[str, str]]:
    """Return the files of a tree that have one of the names or contents: each file's name in the
    tree, and its name on disk."""
    wanted = [name.rstrip("/") for name in names]
    found = []
    for line in split(repo.run("ls-tree", "-r", "-z", tree).stdout):
        facts, _, name = line.partition("\t")
        plain = unescape(name, facts.startswith(_LINK))
        named = any(plain == one or plain.startswith(f"{one}/") for one in wanted)
        if named or facts.split(" ")[2] in blobs:
            found.append((name, plain))
    return found


def _without(
    repo: CheckpointRepository,
    commit: str,
    names: Sequence[str],
    blobs: Container[str],
    scratch: Path,
) -> tuple[str, tuple[str, ...]]:
    """Return the checkpoint's commit without some files, and the names of the files that it no
    longer has. A file is removed if it has one of the names or contents."""
    entries, parents = commit_of(repo, commit)
    gone: dict[str, None] = {}
    for part in ("worktree", "index"):
        if part in entries and (here := _chosen(repo, entries[part][1], names, blobs)):
            index = scratch / part
            repo.run("read-tree", entries[part][1], index=index)
            repo.run(
                "update-index",
                "--force-remove",
                "-z",
                "--stdin",
                index=index,
                stdin=joined([name for name, _ in here]),
            )
            entries[part] = ("40000", repo.run("write-tree", "--missing-ok", index=index).text)
            gone |= dict.fromkeys(plain for _, plain in here)
    about = json.loads(repo.run("cat-file", "blob", entries["checkpoint.json"][1]).stdout)
    about["left_out"] += [[name, "it was left out of the capsule"] for name in gone]
    entries["checkpoint.json"] = (
        "100644",
        repo.write_object("blob", json.dumps(about, indent=1, sort_keys=True).encode("ascii")),
    )
    made = tree_of(repo, [(mode, name, oid) for name, (mode, oid) in entries.items()])
    who = "perdure <perdure@perdure.invalid> 0 +0000"
    lines = [
        f"tree {made}",
        *(f"parent {oid}" for oid in parents),
        f"author {who}",
        f"committer {who}",
        "",
        "perdure: checkpoint\n",
    ]
    return repo.write_object("commit", "\n".join(lines).encode()), tuple(gone)


def make_shallow_repository(
    git: Git, path: Path, form: str, shallow: Sequence[str], head: str
) -> None:
    """Make an empty shallow repository in `path`, which must be empty or missing. Raises Conflict
    if the directory has files."""
    if not all(map(_OID.fullmatch, shallow)) or form not in ("sha1", "sha256"):
        raise WorkspaceError(
            "The capsule's history differs from its manifest.", "Ask for a new one."
        )
    make_directory(path)
    if any(path.iterdir()):
        raise Conflict(
            f"{path} is not empty.", "Name a directory that is empty or does not exist yet."
        )
    if not head:
        return
    stage = path / ".git.perdure"
    git.at(path).run(
        "init",
        "--quiet",
        "--bare",
        "--template=",
        f"--object-format={form}",
        "--initial-branch=main",
        "--",
        str(stage),
    )
    git.at(path, stage).run("config", "--", "core.bare", "false")
    if shallow:
        write(stage / "shallow", one_a_line(shallow))
    stage.rename(path / ".git")
    sync(path)


def unpack(
    repo: CheckpointRepository, file: IO[bytes], commit: str, shallow: Sequence[str], number: int
) -> None:
    """Import a pack as a checkpoint of this workdir. Raises Conflict if the repository lacks the
    commits at which the pack's history is cut, and WorkspaceError."""
    if not _OID.fullmatch(commit) or not all(map(_OID.fullmatch, shallow)):
        raise WorkspaceError(
            "The capsule's history differs from its manifest.", "Ask for a new one."
        )
    if (repo.directory / "shallow").exists():
        known = (repo.directory / "shallow").read_text().split()
    else:
        known = []
    if lacking := [oid for oid in shallow if oid not in known and not repo.commit_id(oid)]:
        if repo.repository is not None:
            raise Conflict(
                f"{repo.top} lacks the commit {lacking[0][:12]} that the run began at.",
                "Fetch it first, or use an empty directory.",
            )
        write(repo.directory / "shallow", one_a_line([*known, *lacking]))
    try:
        repo.import_pack(file)
        repo.run("rev-list", "--objects", "--quiet", commit)
    except GitFailed as error:
        raise WorkspaceError(
            f"The pack is damaged or incomplete: {error}", "Ask for a new capsule."
        ) from error
    load(repo, commit)
    flush(repo.checkpoint_objects)
    repo.mark_outside(commit, str(number))
    repo.update_refs(f"update {repo.ref(number)} {commit}")
    repo.release_packs()


def transfer_checkpoint(
    source: CheckpointRepository, target: CheckpointRepository, commit: str
) -> None:
    """Copy a checkpoint from one workdir's objects directory to another's. Does nothing if both
    workdirs use the same directory."""
    if source.checkpoint_objects == target.checkpoint_objects:
        return
    if source.form != target.form:
        raise WorkspaceError(
            f"{source.top} and {target.top} use different kinds of object ids.",
            "Use a capsule: perdure export",
        )
    if not target.commit_id(commit):
        target.receive(source, [commit, *excluded(_known_tips(source, target))])
    if source.is_outside(commit):
        target.mark_outside(commit, commit)


def _known_tips(source: CheckpointRepository, target: CheckpointRepository) -> list[str]:
    """Return the tips of the target that the source has too."""
    return [oid for oid in (target.head, target.pinned) if oid and source.commit_id(oid)]


def transfer_commit(
    source: CheckpointRepository, target: CheckpointRepository, commit: str
) -> None:
    """Copy a commit, with its history, from one workdir's repository to another's. Does nothing if
    both workdirs share one repository.

    Only objects are copied, as packs that perdure makes. Configuration, hooks and refs of both
    repositories are not used. Raises NotFound where the source does not have the commit,
    WorkspaceError.
    """
    if source.checkpoint_objects == target.checkpoint_objects:
        return
    if target.repository is None or target.agent_objects is None or source.form != target.form:
        raise WorkspaceError(
            f"{target.top} cannot import a commit of {source.top}.", "Check its git directory."
        )
    copy_commit(source, commit)
    target.receive(source, [commit, *excluded(_known_tips(source, target))])
    if not target.repository.commit(commit):
        copy_to_agent_repository(target, [commit], (target.head, target.pinned))
