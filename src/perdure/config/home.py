"""Finds the user's home directory, and does not fail if there is none. Called by the drivers."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path


def user_home(environ: Mapping[str, str]) -> Path:
    """Return HOME, or the home directory of the account, or `/` if it has none (a container's user
    without an entry in /etc/passwd). With `/`, readers find no files, and a run is refused because
    it is not writable."""
    if home := environ.get("HOME"):
        return Path(home)
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return Path("/")
