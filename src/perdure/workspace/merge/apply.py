"""Applies a run's changes to the user's own checkout. A three-way merge of trees finds the changes,
then all of the files are put in place, or none.

Commits that were made in the checkout since the run began are merged with the run's changes.
Uncommitted changes in the checkout are never touched. If the run changed one of these files too, or
if the merge has a conflict, nothing is applied and the files are named. A file is moved aside
before another replaces it, and a new file is made only where there is none. So a concurrent write
is not overwritten either. After any error everything is put back. The index is not changed unless a
commit is requested. As in `changes`, no configuration, filter or hook of either repository is used.

At every moment each file has either its old or its new content. A kill in the middle leaves a
directory `.perdure-apply-*` with the old files. If `apply` is called again, it completes the work.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from msgspec import Struct, field

from perdure.errors import Conflict, NotFound, UsageError, WorkspaceError
from perdure.host.git import Git
from perdure.host.git.output import excluded, join_names, one_a_line, split_names
from perdure.model import Workspace
from perdure.workspace.changes import (
    ComparisonRepository,
    Entry,
    captured_tree,
    comparison_repository,
)
from perdure.workspace.identity import Places
from perdure.workspace.locks import is_real_directory
from perdure.workspace.view import WorkdirGit, open_through_view, repair_view

SUBMODULE = "160000"
STAGE = ".perdure-apply-"

Sign = tuple[int, int, int]
_OURSELVES = {
    "GIT_AUTHOR_NAME": "perdure",
    "GIT_AUTHOR_EMAIL": "perdure@perdure.invalid",
    "GIT_COMMITTER_NAME": "perdure",
    "GIT_COMMITTER_EMAIL": "perdure@perdure.invalid",
}
_REASONS = {
    "contents": "both changed the same lines",
    "binary": "both changed it, and it is not text",
    "modify/delete": "changed on one side, deleted on the other",
    "file/directory": "a file on one side, a directory on the other",
    "rename/delete": "renamed on one side, deleted on the other",
}


class Message(Struct, frozen=True, kw_only=True):
    """The commit to make: its text, and the environment variables for its author and committer
    (GIT_AUTHOR_NAME and similar)."""

    text: str
    env: Mapping[str, str]


class Applied(Struct, frozen=True, kw_only=True):
    """The result of `apply`. `refused` lists files (path and reason) that prevented it. If
    `refused` is not empty, nothing was changed."""

    top: str
    files: tuple[str, ...] = ()
    already: tuple[str, ...] = ()
    """Files of the checkout that already had the content of the run's workdir."""
    commit: str = ""
    refused: tuple[tuple[str, str], ...] = ()


class MergePlan(Struct, frozen=True, kw_only=True):
    """The paths that a merge changes. `steps` has the old and the new entry of each path; None
    means that there is no file."""

    steps: dict[str, tuple[Entry | None, Entry | None]] = field(default_factory=dict)
    already: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    signs: dict[str, Sign | None] = field(default_factory=dict)
    """Inode, size and modification time of each file when it was last inspected; None if there was
    no file."""


def apply(
    places: Places,
    workspace: Workspace,
    git: Git,
    pinned: str,
    here: Workspace,
    message: Message | None,
) -> Applied:
    """Apply the changes of a run's workdir to the checkout `here`. The caller holds the lock of
    `here`.

    Raises UsageError or NotFound where there is nothing to compare, Conflict if the checkout
    changes meanwhile, WorkspaceError.
    """
    repair_view(places, workspace, git)
    repair_view(places, here, git)
    with (
        captured_tree(places, workspace, git, pinned) as theirs,
        open_through_view(places, here, git) as workdir_git,
    ):
        if workdir_git is None:
            raise NotFound(
                f"{here.path} is not in a git repository.",
                "Go to your checkout, or name it with --to.",
            )
        _check(workdir_git, theirs.base, message)
        with comparison_repository(places, workdir_git, theirs.repository.objects) as made:
            merged, refused = _merge(made, theirs.base, workdir_git.head, theirs.tree())
            before = made.entries(f"{workdir_git.head}^{{tree}}")
            if not refused:
                plan = plan_changes(made, workdir_git, before, made.entries(merged))
            else:
                plan = MergePlan(refused=refused)
            if message is not None and not plan.refused:
                for name in staged_paths(workdir_git):
                    if name in plan.steps:
                        plan.refused.append((name, "it is staged in the index"))
            if plan.refused:
                return Applied(top=str(workdir_git.top), refused=tuple(plan.refused))
            if message is not None and (plan.steps or plan.already):
                commit = commit_of(made, workdir_git, merged, message)
            else:
                commit = ""
            with files_in_place(made, workdir_git, merged, plan):
                if commit:
                    touched = {}
                    for name, after in differing(before, made.entries(merged)):
                        touched[name] = (before.get(name), after)
                    publish(made, workdir_git, commit, touched)
    return Applied(
        top=str(workdir_git.top),
        files=tuple(plan.steps),
        already=tuple(plan.already),
        commit=commit,
    )


