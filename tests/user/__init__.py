"""The suite of a user who is not root, as in a hardened container.

`python -m tests.user` makes what such a container has: mount and process namespaces of its own, a
read-only root file system, no capabilities, no way to gain any, and one writable directory, which
holds HOME and every temporary file, at /mnt; /tmp stays as it is. The checkout and the interpreter
are read where they are, also below directories that only root may enter. All of it is gone with its
last process, but for the scratch, which is a directory of its own below TMPDIR.
"""

from __future__ import annotations

import os

SWITCH = "PERDURE_TEST_ENCLOSED"
USER = 64321
"""The user's number. It gets an account of this name with a shell: ssh and PostgreSQL want one, and
Debian's `nobody` has neither a shell nor a home."""
NAME = "perdure-test"


def is_on() -> bool:
    return os.environ.get(SWITCH) == "1"
