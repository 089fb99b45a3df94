"""The user's home directory, without an error where there is none. Called by the drivers."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path


def user_home(environ: Mapping[str, str]) -> Path:
    """HOME, or what the system has for the account. `/` where it has none (a container's user
    without an entry in /etc/passwd): whoever only looks then finds nothing there, and a run is
    refused because it cannot be written."""
    if home := environ.get("HOME"):
        return Path(home)
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return Path("/")
