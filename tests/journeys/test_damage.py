"""Conversations that were damaged between two attempts, with the real CLIs.

The content of an agent's transcript is changed by power cuts, by mounts that come back with older
data, by people and by other programs. A receipt must not say `native` unless the model gets
everything that it was shown before. Each journey checks this with the model server's record.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import spread
from tests.drivers.moving import VARIABLES
from tests.finding import first_file
from tests.journeys.by_hand import compact, go_back
from tests.journeys.stage import Stage, native, said

MakeStage = Callable[..., Stage]

RUN = ("run", "--name", "task", "--permissions", "full", "--json", "--agent")
PROMPT = "Write one.txt, then two.txt. The magic word is quercus."

HANGS_IN_THE_THIRD_TOOL = """by history
run echo alder > one.txt; cat one.txt
---
run echo birch > two.txt; cat two.txt
---
say Cedar is next.
run echo dogwood > third.txt; test -e go.txt || sleep 98
---
say Everything is written.
---
say Another answer.
"""

TWO_TURNS = """by history
run echo alder > one.txt; cat one.txt
---
say The first turn is over.
---
run echo birch > two.txt; cat two.txt
---
say The second turn is over.
---
say The third turn is over.
---
say The fourth turn is over.
"""

PRINTED = {"opencode": re.compile(rb"(?<!echo )alder")}
SECOND = re.compile(rb"(?<!echo )birch")
"""The newest result that is certainly in perdure's own copy. The pattern does not match the command
that prints it. OpenCode starts its second tool call right after a copy was made, and the next copy
is not made at once."""
OFTEN = {"PERDURE_CHECKPOINT_EVERY": "0.05s"}
"""Settings with which perdure's own copy is renewed after each tool call."""
SELDOM = {"PERDURE_CHECKPOINT_EVERY": "1h"}
"""Settings with which perdure's own copy is from the end of the previous turn, however slow the
machine is."""
KNOWN = ("quercus", "alder", "birch")

pytestmark = pytest.mark.journey

FILES = pytest.mark.parametrize("agent", ["claude", "codex", "gemini"], indirect=True)
"""CLIs that keep each conversation in its own file."""


def lost_in_the_third_tool(one: Stage, *more: str) -> None:
    """Run attempt 1 until its machine is lost in the third tool call. perdure's own copy has the
    earlier tool calls."""
    printed = PRINTED.get(one.agent, SECOND)
    started = one.start(*RUN, one.agent, "--attempts", "1", *more, PROMPT)
    one.until(lambda: first_file(one.home, "third.txt"), "the third tool runs")
    one.until(lambda: any(printed.search(each) for each in _copied(one)), "the copy follows")
    lose(one, started)


def lose(one: Stage, started: subprocess.Popen[str]) -> None:
    """Kill everything on the machine. A tool that is called again does not hang again."""
    one.lose_machine(started)
    Path(one.show()["workspace"]["path"], "go.txt").write_text("")


def _copied(one: Stage) -> list[bytes]:
    return [path.read_bytes() for path in one.copies()]


def shown(one: Stage, since: int) -> str:
    """Return the text that reached the model in the first request after the first `since` ones."""
    return said(one.rehearsal.requests[since].messages)


def retried(one: Stage, *more: str) -> tuple[list[dict[str, Any]], str]:
    """Run one `perdure retry`, which must succeed. Return the attempts, and the text that first
    reached the model."""
    done = one.perdure("retry", "task", "--json", *more)
    assert done.code == 0, done.err
    attempts = done.json["attempts"]
    return attempts, said(first_of(one, attempts[-1]).messages)


def first_of(one: Stage, attempt: dict[str, Any]) -> Any:
    """Return the first request of an attempt. A request that the previous agent sent while it was
    being killed is left out."""
    asked = [
        each
        for each in one.rehearsal.everything
        if each.time >= attempt["started"] and each.answer not in ("side", "other")
    ]
    assert asked, [(each.time, each.answer) for each in one.rehearsal.everything]
    return asked[0]


def reasons(attempt: dict[str, Any]) -> str:
    return "; ".join(attempt["receipt"]["reasons"])


def cut_short(one: Stage) -> None:
    """Shorten the transcript, as a power cut does if the last writes did not reach the disk."""
    if one.agent == "opencode":
        with database(one) as rows:
            since = "(select min(rowid) from part where data like '%alder%')"
            rows.execute(
                "delete from message where rowid > (select rowid from message where id = "
                f"(select message_id from part where rowid = {since}))"
            )
            rows.execute(f"delete from part where rowid >= {since}")
        return
    (path,) = one.transcripts()
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"alder") + 40])


def flip(one: Stage) -> None:
    """Change a block of the transcript, as a power cut may do."""
    if one.agent == "opencode":
        with database(one) as rows:
            rows.execute("update part set data = replace(data, 'alder', 'al?er')")
        return
    (path,) = one.transcripts()
    path.write_bytes(path.read_bytes().replace(b"alder", b"al\x00er"))


