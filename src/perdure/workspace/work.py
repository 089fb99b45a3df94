"""Determines the changes of an attempt, in files and commits: its last checkpoint compared with its
beginning.

`WorkdirCheckpoints.save_last` calls `observe` while the checkpoint repository is open. `observe`
starts few git processes:

- one that compares, and a second one if HEAD moved
- if there are new uncommitted files, one that finds out which of them are ignored
- if files are gone, one that finds out which of them a sparse checkout left out
- if files were compared with a commit and attributes can apply to them, three that find out whether
  only their line ends differ

For an attempt that changed nothing it starts none, except in a user's directory that has no
checkpoint yet.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from perdure.errors import GitFailed
from perdure.host.volumes import was_changed_since
from perdure.model import Saved
from perdure.model.events import WorkSeen
from perdure.model.work import COMMITS, FILES, NAME, CommitOfWork, FileOfWork
from perdure.workspace.locks import is_real_directory, read
from perdure.workspace.snapshot.checkpoint_repository import CheckpointRepository, joined, split
from perdure.workspace.snapshot.trees import changes, unescape

MOST_COMMITS = 10_000
MOST_REFS = 1000
"""Maximum number of directory entries read in the search for a remote-tracking branch."""
_EMPTY_TREE = {
    "sha1": "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
    "sha256": "6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321",
}
"""Id of the empty tree, by hash algorithm. git can read it although it is not stored."""
_COUNTING_S = 20.0
"""Timeout of a comparison that counts lines, in seconds."""
_LINK = "160000"
_STATES = {"A": "added", "D": "deleted"}


class AttemptBaseline(Struct, frozen=True, kw_only=True):
    """The state in which an attempt began, which its last checkpoint is compared with. `commit` is
    the commit of a checkpoint; empty if the workdir had none."""

    number: int = 0
    commit: str = ""
    head: str = ""
    since: Path | None = None
    """A file that perdure wrote just before it launched the agent. Its modification time is used as
    the time of the launch."""
    foreign: frozenset[str] = frozenset()
    """Names of files that something other than the agent changed before the launch: task files, and
    drift."""


class _Base(Struct, frozen=True, kw_only=True):
    tree: str
    head: str
    words: str
    exact: bool = True
    """Whether the attempt caused all differences, except those in the files of
    `AttemptBaseline.foreign`."""


def observe(repo: CheckpointRepository, saved: Saved, against: AttemptBaseline) -> WorkSeen:
    """Compare a checkpoint with the state at the beginning of its attempt. Return the changes.
    Raises GitFailed."""
    began = _began(against)
    base, commits = _base(repo, saved, against, began)
    unchanged = base.tree == f"{saved.head}^{{tree}}" and not (saved.changed or saved.untracked)
    if unchanged:
        files = []
    else:
        files = _files(repo, base, f"{saved.commit}:worktree")
    files = [each for each in files if _is_new(repo, base, against, each)]
    if saved.untracked and saved.head:
        ignored = _ignored(repo, [each.name for each in files if each.state == "added"])
        files = [each for each in files if each.name not in ignored]
    if not against.commit and any(each.state == "changed" for each in files):
        from perdure.workspace.snapshot.line_ends import converted

        same = converted(repo, changes(repo, base.tree, f"{saved.commit}:worktree"))
        files = [each for each in files if each.name not in same]
    if any(each.state == "deleted" for each in files):
        skipped = _skipped(repo, saved.commit)
        files = [each for each in files if each.state != "deleted" or each.name not in skipped]
    return WorkSeen(
        against=base.words,
        files=tuple(map(_shown, files[:FILES])),
        file_count=len(files),
        lines_added=sum(each.added or 0 for each in files),
        lines_removed=sum(each.removed or 0 for each in files),
        commits=tuple(commits[:COMMITS]),
        commit_count=len(commits),
        pushed=_is_on_a_remote(repo, saved.head) if commits else None,
        uncommitted=saved.changed + saved.untracked if saved.head else 0,
    )


def _began(against: AttemptBaseline) -> os.stat_result | None:
    try:
        if against.since is not None:
            return against.since.stat()
        return None
    except OSError:
        return None


def _base(
    repo: CheckpointRepository, saved: Saved, against: AttemptBaseline, began: os.stat_result | None
) -> tuple[_Base, list[CommitOfWork]]:
    """Return two things: the commit or tree to compare the workdir with, and the commits that were
    made since the attempt began, newest first."""
    if against.commit:
        words = f"checkpoint {against.number}"
        base = _Base(tree=f"{against.commit}:worktree", head=against.head, words=words)
    elif repo.pinned:
        words = f"commit {repo.pinned[:12]}"
        base = _Base(tree=f"{repo.pinned}^{{tree}}", head=repo.pinned, words=words)
    elif saved.head:
        return _base_by_time(repo, saved, began)
    else:
        base = _Base(
            tree=_EMPTY_TREE[repo.form], head="", words="the start of the attempt", exact=False
        )
    if saved.head in ("", base.head):
        return base, []
    spans = [saved.head, *([f"^{base.head}"] if base.head else [])]
    return base, [commit for commit, _, _ in _log(repo, *spans)]


def _base_by_time(
    repo: CheckpointRepository, saved: Saved, began: os.stat_result | None
) -> tuple[_Base, list[CommitOfWork]]:
    """Return two things, judged by commit time: the commit to compare the workdir with, and the
    commits that were made since the attempt began. Used in a directory that belongs to the user,
    where HEAD was not recorded at the start."""
    since = began.st_mtime if began is not None else 0.0
    # Commit times have a resolution of one second: a commit in the second of the launch counts as
    # older than the launch.
    found = [each for each in _log(repo, saved.head) if began is not None and each[1] > since]
    if not found:
        base = _Base(
            tree=f"{saved.head}^{{tree}}", head=saved.head, words="the last commit", exact=False
        )
        return base, []
    parent = found[-1][2]
    tree = f"{parent}^{{tree}}" if parent else _EMPTY_TREE[repo.form]
    words = f"commit {parent[:12]}" if parent else "an empty repository"
    base = _Base(tree=tree, head=parent, words=words, exact=False)
    return base, [commit for commit, _, _ in found]


def _log(repo: CheckpointRepository, *spans: str) -> list[tuple[CommitOfWork, int, str]]:
    """Return the commits in these ranges, newest first, each with its time and first parent.

    Uses `rev-list` and not `log`, which reads settings that run programs (log.showSignature).
    """
    said = repo.run(
        "rev-list",
        "--topo-order",
        f"--max-count={MOST_COMMITS}",
        "--format=%H %ct %P|%s",
        *spans,
        "--",
        with_agent_objects=True,
    )
    found = []
    for line in os.fsdecode(said.stdout).split("\n"):
        # Each commit starts with a line `commit ID`. Only git 2.33 and newer can leave this line
        # out.
        if line.startswith("commit "):
            continue
        facts, _, subject = line.partition("|")
        parts = facts.split(" ")
        if len(parts) >= 3:
            commit = CommitOfWork(id=parts[0], subject=_text(subject))
            found.append((commit, int(parts[1] or 0), parts[2]))
    return found


def _files(repo: CheckpointRepository, base: _Base, tree: str) -> list[FileOfWork]:
    if base.tree == tree:
        return []
    try:
        return list(_compared(repo, base.tree, tree, "--raw", "--numstat", timeout_s=_COUNTING_S))
    except GitFailed:
        # If counting lines times out, only the names are listed, which hardly ever times out.
        return list(_compared(repo, base.tree, tree, "--raw"))


def _compared(
    repo: CheckpointRepository, before: str, after: str, *what: str, timeout_s: float = 1800.0
) -> Iterator[FileOfWork]:
    words = ("diff-tree", "-r", "-z", *what, "--no-renames", "--no-ext-diff", "--no-textconv")
    said = repo.run(*words, before, after, "--", with_agent_objects=True, timeout_s=timeout_s)
    states: dict[str, str] = {}
    counts: dict[str, tuple[int | None, int | None]] = {}
    parts = iter(os.fsdecode(said.stdout).split("\0"))
    for part in parts:
        if part.startswith(":"):
            old_mode, mode, _, _, state = part[1:].split(" ")
            name = unescape(next(parts, ""))
            if _LINK not in (old_mode, mode):
                states[name] = _STATES.get(state[:1], "changed")
        elif part:
            added, removed, name = part.split("\t", 2)
            counts[unescape(name)] = _count(added), _count(removed)
    for name, state in states.items():
        more, fewer = counts.get(name, (None, None))
        yield FileOfWork(name=name, state=state, added=more, removed=fewer)


def _count(text: str) -> int | None:
    if text.isdecimal():
        return int(text)
    return None


def _is_new(
    repo: CheckpointRepository,
    base: _Base,
    against: AttemptBaseline,
    file: FileOfWork,
) -> bool:
    """Return whether the attempt can have caused the difference. A file whose inode has not changed
    since the launch was not changed by the attempt."""
    suspect = not base.exact or file.name in against.foreign
    if not suspect or against.since is None or file.state == "deleted":
        return True
    try:
        return was_changed_since(repo.top / file.name, against.since) is not False
    except OSError:
        return True


def _ignored(repo: CheckpointRepository, names: list[str]) -> set[str]:
    if not names:
        return set()
    # The leading `./` keeps git from reading a name as a pattern.
    asked = joined([f"./{name}" for name in names])
    said = repo.run("check-ignore", "-z", "--stdin", "--no-index", stdin=asked, good=(0, 1))
    return {name.removeprefix("./") for name in split(said.stdout)}


def _skipped(repo: CheckpointRepository, commit: str) -> set[str]:
    """Return the names in a checkpoint that a sparse checkout left out of the workdir."""
    about = json.loads(repo.run("cat-file", "blob", f"{commit}:checkpoint.json").stdout)
    return set(about["index"].get("skipped", []))


def _is_on_a_remote(repo: CheckpointRepository, head: str) -> bool:
    """Return whether a remote-tracking branch points to HEAD, as it does after a push. Reads the
    refs without starting git and follows no links."""
    store = repo.user_objects or repo.agent_objects
    waiting = [store.parent / "refs/remotes"] if store is not None else []
    looked = 0
    while waiting and looked < MOST_REFS:
        with contextlib.suppress(OSError):
            for path in waiting.pop().iterdir():
                looked += 1
                if is_real_directory(path):
                    waiting.append(path)
                elif read(path).strip() == head:
                    return True
    return False


def _shown(file: FileOfWork) -> FileOfWork:
    return FileOfWork(
        name=_text(file.name), state=file.state, added=file.added, removed=file.removed
    )


def _text(name: str) -> str:
    """Return the name as valid UTF-8 of limited length."""
    whole = name.encode("utf-8", "replace").decode()
    if len(whole) <= NAME:
        return whole
    return f"{whole[: NAME - 3]}..."
