"""Checkpoints on the real CLIs: taken while the agent works, restored after everything was lost,
and what the model is told about it.

The tests compare the messages that reached the model, and the content, modes and stages of files.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.finding import first_file
from tests.journeys.stage import Stage, said

MakeStage = Callable[..., Stage]

PROMPT = "Write one.txt. The magic word is quercus."
TWO_TOOLS = """by history
run echo one > one.txt; git add one.txt; echo two > one.txt; printf 'x\\0\\377' > new.bin; chmod +x new.bin; ln -s one.txt link
---
run echo begun > begun.txt; test -e go.txt || sleep 98; echo late > late.txt
---
say It is done.
---
say It is done again.
"""
TALK = """by history
run echo one > one.txt
---
say The first file is written.
---
say Two.
---
say Three.
"""

pytestmark = pytest.mark.journey


@pytest.fixture(params=["claude", "codex"])
def agent(request: pytest.FixtureRequest) -> str:
    """Return a CLI that keeps each conversation in a file. What is different for other CLIs is in
    the drivers' own tests."""
    return str(request.param)


def begin(one: Stage, *words: str) -> subprocess.Popen[str]:
    return one.start(
        "run",
        "--name",
        "task",
        "--permissions",
        "full",
        "--json",
        "--agent",
        one.agent,
        *words,
        PROMPT,
    )


def checkpoints(one: Stage) -> list[dict[str, Any]]:
    """Return `perdure checkpoints task --json`, newest first."""
    done = one.perdure("checkpoints", "task", "--all", "--json")
    assert done.code == 0, done.err
    found: list[dict[str, Any]] = done.json["checkpoints"]
    return found


def in_second_tool(one: Stage) -> Path:
    """Wait until the first tool call is checkpointed and the second one runs. Return the
    workdir."""
    found: Path = one.until(lambda: first_file(one.home, "begun.txt"), "the second tool runs")
    one.until(
        lambda: "checkpoint_taken" in one.perdure("logs", "task", "--json").out,
        "a checkpoint is published",
    )
    return found.parent


def prints(directory: Path) -> dict[str, tuple[int, str]]:
    """Return mode and content of every file below the directory, or mode and target of a link, by
    path. git's own files are left out."""
    return {
        str(path.relative_to(directory)): (
            path.lstat().st_mode,
            str(path.readlink()) if path.is_symlink() else path.read_bytes().hex(),
        )
        for path in sorted(directory.rglob("*"))
        if ".git" not in path.relative_to(directory).parts and (path.is_symlink() or path.is_file())
    }


def git(directory: Path, one: Stage, *words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=directory, env=one.environ, capture_output=True, text=True, check=True
    ).stdout


def test_everything_lost_comes_back(stage: MakeStage) -> None:
    """The machine dies in a tool call, and workdir and transcript are wiped. After `restore` all
    files are back, staged and unstaged. A retry continues natively, and the model gets the whole
    conversation."""
    one = stage(TWO_TOOLS, extra={"PERDURE_CHECKPOINT_EVERY": "0.01s"})
    supervisor = begin(one)
    workdir = in_second_tool(one)
    one.lose_machine(supervisor)
    before, staged = prints(workdir), git(workdir, one, "ls-files", "--stage")
    shutil.rmtree(workdir)
    for path in one.transcripts():
        path.unlink()
    done = one.perdure("restore", "task")
    assert done.code == 0, done.err
    # The second tool call may or may not have begun when the first one was saved.
    assert {**prints(workdir), "begun.txt": before["begun.txt"]} == before
    assert git(workdir, one, "ls-files", "--stage") == staged
    assert one.transcripts()
    (workdir / "go.txt").write_text("")
    again = one.perdure("retry", "task", "--json")
    assert again.code == 0, again.err
    first, last = again.json["attempts"]
    assert (last["continuation"], last["session_id"]) == ("resume", first["session_id"])
    assert last["receipt"]["verdict"] == "native", last["receipt"]
    assert "quercus" in said(one.rehearsal.requests[-1].messages)
    assert (
        "A person took the working directory and this conversation back"
        in one.rehearsal.prompts()[-1]
    )
    one.nothing_survives()


