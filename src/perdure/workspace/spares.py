"""Spare checkouts, from which new workdirs are made. `make` checks out a commit of a repository in
advance; `take` moves the result to the path of a new workdir. Only the files that differ between
that commit and the wanted one are then left to write.

A spare is a directory with three entries: the checked-out files (`files`), git's index of them
(`index`), and a text that says what they are a checkout of (`about`). It is not registered in the
repository, so nothing there has to be undone when a spare is removed. It never contains anybody's
work.

A spare is used only if a new checkout would write the same bytes. So the repository's settings and
attributes must be the same as when it was made, and no `.gitattributes` file may differ between
the two commits. The caller makes no spares of a repository whose settings are in other files too.

A spare is built in a stage directory and renamed when its files are durable, so each one is
complete. `take` renames `files` first, so no two workdirs ever get the same files.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from perdure.errors import Conflict, GitFailed
from perdure.host.git import Git
from perdure.host.system.files import flush
from perdure.workspace.identity import Places
from perdure.workspace.locks import hold_lock, make_private, read, write


def make(
    places: Places, repository: str, git: Git, common: Path, commit: str, most: int
) -> Path | None:
    """Check out `commit` as a spare, unless the repository has `most` spares already or another
    process is making one. Return the spare's path; None if none was made.

    `repository`: identifier of the repository in `places`. `common`: its git directory. Raises
    GitFailed, WorkspaceError and OSError.
    """
    make_private(places.spares)
    try:
        with hold_lock(places.lock(f"{repository}.spares"), timeout_s=0) as own:
            if len(_complete(places, repository)) >= most:
                return None
            stage = places.spares / f".stage-{repository}"
            shutil.rmtree(stage, ignore_errors=True)
            files = stage / "files"
            files.mkdir(parents=True)
            about = _about(common, commit)
            # If perdure is killed, this git lives on and still holds the lock.
            inside = Git(
                cwd=files,
                git_dir=common,
                work_tree=files,
                ceiling=places.root,
                keep=(*git.keep, own),
                environ=git.environ,
                memory=git.memory,
            )
            index = {"GIT_INDEX_FILE": str(stage / "index")}
            inside.run("read-tree", "--reset", "-u", commit, env=index, timeout_s=1800.0)
            write(stage / "about", about)
            flush(stage)
            with hold_lock(places.lock(f"{repository}.making")):
                return _keep(places, repository, stage)
    except Conflict:
        return None


def _keep(places: Places, repository: str, stage: Path) -> Path:
    """Rename a stage directory to the first free path of a spare, and return that path."""
    number = 0
    while (path := places.spares / f"{repository}.{number}").exists():
        number += 1
    stage.rename(path)
    return path


def _complete(places: Places, repository: str) -> list[Path]:
    """Return the repository's spares. What remains of one that was taken is removed."""
    found = []
    with hold_lock(places.lock(f"{repository}.making")):
        for path in sorted(places.spares.glob(f"{repository}.*")):
            if (path / "files").is_dir():
                found.append(path)
            else:
                shutil.rmtree(path)
    return found


def take(
    places: Places, repository: str, git: Git, common: Path, commit: str, to: Path, index: Path
) -> bool:
    """Move the files of a spare to the new directory `to`, and write its git index to `index`.
    Return whether there was a spare that can be used for `commit`. A spare that cannot be used is
    removed.

    The files are those of another commit until the caller runs `git read-tree --reset -u`. If
    perdure is killed before that, the caller's mark file shows it.
    """
    with hold_lock(places.lock(f"{repository}.making")):
        for spare in sorted(places.spares.glob(f"{repository}.*")):
            if not _is_usable(spare, git, common, commit):
                shutil.rmtree(spare, ignore_errors=True)
                continue
            try:
                (spare / "files").rename(to)
            except OSError:
                return False  # for example because work and spares are on different file systems
            index.parent.mkdir(exist_ok=True)
            # The copy is newer than all of the files. So git relies on their times, and reads none
            # of them again.
            shutil.copyfile(spare / "index", index)
            shutil.rmtree(spare, ignore_errors=True)
            return True
    return False


def _is_usable(spare: Path, git: Git, common: Path, commit: str) -> bool:
    about = read(spare / "about")
    made_of = about.partition(" ")[0]
    if not made_of or about != _about(common, made_of):
        return False
    if made_of == commit:
        return True
    # git writes a file again only if its blob differs. So a file for which only the attributes
    # changed would keep its old line ends.
    words = ("-r", "--quiet", made_of, commit, "--", ":(glob)**/.gitattributes")
    try:
        return not git.at(common, common).run("diff-tree", *words, good=(0, 1)).code
    except GitFailed:
        return False  # for example because git has removed the spare's commit


def _about(common: Path, commit: str) -> str:
    """Return a commit, and the SHA-256 of the settings that decide how git writes its files."""
    digest = hashlib.sha256()
    for name in ("config", "config.worktree", "info/attributes", "info/sparse-checkout"):
        digest.update(os.fsencode(read(common / name, 1 << 20)) + b"\0")
    return f"{commit} {digest.hexdigest()}"