@contextmanager
def database(one: Stage) -> Iterator[sqlite3.Connection]:
    """Open OpenCode's database, which holds all conversations, and commit the changes at the end."""
    with closing(sqlite3.connect(one.agent_home / "opencode/opencode.db")) as opened:
        yield opened
        opened.commit()


@pytest.mark.parametrize("harm", [cut_short, flip])
@pytest.mark.parametrize("policy", ["disclose", "strict"])
def test_a_transcript_that_comes_back_shorter_or_changed(
    stage: MakeStage, harm: Callable[[Stage], None], policy: str
) -> None:
    """perdure's own copy, which is longer and complete, is restored. The model gets everything that
    was known."""
    one = stage(HANGS_IN_THE_THIRD_TOOL, extra=OFTEN)
    lost_in_the_third_tool(one, "--continuity", policy)
    harm(one)
    (_, second), first_request = retried(one)
    assert second["rung"] == "copy", second
    assert second["receipt"]["verdict"] in ("native", "repaired"), reasons(second)
    assert "was not what perdure had recorded" in reasons(second)
    assert all(word in first_request for word in KNOWN), first_request


@pytest.mark.parametrize("policy", ["disclose", "strict"])
def test_another_conversation_under_the_id(stage: MakeStage, policy: str) -> None:
    """A conversation that another program put in the transcript's place is never continued.
    perdure's own copy is restored, and the model gets nothing of the other conversation."""
    one = stage(HANGS_IN_THE_THIRD_TOOL, extra=OFTEN)
    lost_in_the_third_tool(one, "--continuity", policy)
    put_another_in_its_place(one)
    (_, second), first_request = retried(one)
    assert second["rung"] == "copy", second
    assert second["receipt"]["verdict"] in ("native", "repaired"), reasons(second)
    assert "another conversation was found in place of the transcript" in reasons(second)
    assert all(word in first_request for word in KNOWN), first_request
    assert "fagus" not in first_request


def test_another_conversation_and_no_copy_is_refused(stage: MakeStage) -> None:
    """If another conversation is in the transcript's place and there is no copy, a strict policy
    refuses, however often a person retries. The agent is not started."""
    one = stage(HANGS_IN_THE_THIRD_TOOL, extra=OFTEN)
    lost_in_the_third_tool(one, "--continuity", "strict")
    put_another_in_its_place(one)
    shutil.rmtree(one.state / "transcripts")
    since = len(one.rehearsal.requests)
    for _ in range(2):
        done = one.perdure("retry", "task", "--json")
        assert done.code == 3, done.err
    assert len(one.rehearsal.requests) == since
    assert (
        "another conversation was found in place of the agent's transcript" in done.err + done.out
    )


def put_another_in_its_place(one: Stage) -> None:
    """Replace the transcript by another program's conversation with the same id."""
    ours = one.show()["attempts"][0]["session_id"]
    elsewhere = one.directory / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "go.txt").write_text("")
    words = {
        "claude": ["-p", "--output-format", "json"],
        "codex": ["exec", "--json", "--skip-git-repo-check", "-"],
        "gemini": ["--output-format", "stream-json"],
        "opencode": ["run", "--format", "json", "--dir", str(elsewhere)],
    }[one.agent]
    before = set(one.transcripts())
    text = "This is another matter. The other word is fagus."
    program = str(native(one.agent))
    subprocess.run(
        [program, *words],
        cwd=elsewhere,
        env=one.environ,
        input=text,
        text=True,
        capture_output=True,
        timeout=90,
    )
    if one.agent == "opencode":
        with database(one) as rows:
            for table in ("part", "message"):
                rows.execute(f"delete from {table} where session_id = ?", (ours,))
                rows.execute(f"update {table} set session_id = ?", (ours,))
            rows.execute("delete from session where id <> ?", (ours,))
        return
    (transcript,) = before
    (other,) = set(one.transcripts()) - before
    theirs = (
        other.stem[-36:]
        if one.agent != "gemini"
        else json.loads(other.read_bytes().split(b"\n", 1)[0])["sessionId"]
    )
    content = other.read_bytes().replace(theirs.encode(), ours.encode())
    other.unlink()
    transcript.write_bytes(content)


def test_a_home_lost_with_the_machine(stage: MakeStage) -> None:
    """If a home is lost, perdure's own copy lacks the newest events. The verdict is `repaired`, and
    the prompt has those events from the journal."""
    one = stage(
        TWO_TURNS.replace(
            "say The second turn is over.",
            "run echo cherry > third.txt; test -e go.txt || sleep 98",
        ),
        extra=SELDOM,
    )
    assert one.perdure(*RUN, one.agent, "--attempts", "1", PROMPT).code == 0
    started = one.start("update", "task", "Now the second one.", "--json")
    one.until(lambda: first_file(one.home, "third.txt"), "the tool of the second turn runs")
    if one.agent != "opencode":  # OpenCode reports a call only at its end.
        one.until(
            lambda: b"third.txt" in (one.attempt_directory(2) / "stdout").read_bytes(),
            "it is announced",
        )
    one.until(lambda: "birch" in one.perdure("logs", "task", "--json").out, "the journal has it")
    lose(one, started)
    for path in one.transcripts():
        path.unlink()
    attempts, first_request = retried(one)
    last = attempts[-1]
    assert (last["rung"], last["receipt"]["verdict"]) == ("copy", "repaired"), reasons(last)
    assert "was missing" in reasons(last) and "in no transcript any more" in reasons(last)
    assert "birch" in reasons(last)
    assert all(word in first_request for word in ("quercus", "alder", "The first turn is over.")), (
        first_request
    )
    assert "birch" in first_request.rpartition("user: ")[2], (
        "the prompt tells the result that is missing"
    )
    assert "Now the second one." in first_request


