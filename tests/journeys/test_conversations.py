"""Conversations with the real CLIs: continued, forked, opened by a person and taken back.

The tests compare the messages that reached the model. They compare contents to check that a parent
is unchanged.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.journeys.stage import PATIENCE_S, Stage, command_of, native, said
from tests.journeys.terminal import Terminal

MakeStage = Callable[..., Stage]

TALK = """by history
run echo one > one.txt; echo more >> greet.py
---
say The first file is written.
---
say Two.
---
say Three.
---
say Four.
---
say Five.
"""
PROMPT = "Write one.txt. The magic word is quercus."
HANGS = TALK.replace("say Two.", "hang\nsay Two.")

pytestmark = pytest.mark.journey


@pytest.fixture(params=["claude", "codex"])
def agent(request: pytest.FixtureRequest) -> str:
    """Return a CLI that keeps transcripts in files and can fork into any directory. What the other
    CLIs refuse is in their drivers' tests."""
    return str(request.param)


def by_hand(
    one: Stage, prompt: str, *words: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Use the agent's own program as a person does."""
    given = {
        "claude": [
            "-p",
            "--output-format",
            "stream-json",
            "--verbose",
            "--permission-mode",
            "bypassPermissions",
            *words,
        ],
        "codex": [
            "exec",
            "--json",
            "--skip-git-repo-check",
            "--dangerously-bypass-approvals-and-sandbox",
            *words,
            "-",
        ],
    }[one.agent]
    done = subprocess.run(
        [str(native(one.agent)), *given],
        cwd=cwd or one.repo,
        env=one.environ,
        input=prompt,
        text=True,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def begun_by_hand(one: Stage, prompt: str = PROMPT) -> str:
    """Begin a conversation that perdure does not know. Return its id."""
    by_hand(one, prompt)
    return newest(one)


def newest(one: Stage) -> str:
    return max(one.transcripts(), key=lambda path: path.stat().st_mtime_ns).stem[-36:]


def fork_by_hand(one: Stage, session: str, prompt: str, cwd: Path) -> str:
    """Fork a conversation in the agent's own program, as a person. Return the id of the fork."""
    words = ["--resume", session, "--fork-session"] if one.agent == "claude" else ["fork", session]
    by_hand(one, prompt, *words, cwd=cwd)
    return newest(one)


def run(one: Stage, *words: str) -> dict:
    done = one.perdure(
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
    assert done.code == 0, done.err
    return done.json


def prints(directory: Path) -> dict[str, str]:
    """Return content or link target of every file below the directory, by path."""
    return {
        str(path.relative_to(directory)): str(path.readlink())
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def git(directory: Path, one: Stage, *words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=directory, env=one.environ, capture_output=True, text=True, check=True
    ).stdout


def went_on(attempt: dict, session: str) -> None:
    assert (attempt["continuation"], attempt["session_id"]) == ("resume", session)
    assert attempt["receipt"]["verdict"] == "native", attempt["receipt"]


# --- resume
# --------------------------------------------------------------------------------------------------------


def test_a_conversation_that_was_begun_by_hand_goes_on(stage: MakeStage) -> None:
    """A conversation that a person began becomes a run in its own directory, and continues
    natively. The model gets all of it and only one new prompt. Only the cost of that prompt is
    counted."""
    one = stage(TALK)
    session = begun_by_hand(one)
    done = one.perdure("resume", session[:13], "Go further.", "--name", "task", "--json")
    assert done.code == 0, done.err
    (attempt,) = done.json["attempts"]
    went_on(attempt, session)
    assert attempt["usage"]["input"] == 100
    assert (done.json["workspace"]["path"], done.json["workspace"]["backend"]) == (
        str(one.repo),
        "here",
    )
    assert one.rehearsal.prompts() == [PROMPT, "Go further."]
    again = one.perdure("resume", session, "And further.", "--json")
    assert again.code == 0, again.err
    assert (again.json["name"], len(again.json["attempts"])) == ("task", 2)
    went_on(again.json["attempts"][1], session)
    assert "And further." in one.rehearsal.prompts()[-1]
    assert again.json["conditions"] == []
    one.nothing_survives()


def test_it_goes_on_in_a_worktree_of_its_own(stage: MakeStage) -> None:
    """With --branch the run works in a new worktree. Its prompt says that the paths in its history
    belong to another directory."""
    one = stage(TALK)
    session = begun_by_hand(one)
    done = one.perdure(
        "resume", session, "Go further.", "--name", "task", "--branch", "elsewhere", "--json"
    )
    assert done.code == 0, done.err
    went_on(done.json["attempts"][0], session)
    place = done.json["workspace"]
    assert (place["repo"], place["branch"], place["backend"]) == (
        str(one.repo),
        "elsewhere",
        "worktree",
    )
    last = one.rehearsal.prompts()[-1]
    assert last.endswith("Go further.")
    assert f"you work in {place['path']}" in last and f"not change anything in {one.repo}" in last
    one.nothing_survives()


def test_resume_of_a_run_goes_on_with_its_task(stage: MakeStage) -> None:
    """A killed run continues even if the person gives no prompt. With a prompt it gets that prompt
    as new instructions."""
    one = stage(TALK.replace("say The first", "hang\nsay The first"))
    started = one.start(
        "run",
        "--name",
        "task",
        "--permissions",
        "full",
        "--attempts",
        "1",
        "--agent",
        one.agent,
        PROMPT,
    )
    one.rehearsal.wait_for(2)
    os.kill(one.agent_pid(), signal.SIGKILL)
    assert one.finish(started).code == 1
    done = one.perdure("resume", "task", "--json")
    assert done.code == 0, done.err
    went_on(done.json["attempts"][1], done.json["attempts"][0]["session_id"])
    assert "ended early" in one.rehearsal.prompts()[-1]
    refused = one.perdure("resume", "task")
    assert (refused.code, "has succeeded" in refused.err) == (2, True), refused.err
    assert one.perdure("resume", "task", "More.", "--json").json["context_version"] == 2
    one.nothing_survives()


def test_resume_without_a_terminal(stage: MakeStage) -> None:
    """Without a terminal perdure chooses no conversation. It exits with code 2 and prints one
    sentence, and the candidates as a table or as JSON."""
    one = stage(TALK)
    session = begun_by_hand(one)
    requests = len(one.rehearsal.requests)
    for words in ((), ("--json",)):
        done = one.perdure("resume", *words)
        assert done.code == 2
        assert (
            done.err.splitlines()[0]
            == "perdure: missing the conversation, and there is no terminal to choose one on"
        )
        if words:
            (entry,) = done.json["sessions"]
            assert (entry["id"], entry["agent"], entry["state"], entry["turns"]) == (
                session,
                one.agent,
                "by hand",
                1,
            )
            assert (entry["first"], entry["cwd"], entry["run"]) == (PROMPT, str(one.repo), None)
        else:
            head, row = done.out.splitlines()
            assert head.split()[:5] == ["ID", "AGENT", "AGE", "TURNS", "STATE"]
            assert session.startswith(row.split()[0]) and row.endswith(PROMPT)
    assert one.perdure("resume", session).code == 2
    assert one.perdure("resume", "no-such-thing", "Go on.").code == 5
    assert len(one.rehearsal.requests) == requests
    assert one.perdure("ls", "--json").json["runs"] == []


def test_a_conversation_that_is_gone_or_away_is_refused(stage: MakeStage) -> None:
    """If the conversation's directory is gone, or a person has the conversation open, `resume`
    gives one sentence as its error and makes no run."""
    one = stage(HANGS)
    session = begun_by_hand(one)
    words = (
        ["-p", "--resume", session]
        if one.agent == "claude"
        else ["exec", "--skip-git-repo-check", "resume", session, "-"]
    )
    program = [str(native(one.agent)), *words]
    with subprocess.Popen(
        program,
        cwd=one.repo,
        env=one.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as busy:
        assert busy.stdin is not None
        busy.stdin.write("A person asks.")
        busy.stdin.close()
        one.rehearsal.wait_for(3)
        refused = one.perdure("resume", session, "Go further.")
        busy.kill()
    assert refused.code == 6
    assert "open in another program" in refused.err
    one.repo.rename(one.repo.with_name("moved"))
    one.repo = one.repo.with_name("moved")
    gone = one.perdure("resume", session, "Go further.")
    assert (gone.code, "is gone" in gone.err, "--repo" in gone.err) == (5, True, True), gone.err
    assert one.perdure("ls", "--json").json["runs"] == []


# --- fork
# ----------------------------------------------------------------------------------------------------------


def test_a_fork_begins_where_its_parent_stands(stage: MakeStage) -> None:
    """The model gets the parent's history, and the workdir has the parent's files, including small
    ignored ones. The parent is unchanged."""
    one = stage(TALK)
    parent = run(one)
    session, workdir = parent["attempts"][0]["session_id"], Path(parent["workspace"]["path"])
    awkward(workdir)
    admin = Path((workdir / ".git").read_text().removeprefix("gitdir: ").strip())
    before = prints(workdir), prints(admin), one.transcripts()[0].read_bytes()
    done = one.perdure("fork", "task", "In the fork.", "--as", "branched", "--json")
    assert done.code == 0, done.err
    (attempt,) = done.json["attempts"]
    assert (attempt["continuation"], attempt["receipt"]["verdict"]) == ("fork", "forked"), attempt
    assert attempt["receipt"]["evidence"]["asked"] == session != attempt["session_id"]
    assert (
        attempt["receipt"]["evidence"]["prefix_kept"],
        attempt["receipt"]["evidence"]["parent_kept"],
    ) == (True, True)
    assert attempt["usage"]["input"] == 100
    place = Path(done.json["workspace"]["path"])
    assert (
        done.json["workspace"]["branch"]
        == "perdure/branched"
        == git(place, one, "branch", "--show-current").strip()
    )
    assert git(place, one, "rev-parse", "HEAD") == git(workdir, one, "rev-parse", "HEAD")
    own = {name: mark for name, mark in prints(place).items() if name != ".git"}
    assert own == {name: mark for name, mark in before[0].items() if name != ".git"}
    assert (place / "run.sh").stat().st_mode & 0o111
    shown = said(one.rehearsal.last.messages)
    assert "quercus" in shown and "The first file is written." in shown
    assert one.rehearsal.prompts()[-1].endswith("In the fork.")
    assert f"not change anything in {workdir}" in one.rehearsal.prompts()[-1]
    assert (prints(workdir), prints(admin), parent_file(one, session).read_bytes()) == before
    both_go_on(one, session, attempt["session_id"])
    one.nothing_survives()


def awkward(workdir: Path) -> None:
    """Make uncommitted changes of every kind: changed, staged, new, in new directories, deleted, a
    link in place of a file, a mode, ignored."""
    (workdir / ".gitignore").write_text("*.log\n")
    (workdir / "ignored.log").write_text("not carried")
    (workdir / "new dir/deep").mkdir(parents=True)
    (workdir / "new dir/deep/ümläut\n.txt").write_bytes(b"\x00\xff\r\n")
    (workdir / "run.sh").write_text("#!/bin/sh\n")
    (workdir / "run.sh").chmod(0o755)
    (workdir / "staged.txt").write_text("staged")
    subprocess.run(["git", "add", "staged.txt"], cwd=workdir, check=True)
    (workdir / "greet.py").unlink()
    (workdir / "link").symlink_to("/nonexistent/place")


def parent_file(one: Stage, session: str) -> Path:
    return next(path for path in one.transcripts() if path.stem.endswith(session))


def both_go_on(one: Stage, parent: str, fork: str) -> None:
    """Check that after a fork each run continues natively in its own conversation, and that the
    model never gets the later instructions of the other run."""
    for name, session, other in (
        ("task", parent, "In the fork."),
        ("branched", fork, "In the parent."),
    ):
        done = one.perdure(
            "update", name, f"In the {'parent' if name == 'task' else 'branch'}.", "--json"
        )
        assert done.code == 0, done.err
        went_on(done.json["attempts"][-1], session)
        assert done.json["attempts"][-1]["usage"]["input"] == 100
        assert done.json["conditions"] == []
        assert other not in said(one.rehearsal.last.messages)


def test_a_fork_that_is_killed_goes_on(stage: MakeStage) -> None:
    """The fork is killed while the model answers. The retry continues in the fork, and the parent
    is unchanged."""
    one = stage(HANGS)
    session = run(one)["attempts"][0]["session_id"]
    before = parent_file(one, session).read_bytes()
    started = one.start("fork", "task", "In the fork.", "--as", "branched", "--json")
    one.rehearsal.wait_for(3)
    one.until(
        lambda: any(b"In the fork." in path.read_bytes() for path in one.transcripts()),
        "the prompt is on disk",
    )
    os.kill(fork_pid(one), signal.SIGKILL)
    done = one.finish(started)
    assert done.code == 0, done.err
    first, second = done.json["attempts"]
    assert first["outcome"]["signal"] == signal.SIGKILL
    assert first["receipt"]["verdict"] == "forked", first["receipt"]
    went_on(second, first["session_id"])
    assert "quercus" in said(one.rehearsal.last.messages)
    assert parent_file(one, session).read_bytes() == before
    one.nothing_survives()


def fork_pid(one: Stage) -> int:
    """Return the process id of the agent in the fork's first attempt."""

    def found() -> list[Path]:
        marks = one.state.glob("runs/*/1/agent.json")
        return [mark for mark in marks if "In the fork." in (mark.parent / "prompt.md").read_text()]

    pid: int = json.loads(one.until(found, "the fork's agent runs")[0].read_text())["pid"]
    return pid


@pytest.mark.parametrize("after_s", [0.0, 0.3, 0.6])
def test_a_fork_that_is_killed_early_is_forked_again(
    stage: MakeStage, tmp_path: Path, after_s: float
) -> None:
    """The fork is killed at its start, perhaps while the parent's history is copied. An incomplete
    copy never counts as the fork."""
    one = stage(TALK.replace("say Two.", f"hold {tmp_path / 'go'}\nsay Two."))
    session = run(one)["attempts"][0]["session_id"]
    before = parent_file(one, session).read_bytes()
    started = one.start("fork", "task", "In the fork.", "--as", "branched", "--json")
    pid = fork_pid(one)
    time.sleep(after_s)
    os.kill(pid, signal.SIGKILL)
    (tmp_path / "go").touch()
    done = one.finish(started)
    assert done.code == 0, done.err
    last = done.json["attempts"][-1]
    assert (last["continuation"], last["receipt"]["verdict"]) in (
        ("fork", "forked"),
        ("resume", "native"),
    ), last
    assert all(
        attempt["receipt"] is None or attempt["receipt"]["verdict"] != "broken"
        for attempt in done.json["attempts"]
    )
    shown = said(one.rehearsal.last.messages)
    assert "quercus" in shown and "The first file is written." in shown and "In the fork." in shown
    assert parent_file(one, session).read_bytes() == before
    one.nothing_survives()


def test_a_fork_whose_files_are_lost_comes_back_whole(stage: MakeStage) -> None:
    """The transcripts of the fork and of its parent are both gone. perdure's own copies are
    restored, and the fork continues natively."""
    one = stage(TALK)
    run(one)
    assert one.perdure("fork", "task", "In the fork.", "--as", "branched").code == 0
    for path in one.transcripts():
        path.unlink()
    done = one.perdure("update", "branched", "Go further.", "--json")
    assert done.code == 0, done.err
    went_on(done.json["attempts"][-1], done.json["attempts"][0]["session_id"])
    assert done.json["attempts"][-1]["rung"] == "copy"
    shown = said(one.rehearsal.last.messages)
    assert "quercus" in shown and "In the fork." in shown


def test_a_fork_at_an_earlier_turn(stage: MakeStage) -> None:
    """Claude Code forks at an earlier turn and leaves out everything after it. Codex cannot do
    that: the error says so, and nothing is made."""
    one = stage(TALK)
    session = run(one)["attempts"][0]["session_id"]
    assert one.perdure("update", "task", "This is to be forgotten.").code == 0
    before = parent_file(one, session).read_bytes()
    done = one.perdure("fork", "task", "Another way.", "--turn", "1", "--as", "branched", "--json")
    if one.agent == "codex":
        assert done.code == 2
        assert "forks a conversation only at its end" in done.err
        assert [row["name"] for row in one.perdure("ls", "--json").json["runs"]] == ["task"]
        assert "branched" not in git(one.repo, one, "branch", "--list")
        return
    assert done.code == 0, done.err
    assert done.json["attempts"][0]["receipt"]["verdict"] == "forked", done.json["attempts"][0][
        "receipt"
    ]
    shown = said(one.rehearsal.last.messages)
    assert "quercus" in shown and "The first file is written." in shown
    assert "to be forgotten" not in shown
    assert parent_file(one, session).read_bytes() == before
    for wrong in ("7", "-1"):
        refused = one.perdure("fork", "task", "x", "--turn", wrong)
        assert (refused.code, "has 2 turn(s)" in refused.err) == (2, True), refused.err
    # The old spelling `--at N` is still read as a turn, and the error names the new flag.
    old = one.perdure("fork", "task", "x", "--at", "7")
    assert old.code == 2 and "use --turn 7" in old.err and "has 2 turn(s)" in old.err
    one.nothing_survives()


def test_what_cannot_be_forked_is_refused_and_leaves_nothing(stage: MakeStage) -> None:
    """A fork of a running run, and a fork with a name or a branch that exists already, are refused
    with one sentence. No run and no workdir is made."""
    one = stage(HANGS)
    run(one)
    workdirs = sorted((one.home / ".local/share/perdure/.perdure/work").iterdir())
    for words, code in (
        (("--as", "task"), 6),
        (("--as", "No Name"), 2),
        (("--branch", "perdure/task"), 6),
        (("--branch", "main"), 7),
    ):
        refused = one.perdure("fork", "task", "x", *words)
        assert refused.code == code, refused.err
    started = one.start("update", "task", "Go further.")
    one.rehearsal.wait_for(3)
    refused = one.perdure("fork", "task", "x")
    assert (refused.code, "is running" in refused.err) == (6, True), refused.err
    assert one.perdure("stop", "task").code == 0
    one.finish(started)
    assert [row["name"] for row in one.perdure("ls", "--json").json["runs"]] == ["task"]
    assert sorted((one.home / ".local/share/perdure/.perdure/work").iterdir()) == workdirs


# --- open and take-back
# --------------------------------------------------------------------------------------------


def test_a_person_goes_on_by_hand_and_gives_it_back(stage: MakeStage) -> None:
    """While a person has the conversation open, no attempt starts. Afterwards the new turns are
    part of the conversation, and no collision is reported."""
    one = stage(TALK)
    report = run(one)
    session, workdir = report["attempts"][0]["session_id"], report["workspace"]["path"]
    opened = one.perdure("open", "task")
    assert opened.code == 0, opened.err
    command = opened.out.splitlines()[1]
    assert (
        command.startswith(f"cd {workdir} && ")
        and session in shlex.split(command)
        and str(native(one.agent)) in shlex.split(command)
    )
    assert [condition["type"] for condition in one.show()["conditions"]] == ["open"]
    for words in (
        ("update", "task", "Now."),
        ("retry", "task"),
        ("fork", "task", "x"),
        ("resume", "task", "x"),
        ("rm", "task"),
    ):
        refused = one.perdure(*words)
        assert (refused.code, "perdure take-back task" in refused.err) == (6, True), refused.err
    again = one.perdure("open", "task", "--json").json
    assert (again["session_id"], again["cwd"]) == (session, workdir)
    assert one.resume_by_hand(session, "A person asks.", Path(workdir)).returncode == 0
    back = one.perdure("take-back", "task", "--json")
    assert back.code == 0, back.err
    assert (
        back.json["session_id"],
        back.json["turns"],
        back.json["history_kept"],
        back.json["others"],
    ) == (session, 1, True, [])
    done = one.perdure("update", "task", "Go further.", "--json")
    assert done.code == 0, done.err
    went_on(done.json["attempts"][1], session)
    assert done.json["attempts"][1]["usage"]["input"] == 100
    assert done.json["conditions"] == []
    assert "A person asks." in said(one.rehearsal.last.messages)
    assert "somebody else" not in one.rehearsal.prompts()[-1]
    log = one.perdure("logs", "task").out
    assert "opened in the agent's own program" in log and "taken back: 1 turn(s)" in log


def test_nothing_happened_while_it_was_open(stage: MakeStage) -> None:
    """If the person did nothing while the run was open, `take-back` says so. A run that is not open
    cannot be taken back."""
    one = stage(TALK)
    run(one)
    assert one.perdure("open", "task").code == 0
    back = one.perdure("take-back", "task")
    assert (back.code, "nothing was added manually" in back.out) == (0, True)
    assert one.perdure("take-back", "task").code == 6
    assert one.show()["conditions"] == []
    assert one.perdure("update", "task", "Go further.").code == 0


def test_a_fork_that_was_made_by_hand_is_told_and_adopted_on_request(stage: MakeStage) -> None:
    """The fork is in the lineage, but is not chosen automatically. If a person adopts it, the run
    continues in it, and the old conversation is retired."""
    one = stage(TALK)
    report = run(one)
    session, workdir = report["attempts"][0]["session_id"], Path(report["workspace"]["path"])
    assert one.perdure("open", "task").code == 0
    branch = fork_by_hand(one, session, "A person tries another way.", workdir)
    back = one.perdure("take-back", "task", "--json")
    assert back.code == 0, back.err
    assert (back.json["session_id"], back.json["turns"]) == (session, 0)
    assert [(each["id"], each["fork"]) for each in back.json["others"]] == [(branch, True)]
    shown = one.perdure("sessions", "show", branch, "--json").json
    assert (shown["state"], shown["parent"], shown["run"]) == ("retired", session, "task")
    assert one.perdure("resume", branch, "x").code == 6
    adopted = one.perdure("take-back", "task", "--adopt", branch)
    assert adopted.code == 0, adopted.err
    done = one.perdure("update", "task", "Go further.", "--json")
    assert done.code == 0, done.err
    went_on(done.json["attempts"][1], branch)
    assert done.json["conditions"] == []
    assert "A person tries another way." in said(one.rehearsal.last.messages)
    assert PROMPT not in one.rehearsal.prompts()[-1]
    old = one.perdure("sessions", "show", session, "--json").json
    assert (old["state"], old["cause"]) == ("retired", f"a person continued in {branch}")


def test_a_run_that_is_open_in_the_program_is_not_taken_back(stage: MakeStage) -> None:
    """While the agent's own program still runs a turn in the conversation, take-back is refused,
    and the error names the process."""
    one = stage(HANGS)
    report = run(one)
    session = report["attempts"][0]["session_id"]
    assert one.perdure("open", "task").code == 0
    words = (
        ["-p", "--resume", session]
        if one.agent == "claude"
        else ["exec", "--skip-git-repo-check", "resume", session, "-"]
    )
    place = report["workspace"]["path"]
    with subprocess.Popen(
        [str(native(one.agent)), *words],
        cwd=place,
        env=one.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as busy:
        assert busy.stdin is not None
        busy.stdin.write("A person asks.")
        busy.stdin.close()
        one.rehearsal.wait_for(3)
        refused = one.perdure("take-back", "task")
        busy.kill()
    assert (refused.code, f"still open in process {busy.pid}" in refused.err) == (6, True), (
        refused.err
    )
    assert one.perdure("take-back", "task").code == 0


# --- the other agents
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", ["gemini", "opencode"])
def test_the_agents_that_are_bound_to_a_directory(stage: MakeStage, agent: str) -> None:
    """Gemini CLI is forked by a copy. OpenCode cannot fork: the error says so, and nothing is made.
    Conversations of both can be opened by a person and taken back."""
    one = stage(TALK)
    report = run(one)
    session, workdir = report["attempts"][0]["session_id"], Path(report["workspace"]["path"])
    forked = one.perdure("fork", "task", "In the fork.", "--as", "branched", "--json")
    if agent == "opencode":
        assert (forked.code, "can continue it only there" in forked.err) == (2, True), forked.err
        assert [row["name"] for row in one.perdure("ls", "--json").json["runs"]] == ["task"]
    else:
        assert forked.code == 0, forked.err
        (attempt,) = forked.json["attempts"]
        assert (attempt["receipt"]["verdict"], attempt["usage"]["input"]) == ("forked", 100), (
            attempt
        )
        assert (Path(forked.json["workspace"]["path"]) / "one.txt").read_text() == "one\n"
        assert "quercus" in said(one.rehearsal.last.messages)
    assert one.perdure("open", "task").code == 0
    assert one.resume_by_hand(session, "A person asks.", workdir).returncode == 0
    back = one.perdure("take-back", "task", "--json")
    assert back.code == 0, back.err
    assert (back.json["session_id"], back.json["turns"], back.json["others"]) == (session, 1, [])
    done = one.perdure("update", "task", "Go further.", "--json")
    assert done.code == 0, done.err
    went_on(done.json["attempts"][1], session)
    assert done.json["conditions"] == []
    assert "A person asks." in said(one.rehearsal.last.messages)
    refused = one.perdure("resume", "task", "x", "--branch", "elsewhere")
    assert (refused.code, "perdure fork task" in refused.err) == (2, True), refused.err


# --- sessions
# ------------------------------------------------------------------------------------------------------


def test_all_conversations_are_listed_with_where_they_came_from(stage: MakeStage) -> None:
    """Conversations of runs, forks and people are listed, for this directory or for all. One of
    them is shown with its lineage and its last messages."""
    one = stage(TALK)
    alone = begun_by_hand(one, "A person begins.")
    parent = run(one)["attempts"][0]["session_id"]
    fork = one.perdure("fork", "task", "In the fork.", "--as", "branched", "--json").json[
        "attempts"
    ][0]["session_id"]
    (one.home / "far").mkdir()
    by_hand(one, "Far away.", cwd=one.home / "far")
    far = newest(one)
    here = one.perdure("sessions", "--json").json["sessions"]
    assert [entry["id"] for entry in here] == [fork, parent, alone]
    assert [(entry["state"], entry["run"], entry["parent"]) for entry in here] == [
        ("confirmed", "branched", parent),
        ("confirmed", "task", ""),
        ("by hand", None, ""),
    ]
    everywhere = one.perdure("sessions", "ls", "--all", "--json").json["sessions"]
    assert [entry["id"] for entry in everywhere] == [far, fork, parent, alone]
    assert (
        one.perdure("sessions", "--agent", one.agent, "-n", "1").out.splitlines()[1].split()[5]
        == "branched"
    )
    shown = one.perdure("sessions", "show", fork, "--json").json
    assert [entry["id"] for entry in shown["lineage"]] == [parent]
    text = one.perdure("sessions", "show", fork).out
    assert f"comes from  {parent}  task" in text and "In the fork." in text
    assert one.perdure("sessions", "show", "branched").out == text
    assert one.perdure("sessions", "show", "ffffffff").code == 5


# --- the picker, on a real terminal
# --------------------------------------------------------------------------------


@pytest.fixture
def terminal(stage: MakeStage) -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def make(one: Stage, columns: int, **environ: str) -> Terminal:
        made.append(Terminal(one, columns, **environ))
        made[-1].shows("ready>")
        return made[-1]

    yield make
    for each in made:
        each.tmux("kill-server")


RESUME = f"{shlex.quote(sys.executable)} -m perdure resume"


def test_a_person_goes_on_in_the_real_program(
    stage: MakeStage, terminal: Callable[..., Terminal]
) -> None:
    """`open --exec` shows the conversation in the agent's own program. A prompt that is typed there
    becomes a turn of the conversation after `take-back`."""
    one = stage(TALK)
    report = run(one)
    session, workdir = report["attempts"][0]["session_id"], report["workspace"]["path"]
    is_settled(one, workdir)
    shown = terminal(one, 100)
    shown.type(f"{shlex.quote(sys.executable)} -m perdure open task --exec", "Enter")
    if one.agent == "codex":
        shown.shows("Trust this folder?")
        one.until(lambda: _trusted(shown), "the folder is trusted")
    shown.shows("The first file is written.")
    refused = one.perdure("take-back", "task")
    assert (refused.code, "still open in process" in refused.err) == (6, True), refused.err
    one.until(lambda: _asked(one, shown), "the question reached the model")
    shown.shows("Two.")
    shown.tmux("kill-server")
    back = one.until(
        lambda: (done := one.perdure("take-back", "task", "--json")).code == 0 and done.json,
        "it is taken back",
    )
    assert (back["session_id"], back["turns"], back["others"]) == (session, 1, [])
    done = one.perdure("update", "task", "Go further.", "--json")
    assert done.code == 0, done.err
    went_on(done.json["attempts"][1], session)
    assert "A person asks." in said(one.rehearsal.last.messages)
    assert done.json["conditions"] == []


def is_settled(one: Stage, workdir: str) -> None:
    """Prepare Claude Code's settings as after long use: the welcome was seen, the key is approved,
    and the folder is trusted."""
    if one.agent != "claude":
        return
    path = one.agent_home / ".claude.json"
    known = json.loads(path.read_text())
    known |= {
        "hasCompletedOnboarding": True,
        "theme": "dark",
        "bypassPermissionsModeAccepted": True,
    }
    known["customApiKeyResponses"] = {
        "approved": [one.environ["ANTHROPIC_API_KEY"][-20:]],
        "rejected": [],
    }
    known.setdefault("projects", {})[workdir] = {"hasTrustDialogAccepted": True}
    path.write_text(json.dumps(known))


def _trusted(shown: Terminal) -> bool:
    """Return whether the dialog is gone; press Enter if it is not. A dialog that is still being drawn
    may lose the key."""
    if "Trust this folder?" not in "\n".join(shown.screen()):
        return True
    shown.type("Enter")
    time.sleep(0.5)
    return False


def _asked(one: Stage, shown: Terminal) -> bool:
    """Return whether the model got the prompt. If it did not, type the prompt. A screen that is
    still being drawn may lose keys."""
    if any("A person asks." in prompt for prompt in one.rehearsal.prompts()):
        return True
    if "A person asks." not in "\n".join(shown.screen()):
        shown.type("A person asks.")
    time.sleep(0.5)
    shown.type("Enter")
    time.sleep(0.5)
    return False


@pytest.mark.parametrize(
    ("columns", "plain"), [(80, ""), (200, "1")], ids=["80", "200 without colour"]
)
def test_a_conversation_is_chosen_on_a_terminal(
    stage: MakeStage, terminal: Callable[..., Terminal], columns: int, plain: str
) -> None:
    """The list, search, preview and state of the workdir fit any width. The chosen conversation
    continues with the prompt that the person then types."""
    one = stage(TALK.replace("by history\n", "by history\nsay A greeting in 日本語.\n---\n", 1))
    session = begun_by_hand(one, "Explain the greeting. " + "It is a long story. " * 20)
    by_hand(one, "Something else entirely.")
    shown = terminal(one, columns, **({"NO_COLOR": plain} if plain else {}))
    before = shown.modes()
    shown.type(RESUME, "Enter")
    lines = shown.shows("Esc leave")
    assert lines[0].startswith("Resume a conversation of") and "(2)" in lines[0]
    assert lines[3].startswith("> ") and "Something else entirely." in lines[3]
    assert not lines[4].startswith(">") and "Explain the greeting." in lines[4] and "…" in lines[4]
    assert any("branch main" in line and str(one.repo) in line for line in lines)
    coloured = re.search(r"\x1b\[(\d+;)*7m", shown.tmux("capture-pane", "-p", "-e")) is not None
    assert coloured is not bool(plain)
    shown.type("/", "Explain Space greeting".replace(" Space ", " "), "Enter", "Space")
    lines = shown.shows("agent:  A greeting in 日本語.")
    assert "(1 of 2)" in lines[0]
    shown.type("Enter")
    shown.shows("New instructions?")
    assert shown.modes().split("\n")[0] == "0 1"
    shown.type("Go further.", "Enter")
    shown.shows("succeeded; receipt native")
    shown.shows("ready>")
    one.until(lambda: shown.modes() == before, "the terminal is as it was")
    assert one.rehearsal.prompts()[-1] == "Go further."
    assert newest(one) == session
    assert "Explain the greeting." in said(one.rehearsal.last.messages)


def test_the_terminal_is_as_it_was_however_the_picker_ends(
    stage: MakeStage, terminal: Callable[..., Terminal]
) -> None:
    """After Escape, Ctrl-C or a signal nothing was started, the screen and its modes are restored,
    and the shell works."""
    one = stage(TALK)
    begun_by_hand(one)
    shown = terminal(one, 80)
    before = shown.modes()
    for way, code in (("Escape", 130), ("C-c", 130), ("q", 130), ("SIGTERM", 143)):
        shown.type(f"{RESUME} --all", "Enter")
        shown.shows("Esc leave")
        assert shown.modes() != before
        if way == "SIGTERM":
            picker = shown.foreground()
            assert b"\0resume\0--all\0" in command_of(picker)
            os.kill(picker, signal.SIGTERM)
        else:
            shown.type(way)
        one.until(lambda: shown.modes() == before, f"the terminal is as it was after {way}")
        shown.type(f"echo {way}=$?", "Enter")
        shown.shows(f"{way}={code}")
    assert one.perdure("ls", "--json").json["runs"] == []