def test_a_sigterm_saves_both_halves(stage: MakeStage) -> None:
    """A supervisor that gets SIGTERM saves at once, and again when the agent has ended. Both
    checkpoints name the conversation and the files."""
    one = stage(TWO_TOOLS)
    supervisor = begin(one)
    workdir = one.until(lambda: first_file(one.home, "begun.txt"), "the second tool runs").parent
    one.until(one.transcripts, "the conversation is on disk")
    os.kill(supervisor.pid, signal.SIGTERM)
    one.finish(supervisor)
    found = checkpoints(one)
    assert found[0]["why"] == "end"
    assert found[0]["session_id"] and found[0]["conversation"][0]["size"] > 0
    listed = git(
        workdir, one, "ls-tree", "--name-only", f"{found[0]['workdir']['commit']}:worktree"
    ).split()
    assert {"begun.txt", "link", "new.bin", "one.txt", "greet.py"} <= set(listed)
    one.nothing_survives()


def test_drift_is_told(stage: MakeStage) -> None:
    """If a person changed files between two attempts, or moved HEAD, the next prompt and `why` name
    that."""
    one = stage(TALK)
    done = one.finish(begin(one))
    assert done.code == 0, done.err
    workdir = Path(done.json["workspace"]["path"])
    quiet = one.perdure("update", "task", "Go further.", "--json")
    assert "Since then" not in one.rehearsal.prompts()[-1]
    assert quiet.json["attempts"][-1]["drift"] == []
    (workdir / "greet.py").write_text("def greet(name):\n    return 'Ahoy ' + name\n")
    git(
        workdir,
        one,
        "-c",
        "user.name=Eve",
        "-c",
        "user.email=eve@example.invalid",
        "commit",
        "-q",
        "-am",
        "mine",
    )
    told = one.perdure("update", "task", "And further.", "--json")
    assert told.code == 0, told.err
    prompt = one.rehearsal.prompts()[-1]
    assert "somebody else changed these files: greet.py" in prompt and "HEAD moved from" in prompt
    assert prompt.endswith("And further.")
    (seen,) = told.json["attempts"][-1]["drift"]
    assert (seen["paths"], seen["count"]) == (["greet.py"], 1)
    assert "greet.py" in one.perdure("why", "task").out
    one.nothing_survives()


def test_back_and_forth(stage: MakeStage) -> None:
    """A restore to an earlier turn is undone by a restore to the checkpoint that the first restore
    made. Each time the model gets exactly the conversation of the checkpoint, and no later
    instruction."""
    one = stage(TALK)
    done = one.finish(begin(one))
    workdir, session = Path(done.json["workspace"]["path"]), done.json["attempts"][0]["session_id"]
    earlier = checkpoints(one)[0]["number"]
    at_first = prints(workdir)
    (workdir / "mine.txt").write_text("a person's")
    assert one.perdure("update", "task", "The second word is betula.", "--json").code == 0
    (workdir / "later.txt").write_text("later")
    at_last = prints(workdir)
    back = one.perdure("restore", "task", "--at", str(earlier))
    assert back.code == 0, back.err
    assert prints(workdir) == at_first
    assert (
        "quercus" in one.conversations()[session].decode()
        and "betula" not in one.conversations()[session].decode()
    )
    undo = checkpoints(one)[0]
    assert undo["why"] == "restore" and f"--at {undo['number']}" in back.out
    again = one.perdure("update", "task", "Go on otherwise.", "--json")
    assert again.code == 0, again.err
    assert again.json["attempts"][-1]["receipt"]["verdict"] == "native", again.json["attempts"][-1][
        "receipt"
    ]
    prompt = one.rehearsal.prompts()[-1]
    assert "A person took" in prompt
    assert "betula" not in prompt and prompt.endswith("Go on otherwise.")
    assert "retired: instructions 2" in back.out and "betula" in back.out
    assert "retired instructions: 2" in one.perdure("logs", "task").out and one.show()[
        "retired_contexts"
    ] == [2]
    forth = one.perdure("restore", "task", "--at", str(undo["number"]))
    assert (
        forth.code == 0
        and "in effect again: instructions 2" in forth.out
        and "retired: instructions 3" in forth.out
    ), forth.out
    assert prints(workdir) == at_last and one.show()["retired_contexts"] == [3]
    assert "betula" in one.conversations()[session].decode()
    one.nothing_survives()


def test_a_run_at_work_is_not_taken_back(stage: MakeStage) -> None:
    """While the agent works, a restore is a conflict with exit code 6. A checkpoint that does not
    exist is refused with 5. Nothing is changed."""
    one = stage(TWO_TOOLS, extra={"PERDURE_CHECKPOINT_EVERY": "0.01s"})
    supervisor = begin(one)
    workdir = in_second_tool(one)
    refused = one.perdure("restore", "task")
    assert refused.code == 6, refused.err
    assert "perdure stop task" in refused.err
    (workdir / "go.txt").write_text("")
    os.kill(supervisor.pid, signal.SIGTERM)
    one.finish(supervisor)
    missing = one.perdure("restore", "task", "--at", "99")
    assert missing.code == 5, missing.err
    one.nothing_survives()