OPENED = pytest.mark.parametrize(
    ("agent", "opened"),
    [("claude", True), ("claude", False), ("codex", True), ("gemini", True), ("opencode", True)],
    indirect=["agent"],
)
"""Whether a person used `open` and `take-back`. The drivers get the same result without them."""


@OPENED
def test_a_person_took_the_conversation_back(stage: MakeStage, opened: bool) -> None:
    """If a person removed turn 2 in the agent's own program, the CLI no longer loads it. The
    verdict is `shortened`, not `native`."""
    one = stage(TWO_TURNS)
    assert one.perdure(*RUN, one.agent, PROMPT).code == 0
    report = one.perdure("update", "task", "Now the second one.", "--json").json
    if opened:
        assert one.perdure("open", "task", "--json").code == 0
    go_back(one, report["attempts"][0]["session_id"], Path(report["workspace"]["path"]))
    if opened:
        assert one.perdure("take-back", "task", "--json").code == 0
    since = len(one.rehearsal.requests)
    done = one.perdure("update", "task", "Now the third one.", "--json")
    assert done.code == 0, done.err
    last = done.json["attempts"][-1]
    assert "Now the second one." not in shown(one, since)
    assert last["receipt"]["verdict"] == "shortened", reasons(last)
    assert "does not load them" in reasons(last)
    again = one.perdure("update", "task", "Now the fourth one.", "--json").json["attempts"][-1]
    assert again["receipt"]["verdict"] == "native", reasons(again)


@OPENED
def test_compacted_by_hand(stage: MakeStage, opened: bool) -> None:
    """If a person compacted the conversation, a summary replaces what the model was shown. The
    verdict is `compacted`, and the receipt names the remaining items."""
    one = stage(TWO_TURNS.replace("by history", "by history\nsummary What happened so far."))
    assert one.perdure(*RUN, one.agent, PROMPT).code == 0
    report = one.show()
    if opened:
        assert one.perdure("open", "task", "--json").code == 0
    compact(one, report["attempts"][0]["session_id"], Path(report["workspace"]["path"]))
    if opened:
        assert one.perdure("take-back", "task", "--json").code == 0
    done = one.perdure("update", "task", "Now the second one.", "--json")
    assert done.code == 0, done.err
    last = done.json["attempts"][-1]
    assert last["receipt"]["verdict"] == "compacted", reasons(last)
    assert "a summary by the agent replaces" in reasons(last)


@pytest.mark.parametrize("agent", ["claude"], indirect=True)
def test_compacted_by_hand_after_a_lost_attempt(stage: MakeStage) -> None:
    """The compaction is appended after the old records, and only its summary has the task. The
    verdict is `compacted`, even though perdure had not read the transcript before."""
    one = stage(
        "by history\nrun echo alder > one.txt\n---\nhang\nsay One.\n---\nsay Two.\n---\nsay "
        "Three.\n"
    )
    started = one.start(*RUN, one.agent, "--attempts", "1", PROMPT)
    one.rehearsal.wait_for(2)
    one.lose_machine(started)
    report = one.show()
    compact(one, report["attempts"][0]["session_id"], Path(report["workspace"]["path"]))
    (_, second), first_request = retried(one)
    assert "quercus" not in first_request, first_request
    assert second["receipt"]["verdict"] == "compacted", reasons(second)
    assert "a summary by the agent replaces" in reasons(second)


@FILES
def test_a_fork_of_a_parent_that_was_replaced(stage: MakeStage) -> None:
    """If the parent's conversation was replaced, the fork begins with perdure's own copy of it, or
    the receipt does not call it a fork."""
    one = stage(TWO_TURNS)
    assert one.perdure(*RUN, one.agent, PROMPT).code == 0
    put_another_in_its_place(one)
    since = len(one.rehearsal.requests)
    done = one.perdure("fork", "task", "Another way.", "--as", "other", "--json")
    assert done.code == 0, done.err
    (first,) = done.json["attempts"]
    assert first["receipt"]["verdict"] == "forked", reasons(first)
    assert all(word in shown(one, since) for word in ("quercus", "alder")), shown(one, since)


