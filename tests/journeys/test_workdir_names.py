"""The directory in which a run works: its name says what it is for. If a conversation is bound to a
directory with an old name, the run keeps it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.workspace.identity import Places, identify
from tests.journeys.stage import Stage

pytestmark = pytest.mark.journey

MakeStage = Callable[..., Stage]
TALK = """by history
run echo one > one.txt
---
say One.
---
say Two.
---
say Three.
"""


@pytest.fixture(params=["claude"])
def agent(request: pytest.FixtureRequest) -> str:
    """Return one CLI that binds a conversation to its directory. The other CLIs do it in the same
    way."""
    return str(request.param)


def test_a_workdir_of_an_older_perdure_stays_where_it_is(stage: MakeStage) -> None:
    """An older perdure named a run's workdir only by an id. The run continues natively in that
    workdir. Its removal finds the workdir, and so does a later run with the same branch and
    conversation. A new run gets a directory with a readable name, which `perdure path` prints."""
    one = stage(TALK)
    root = one.home / ".local/share/perdure"
    places = Places(root)
    identity = identify("workspace", str(one.repo), "claude", "perdure/task")
    # The lock file exists as if an older perdure had locked this workdir.
    places.lock(identity).parent.mkdir(parents=True)
    places.lock(identity).touch()
    old = root / ".perdure/work" / identity
    run = ("run", "--permissions", "full", "--scope", "talk")

    done = one.perdure(*run, "--name", "task", "Write one.txt.")
    assert done.code == 0 and one.perdure("path", "task").out == f"{old}\n", done.err
    done = one.perdure("update", "task", "Say two.")
    assert done.code == 0 and "receipt native (continued)" in done.err, done.err
    assert len(one.conversations()) == 1

    assert one.perdure("rm", "--force", "task").code == 0 and not os.path.lexists(old)
    done = one.perdure(*run, "--name", "later", "--branch", "perdure/task", "Say three.")
    assert done.code == 0 and "receipt native (continued)" in done.err, done.err
    assert one.perdure("path", "later").out == f"{old}\n"

    done = one.perdure(*run[:3], "--name", "greeting", "Write one.txt.")
    assert done.code == 0, done.err
    named = Path(one.perdure("path", "greeting").out.strip())
    assert named.parent == old.parent and re.fullmatch(r"repo--greeting-[a-z2-7]{6}", named.name)

    # If a workdir belongs to another task, it stays when the run is removed.
    places.owner(named.name).write_text("another")
    done = one.perdure("rm", "greeting")
    assert done.code == 0 and "belongs to another task" in done.out, done
    assert named.is_dir() and one.perdure("path", "greeting").code == 5
