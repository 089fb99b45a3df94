"""The suite as a user who is not root, as in a hardened container.

`python -m tests.user` makes the same environment: mount and process namespaces, a read-only root
file system, no capabilities, no way to gain any, and one writable directory at /mnt for HOME and
every temporary file; /tmp stays as it is. The checkout and the interpreter are read at their own
paths, even in directories that only root may enter. When the last process ends, everything vanishes
except for the scratch directory, which is below TMPDIR.
"""

from __future__ import annotations

import os

SWITCH = "PERDURE_TEST_ENCLOSED"
USER = 64321
"""User id of the suite. It gets an account of this name with a shell, because ssh and PostgreSQL
need one, and Debian's `nobody` has neither a shell nor a home."""
NAME = "perdure-test"


def is_on() -> bool:
    return os.environ.get(SWITCH) == "1"