def _check(workdir_git: WorkdirGit, base: str, message: Message | None) -> None:
    if not workdir_git.repository.commit(base):
        raise UsageError(
            f"{workdir_git.top} is another repository: it lacks the commit {base[:12]} that the "
            "run began at.",
            "Use --to, or fetch first.",
        )
    if message is not None and workdir_git.in_progress:
        raise Conflict(
            f"A {workdir_git.in_progress} is in progress in {workdir_git.top}.",
            "End it first, or leave --commit out.",
        )


def _merge(
    made: ComparisonRepository, base: str, head: str, theirs: str
) -> tuple[str, list[tuple[str, str]]]:
    """Return the merged tree, and the files with conflicts, each with the reason. `base` is used as
    the merge base; the real histories of the two sides do not matter."""
    root = _commit_tree(made, f"{base}^{{tree}}")
    ours, other = _commit_tree(made, f"{head}^{{tree}}", root), _commit_tree(made, theirs, root)
    result = made.run(
        "merge-tree", "--write-tree", "--name-only", "-z", "--messages", ours, other, good=(0, 1)
    )
    tree, *rest = os.fsdecode(result.stdout).split("\0")
    if result.code == 0:
        return tree, []
    names = rest[: rest.index("")]
    return tree, [(name, reason_of(name, rest[len(names) + 1 :])) for name in dict.fromkeys(names)]


def reason_of(name: str, messages: list[str]) -> str:
    """Return the reason why a file is in conflict, from the messages of git-merge-tree(1). Each
    message in `messages` consists of the number of paths, the paths, a short stable type, and a
    sentence."""
    at = 0
    while at < len(messages) and messages[at].isdecimal():
        count = int(messages[at])
        paths, kind = messages[at + 1 : at + 1 + count], messages[at + 1 + count]
        if name in paths and kind.startswith("CONFLICT ("):
            word = kind.removeprefix("CONFLICT (").rstrip(")")
            return _REASONS.get(word, f"conflict: {word}")
        at += count + 3
    return "both changed it"


def _parents(commits: Sequence[str]) -> list[str]:
    """Return the options of `git commit-tree` that name the parents of a commit."""
    words = []
    for commit in commits:
        words += ["-p", commit]
    return words


def _commit_tree(made: ComparisonRepository, tree: str, *parents: str) -> str:
    oid = made.run("rev-parse", "--verify", "--end-of-options", tree).text
    return made.git.run(
        "commit-tree",
        *_parents(parents),
        "-m",
        "perdure",
        oid,
        env={**_OURSELVES, "GIT_OBJECT_DIRECTORY": str(made.objects)},
    ).text


def differing(
    before: Mapping[str, Entry], after: Mapping[str, Entry]
) -> Iterator[tuple[str, Entry | None]]:
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            yield name, after.get(name)