@pytest.mark.parametrize("policy", ["disclose", "strict"])
def test_harm_to_a_turn_that_was_judged(stage: MakeStage, policy: str) -> None:
    """The machine is lost in turn 2, and the transcript is cut within turn 1, for which there is a
    receipt. The first retry continues from perdure's own copy."""
    one = stage(
        TWO_TURNS.replace(
            "say The second turn is over.",
            "run echo cherry > third.txt; test -e go.txt || sleep 98",
        )
    )
    assert one.perdure(*RUN, one.agent, "--continuity", policy, PROMPT).code == 0
    started = one.start("update", "task", "Now the second one.", "--json")
    one.until(lambda: first_file(one.home, "third.txt"), "the tool of the second turn runs")
    lose(one, started)
    cut_short(one)
    attempts, first_request = retried(one)
    # No attempt continues in the transcript that was cut.
    assert [each["rung"] for each in attempts] == ["fresh", "native", "copy"], attempts
    assert attempts[-1]["receipt"]["verdict"] in ("native", "repaired"), reasons(attempts[-1])
    assert "was not what perdure had recorded" in reasons(attempts[-1])
    assert all(word in first_request for word in ("quercus", "alder", "The first turn is over."))


def test_asked_and_then_all_is_lost(stage: MakeStage) -> None:
    """Machine and transcript were lost after the model got a request. A strict policy refuses, and
    its reason says what is known."""
    one = stage("by history\nhang\nsay One.\n---\nsay Two.\n")
    started = one.start(*RUN, one.agent, "--attempts", "1", "--continuity", "strict", PROMPT)
    one.rehearsal.wait_for(1)
    one.until(
        lambda: "session_seen" in one.perdure("logs", "task", "--json").out, "the agent is heard"
    )
    one.lose_machine(started)
    for path in one.transcripts():
        path.unlink()
    shutil.rmtree(one.state / "transcripts", ignore_errors=True)
    done = one.perdure("retry", "task", "--json")
    assert done.code == 3, done.err
    assert len(one.rehearsal.requests) == 1
    why = one.perdure("why", "task").out
    assert "it may have asked the model" in " ".join(why.split()), why


def test_a_stranger_after_a_lost_attempt_is_not_blamed_on_it(stage: MakeStage) -> None:
    """Another person continued the conversation after an attempt was lost and before perdure read
    it. The receipt is native, and the run has the condition `collision`."""
    one = stage(HANGS_IN_THE_THIRD_TOOL, extra=OFTEN)
    lost_in_the_third_tool(one)
    report = one.show()
    session, workdir = report["attempts"][0]["session_id"], Path(report["workspace"]["path"])
    by_hand = one.resume_by_hand(session, "A stranger's word is fagus.", workdir)
    assert by_hand.returncode == 0, by_hand.stderr
    (first, second), first_request = retried(one)
    assert first["outcome"]["kind"] == "lost", first
    assert first["receipt"]["verdict"] == "fresh", reasons(first)
    assert "during the attempt, whose end was not observed, or after it" in reasons(first)
    assert second["receipt"]["verdict"] == "native", reasons(second)
    assert all(word in first_request for word in (*KNOWN, "fagus")), first_request
    assert any(each["type"] == "collision" for each in one.show()["conditions"])
    assert "somebody else continued this conversation" in first_request


def test_a_stranger_after_an_attempt_that_was_lost_at_its_start(stage: MakeStage) -> None:
    """The second attempt is lost before its prompt is recorded. A later prompt by another program
    is not attributed to that attempt, and the next attempt continues natively after that prompt."""
    one = stage(TWO_TURNS)
    assert one.perdure(*RUN, one.agent, PROMPT).code == 0
    started = one.start("update", "task", "Now the second one.", "--json")
    one.attempt_directory(2)
    one.lose_machine(started)
    report = one.show()
    session, workdir = report["attempts"][0]["session_id"], Path(report["workspace"]["path"])
    by_hand = one.resume_by_hand(session, "A stranger's word is fagus.", workdir)
    assert by_hand.returncode == 0, by_hand.stderr
    attempts, first_request = retried(one)
    said_of_it = "; ".join(reasons(each) for each in attempts if each["receipt"])
    assert "while the attempt ran" not in said_of_it, said_of_it
    assert "broken" not in [(each["receipt"] or {}).get("verdict") for each in attempts]
    assert attempts[-1]["receipt"]["verdict"] == "native", reasons(attempts[-1])
    assert all(word in first_request for word in ("quercus", "alder", "fagus"))


STRANGER_JOINS = """match fagus
slow 5
say The stranger's answer.
===
by history
run touch asked.txt
---
slow 3
say Our own answer is elm.
---
say The second answer.
---
say The third answer.
"""


