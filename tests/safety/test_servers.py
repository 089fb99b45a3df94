"""A forge with problems: private certificates, many callers at once, no connection."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from perdure.errors import GitFailed, PerdureError
from perdure.model import Workspace
from perdure.workspace import Prepared, Workspaces
from perdure.workspace.identity import Places, identify
from perdure.workspace.locks import hold_lock
from tests.safety.forge import SECRET, USER, make_served_yard, serving
from tests.workspace.yard import Yard


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return make_served_yard(tmp_path)


def workspaces(
    yard: Yard, secret: str = SECRET, ca_file: Path | None = None, **environ: str
) -> Workspaces:
    schemes = frozenset({"http", "https"})
    return Workspaces(
        yard.root,
        environ=yard.environ | environ,
        transports=schemes,
        credentials=lambda url: (USER, secret),
        ca_file=ca_file,
    )


def plan(yard: Yard, url: str, branch: str, base: str = "") -> Workspace:
    return workspaces(yard).plan(
        yard.spec("isolated", repo=url, branch=branch, base=base), "brave-otter", yard.top
    )


def certificate(place: Path) -> tuple[Path, Path]:
    """Make a key and certificate for 127.0.0.1. Return a file with both, and a file with only the
    certificate."""
    key, crt, both = place / "key.pem", place / "crt.pem", place / "both.pem"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=perdure test", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        ["openssl", "req", "-x509", *kind, *names, "-keyout", key, "-out", crt],
        check=True,
        capture_output=True,
    )
    both.write_bytes(key.read_bytes() + crt.read_bytes())
    return both, crt


def test_https_with_certificates_of_ones_own(yard: Yard) -> None:
    """An unknown certificate is refused with a hint, whatever the caller's environment is, and
    before a secret is sent. With `ca_file` the repository is fetched."""
    tls, crt = certificate(yard.top)
    with serving(yard, tls=tls) as forge:
        workspace = plan(yard, forge.url, "work")
        for environ in ({}, {"GIT_SSL_NO_VERIFY": "1"}, {"GIT_SSL_CAINFO": str(crt)}):
            with pytest.raises(GitFailed) as caught:
                workspaces(yard, **environ).prepare(workspace, "claude")
            assert "ca_file" in caught.value.hint
        assert forge.seen == []
        assert workspaces(yard, ca_file=crt).prepare(workspace, "claude").created
    assert (Path(workspace.path) / "README").read_text() == "second\n"


def test_eight_who_wait_together_make_one_fetch(yard: Yard) -> None:
    """Eight callers wait before a fetch begins, so its result is new enough for all of them. A
    later caller fetches again."""
    with serving(yard) as forge:
        lock = Places(yard.root).lock(identify("cache", forge.url))
        plans = [plan(yard, forge.url, f"b{number}") for number in range(8)]
        got: list[Prepared] = []
        threads = [
            threading.Thread(
                target=lambda workspace=workspace: got.append(
                    workspaces(yard).prepare(workspace, "claude")
                )
            )
            for workspace in plans
        ]
        with hold_lock(lock):
            for thread in threads:
                thread.start()
            opened = Path("/proc/self/fd")
            while sum(os.path.realpath(fd) == str(lock) for fd in opened.iterdir()) < 9:
                time.sleep(0.01)
        for thread in threads:
            thread.join()
        assert [prepared.created for prepared in got] == [True] * 8
        assert forge.fetches == 1
        workspaces(yard).prepare(plan(yard, forge.url, "later"), "claude")
        assert forge.fetches == 2


def test_a_server_out_of_reach_does_not_stop_a_start_from_the_cache(yard: Yard) -> None:
    """If the server cannot be reached, work starts from what was fetched before, and that is
    reported. For a branch that is not in the cache the error names the network, and not `no such
    branch`."""
    with serving(yard) as forge:
        workspaces(yard).prepare(plan(yard, forge.url, "first"), "claude")
    for branch, base in (("second", "main"), ("third", "")):
        prepared = workspaces(yard).prepare(plan(yard, forge.url, branch, base), "claude")
        assert prepared.created and "could not be reached" in " ".join(prepared.notes)
    with pytest.raises(GitFailed) as caught:
        workspaces(yard).prepare(plan(yard, forge.url, "fourth", "unknown"), "claude")
    assert "network" in caught.value.hint


def test_a_cold_cache_needs_its_server(yard: Yard) -> None:
    """If nothing was fetched before, the error names the network, and nothing incomplete is left in
    the workdir."""
    with serving(yard) as forge:
        pass
    workspace = plan(yard, forge.url, "first")
    with pytest.raises(GitFailed) as caught:
        workspaces(yard).prepare(workspace, "claude")
    assert "network" in caught.value.hint and not Path(workspace.path).exists()


def test_a_server_that_refuses_is_not_out_of_reach(yard: Yard) -> None:
    """If a token was withdrawn, or a repository was removed, the cache is not used instead."""
    with serving(yard) as forge:
        workspaces(yard).prepare(plan(yard, forge.url, "first"), "claude")
        with pytest.raises(GitFailed):
            workspaces(yard, "withdrawn").prepare(plan(yard, forge.url, "second"), "claude")
        (yard.top / "served/owner/repo").rename(yard.top / "served/owner/gone")
        with pytest.raises(PerdureError):
            workspaces(yard).prepare(plan(yard, forge.url, "third"), "claude")
