"""Saves and restores the branches, tags and stashes of a repository that only its agent uses. If
they were not in a checkpoint, they would be lost with the workdir.

`collect_branches` lists them, and the snapshot makes their commits parents of the checkpoint. So gc
keeps the commits, and a capsule contains them. `restore_branches` recreates missing branches and
tags. An existing branch is never moved: the commit in the checkpoint gets a rescue ref instead. A
tag is restored as the commit that it names, without its message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct, field

from perdure.errors import GitFailed
from perdure.host.git import Git
from perdure.model import Backend
from perdure.patterns import late_pattern
from perdure.workspace.snapshot.checkpoint_repository import FATAL, CheckpointRepository

MAX_BRANCHES = 500
"""Maximum number of refs that are saved from one workdir. Also the maximum number of stashes."""

_NAME = late_pattern(r"refs/(heads|tags|notes)/[^\x00-\x20\x7f]{1,250}")
_OID = late_pattern(r"[0-9a-f]{40}|[0-9a-f]{64}")
_FORMAT = "--format=%(objectname) %(objecttype) %(*objectname) %(*objecttype) %(refname)"


class Branches(Struct):
    """Saved refs, each with its commit, and saved stashes (commit and message), newest stash
    first."""

    refs: dict[str, str] = field(default_factory=dict)
    stashes: list[list[str]] = field(default_factory=list)
    says: str = ""
    """SHA-256 of the list of refs that git printed. If it is the same the next time, no ref has
    changed."""
    more: int = 0
    """Number of refs that were not saved because there were more than `MAX_BRANCHES`."""

    @property
    def commits(self) -> list[str]:
        return list(dict.fromkeys([*self.refs.values(), *(oid for oid, _ in self.stashes)]))


def collect_branches(repo: CheckpointRepository, known: Branches) -> Branches:
    """Return the refs (without HEAD) and stashes of a repository that belongs to an agent. Empty if
    the repository belongs to the user. Returns `known`, the result of the last capture, if no ref
    has changed. Raises GitFailed."""
    if repo.agent_objects is None or repo.repository is None:
        return Branches()
    said = repo.repository.run(
        "for-each-ref", _FORMAT, "refs/heads", "refs/tags", "refs/notes", "refs/stash"
    ).stdout
    says = hashlib.sha256(said).hexdigest()
    if says == known.says:
        return known
    if repo.cache_git is not None:
        fetched = repo.cache_git.refs("refs/tags")
    else:
        fetched = {}
    found = Branches(says=says)
    for oid, commit, name in _commits(said.decode("utf-8", "surrogateescape")):
        if name == "refs/stash":
            found.stashes = _stashes(repo.repository)
        elif fetched.get(name) != oid and _NAME.fullmatch(name):
            if len(found.refs) < MAX_BRANCHES:
                found.refs[name] = commit
            else:
                found.more += 1
    return found


def _commits(said: str) -> Iterable[tuple[str, str, str]]:
    for line in said.split("\n"):
        parts = line.split(" ", 4)
        if len(parts) == 5:
            oid, kind, inner, inner_kind, name = parts
            if kind == "commit":
                yield oid, oid, name
            elif inner_kind == "commit":
                yield oid, inner, name


def _stashes(repository: Git) -> list[list[str]]:
    words = (
        "log",
        "--walk-reflogs",
        "--no-show-signature",
        "--no-decorate",
        "--format=%H %gs",
        f"--max-count={MAX_BRANCHES}",
        "refs/stash",
        "--",
    )
    found = []
    for line in repository.run(*words, good=(0, FATAL)).text.split("\n"):
        if " " in line:
            found.append(line.split(" ", 1))
    return found


def to_json(found: Branches) -> Mapping[str, object]:
    if found.refs or found.stashes:
        return {"refs": found.refs, "stashes": found.stashes}
    return {}


def read(said: Any) -> Branches:
    """Parse and check the output of `to_json`. Raises ValueError, TypeError, AttributeError."""
    refs = {str(name): str(oid) for name, oid in said.get("refs", {}).items()}
    stashes = []
    oids = list(refs.values())
    for oid, text in said.get("stashes", []):
        stashes.append([str(oid), " ".join(str(text).split())[:500]])
        oids.append(str(oid))
    if not all(map(_NAME.fullmatch, refs)) or not all(map(_OID.fullmatch, oids)):
        raise ValueError("a ref is needed")
    return Branches(refs=refs, stashes=stashes)


def restore_branches(
    repo: CheckpointRepository, backend: Backend, wanted: Branches, branch: str
) -> list[str]:
    """Recreate missing branches, tags and stashes, and return notes for a person. The caller
    handles `branch` itself. Nothing is recreated for a worktree of the user's own repository,
    because its branches belong to the user. The checkpoint still has the commits."""
    assert repo.repository is not None
    names = [name for name in wanted.refs if name != f"refs/heads/{branch}"]
    if backend is Backend.WORKTREE:
        what = [name.split("/", 2)[2] for name in names]
        if wanted.stashes:
            what.append("a stash")
        if what:
            return [
                "Not made in your repository, but parents of the checkpoint's commit: "
                f"{', '.join(what)}."
            ]
        return []
    said = repo.repository.run(
        "for-each-ref", _FORMAT, "refs/heads", "refs/tags", "refs/notes"
    ).stdout
    there = {name: commit for _, commit, name in _commits(said.decode("utf-8", "surrogateescape"))}
    notes = []
    for name in names:
        oid = wanted.refs[name]
        if there.get(name) == oid or not repo.repository.commit(oid):
            continue
        if name not in there and _create_ref(repo.repository, name, oid):
            continue
        if (
            name in there
            and repo.repository.run(
                "merge-base", "--is-ancestor", oid, there[name], good=(0, 1, FATAL)
            ).code
            == 0
        ):
            continue
        beside = f"refs/perdure/rescue/{repo.id}/{oid}"
        repo.repository.set_ref(beside, oid, f"perdure: {name} at a checkpoint")
        notes.append(f"{name} was not changed; its state at the checkpoint is {beside}.")
    if wanted.stashes and (missing := _put_stashes(repo.repository, wanted.stashes)):
        notes.append(
            f"{missing} stashes are kept under refs/perdure/rescue/{repo.id}/, because the "
            f"repository has others now."
        )
        for oid, text in wanted.stashes:
            repo.repository.set_ref(
                f"refs/perdure/rescue/{repo.id}/{oid}", oid, f"perdure: stash: {text}"
            )
    return notes


def written_refs(repo: CheckpointRepository, wanted: Branches) -> list[str]:
    """Return the refs that `restore_branches` may write. If git is killed while it writes a ref, it
    leaves a lock file beside the ref. The caller removes these lock files."""
    rescued = [f"refs/perdure/rescue/{repo.id}/{oid}" for oid in wanted.commits]
    return [*wanted.refs, "refs/stash", *rescued]


def _create_ref(repository: Git, name: str, oid: str) -> bool:
    try:
        repository.set_ref(name, oid, "perdure: restore", new=True)
    except GitFailed:
        return False
    return True


def _put_stashes(repository: Git, stashes: list[list[str]]) -> int:
    """Store the missing stashes if the repository has no stash now, and return 0. Otherwise store
    none, and return the number of missing stashes."""
    if repository.commit("refs/stash"):
        there = {oid for oid, _ in _stashes(repository)}
    else:
        there = set()
    missing = [(oid, text) for oid, text in stashes if oid not in there and repository.commit(oid)]
    if there:
        return len(missing)
    for oid, text in reversed(missing):
        repository.set_ref("refs/stash", oid, text or "a stash")
    return 0