def plan_changes(
    made: ComparisonRepository,
    workdir_git: WorkdirGit,
    before: Mapping[str, Entry],
    after: Mapping[str, Entry],
) -> MergePlan:
    """Return the paths that the merge changes, in three groups: paths to change, paths that already
    have the new content, and paths that are refused because they contain other work."""
    plan = MergePlan()
    for name, _ in differing(before, after):
        plan.signs[name] = _file_signature(workdir_git.top / name)
    on_disk = made.entries(made.write_workdir_tree(workdir_git))
    for name, new in differing(before, after):
        old, now = before.get(name), on_disk.get(name)
        if SUBMODULE in ((old or new or ("", ""))[0], (new or old or ("", ""))[0]):
            plan.refused.append((name, "it is a submodule"))
        elif now == new and (
            new is not None
            or not os.path.lexists(workdir_git.top / name)
            or is_real_directory(workdir_git.top / name)
        ):
            plan.already.append(name)
        elif now != old:
            plan.refused.append(
                (
                    name,
                    "it has changes that are not committed"
                    if old
                    else "a file of that name exists already",
                )
            )
        elif old is None or plan.signs[name] is not None:
            plan.steps[name] = (old, new)
        elif new is not None:
            # A sparse checkout left the file out. It is made, as in a merge by git.
            plan.steps[name] = (None, new)
        else:
            plan.already.append(name)
    for name in [name for name, (_, new) in plan.steps.items() if new is not None]:
        if there := _obstacle(workdir_git.top, name, plan):
            plan.refused.append((name, there))
    return plan


def _obstacle(top: Path, name: str, plan: MergePlan) -> str:
    """Return the reason why a file cannot be created; empty if it can. There are two reasons: an
    ignored file has the same name, or a parent path is not a directory."""
    gone = {step for step, (_, new) in plan.steps.items() if new is None}
    if plan.steps[name][0] is None and os.path.lexists(top / name):
        below = any(step.startswith(f"{name}/") for step in gone)
        if not (below and is_real_directory(top / name)):
            return "a file of that name exists already and is ignored by git"
    for parent in list(Path(name).parents)[:-1]:
        if (
            os.path.lexists(top / parent)
            and not is_real_directory(top / parent)
            and str(parent) not in gone
        ):
            return f"{parent} is in the way"
    return ""


def staged_paths(workdir_git: WorkdirGit) -> set[str]:
    """Return the paths whose entry in the workdir's own git index differs from the last commit.
    Reads no file of the workdir."""
    found = workdir_git.repository.run(
        "diff-index",
        "--cached",
        "--name-only",
        "--no-renames",
        "--ignore-submodules=all",
        "-z",
        workdir_git.head,
        "--",
    )
    return set(split_names(found.stdout))


def commit_of(
    made: ComparisonRepository, workdir_git: WorkdirGit, tree: str, message: Message, *merged: str
) -> str:
    """Write a new commit and all its objects into the workdir's own repository, and return its
    id. The parents of the commit are HEAD and the commits in `merged`. No ref names the new
    commit yet."""
    own = {"GIT_OBJECT_DIRECTORY": str(made.objects), **message.env}
    parents = (workdir_git.head, *merged)
    commit = made.git.run(
        "commit-tree", *_parents(parents), "-F", "-", tree, stdin=message.text.encode(), env=own
    ).text
    revisions = one_a_line([commit, *excluded(parents)])
    pack = made.run("pack-objects", "--revs", "--stdout", "-q", stdin=revisions.encode()).stdout
    workdir_git.repository.run("unpack-objects", "-q", stdin=pack)
    return commit


def publish(
    made: ComparisonRepository,
    workdir_git: WorkdirGit,
    commit: str,
    touched: Mapping[str, tuple[Entry | None, Entry | None]],
) -> None:
    """Write the workdir's own git index, then move HEAD to the commit. If another process has moved
    HEAD meanwhile, restore the index and raise GitFailed."""
    _write_index(made, workdir_git, {name: new for name, (_, new) in touched.items()})
    try:
        workdir_git.repository.run(
            "update-ref", "-m", "perdure apply", "HEAD", commit, workdir_git.head
        )
    except BaseException:
        _write_index(made, workdir_git, {name: old for name, (old, _) in touched.items()})
        raise


def _write_index(
    made: ComparisonRepository, workdir_git: WorkdirGit, entries: Mapping[str, Entry | None]
) -> None:
    """Set entries of the workdir's own git index. If the entry is None, remove the path from the
    index.

    The index is written through perdure's view of the workdir (see `view`). When git writes an
    index, it reads files again whose times are too close to the index's own (racily clean files).
    The user's configuration may name a filter for these files that an agent planted; the view's
    configuration names none.
    """
    nothing = ("0", "0" * len(workdir_git.head))
    # Removals come first, because a directory may replace a file.
    ordered = sorted(entries.items(), key=lambda item: item[1] is not None)
    lines = []
    for name, entry in ordered:
        mode, oid = entry or nothing
        lines.append(os.fsencode(f"{mode} {oid}\t{name}\0"))
    made.run(
        "update-index",
        "-z",
        "--index-info",
        stdin=b"".join(lines),
        workdir_git=workdir_git,
        index=str(workdir_git.git_dir / "index"),
    )


