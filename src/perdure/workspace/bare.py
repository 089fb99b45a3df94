"""Makes bare repositories of perdure's own, which it uses to inspect workdirs.

Called by `view` and `snapshot.shelf`, once for each workdir.
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
    """Make an empty bare repository as `git init --bare --template=` does, or complete one. The
    parent directory exists. `form`: the hash algorithm of ids. Raises GitFailed, OSError."""
    if not is_whole(directory):
        for name in ("HEAD", "config"):
            (directory / name).unlink(missing_ok=True)
    if sys.platform != "linux" or not _keeps_modes(directory):
        # git also records what the file system can do: whether it keeps modes, names whose case
        # does not matter, and names that are stored in another Unicode form.
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
    """Return whether all files that git requires in a repository have their content. A kill or a
    power cut while they are written may leave them empty, or full of zeros."""
    head, config = read(directory / "HEAD"), read(directory / "config")
    return bool(head.strip("\0\n ")) and config.startswith("[core]\n")


def _keeps_modes(directory: Path) -> bool:
    """Return whether the file system keeps modes, as git finds out: by changing one."""
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