def test_a_fork_begins_at_a_checkpoint(stage: MakeStage) -> None:
    """A fork of a checkpoint has its files, staged and unstaged, on its own branch, and its
    conversation. The parent is unchanged. If the conversation has continued since, Claude Code
    forks at the end of that turn; Codex cannot, and the error names another way."""
    one = stage(
        TALK.replace(
            "> one.txt", "> one.txt; git add one.txt; echo more >> one.txt; echo x > new.txt"
        )
    )
    done = one.finish(begin(one))
    workdir = Path(done.json["workspace"]["path"])
    earlier = checkpoints(one)[0]["number"]
    at_first, staged = prints(workdir), git(workdir, one, "diff", "--cached")
    (workdir / "later.txt").write_text("later")
    fork = one.perdure(
        "fork", "task", "Another way.", "--checkpoint", str(earlier), "--as", "other", "--json"
    )
    assert fork.code == 0, fork.err
    there = Path(fork.json["workspace"]["path"])
    assert prints(there) == at_first
    assert git(there, one, "diff", "--cached") == staged != ""
    assert fork.json["attempts"][0]["receipt"]["verdict"] == "forked"
    assert one.perdure("update", "task", "The second word is betula.", "--json").code == 0
    parent, kept = prints(workdir), one.conversations()[done.json["attempts"][0]["session_id"]]
    late = one.perdure(
        "fork", "task", "A third way.", "--checkpoint", str(earlier), "--as", "third", "--json"
    )
    if one.agent == "claude":
        assert late.code == 0, late.err
        assert prints(Path(late.json["workspace"]["path"])) == at_first
        shown = said(one.rehearsal.requests[-1].messages)
        assert "quercus" in shown and "betula" not in shown
    else:
        assert late.code == 2 and "perdure restore task --at" in late.err
    assert prints(workdir) == parent
    assert one.conversations()[done.json["attempts"][0]["session_id"]] == kept
    one.nothing_survives()


def test_a_run_that_succeeded_is_retried_after_a_restore_or_a_reset(stage: MakeStage) -> None:
    """A success is not retried. After a restore or a reset the printed `perdure retry` works, but
    only once: natively after the restore, and in a new conversation after the reset."""
    one = stage(TALK)
    one.finish(begin(one))
    assert one.perdure("retry", "task").code == 6
    for words, verdict, prompt in (
        (("restore", "task"), "native", "A person took"),
        (("reset", "task"), "fresh", "Write one.txt."),
    ):
        back = one.perdure(*words)
        assert back.code == 0 and "continue: perdure retry task, or" in back.out, back.err
        again = one.perdure("retry", "task", "--json")
        assert again.code == 0, again.err
        assert again.json["attempts"][-1]["receipt"]["verdict"] == verdict
        assert prompt in one.rehearsal.prompts()[-1]
        assert one.perdure("retry", "task").code == 6
    one.nothing_survives()


def test_an_older_conversation_goes_back_when_the_newest_is_of_no_use(stage: MakeStage) -> None:
    """The transcript and perdure's newest copy are both ruined, so the run continues with the
    conversation of the last checkpoint. The files stay, the prompt says so, and the receipt says
    `repaired` and names the checkpoint."""
    one = stage(TALK)
    done = one.finish(begin(one))
    workdir, session = Path(done.json["workspace"]["path"]), done.json["attempts"][0]["session_id"]
    number = checkpoints(one)[0]["number"]
    (path,) = one.transcripts()
    path.write_text("ruined\n")
    copy = next(each for each in one.copies() if each.name == "main")
    copy.rename(copy.with_name("main.1"))
    copy.write_text("ruined\n")
    again = one.perdure("update", "task", "Go further.", "--json")
    assert again.code == 0, again.err
    last = again.json["attempts"][-1]
    assert (last["rung"], last["checkpoint"], last["session_id"]) == ("checkpoint", number, session)
    assert (
        last["receipt"]["verdict"] == "repaired"
        and f"checkpoint {number}" in last["receipt"]["reasons"][0]
    )
    shown = said(one.rehearsal.requests[-1].messages)
    assert (
        "quercus" in shown
        and "The first file is written." in shown
        and "taken back to where it stood" in shown
    )
    assert (workdir / "one.txt").read_text() == "one\n"
    assert "ruined\n" in [
        each.read_text() for each in path.parent.iterdir() if "perdure-unusable" in each.name
    ]
    one.nothing_survives()