@pytest.mark.parametrize("agent", ["claude", "gemini", "opencode"], indirect=True)
def test_a_stranger_joins_while_the_last_answer_streams(stage: MakeStage) -> None:
    """Another program writes into the conversation while the last answer arrives, and ends later.
    So Claude loads the other program's branch. No receipt is native if perdure's own answer is
    missing there."""
    one = stage(STRANGER_JOINS)
    started = one.start(*RUN, one.agent, PROMPT)
    one.rehearsal.wait_for(2)
    session = one.show()["attempts"][0]["session_id"]
    workdir = Path(one.show()["workspace"]["path"])
    one.resume_by_hand(session, "The stranger's word is fagus.", workdir)
    one.finish(started)
    one.perdure("update", "task", "Now the second one.", "--json")
    one.perdure("update", "task", "Now the third one.", "--json")
    report, asked = one.show(), one.rehearsal.requests
    judged = [each for each in report["attempts"] if each["receipt"]]
    later = [each for each in judged if each["number"] > 1]
    assert later
    assert "foreign prompt(s)" in "; ".join(map(reasons, judged)), judged
    # The model got the other program's turn, or a prompt that mentions it.
    aware = ("The stranger's word is fagus.", "somebody else continued", "or went on elsewhere")
    for attempt in later:
        mine = [each for each in asked if attempt["started"] <= each.time <= attempt["ended"]]
        assert mine, attempt
        assert any(each in said(mine[0].messages) for each in aware), attempt
        shown_elm = "Our own answer is elm." in said(mine[0].messages)
        told = [each for each in judged if each["number"] < attempt["number"]]
        disclosed = "shortened" in [each["receipt"]["verdict"] for each in told]
        if attempt["receipt"]["verdict"] == "native":
            assert shown_elm or disclosed, reasons(attempt)
        elif not shown_elm:
            assert 'answer "Our own answer is elm."' in reasons(attempt), reasons(attempt)


def test_a_workdir_lost_with_the_machine(stage: MakeStage) -> None:
    """If the workdir is lost, the files of the newest checkpoint are restored, and the prompt says
    how old they are."""
    one = stage(HANGS_IN_THE_THIRD_TOOL, extra=OFTEN)
    started = one.start(*RUN, one.agent, "--attempts", "1", PROMPT)
    one.until(lambda: first_file(one.home, "third.txt"), "the third tool runs")
    one.until(
        lambda: '"number"' in one.perdure("checkpoints", "task", "--json").out,
        "a checkpoint is there",
    )
    one.lose_machine(started)
    workdir = Path(one.show()["workspace"]["path"])
    shutil.rmtree(workdir)
    since = len(one.rehearsal.requests)
    retry = one.start("retry", "task", "--json")
    one.until(lambda: (workdir / "one.txt").exists(), "the workdir is there again")
    (workdir / "go.txt").write_text("")
    done = one.finish(retry)
    assert done.code == 0, done.err
    assert (workdir / "one.txt").read_text() == "alder\n"
    assert "The working directory was gone when this attempt began." in shown(one, since)
    assert "the workdir was gone; the files of checkpoint" in one.perdure("logs", "task").out


ASKED_WITH_A_RESULT = """by history
run echo alder > one.txt; cat one.txt
---
hang
say The result is there.
---
say Another answer.
"""


@pytest.mark.parametrize("trial", range(2))
def test_killed_right_after_the_model_was_shown_a_result(stage: MakeStage, trial: int) -> None:
    """If an agent is killed right after the model got a result, it may not have recorded that
    result. Then the result is sent again, or the prompt has it."""
    one = stage(ASKED_WITH_A_RESULT)
    started = one.start(*RUN, one.agent, "--attempts", "1", PROMPT)
    one.rehearsal.wait_for(2)
    one.lose_machine(started)
    (_, second), first_request = retried(one)
    messages = first_of(one, second).messages
    recorded = any("alder" in each.text for each in messages if each.role == "tool_result")
    told = (
        '"tool_ended"' in one.perdure("logs", "task", "--json").out.partition('"attempt_ended"')[0]
    )
    if second["receipt"]["verdict"] == "native":
        assert recorded or not told or "the prompt gave the agent" in reasons(second), reasons(
            second
        )
    else:
        assert second["receipt"]["verdict"] == "repaired", reasons(second)
        assert "in no transcript any more" in reasons(second)
    if told:
        assert "alder" in first_request.replace("echo alder > one.txt", ""), first_request


def test_a_result_that_only_the_journal_has(stage: MakeStage) -> None:
    """The agent is killed before it recorded a call and its result. The prompt has the result from
    the journal, and the receipt names the gap."""
    one = stage(ASKED_WITH_A_RESULT, extra=SELDOM)
    started = one.start(*RUN, one.agent, "--attempts", "1", PROMPT)
    one.rehearsal.wait_for(2)
    one.until(
        lambda: '"tool_ended"' in one.perdure("logs", "task", "--json").out, "the journal has it"
    )
    one.lose_machine(started)
    cut_before_the_call(one)
    shutil.rmtree(one.state / "transcripts", ignore_errors=True)
    (_, second), first_request = retried(one)
    assert (second["rung"], second["receipt"]["verdict"]) == ("native", "repaired"), second
    assert "in no transcript any more; the prompt gave the agent" in reasons(second)
    assert "echo alder" in reasons(second).partition("missing:")[2], reasons(second)
    messages = first_of(one, second).messages
    assert not any("alder" in each.text for each in messages if each.role != "user"), first_request
    told = first_request.rpartition("user: ")[2]
    assert "alder" in told.replace("echo alder > one.txt", ""), told


