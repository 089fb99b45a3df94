"""Makes perdure's own bare repositories, through which it inspects workdirs.

`view` and `snapshot.checkpoint_repository` call it once for each workdir.
"""

from __future__ import annotations

import contextlib
import stat
import sys
from pathlib import Path

from perdure.host.git import Git
from perdure.workspace.locks import read, write

_CONFIG = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n"
_CONFIG_SHA256 = (
    "[core]\n\trepositoryformatversion = 1\n\tfilemode = true\n\tbare = true\n"
    "[extensions]\n\tobjectformat = sha256\n"
)


def make_bare(git: Git, directory: Path, form: str) -> None:
    """Make an empty bare repository as `git init --bare --template=` does, or complete a half-made
    repository. The parent directory must exist. `form` is the hash algorithm of object ids: `sha1`
    or `sha256`. Raises GitFailed, OSError."""
    if not is_whole(directory):
        for name in ("HEAD", "config"):
            (directory / name).unlink(missing_ok=True)
    if sys.platform != "linux" or not _keeps_modes(directory):
        # On other systems, and on file systems that do not keep modes, git's own init is needed. It
        # records in the config whether the file system keeps modes, ignores the case of names, or
        # stores names in another Unicode form.
        words = ("init", "--quiet", "--bare", "--template=", f"--object-format={form}", "--")
        git.at(directory.parent).run(*words, str(directory))
        (directory / "objects/info").mkdir(exist_ok=True)
        return
    for below in ("objects/info", "objects/pack", "refs/heads", "refs/tags"):
        (directory / below).mkdir(parents=True, exist_ok=True)
    config = _CONFIG_SHA256 if form == "sha256" else _CONFIG
    write(directory / "config", config)
    if not (directory / "HEAD").exists():
        write(directory / "HEAD", "ref: refs/heads/master\n")


def is_whole(directory: Path) -> bool:
    """Return whether the repository's `HEAD` and `config` have content. After a kill or a power
    cut, such a file may be empty or full of zeros."""
    head, config = read(directory / "HEAD"), read(directory / "config")
    return bool(head.strip("\0\n ")) and config.startswith("[core]\n")


def _keeps_modes(directory: Path) -> bool:
    """Return whether the file system keeps changes to a file's mode. Like `git init`, this changes
    the mode of a file and reads it back."""
    directory.mkdir(exist_ok=True)
    probe = directory / "probe"
    probe.touch()
    try:
        before = probe.stat().st_mode
        with contextlib.suppress(OSError):
            probe.chmod(before ^ stat.S_IXUSR)
        return probe.stat().st_mode != before
    finally:
        probe.unlink()
