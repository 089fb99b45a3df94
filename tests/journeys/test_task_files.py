"""Task files with the real CLIs: given, edited by the agent, and given again. The tests check what
the prompt says about them, and what the workdir contains."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.stage import Stage

MakeStage = Callable[..., Stage]

pytestmark = pytest.mark.journey

RUN = ("run", "--name", "task", "--permissions", "full", "--json", "--attempts", "1", "--agent")
EDITS = """by history
run sed -i s/five/FIVE/ spec.md
---
say I have edited the specification.
---
say I have read the new version.
---
say And again.
"""
FIRST = "one\ntwo\nthree\nfour\nfive\n"


def told(stage: Stage) -> str:
    """Return the prompt of the last attempt."""
    return stage.rehearsal.prompts()[-1]


def given(stage: Stage, text: str, name: str = "spec.md") -> str:
    """Write a changed file outside of the workdir, as the user does, and return its path."""
    path = stage.directory / name
    path.write_text(text)
    return str(path)


def begun(stage: Stage) -> Path:
    """Run the first attempt, in which the agent edits the file. Return the workdir."""
    done = stage.perdure(*RUN, stage.agent, "--file", given(stage, FIRST), "Do what spec.md says.")
    assert done.code == 0, done.err
    (attempt,) = done.json["attempts"]
    assert [(file["name"], file["action"]) for file in attempt["files"]] == [("spec.md", "written")]
    assert "Do what spec.md says." in told(stage) and "As given: `spec.md`" in told(stage)
    workdir = Path(done.json["workspace"]["path"])
    assert (workdir / "spec.md").read_text() == FIRST.replace("five", "FIVE")
    return workdir


def updated(stage: Stage, text: str, *more: str) -> dict[str, Any]:
    """Update with a new version of the file, in the same conversation. Return what perdure did with
    the file."""
    done = stage.perdure(
        "update", "task", "There is a new version.", "--file", given(stage, text), "--json", *more
    )
    assert done.code == 0, done.err
    attempt = done.json["attempts"][-1]
    assert (attempt["continuation"], attempt["receipt"]["verdict"]) == ("resume", "native"), attempt
    assert "There is a new version." in told(stage)
    (file,) = attempt["files"]
    return dict(file)


def test_an_update_is_merged_into_what_the_agent_made(stage: MakeStage) -> None:
    """Agent and user changed different lines. The merged file has the changes of both, there is a
    backup, and the prompt says so."""
    one = stage(EDITS)
    workdir = begun(one)
    file = updated(one, FIRST.replace("one", "ONE"))
    assert file["action"] == "merged"
    assert (workdir / "spec.md").read_text() == "ONE\ntwo\nthree\nfour\nFIVE\n"
    assert Path(file["backup"]).read_text() == FIRST.replace("five", "FIVE")
    assert "Merged" in told(one) and "`spec.md`" in told(one)
    assert "merged: spec.md, version 2" in one.perdure("why", "task").out
    again = one.perdure("update", "task", "Go on.", "--json")
    assert again.code == 0, again.err
    assert again.json["attempts"][-1]["files"] == [] and "spec.md" not in told(one)


def test_a_conflict_is_marked_and_told(stage: MakeStage) -> None:
    """Agent and user changed the same line. The file has conflict marks, and the prompt names the
    backup."""
    one = stage(EDITS)
    workdir = begun(one)
    file = updated(one, FIRST.replace("five", "fünf"))
    assert (file["action"], file["why"]) == ("conflict", "1 marked")
    text = (workdir / "spec.md").read_text()
    assert (
        "<<<<<<< as it was in the workdir\nFIVE\n" in text
        and "fünf\n>>>>>>> as given with version 2" in text
    )
    assert Path(file["backup"]).read_text() == FIRST.replace("five", "FIVE")
    assert "CONFLICT: `spec.md`" in told(one) and file["backup"] in told(one)


def test_keep_and_replace(stage: MakeStage) -> None:
    """With `keep` the agent's file stays, and the prompt has the difference between the given
    versions. With `replace` the agent's file is in a backup."""
    one = stage(EDITS)
    workdir = begun(one)
    file = updated(one, FIRST.replace("one", "ONE"), "--on-edit", "keep")
    assert file["action"] == "kept"
    assert (workdir / "spec.md").read_text() == FIRST.replace("five", "FIVE")
    assert "+ONE" in told(one) and "-one" in told(one)
    file = updated(one, FIRST.replace("one", "1"), "--on-edit", "replace")
    assert file["action"] == "replaced"
    assert (workdir / "spec.md").read_text() == FIRST.replace("one", "1")
    assert Path(file["backup"]).read_text() == FIRST.replace("five", "FIVE")