def cut_before_the_call(one: Stage) -> None:
    """Shorten the transcript to what the agent recorded before its first call."""
    if one.agent == "opencode":
        cut_short(one)
        return
    (path,) = one.transcripts()
    lines = path.read_bytes().splitlines(keepends=True)
    first = next(at for at, line in enumerate(lines) if b"alder" in line)
    path.write_bytes(b"".join(lines[:first]))


@pytest.mark.parametrize("policy", ["disclose", "strict"])
def test_a_home_at_another_path(stage: MakeStage, policy: str) -> None:
    """A home that was moved completely has lost nothing: the receipt is native, and the transcript
    keeps its name."""
    one = stage(TWO_TURNS)
    assert one.perdure(*RUN, one.agent, "--continuity", policy, PROMPT).code == 0
    moved = one.directory / "moved"
    spread.rename(one.agent_home, moved)
    one.agent_home = moved
    one.environ[VARIABLES[one.agent]] = str(moved)
    since = len(one.rehearsal.requests)
    done = one.perdure("update", "task", "Now the second one.", "--json")
    assert done.code == 0, done.err
    last = done.json["attempts"][-1]
    assert (last["rung"], last["receipt"]["verdict"]) == ("native", "native"), reasons(last)
    assert all(
        word in shown(one, since) for word in ("quercus", "alder", "The first turn is over.")
    )
    assert not list(moved.rglob("*perdure-unusable*"))


REFUSED_IN_OTHER_WORDS = {
    "codex": {
        "timestamp": "2026-11-22T10:00:00.000Z",
        "type": "event_msg",
        "payload": {"type": "user_message", "message": "x"},
    },
    "gemini": {
        "id": "x1",
        "timestamp": "2026-11-22T10:00:00.000Z",
        "type": "gemini",
        "content": None,
        "toolCalls": [None],
    },
    "opencode": {
        "type": "tool",
        "tool": "bash",
        "callID": "call_x1",
        "state": {"status": "completed", "input": {}, "output": "x", "title": "x", "metadata": {}},
    },
}
"""A record for each CLI that, added at the end, makes it refuse the conversation before its first
request: "final paginated rollout record ... is missing an ordinal" (Codex 0.169.0), "Cannot read
properties of null" (Gemini CLI 0.61.0; it rewrites the file then), "undefined is not an object
(evaluating 'N.state.time.compacted')" (OpenCode 1.18.33; it has saved the prompt by then). Only
OpenCode's message is known to its driver. Claude Code 2.1.329 refuses none of those that were
tried: null, a number, an unknown type, a record without a parent."""


def add_what_is_refused(one: Stage) -> None:
    """Add a record to the conversation that makes the CLI refuse it, with a message that the driver
    does not know."""
    if one.agent == "opencode":
        with database(one) as rows:
            rows.execute(
                "insert into part (id, message_id, session_id, time_created, time_updated, data) "
                "select 'prt_zzzzzzzzzzzzzzzzzzzzzzzzzz', message_id, session_id, time_created, "
                "time_updated, ? from part order by id desc limit 1",
                (json.dumps(REFUSED_IN_OTHER_WORDS[one.agent]),),
            )
        return
    (transcript,) = one.transcripts()
    record = json.dumps(REFUSED_IN_OTHER_WORDS[one.agent]).encode()
    transcript.write_bytes(transcript.read_bytes() + record + b"\n")


@pytest.mark.parametrize("agent", ["codex", "gemini"], indirect=True)
@pytest.mark.parametrize("policy", ["disclose", "strict"])
def test_a_refusal_in_words_that_the_driver_does_not_know(stage: MakeStage, policy: str) -> None:
    """After the refusal the next rung is perdure's own copy, which is complete. No rung is tried
    again and again."""
    one = stage(TWO_TURNS)
    assert one.perdure(*RUN, one.agent, "--continuity", policy, PROMPT).code == 0
    add_what_is_refused(one)
    since = len(one.rehearsal.requests)
    done = one.perdure("update", "task", "Now the second one.", "--json")
    assert done.code == 0, done.err
    _, second, third = done.json["attempts"]
    assert second["rung"] == "native", second
    assert second["outcome"]["kind"] in ("session_broken", "failed"), second
    # No request reached the model, so the conversation was not continued.
    assert second["receipt"] is None or second["receipt"]["verdict"] == "broken", reasons(second)
    assert second["receipt"] is None or "between the attempts" not in reasons(second)
    assert third["rung"] == "copy", (second, third, one.perdure("logs", "task").out)
    assert third["receipt"]["verdict"] == "native", reasons(third)
    assert "the agent had not continued from its own transcript" in reasons(third)
    first_request = shown(one, since)
    assert "Now the second one." in first_request
    assert all(word in first_request for word in ("quercus", "alder", "The first turn is over."))
    again = one.perdure("update", "task", "Now the third one.", "--json").json["attempts"][-1]
    assert (again["rung"], again["receipt"]["verdict"]) == ("native", "native"), reasons(again)