@contextlib.contextmanager
def files_in_place(
    made: ComparisonRepository, workdir_git: WorkdirGit, tree: str, plan: MergePlan
) -> Iterator[None]:
    """Put the files in place, then run the body of the `with` statement. If the body raises,
    restore the old files."""
    top = workdir_git.top
    stage = Path(tempfile.mkdtemp(prefix=STAGE, dir=top))
    undo: list[Callable[[], object]] = []
    try:
        made.run("read-tree", tree, index="merged")
        listed = []
        for name, (_, new) in plan.steps.items():
            if new is not None:
                listed.append(name)
        made.run(
            "checkout-index",
            "-q",
            f"--prefix={stage.name}/new/",
            "-z",
            "--stdin",
            stdin=join_names(listed),
            workdir_git=workdir_git,
            index="merged",
        )
        (stage / "old").mkdir()
        # Removals come first, because a directory may replace a file, or a file a directory.
        for number, (name, (old, new)) in enumerate(
            sorted(plan.steps.items(), key=lambda step: (step[1][1] is not None, step[0]))
        ):
            fresh = stage / "new" / name if new is not None else None
            _replace_file(
                top,
                name,
                stage / "old" / str(number) if old is not None else None,
                fresh,
                plan.signs.get(name),
                undo,
            )
        yield
    except BaseException as error:
        for step in reversed(undo):
            step()
        shutil.rmtree(stage, ignore_errors=True)
        if isinstance(error, OSError):
            raise WorkspaceError(
                f"{top} could not be changed: {error.strerror}. Nothing was changed.",
                "Check its permissions.",
            ) from error
        raise
    shutil.rmtree(stage, ignore_errors=True)


def _replace_file(
    top: Path,
    name: str,
    aside: Path | None,
    fresh: Path | None,
    sign: Sign | None,
    undo: list[Callable[[], object]],
) -> None:
    """Remove, replace or create the file at one path. `aside`: the path to which the old file is
    moved; None if there is no old file. `sign`: the signature that the old file must have. Raises
    Conflict if the file has changed."""
    path = top / name
    if aside is not None:
        if _file_signature(path) != sign:
            raise _changed_meanwhile(path)
        if fresh is None:
            path.rename(aside)
            undo.append(lambda: _restore_file(aside, path))
            _leave_empty(path.parent, top)
        else:
            os.link(path, aside, follow_symlinks=False)
            fresh.rename(path)
            undo.append(lambda: aside.rename(path))
        if _file_signature(aside) != sign:
            raise _changed_meanwhile(path)
    elif fresh is not None:
        missing = []
        for parent in path.parents:
            if parent.is_relative_to(top) and not os.path.lexists(parent):
                missing.append(parent)
        for parent in reversed(missing):
            parent.mkdir()
            undo.append(parent.rmdir)
        try:
            os.link(fresh, path, follow_symlinks=False)
        except FileExistsError:
            raise _changed_meanwhile(path) from None
        undo.append(path.unlink)


def _restore_file(aside: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.link(aside, path, follow_symlinks=False)


def _leave_empty(directory: Path, top: Path) -> None:
    """Remove the directory if it is empty, then its parent, and so on, up to `top`. `top` itself is
    kept. git does the same."""
    while directory != top and not any(directory.iterdir()):
        directory.rmdir()
        directory = directory.parent


def _file_signature(path: Path) -> Sign | None:
    """Return inode, size and modification time of a file; None if there is no file. If any of the
    three differs later, the content counts as changed."""
    try:
        seen = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return seen.st_ino, seen.st_size, seen.st_mtime_ns


def _changed_meanwhile(path: Path) -> Conflict:
    return Conflict(
        f"Another program changed {path} meanwhile, so nothing was applied.",
        "Try again when no program writes there.",
    )