def test_files_for_a_run_at_work_wait_for_its_next_attempt(stage: MakeStage) -> None:
    """An update while the agent works changes no file. The next attempt has the file, and its
    prompt says so. After a kill in between, the prompt says it again."""
    one = stage(EDITS.replace("say I have edited", "hang\nsay I have edited"))
    started = one.start(*RUN, one.agent, "--file", given(one, FIRST), "Do what spec.md says.")
    one.rehearsal.wait_for(2)
    workdir = next(one.home.rglob("work/**/spec.md")).parent
    one.perdure(
        "update",
        "task",
        "There is a new version.",
        "--file",
        given(one, FIRST.replace("one", "ONE")),
        "-d",
    )
    assert (workdir / "spec.md").read_text() == FIRST.replace("five", "FIVE")
    os.kill(one.agent_pid(), signal.SIGKILL)
    done = one.finish(started)
    assert (workdir / "spec.md").read_text() == "ONE\ntwo\nthree\nfour\nFIVE\n", done.err
    attempts = one.show()["attempts"]
    assert [[file["action"] for file in attempt["files"]] for attempt in attempts] == [
        ["written"],
        ["merged"],
    ]
    assert "There is a new version." in told(one) and "Merged" in told(one)


def test_killed_while_the_files_are_put_in_place(stage: MakeStage) -> None:
    """Everything is killed after the first of several files was merged. The retry merges the others
    once, and the prompt names all files."""
    one = stage(EDITS)
    workdir = begun(one)
    context = one.directory / "context"
    context.mkdir()
    for number in range(400):
        (context / f"part-{number:03}.txt").write_text(f"{number}\n")
    (context / "spec.md").write_text(FIRST.replace("one", "ONE"))
    started = one.start(
        "update", "task", "There is a new version.", "--context", str(context), "--json"
    )
    one.until(lambda: next(workdir.glob("part-*.txt"), None), "the first file is there")
    one.lose_machine(started)
    assert len(list(workdir.glob("part-*.txt"))) < 400, "the kill came too late to show anything"
    done = one.perdure("retry", "task", "--json")
    assert done.code == 0, done.err
    assert {path.read_text() for path in workdir.glob("part-*.txt")} == {
        f"{number}\n" for number in range(400)
    }
    assert (workdir / "spec.md").read_text() == "ONE\ntwo\nthree\nfour\nFIVE\n"
    assert list(workdir.glob(".perdure-*")) == []
    planned = [file for attempt in done.json["attempts"][1:] for file in attempt["files"]]
    assert [file["action"] for file in planned if file["name"] == "spec.md"] == ["merged"]
    assert (
        "and 390 more" in told(one)
        and "Merged" in told(one)
        and "There is a new version." in told(one)
    )
    assert done.json["attempts"][-1]["receipt"]["verdict"] == "native"


def test_versions_travel_in_a_capsule(stage: MakeStage) -> None:
    """On another machine an update is merged with the version that was given on the first
    machine."""
    one = stage(EDITS)
    begun(one)
    capsule = str(one.directory / "task.capsule")
    done = one.perdure("export", "task", "-o", capsule)
    assert done.code == 0, done.err
    other = Stage(
        one.directory / "b", one.agent, one.rehearsal, extra={"PERDURE_PERMISSIONS": "full"}
    )
    try:
        done = other.perdure("import", capsule, "--into", str(other.home / "work"))
        assert done.code == 0, done.err
        file = updated(other, FIRST.replace("one", "ONE"))
        assert (file["action"], (other.home / "work/spec.md").read_text()) == (
            "merged",
            "ONE\ntwo\nthree\nfour\nFIVE\n",
        )
    finally:
        other.close()
