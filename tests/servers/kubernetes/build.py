"""A Kubernetes control plane, built from its published Go modules: `python -m
tests.servers.kubernetes.build`, or `make kubernetes`.

`programs/control` is a Go module of this project that names kube-apiserver, kube-controller-manager
and kube-scheduler as its tools and has a small main for etcd; `programs/kwok` names kwok. Their
go.sum files pin every module, so no other release can be used. Kubernetes' own go.mod requires its
parts in version v0.0.0. So the `replace` lines of `programs/control` name the published parts; `go
install` alone would fail.

Each module is built once for each version (nine CPU minutes, two more for kwok; 3 GB of Go's
caches), into a directory that is named after their checksums.
"""

from __future__ import annotations

import hashlib
import re
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.servers import golang

VERSION = "1.36.2"
SOURCES = Path(__file__).parent / "programs"
TOOL = re.compile(r"^\t([a-z0-9./-]+)$|^tool ([a-z0-9./-]+)$", re.MULTILINE)
# Without these settings the programs report the version v0.0.0-master.
SAYS = "k8s.io/component-base/version.git"
LINK = f"-s -w -X {SAYS}Version=v{VERSION} -X {SAYS}Major=1 -X {SAYS}Minor={VERSION.split('.')[1]}"


def place(module: str) -> Path:
    """Return the directory with the programs of the module `control` or `kwok`."""
    said = hashlib.sha256(LINK.encode())
    for path in sorted((SOURCES / module).rglob("*")):
        if path.is_file():
            said.update(path.read_bytes())
    return golang.cache() / f"kubernetes-{VERSION}-{module}-{said.hexdigest()[:12]}"


def program(name: str) -> Path:
    """Return the path of a program. If it is not built, the error says how to build it."""
    found = place("kwok" if name == "kwok" else "control") / name
    assert found.exists(), f"{name} for Kubernetes {VERSION} is not built: run `make kubernetes`"
    return found


def build(module: str) -> bool:
    """Build the programs if necessary. Return whether it was necessary. Two simultaneous builds run
    one after the other."""
    with golang.alone():
        if place(module).exists():
            return False
        go = golang.go()
        tools = [
            one or other for one, other in TOOL.findall((SOURCES / module / "go.mod").read_text())
        ]
        own = ["./etcd"] if module == "control" else []
        with tempfile.TemporaryDirectory(prefix="kubernetes-", dir=golang.cache()) as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            # With `nice`, because the person who builds also uses the machine for other work.
            golang.run(
                "nice", go, "build", "-C", str(SOURCES / module), "-mod=readonly", "-buildvcs=false", "-trimpath", f"-ldflags={LINK}",
                "-o", f"{made}/", *tools, *own,
            )  # fmt: skip
            shutil.rmtree(place(module), ignore_errors=True)
            made.rename(place(module))
    return True


if __name__ == "__main__":
    for each in sys.argv[1:] or ("control", "kwok"):
        began = time.monotonic()
        was = "built" if build(each) else "built before"
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            f"{each}: {was}, {time.monotonic() - began:.0f} s, {used.ru_utime + used.ru_stime:.0f} "
            f"CPU seconds, in {place(each)}"
        )
