"""Clean-up on the real CLIs: the files of a finished run are moved to the trash, and are restored
when the run continues."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.journeys.stage import Stage, said
from tests.journeys.test_checkpoints import begin, prints

MakeStage = Callable[..., Stage]

BUILDING = """by history
run printf '%s\\n' '*.log' dist/ .coverage '*.egg-info/' node_modules/ > .gitignore; mkdir dist pkg.egg-info node_modules
---
run echo js > node_modules/a.js; echo new > new.txt
---
run echo built > build.log; echo wheel > dist/a.whl; echo 1 > .coverage; echo n > pkg.egg-info/PKG-INFO
---
say It is built.
---
say Two.
---
say Three.
"""
SOON = {"PERDURE_GC_WORKDIRS": "0", "PERDURE_GC_TRASH": "0"}

pytestmark = pytest.mark.journey


@pytest.fixture(params=["claude", "codex"])
def agent(request: pytest.FixtureRequest) -> str:
    """Return a CLI that keeps each conversation in a file. What is different for other CLIs is in
    the drivers' own tests."""
    return str(request.param)


def test_swept_and_gone_on_with(stage: MakeStage) -> None:
    """`perdure gc` moves a workdir full of build output to the trash. `update` then continues
    natively in the same workdir. It is restored from the trash with every file, or, if the trash
    was emptied, from the checkpoint without the build output."""
    one = stage(BUILDING, extra=SOON)
    done = one.finish(begin(one))
    assert done.code == 0, done.err
    workdir = Path(done.json["workspace"]["path"])
    left = prints(workdir)
    assert {
        "build.log",
        "dist/a.whl",
        ".coverage",
        "pkg.egg-info/PKG-INFO",
        "node_modules/a.js",
        "new.txt",
    } <= set(left)
    swept = one.perdure("gc")
    assert "1 removed" in swept.out and not workdir.exists(), swept.out
    again = one.perdure("update", "task", "Go on.", "--json")
    assert again.code == 0, again.err
    assert prints(workdir) == left and again.json["attempts"][-1]["receipt"]["verdict"] == "native"
    assert again.json["attempts"][-1]["drift"] == []
    for _ in range(2):
        assert one.perdure("gc").code == 0
    assert not workdir.exists() and "workdir" not in one.perdure("trash").out
    fork = one.perdure("fork", "task", "Another way.", "--json")
    assert fork.code == 0 and prints(workdir)["dist/a.whl"] == left["dist/a.whl"], fork.err
    assert one.perdure("gc").code == 0 and not workdir.exists()
    last = one.perdure("update", "task", "And on.", "--json")
    assert last.code == 0, last.err
    assert prints(workdir) == {
        name: content for name, content in left.items() if name != "node_modules/a.js"
    }
    assert last.json["attempts"][-1]["receipt"]["verdict"] == "native" and "quercus" in said(
        one.rehearsal.requests[-1].messages
    )
    shutil.rmtree(workdir)
    assert (
        one.perdure("restore", "task").code == 0
        and (workdir / "dist/a.whl").read_text() == "wheel\n"
    )
    one.nothing_survives()
