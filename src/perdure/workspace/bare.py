"""Makes the bare repositories through which perdure looks at workdirs. Called by `view` and
`snapshot.shelf`, once for each workdir.
"""

from __future__ import annotations

import sys
from pathlib import Path

from perdure.host.git import Git

_CONFIG = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n"
_CONFIG_SHA256 = (
    "[core]\n\trepositoryformatversion = 1\n\tfilemode = true\n\tbare = true\n"
    "[extensions]\n\tobjectformat = sha256\n"
)


def make_bare(git: Git, directory: Path, form: str) -> None:
    """Make an empty bare repository as `git init --bare --template=` does, or complete one. The
    parent directory exists. `form`: the hash algorithm of ids. Raises GitFailed, OSError."""
    if sys.platform != "linux":
        # git also records what the file system can do: names whose case does not matter, and names
        # that are stored in another Unicode form.
        words = ("init", "--quiet", "--bare", "--template=", f"--object-format={form}", "--")
        git.at(directory.parent).run(*words, str(directory))
        (directory / "objects/info").mkdir(exist_ok=True)
        return
    for below in ("objects/info", "objects/pack", "refs/heads", "refs/tags"):
        (directory / below).mkdir(parents=True, exist_ok=True)
    config = _CONFIG_SHA256 if form == "sha256" else _CONFIG
    (directory / "config").write_text(config, encoding="ascii")
    if not (directory / "HEAD").exists():
        (directory / "HEAD").write_text("ref: refs/heads/master\n", encoding="ascii")