PERSON_BETWEEN = """by history
run echo alder > one.txt; cat one.txt
---
say The first turn is over.
---
say The next turn is over.
---
say The third turn is over.
---
say The fourth turn is over.
"""


@pytest.mark.parametrize("agent", ["codex", "gemini", "opencode"], indirect=True)
def test_a_refusal_after_a_person_went_on(stage: MakeStage) -> None:
    """The refused transcript had a person's turn that perdure's own copy lacks. The receipt is not
    native, and it names that turn."""
    one = stage(PERSON_BETWEEN)
    assert one.perdure(*RUN, one.agent, PROMPT).code == 0
    report = one.show()
    session, workdir = report["attempts"][0]["session_id"], Path(report["workspace"]["path"])
    by_hand = one.resume_by_hand(session, "A person's word is fagus.", workdir)
    assert by_hand.returncode == 0, by_hand.stderr
    add_what_is_refused(one)
    since = len(one.rehearsal.requests)
    done = one.perdure("update", "task", "Now the second one.", "--json")
    assert done.code == 0, done.err
    _, second, third = done.json["attempts"]
    assert (second["rung"], third["rung"]) == ("native", "copy"), (second, third)
    first_request = shown(one, since)
    assert all(word in first_request for word in ("quercus", "alder", "The first turn is over."))
    assert third["receipt"]["verdict"] == "shortened", reasons(third)
    assert "A person's word is fagus." in reasons(third)
    told = first_request.rpartition("user: ")[2]
    assert "Somebody else had continued this conversation" in told, told
    assert 'prompt "A person\'s word is fagus."' in told, told
    assert "it has all that perdure knows" not in reasons(third)
    again = one.perdure("update", "task", "Now the third one.", "--json").json["attempts"][-1]
    assert (again["rung"], again["receipt"]["verdict"]) == ("native", "native"), reasons(again)


@pytest.mark.parametrize("agent", ["codex"], indirect=True)
def test_a_restore_that_was_cut_off(stage: MakeStage) -> None:
    """perdure was killed after it had restored its own copy and before the attempt began. The next
    attempt's receipt still names the person's turn."""
    one = stage(PERSON_BETWEEN)
    assert one.perdure(*RUN, one.agent, "--continuity", "strict", PROMPT).code == 0
    report = one.show()
    session, workdir = report["attempts"][0]["session_id"], Path(report["workspace"]["path"])
    by_hand = one.resume_by_hand(session, "A person's word is fagus.", workdir)
    assert by_hand.returncode == 0, by_hand.stderr
    add_what_is_refused(one)
    copies, away = one.state / "transcripts", one.directory / "away"
    spread.rename(copies, away)
    assert one.perdure("update", "task", "Now the second one.", "--json").code == 3
    shutil.rmtree(copies, ignore_errors=True)
    spread.rename(away, copies)
    (transcript,), (copy,) = one.transcripts(), one.copies()
    transcript.rename(f"{transcript}.perdure-unusable.1")
    transcript.write_bytes(copy.read_bytes())
    attempts, first_request = retried(one)
    earlier, _, told = first_request.rpartition("user: ")
    assert "fagus" not in earlier and 'prompt "A person\'s word is fagus."' in told, told
    assert attempts[-1]["receipt"]["verdict"] == "shortened", reasons(attempts[-1])
    assert "A person's word is fagus." in reasons(attempts[-1])


@pytest.mark.parametrize("agent", ["opencode"], indirect=True)
def test_a_refusal_after_the_prompt_was_saved(stage: MakeStage) -> None:
    """No request reached the model, so the conversation was not continued. Without an own copy a
    strict policy refuses with a true reason. With a copy, a person's retry continues from it."""
    one = stage(TWO_TURNS)
    assert one.perdure(*RUN, one.agent, "--continuity", "strict", PROMPT).code == 0
    add_what_is_refused(one)
    copies, away = one.state / "transcripts", one.directory / "away"
    spread.rename(copies, away)
    since = len(one.rehearsal.requests)
    refused = one.perdure("update", "task", "Now the second one.", "--json")
    assert refused.code == 3, refused.err
    _, second, third = refused.json["attempts"]
    assert (second["rung"], second["outcome"]["kind"]) == ("native", "session_broken"), second
    assert "state.time" in second["outcome"]["detail"]
    assert second["receipt"]["verdict"] == "broken", reasons(second)
    assert "the agent ended before its first turn" in reasons(second)
    assert not any(second["usage"][each] for each in ("input", "output")), second["usage"]
    assert (third["outcome"]["kind"], third["continuation"]) == ("continuity_lost", None), third
    why = "the agent did not continue from its transcript, and perdure has no copy of it"
    assert why in third["outcome"]["detail"]
    assert len(one.rehearsal.requests) == since
    shutil.rmtree(copies, ignore_errors=True)
    spread.rename(away, copies)
    attempts, first_request = retried(one)
    _, _, _, again, last = attempts
    assert (again["rung"], again["outcome"]["kind"]) == ("native", "session_broken"), again
    assert (last["rung"], last["receipt"]["verdict"]) == ("copy", "native"), reasons(last)
    assert "the agent had not continued from its own transcript" in reasons(last)
    words = ("quercus", "alder", "The first turn is over.", "Now the second one.")
    assert all(word in first_request for word in words), first_request


