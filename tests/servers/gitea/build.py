"""Gitea, built from its own Go module into a shared cache: `python -m tests.servers.gitea.build`,
or `make gitea`.

No package registry has Gitea as a program. Its Go module has the whole source except for the built
front end. So the pages have no style, but the API, git over HTTP and webhooks are complete. The
checksum database verifies the module, its own `go.sum` verifies the others, and `SUM` names the
exact version. It is built once for each version (a few CPU minutes, 3 GB of Go's caches), and every
checkout uses it.

Needs gcc, and Go (`tests.servers.golang`).
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path

from tests.servers import golang

VERSION = "1.26.4"
MODULE = f"code.gitea.io/gitea@v{VERSION}"
SUM = "h1:VDA00oYg16VrQf3sES0NuS/oiDLAIVng/7jKHsBMP/w="
STATIC = ("templates", "options", "public", "LICENSE")
"""Files beside the program that Gitea reads."""


def place() -> Path:
    """Return the directory of the program (`gitea`) and its static files."""
    return golang.cache() / f"gitea-{VERSION}"


def program() -> Path:
    """Return the path of the program. If it is not built, the error says how to build it."""
    found = place() / "gitea"
    assert found.exists(), f"Gitea {VERSION} is not built: run `make gitea`"
    return found


def build() -> bool:
    """Build Gitea if necessary. Return whether it was necessary. Two simultaneous builds run one
    after the other."""
    with golang.alone():
        if (place() / "gitea").exists():
            return False
        _build(golang.go())
    return True


def _build(go: str) -> None:
    module = json.loads(golang.run(go, "mod", "download", "-json", MODULE))
    if module["Sum"] != SUM:
        raise SystemExit(f"{MODULE} is {module['Sum']}, and not {SUM}")
    source = Path(module["Dir"])
    with tempfile.TemporaryDirectory(prefix="gitea-", dir=golang.cache()) as scratch:
        made = Path(scratch) / "made"
        # The build runs inside the module, so that its own go.mod and go.sum choose the versions of
        # the other modules. SQLite needs C.
        golang.run(
            go, "build", "-C", str(source), "-mod=readonly", "-buildvcs=false", "-trimpath", "-tags=sqlite sqlite_unlock_notify",
            f"-ldflags=-s -w -X main.Version={VERSION}", "-o", str(made / "gitea"), ".", CGO_ENABLED="1",
        )  # fmt: skip
        # Go makes the files of modules read-only. The copies must be writable.
        golang.run(
            "cp", "-r", "--no-preserve=mode", *(str(source / name) for name in STATIC), str(made)
        )
        shutil.rmtree(place(), ignore_errors=True)
        made.rename(place())


if __name__ == "__main__":
    began = time.monotonic()
    print(
        f"gitea {VERSION}: {'built' if build() else 'built before'}, "
        f"{time.monotonic() - began:.0f} s, in {place()}"
    )
