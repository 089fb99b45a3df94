"""Finds the user's home directory, without failing if there is none. Called by the drivers."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path


def user_home(environ: Mapping[str, str]) -> Path:
    """Return the value of HOME, or else the account's home directory. Return `/` if the account has
    none. This is the case for a container's user without an entry in /etc/passwd. No files are
    found in `/`, and a run is refused because the directory is not writable."""
    if home := environ.get("HOME"):
        return Path(home)
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return Path("/")
