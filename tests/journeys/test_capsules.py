"""Two machines: a task is killed on one and finished on the other, by a capsule or a checkpoint
store, on the real CLIs.

The machines share nothing but the capsule, or the store's directory. Homes, roots, states,
repositories and paths differ, and machine A is removed before B begins. In one story each machine
also has namespaces of its own (`machines`). The tests check the messages that reached the model,
and the content and modes of files.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.agents.rehearsal import Rehearsal
from tests import spread
from tests.journeys.machines import (
    TWO_TOOLS,
    begin,
    git,
    in_second_tool,
    machine,
    manifests,
    power_cut,
    prints,
    told,
)
from tests.journeys.stage import Stage, said
from tests.journeys.test_requests import asking, pairs, requests

TALK = """by history
run echo one > one.txt
---
say The first file is written.
---
say Two.
---
say Three.
"""

Machines = Callable[..., tuple[Stage, Stage]]

pytestmark = pytest.mark.journey


@pytest.fixture
def machines(agent: str) -> Iterator[Machines]:
    """Make two machines in their own directories with one rehearsal, because the model's service is
    the same for both."""
    *directories, shared = [Path(tempfile.mkdtemp(prefix=f"p{name}")) for name in "abs"]
    made: list[Stage] = []
    rehearsals: list[Rehearsal] = []

    def make(script: str, *, store: bool = False, **extra: str) -> tuple[Stage, Stage]:
        if store:
            extra["PERDURE_CHECKPOINT_STORE"] = shared.as_uri()
        rehearsals.append(Rehearsal(script).start())
        for directory in directories:
            made.append(
                Stage(
                    directory, agent, rehearsals[0], extra={"PERDURE_PERMISSIONS": "full", **extra}
                )
            )
        return made[0], made[1]

    yield make
    for each in made:
        each.close()
    for rehearsal in rehearsals:
        rehearsal.stop()
    for directory in (*directories, shared):
        shutil.rmtree(directory, ignore_errors=True)


def gone(one: Stage) -> None:
    """Remove a machine's directories."""
    one.close()
    spread.remove(one.directory)


def went_on(two: Stage, attempts: list[dict[str, Any]]) -> None:
    """Check that the last attempt continued the first one's conversation natively, and that the
    model got all of it."""
    proven_native(attempts[0], attempts[-1], said(two.rehearsal.requests[-1].messages))


def proven_native(first: dict[str, Any], last: dict[str, Any], messages: str) -> None:
    assert (last["continuation"], last["session_id"]) == ("resume", first["session_id"])
    assert last["receipt"]["verdict"] == "native", last["receipt"]
    assert "quercus" in messages and "The attempt before this one ended early" in messages


def test_a_capsule_goes_on_on_another_machine(machines: Machines) -> None:
    """A run is killed in a tool and exported. After the import on another machine the files are
    exactly those of the checkpoint, a retry continues natively, and `why` still shows the
    history."""
    one, two = machines(TWO_TOOLS, PERDURE_CHECKPOINT_EVERY="0.01s")
    supervisor = begin(one)
    workdir = in_second_tool(one)
    one.lose_machine(supervisor)
    done = one.perdure("export", "task", "-o", str(one.tmp / "task.capsule"), "--json")
    assert done.code == 0, done.err
    capsule = two.tmp / "came.capsule"
    shutil.copy(one.tmp / "task.capsule", capsule)
    before, staged = prints(workdir), git(workdir, one, "ls-files", "--stage")
    gone(one)
    done = two.perdure("import", str(capsule), "--into", str(two.home / "work"), "--json")
    assert done.code == 0, done.err
    here = two.home / "work"
    # The second tool call may or may not have begun when the first one was saved.
    assert {**prints(here), "begun.txt": before["begun.txt"]} == before
    assert git(here, two, "ls-files", "--stage") == staged
    (here / "go.txt").write_text("")
    again = two.perdure("retry", "task", "--json")
    assert again.code == 0, again.err
    went_on(two, again.json["attempts"])
    assert f"From here on you work in {here}" in two.rehearsal.prompts()[-1]
    assert (here / "late.txt").read_text() == "late\n"
    told = two.perdure("why", "task").out
    assert "attempt 1" in told.lower() and "native" in told
    two.nothing_survives()


def test_a_checkpoint_store_carries_a_task_from_machine_to_machine(agent: str) -> None:
    """Machine A dies in a tool call together with its disk. Machine B has another user, other paths
    and its own network. It continues the task with exactly the files of the last checkpoint, and
    finishes it natively. The machines share only the store's directory."""
    *directories, shared = [Path(tempfile.mkdtemp(prefix=f"p{name}")) for name in "abs"]
    try:
        with machine("at_work", directories[0], agent, shared, uid=1001) as one:
            before = told(one)
            power_cut(one)
        with machine("takes_over", directories[1], agent, shared, uid=2002) as two:
            after = told(two)
            assert two.wait() == 0
        assert [list(directory.iterdir()) for directory in directories] == [[], []]
    finally:
        for directory in (*directories, shared):
            shutil.rmtree(directory)
    assert (before["uid"], after["uid"]) == (1001, 2002)
    assert after["early"][0] == 6 and "by a-machine" in after["early"][1] and not after["early"][2]
    # The second tool call may or may not have begun when the first one was saved.
    assert {**after["files"], "begun.txt": before["files"]["begun.txt"]} == before["files"]
    assert after["staged"] == before["staged"]
    first, last = after["attempts"]
    assert first["session_id"] == before["session"]
    proven_native(first, last, after["messages"])
    assert after["late"] == "late\n"
    (there,) = after["there"]
    assert (there["attempt"], there["free"]) == (2, False)