@pytest.mark.parametrize("agent", ["opencode"], indirect=True)
@pytest.mark.parametrize("policy", ["disclose", "strict"])
def test_rows_of_a_database_that_were_changed(stage: MakeStage, policy: str) -> None:
    """OpenCode keeps its conversations in a database. Rows that were changed or lost are restored
    from perdure's own copy before the agent is started."""
    one = stage(TWO_TURNS)
    assert one.perdure(*RUN, one.agent, "--continuity", policy, PROMPT).code == 0
    flip(one)
    with database(one) as rows:
        rows.execute(
            "delete from part where json_extract(data, '$.text') = 'The first turn is over.'"
        )
    since = len(one.rehearsal.requests)
    done = one.perdure("update", "task", "Now the second one.", "--json")
    assert done.code == 0, done.err
    _, second = done.json["attempts"]
    assert second["rung"] == "copy", second
    # OpenCode rewrites some fields when it imports a conversation, so the verdict may be
    # `repaired`.
    assert second["receipt"]["verdict"] in ("native", "repaired"), reasons(second)
    assert "was not what perdure had recorded" in reasons(second)
    assert "newest part is missing" not in reasons(second)
    first_request = shown(one, since)
    assert all(word in first_request for word in ("quercus", "alder", "The first turn is over."))
    assert "al?er" not in first_request


@pytest.mark.parametrize("agent", ["opencode"], indirect=True)
def test_changed_rows_of_a_conversation_with_subagents(stage: MakeStage) -> None:
    """If perdure restored the conversation, OpenCode would delete the conversations of its
    subagents. So the changed rows stay, even if there is an older checkpoint. A strict policy
    refuses before the agent is started with them."""
    one = stage(TWO_TURNS.replace("cat one.txt", "cat one.txt; sleep 1"), extra=OFTEN)
    assert one.perdure(*RUN, one.agent, "--continuity", "strict", PROMPT).code == 0
    session = one.show()["attempts"][0]["session_id"]
    with database(one) as rows:
        names = [each[1] for each in rows.execute("pragma table_info(session)")]
        given = {"id": "'ses_zzzzzzzzzzzzzzzzzzzz'", "parent_id": "id", "slug": "'child'"}
        chosen = ", ".join(given.get(each, f'"{each}"') for each in names)
        rows.execute(f"insert into session select {chosen} from session where id = ?", (session,))
    flip(one)
    since = len(one.rehearsal.requests)
    done = one.perdure("update", "task", "Now the second one.", "--json")
    assert done.code == 3, done.err
    assert len(one.rehearsal.requests) == since
    assert (
        "perdure's own copy could not replace it" in done.json["attempts"][-1]["outcome"]["detail"]
    )
    with database(one) as rows:
        assert rows.execute("select count(*) from session").fetchone() == (2,)


def test_a_prompt_that_names_a_file(stage: MakeStage) -> None:
    """Gemini CLI expands `@file` in its record. The recorded prompt is still recognized as the one
    that was sent."""
    one = stage(TWO_TURNS)
    done = one.perdure(*RUN, one.agent, "Explain @greet.py. The magic word is quercus.")
    assert done.code == 0, done.err
    assert done.json["attempts"][-1]["receipt"]["verdict"] == "fresh"
    later = one.perdure("update", "task", "Now the second one, as in @greet.py.", "--json")
    assert later.code == 0, later.err
    assert later.json["attempts"][-1]["receipt"]["verdict"] == "native", later.json["attempts"][-1]


@pytest.mark.parametrize("agent", ["claude"], indirect=True)
def test_settings_of_the_user_keep_old_conversations(stage: MakeStage, tmp_path: Path) -> None:
    """The user's settings are merged with those that perdure needs. The CLI's clean-up runs a few
    seconds after a start. It does not delete a conversation that is older than its usual 30
    days."""
    one = stage(f"say One.\n---\nsay Two.\n---\nhold {tmp_path / 'go'}\nsay Three.\n")
    for _ in range(2):
        by_hand = subprocess.run(
            [str(native("claude")), "-p"],
            cwd=one.repo,
            env=one.environ,
            input="A person asks.",
            text=True,
            capture_output=True,
            timeout=90,
        )
        assert by_hand.returncode == 0, by_hand.stderr
    old, ancient = one.transcripts()
    for path, days in ((old, 40), (ancient, 4000)):
        os.utime(path, (time.time() - days * 86400,) * 2)
    user = '--agent-arg=--settings={"model":"opus"}'
    started = one.start(*RUN, "claude", user, PROMPT)
    one.until(lambda: not ancient.exists(), "the clean-up runs")
    (tmp_path / "go").touch()
    done = one.finish(started)
    assert done.code == 0, done.err
    assert old.exists()
    assert "opus" in one.rehearsal.last.model
