"""Caches the state of a workdir between two captures, so that unchanged files are not read again.

`capture` reads the workdir and describes the result in a `CapturedState`. The last `CapturedState`
of each workdir is kept in its checkpoint repository (`CheckpointRepository`). It is stored as
`look.json` and as git indexes with the state of each file, in a directory named by the checkpoint
commit's id. The cache only saves time. A `CapturedState` that cannot be read, or that belongs to
another directory, is ignored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from msgspec import Struct, field

from perdure.host.system.files import umask
from perdure.workspace import branches
from perdure.workspace.branches import Branches
from perdure.workspace.snapshot import index as staging
from perdure.workspace.snapshot import trees
from perdure.workspace.snapshot.checkpoint_repository import CheckpointRepository
from perdure.workspace.snapshot.differences import Findings, Piece
from perdure.workspace.snapshot.index import Staged

FORMAT = 1

LISTED = 1000
"""Maximum number of names in each of two lists of `checkpoint.json`: files that were left out, and
files that changed while they were read."""


class CapturedState(Struct):
    """The state of a workdir as `capture` found it: the content of its checkpoint."""

    worktree: str = ""
    staged: Staged = field(default_factory=Staged)
    operation: dict[str, str] = field(default_factory=dict)
    branches: Branches = field(default_factory=Branches)
    found: Findings = field(default_factory=lambda: Findings(umask=umask()))
    head: str = ""
    tree: str = ""
    branch: str = ""
    index: list[int] = field(default_factory=list)
    """Signature of the workdir's own index file at the time when it was last read (see
    `index.signature`)."""
    top: str = ""
    commit: str = ""
    says: list[str] = field(default_factory=list)
    """Id of the tree of the checkpoint commit, followed by the ids of the commit's parents."""
    changed: int = 0
    untracked: int = 0

    @property
    def modes(self) -> dict[str, int]:
        """Return the modes that do not follow from the umask, by name as on disk. A directory's
        name ends in a slash."""
        outer = {}
        for prefix in self.found.modes:
            outer[prefix] = Piece(root=Path(), index=Path(), prefix=prefix).outer
        found: dict[str, int] = {}
        for prefix, noted in self.found.modes.items():
            found |= {outer[prefix] + name: mode for name, mode in noted.items()}
        return found

    @property
    def about(self) -> bytes:
        """Return the content of `checkpoint.json`."""
        left_out = self.found.left_out
        content = {
            "format": FORMAT,
            "head": self.head,
            "branch": self.branch,
            "empty": sorted(self.found.empty),
            "left_out": left_out[:LISTED],
            "left_out_more": max(0, len(left_out) - LISTED),
            "unsteady": self.found.unsteady[:LISTED],
            "umask": f"{self.found.umask:03o}",
            "modes": trees.to_json(self.modes),
            "operation": self.operation,
            "index": staging.to_json(self.staged),
            **branches.to_json(self.branches),
        }
        return json.dumps(content, indent=1, sort_keys=True).encode("ascii")


def load_state(
    repo: CheckpointRepository, cache_directory: Path, new_directory: Path
) -> CapturedState:
    """Return the last `CapturedState` and copy its indexes into the directory `new_directory`.
    Return an empty `CapturedState` if the last one cannot be used. The objects that it names may
    have been removed by now; this is checked when the checkpoint is published."""
    place = next((path.parent for path in cache_directory.glob("*/look.json")), cache_directory)
    try:
        known = _read(place / "look.json")
    except (OSError, ValueError, KeyError, TypeError):
        return CapturedState()
    if known.top != str(repo.top) or known.commit != place.name or known.found.umask != umask():
        return CapturedState()
    for path in place.iterdir():
        if path.name == "index" or path.name.startswith("piece-"):
            # copy2 keeps the modification time of the index. git compares that time with those of
            # the files, so a newer time would hide changes.
            shutil.copy2(path, new_directory / path.name)
    return known


def store_state(repo: CheckpointRepository, state: CapturedState, new_directory: Path) -> None:
    """Move the `CapturedState` and its indexes to a directory named by the commit's id, and remove
    earlier ones."""
    cache_directory = repo.directory / "looks"
    for name in ("user-index", "user-index.read"):
        (new_directory / name).unlink(missing_ok=True)
    (new_directory / "look.json").write_bytes(_written(state))
    place = cache_directory / state.commit
    if place.exists():
        shutil.rmtree(cache_directory / "old", ignore_errors=True)
        place.rename(cache_directory / "old")
    new_directory.rename(place)
    for other in cache_directory.iterdir():
        if other != place and other.name != state.commit:
            shutil.rmtree(other, ignore_errors=True)


def _written(state: CapturedState) -> bytes:
    found = {
        "left_out": state.found.left_out,
        "empty": state.found.empty,
        "pieces": state.found.pieces,
        "trees": state.found.trees,
        "umask": state.found.umask,
        "modes": state.found.modes,
        "recent": state.found.recent,
        "settled": state.found.settled,
        "idle": state.found.idle,
    }
    staged = {"tree": state.staged.tree, **staging.to_json(state.staged)}
    ours = {
        "refs": state.branches.refs,
        "stashes": state.branches.stashes,
        "says": state.branches.says,
        "more": state.branches.more,
    }
    own = {}
    for key in (
        "worktree",
        "head",
        "tree",
        "branch",
        "index",
        "top",
        "commit",
        "says",
        "changed",
        "untracked",
    ):
        own[key] = getattr(state, key)
    return json.dumps({**own, "found": found, "staged": staged, "branches": ours}).encode("ascii")


def _read(path: Path) -> CapturedState:
    content = json.loads(path.read_bytes())
    found, staged, ours = content.pop("found"), content.pop("staged"), content.pop("branches")
    names = ("pieces", "trees", "settled", "idle", "umask", "modes", "recent")
    return CapturedState(
        found=Findings(**{name: found[name] for name in names}),
        staged=Staged(**staged),
        branches=Branches(**ours),
        **content,
    )