def test_the_machine_that_lost_its_place_stops(machines: Machines) -> None:
    """A run is taken over while it is running. The first machine notices that at its next
    checkpoint. It ends its agent, says so, publishes nothing more and starts no further attempt.
    The store has the work of the second machine."""
    one, two = machines(TWO_TOOLS, store=True, PERDURE_CHECKPOINT_EVERY="0.01s")
    supervisor = begin(one)
    workdir = in_second_tool(one)
    one.until(lambda: manifests(one), "the checkpoint is in the store")
    done = two.perdure(
        "move", "task", "--from", "--into", str(two.home / "work"), "--take-over", "--json"
    )
    assert done.code == 0, done.err
    before = manifests(one)
    (workdir / "go.txt").write_text("")
    ended = one.finish(supervisor)
    assert ended.code != 0
    assert "place_lost" in one.perdure("logs", "task", "--json").out
    assert manifests(one) == before
    again = one.perdure("retry", "task", "--json")
    assert again.code == 7 and "taken over by" in again.out, again.out
    assert manifests(one) == before
    (two.home / "work" / "go.txt").write_text("")
    assert two.perdure("retry", "task", "--json").code == 0
    assert len(manifests(one)) > len(before)
    one.nothing_survives()
    two.nothing_survives()


def test_a_task_that_is_let_go_is_taken_up_and_brought_back(machines: Machines) -> None:
    """A task that has succeeded is moved to a store, where no machine owns it. Another machine
    takes it over, and continues natively with new instructions."""
    one, two = machines(TALK)
    url = (two.directory / "store").as_uri()
    assert begin(one).wait() == 0
    done = one.perdure("move", "task", "--to", url, "--json")
    assert done.code == 0, done.err
    before = one.show()
    for words in (("update", "task", "Now the second."), ("retry", "task")):
        late = one.perdure(*words, "--json")
        assert late.code == 6 and f"was moved to {url}" in late.err, late.err
    assert one.show() == before, "nothing was stored, and no attempt was made"
    assert len(one.rehearsal.prompts()) == 1
    gone(one)
    (there,) = two.perdure("move", "--from", url, "--json").json["runs"]
    assert (there["name"], there["free"]) == ("task", True)
    done = two.perdure("move", "task", "--from", url, "--into", str(two.home / "work"), "--json")
    assert (done.code, done.json["state"]) == (0, "succeeded"), done.err
    listed = two.perdure("checkpoints", "task").out
    assert "not counted" in listed and "0 changed" not in listed
    went = two.perdure("update", "task", "Now the second.", "--json")
    assert went.code == 0, went.err
    first, last = went.json["attempts"]
    assert went.json["origin"] == went.json["id"]
    assert (last["receipt"]["verdict"], last["session_id"]) == ("native", first["session_id"])
    assert two.rehearsal.prompts()[-1].endswith("Now the second.")
    assert (two.home / "work" / "one.txt").read_text() == "one\n"


@pytest.mark.parametrize("agent", ["claude"], indirect=True)
def test_a_request_goes_with_its_run_and_is_answered_there(machines: Machines) -> None:
    """A run is moved while its agent waits for a person. The machine that gave the run away refuses
    the answer. On the other machine nothing starts before the answer; then exactly that call runs,
    once."""
    file = Path(tempfile.mkdtemp(prefix="pq")) / "outside.txt"
    one, two = machines(asking(file), PERDURE_PERMISSIONS="edit")
    url = (two.directory / "store").as_uri()
    asked = one.perdure("run", "--repo", str(one.repo), "--name", "task", "Do the task.")
    assert asked.code == 3, asked.err
    assert one.perdure("move", "task", "--to", url).code == 0
    late = one.perdure("approve", "task")
    assert (late.code, f"was moved to {url}" in late.err) == (6, True), late.err
    done = two.perdure("move", "task", "--from", url, "--into", str(two.home / "work"), "--json")
    assert done.code == 0, done.err
    assert done.json["state"] == "queued"
    (request,) = requests(two)
    assert (request["state"], request["sha256"]) == ("open", requests(one)[0]["sha256"])
    assert two.perdure("work", "--once").code == 0 and not file.exists()
    done = two.perdure("approve", "task")
    assert (done.code, file.read_text()) == (0, "ran\n"), done.err
    assert len(pairs(two, "Write")[request["call"]]) == 1
    assert two.show()["attempts"][-1]["receipt"]["verdict"] == "native"
    shutil.rmtree(file.parent)
