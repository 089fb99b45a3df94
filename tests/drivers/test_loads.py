"""The items that a resume loads, as the drivers report them. Each test plays a story with the real
CLI and compares the report with the messages that the model server received."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from perdure.agents import registry
from perdure.agents.claude import transcript
from perdure.agents.rehearsal import PlannedReply
from perdure.agents.rehearsal.conversation import ScriptedConversation
from perdure.agents.rehearsal.script import Hold, Say
from perdure.model import Continuation, ItemKind, Loaded, Permissions, Relation, Start, compare
from perdure.testing.drivers import Bench
from perdure.testing.drivers.bench import PATIENCE_S, resume
from tests.drivers.codex_terminal import CodexTerminal
from tests.drivers.talk import goes_on, loads_now, shown, told
from tests.drivers.test_driver_real import Make, benches

TOOLS = (
    "say Let me see.\nrun echo a\nrun echo b\n---\nsay First done.\n---\nrun echo c\n---\nsay "
    "Second done."
)
LONG = "python3 -c 'import time; time.sleep(300)'"
MORE = "".join(f"\n---\nsay Answer {number}." for number in range(10))
FULL = Permissions.FULL


@pytest.fixture(params=["claude", "codex"])
def bench(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes benches for each agent that starts fast."""
    yield from benches(request.param)


@pytest.fixture
def claude() -> Iterator[Make]:
    """Makes benches for Claude Code."""
    yield from benches("claude")


@pytest.fixture
def codex() -> Iterator[Make]:
    """Makes benches for Codex."""
    yield from benches("codex")


def waits(met: Any) -> None:
    """Wait until the condition is met."""
    end = time.monotonic() + PATIENCE_S
    while not met():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


# --- every CLI
# -----------------------------------------------------------------------------------------------------


def test_turns_with_tools(bench: Make) -> None:
    """After two turns with parallel and single tool calls, the prompts, answers, calls and results
    are complete and in order."""
    stage = bench(TOOLS + MORE)
    session = stage.run("hello one", permissions=FULL).session_id
    goes_on(stage, session, "hello two", permissions=FULL)
    found, _ = goes_on(stage, session, "hello three")
    assert (found.compactions, found.condensed, found.dropped) == (0, (), ())
    assert [each.kind.value for each in found.items].count("result") == 3


def test_killed_in_a_tool(bench: Make) -> None:
    """For a call that a kill interrupted, the CLI invents a result. The result is marked as
    invented, even if a later attempt finds it in the file."""
    stage = bench(f"say Let me see.\nrun {LONG}" + MORE)
    session = _killed_in_tool(stage)
    before, _ = goes_on(stage, session, "hello two")
    made_up = [each for each in before.items if each.made_up]
    assert made_up[0].kind is ItemKind.RESULT
    after, _ = goes_on(stage, session, "hello three")
    assert compare(before.items, after).whole


def _killed_in_tool(stage: Bench) -> str:
    """Play a first turn whose agent is killed while its command runs. Return the conversation's id."""
    chosen = str(uuid.uuid4()) if stage.driver.abilities.choose_id else ""
    launch = stage.launch(
        "hello one", Continuation(kind=Start.FRESH, session_id=chosen), permissions=FULL
    )
    command = stage.driver.command(launch)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command.argv,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        cwd=stage.cwd,
        env={**command.env, **stage.environ},
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(command.stdin)
        process.stdin.close()
        process.stdin = None
        waits(lambda: _tools(stage))
        waits(lambda: _call_recorded(stage))
        process.kill()
        process.communicate()
    for pid in _tools(stage):
        os.kill(pid, signal.SIGKILL)
    return stage.driver.conversations(stage.home, 1)[0].id


def _call_recorded(stage: Bench) -> bool:
    there = stage.driver.conversations(stage.home, 1)
    found = stage.driver.loads(Path(there[0].path).read_bytes()) if there else None
    return found is not None and any(each.kind is ItemKind.CALL for each in found.items)


def _tools(stage: Bench) -> list[int]:
    """Return the process ids of the long command in the bench's directory."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            sleeps = b"time.sleep(300)" in (folder / "cmdline").read_bytes()
            if sleeps and (folder / "cwd").resolve() == stage.cwd.resolve():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


# --- Claude Code
# ---------------------------------------------------------------------------------------------------


def typed(stage: Bench, words: str, session: str) -> None:
    """Give the CLI one of its own commands, which perdure never sends as a prompt."""
    argv = [
        stage.driver.locate(stage.environ).path,
        "-p",
        "--output-format=stream-json",
        "--verbose",
        f"--resume={session}",
    ]
    subprocess.run(
        argv,
        input=words.encode(),
        cwd=stage.cwd,
        env=dict(stage.environ),
        capture_output=True,
        check=False,
    )


def test_claude_rewound(claude: Make) -> None:
    """After a return to an earlier answer the later turns are on a branch that is not loaded,
    although the file still has them."""
    stage = claude(TOOLS + MORE)
    session = stage.run("hello one", permissions=FULL).session_id
    stage.run("hello two", resume(session), permissions=FULL)
    known = loads_now(stage, session)
    at = transcript.end_of_turn(stage.content(session), 1)
    argv = [
        stage.driver.locate(stage.environ).path,
        "-p",
        f"--resume={session}",
        f"--resume-session-at={at}",
    ]
    subprocess.run(
        argv,
        input=b"another way",
        cwd=stage.cwd,
        env=dict(stage.environ),
        capture_output=True,
        check=True,
    )
    found, _ = goes_on(stage, session, "hello three")
    seen = compare(known.items, found)
    assert seen.relation is Relation.SHORTENED
    assert seen.missing[0].said == "hello two"
    assert seen.off_branch == len(seen.missing) == 4
    assert [each.said for each in seen.prompts_added] == ["another way"]


def test_claude_compacted(claude: Make) -> None:
    """A summary replaces the earlier conversation, except for the records that the compact boundary
    keeps. A second compaction has the same effect."""
    stage = claude(f"summary What happened so far.\n{TOOLS}{MORE}")
    session = stage.run("hello one", permissions=FULL).session_id
    stage.run("hello two", resume(session), permissions=FULL)
    known = loads_now(stage, session)
    typed(stage, "/compact", session)
    found = loads_now(stage, session)
    assert (found.compactions, found.items[0].kind, found.dropped) == (1, ItemKind.SUMMARY, ())
    seen = compare(known.items, found)
    assert (seen.relation, seen.missing) == (Relation.COMPACTED, ())
    assert seen.condensed == len(known.items) - 1
    _same_as_request(stage, session, found)
    typed(stage, "/compact", session)
    again = loads_now(stage, session)
    assert again.compactions == 2
    assert compare(known.items, again).relation is Relation.COMPACTED
    _same_as_request(stage, session, again)


def _same_as_request(stage: Bench, session: str, found: Loaded) -> None:
    """Check that the loaded items equal the request. The text of `/compact` itself is in the
    request, but is not an item."""
    stage.run("go on", resume(session))
    asked = shown(stage.rehearsal.last.messages)[:-1]
    assert [
        each for each in asked if not each[1].startswith(("<local-command", "<command-name>"))
    ] == told(found)


class Crowd:
    """A model that answers a prompt containing "ours" only after the other process's prompt has
    come. `sign`: the file that it creates then."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def next(self, conversation: ScriptedConversation) -> PlannedReply:
        prompt = conversation.prompts[-1]
        answer = Say(f"Answer to {prompt.strip()}.")
        if "ours" in prompt:
            return PlannedReply((Hold(str(self.sign)), answer), script=0)
        if "stranger" in prompt:
            self.sign.touch()
        return PlannedReply((answer,), script=0)

    def summary(self, conversation: ScriptedConversation) -> str:
        return ""


def test_claude_two_writers(claude: Make, tmp_path: Path) -> None:
    """Two processes write into the file of one conversation at the same time. The test predicts,
    item by item, what the next process loads."""
    stage = claude(Crowd(tmp_path / "sign"))
    session = stage.run("hello one").session_id
    command = stage.driver.command(stage.launch("ours", resume(session)))
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command.argv,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        cwd=stage.cwd,
        env={**command.env, **stage.environ},
    ) as process:
        assert process.stdin is not None
        process.stdin.write(command.stdin)
        process.stdin.close()
        process.stdin = None
        stage.rehearsal.wait_for(2, PATIENCE_S)
        stage.run("the stranger's", resume(session))
        process.communicate(timeout=PATIENCE_S)
    found, _ = goes_on(stage, session, "go on")
    both = {each.said for each in (*found.items, *found.dropped)}
    assert {"ours", "the stranger's", "Answer to ours.", "Answer to the stranger's."} <= both


class Paper:
    """A handwritten transcript of Claude Code. Each record has a short name."""

    def __init__(self, seconds: int = 60) -> None:
        self.session = str(uuid.uuid4())
        self.step = timedelta(seconds=seconds)
        self.records: list[dict[str, Any]] = []
        self._ids: dict[str, str] = {}

    def id(self, name: str | None) -> str | None:
        return self._ids.setdefault(name, str(uuid.uuid4())) if name else None

    def add(self, name: str, parent: str | None, kind: str, **fields: Any) -> Paper:
        stamp = (datetime(2026, 11, 22, 9) + self.step * len(self.records)).isoformat(
            timespec="milliseconds"
        ) + "Z"
        head = {
            "parentUuid": self.id(parent),
            "isSidechain": False,
            "type": kind,
            "uuid": self.id(name),
            "timestamp": stamp,
        }
        self.records.append(
            {**head, "sessionId": self.session, "cwd": "/", "version": "2.1.329", **fields}
        )
        return self

    def user(self, name: str, parent: str | None, content: Any, **fields: Any) -> Paper:
        return self.add(
            name,
            parent,
            "user",
            message={"role": "user", "content": content},
            **{"promptSource": "sdk", **fields},
        )

    def reply(
        self, name: str, parent: str | None, block: dict[str, Any], reply: str = "", **fields: Any
    ) -> Paper:
        head = {
            "id": reply or f"msg_{name}",
            "type": "message",
            "role": "assistant",
            "model": "claude-opus-5-5",
        }
        return self.add(
            name, parent, "assistant", message={**head, "content": [block], "usage": {}}, **fields
        )

    def says(
        self, name: str, parent: str | None, words: str, reply: str = "", **fields: Any
    ) -> Paper:
        return self.reply(name, parent, {"type": "text", "text": words}, reply, **fields)

    def calls(self, name: str, parent: str | None, key: str, reply: str = "") -> Paper:
        return self.reply(
            name,
            parent,
            {"type": "tool_use", "id": key, "name": "Bash", "input": {"command": key}},
            reply,
        )

    def result(self, name: str, parent: str | None, key: str) -> Paper:
        return self.user(
            name,
            parent,
            [{"type": "tool_result", "tool_use_id": key, "content": f"of {key}"}],
            promptSource=None,
        )

    def last_prompt(self, leaf: str) -> Paper:
        self.records.append(
            {
                "type": "last-prompt",
                "lastPrompt": "x",
                "leafUuid": self.id(leaf),
                "sessionId": self.session,
            }
        )
        return self

    def boundary(self, name: str, after: str, *kept: str) -> Paper:
        """Return a compact boundary that keeps records, and its summary, whose name ends with S."""
        uuids = [self.id(each) for each in kept]
        keeps = (
            {"preservedMessages": {"anchorUuid": self.id(f"{name}S"), "uuids": uuids}}
            if kept
            else {}
        )
        told = {"trigger": "manual", "preTokens": 100, **keeps}
        self.add(
            name,
            None,
            "system",
            subtype="compact_boundary",
            logicalParentUuid=self.id(after),
            compactMetadata=told,
        )
        return self.user(
            f"{name}S", name, "SUMMARY", isCompactSummary=True, isVisibleInTranscriptOnly=True
        )

    def two_turns(self) -> Paper:
        return (
            self.user("1", None, "p1")
            .says("2", "1", "a1")
            .user("3", "2", "p2")
            .says("4", "3", "a2")
        )


def papers() -> dict[str, Paper]:
    """Return transcripts by name, one for each feature that decides which records Claude Code
    loads."""
    other = {"5": "q2", "6": "b2"}

    def branch(paper: Paper, parent: str = "2") -> Paper:
        return paper.user("5", parent, other["5"]).says("6", "5", other["6"])

    def parallel() -> Paper:
        return (
            Paper()
            .user("1", None, "p1")
            .says("2", "1", "see", "M")
            .calls("3", "2", "A", "M")
            .calls("4", "3", "B", "M")
        )

    date = {"attachment": {"type": "date", "date": "2026-11-22"}}
    failed = {
        "isApiErrorMessage": True,
        "message": {
            "role": "assistant",
            "model": "<synthetic>",
            "content": [{"type": "text", "text": "E"}],
        },
    }
    tail = Paper().two_turns()
    return {
        "the newest record decides between two branches": branch(Paper().two_turns()),
        "the named leaf decides if the newest record is not behind it": branch(
            Paper().two_turns()
        ).last_prompt("4"),
        "the named leaf is gone on from": branch(Paper().two_turns().last_prompt("4"), "4"),
        "a named leaf in the middle of the newest branch": Paper().two_turns().last_prompt("2"),
        "the newest named leaf decides": branch(Paper().two_turns().last_prompt("4")).last_prompt(
            "6"
        ),
        "a branch behind the named leaf, and a newer one beside it": branch(
            Paper().two_turns().last_prompt("4"), "4"
        )
        .user("7", "2", "q3")
        .says("8", "7", "b3"),
        "an attachment on a dead branch is a record too": Paper()
        .two_turns()
        .add("5", "2", "attachment", **date),
        "a progress record is none": Paper().two_turns().add("5", "2", "progress", data={}),
        "a sidechain is none": Paper().two_turns().user("5", "2", "side", isSidechain=True),
        "a missing parent, and a record just before": Paper(seconds=4)
        .two_turns()
        .user("5", "lost", "p3")
        .says("6", "5", "a3"),
        "a missing parent, and nothing for a minute before": Paper()
        .two_turns()
        .user("5", "lost", "p3")
        .says("6", "5", "a3"),
        "a second root": Paper()
        .user("1", None, "p1")
        .says("2", "1", "a1")
        .user("3", None, "p2")
        .says("4", "3", "a2"),
        "a record told twice is the later one": Paper()
        .two_turns()
        .user("3", "2", "pX")
        .says("4", "3", "aX"),
        "a record told again at the end is the newest": Paper().two_turns().user("1", None, "p1"),
        "children before their parents": Paper()
        .says("4", "3", "a2")
        .user("3", "2", "p2")
        .says("2", "1", "a1")
        .user("1", None, "p1"),
        "parallel calls": parallel()
        .result("6", "4", "B")
        .result("7", "3", "A")
        .says("9", "7", "done"),
        "parallel calls, the last of them named": parallel()
        .last_prompt("4")
        .result("6", "4", "B")
        .result("7", "3", "A")
        .says("9", "7", "done"),
        "parallel calls, one without a result": parallel()
        .result("6", "4", "B")
        .says("9", "6", "done"),
        "parallel calls, one open at the end": parallel().result("7", "3", "A"),
        "an open call at the end": Paper().user("1", None, "p1").calls("2", "1", "A"),
        "an open call and a prompt behind it": Paper()
        .user("1", None, "p1")
        .calls("2", "1", "A")
        .user("3", "2", "p2"),
        "an open call in the middle": Paper()
        .user("1", None, "p1")
        .calls("2", "1", "A")
        .user("3", "2", "p2")
        .says("4", "3", "a2"),
        "a result without a call": Paper()
        .user("1", None, "p1")
        .result("2", "1", "A")
        .says("3", "2", "a1"),
        "a second result": Paper()
        .user("1", None, "p1")
        .calls("2", "1", "A")
        .result("3", "2", "A")
        .result("4", "3", "A")
        .says("5", "4", "a1"),
        "a result before its call": Paper()
        .user("1", None, "p1")
        .result("2", "1", "A")
        .calls("3", "2", "A")
        .says("4", "3", "a1"),
        "a prompt at the end": Paper().two_turns().user("5", "4", "p3"),
        "an API error": Paper()
        .user("1", None, "p1")
        .add("2", "1", "assistant", **failed)
        .user("3", "2", "p2")
        .says("4", "3", "a2"),
        "an API error at the end": Paper()
        .user("1", None, "p1")
        .add("2", "1", "assistant", **failed),
        "compacted": Paper()
        .two_turns()
        .boundary("5", "4")
        .user("7", "5S", "p3")
        .says("8", "7", "a3"),
        "compacted, two records kept": Paper()
        .two_turns()
        .boundary("5", "4", "2", "4")
        .user("7", "5S", "p3")
        .says("8", "7", "a3"),
        "compacted, a kept record is lost": tail.boundary("5", "4", "lost", "4")
        .user("7", "5S", "p3")
        .says("8", "7", "a3"),
        "rewound to before a compaction": branch(
            Paper().two_turns().boundary("7", "4").user("8", "7S", "p3").says("9", "8", "a3")
        ),
        "compacted, and gone on from the one record that is kept": Paper()
        .two_turns()
        .boundary("5", "4", "4")
        .user("7", "4", "p3")
        .says("8", "7", "a3"),
        "compacted, and gone on from the last of two that are kept": Paper()
        .two_turns()
        .boundary("5", "4", "3", "4")
        .user("7", "4", "p3")
        .says("8", "7", "a3"),
        "compacted, and gone on from the first of two that are kept": Paper()
        .two_turns()
        .boundary("5", "4", "3", "4")
        .user("7", "3", "p3")
        .says("8", "7", "a3"),
        "compacted, and gone on from a record that is not kept": Paper()
        .two_turns()
        .boundary("5", "4", "4")
        .user("7", "2", "p3")
        .says("8", "7", "a3"),
        "compacted, nothing kept, and gone on from before": Paper()
        .two_turns()
        .boundary("5", "4")
        .user("7", "4", "p3")
        .says("8", "7", "a3"),
        "compacted, a kept record lost, and gone on from the other": Paper()
        .two_turns()
        .boundary("5", "4", "lost", "4")
        .user("7", "4", "p3")
        .says("8", "7", "a3"),
        "compacted twice, and gone on from a kept record": Paper()
        .two_turns()
        .boundary("5", "4", "4")
        .user("7", "4", "p3")
        .says("8", "7", "a3")
        .boundary("9", "8", "8")
        .user("B", "8", "p4")
        .says("C", "B", "a4"),
        "compacted twice, and gone on from a record that the first one kept": Paper()
        .two_turns()
        .boundary("5", "4", "4")
        .user("7", "5S", "p3")
        .says("8", "7", "a3")
        .boundary("9", "8", "8")
        .user("B", "4", "p4")
        .says("C", "B", "a4"),
        "compacted twice, and only the first one keeps a record": Paper()
        .two_turns()
        .boundary("5", "4", "4")
        .user("7", "5S", "p3")
        .says("8", "7", "a3")
        .boundary("9", "8")
        .user("B", "4", "p4")
        .says("C", "B", "a4"),
        "compacted with one kept, and rewound to before it": branch(
            Paper().two_turns().boundary("7", "4", "4").user("8", "7S", "p3").says("9", "8", "a3")
        ),
        "compacted, half of a reply is kept": Paper()
        .user("1", None, "p1")
        .says("2", "1", "half", "M")
        .says("3", "2", "other half", "M")
        .boundary("5", "3", "3")
        .user("7", "3", "p3")
        .says("8", "7", "a3"),
        "compacted with a call kept, whose result is not": Paper()
        .user("1", None, "p1")
        .calls("2", "1", "A", "M")
        .result("3", "2", "A")
        .says("4", "3", "a1")
        .boundary("5", "4", "2")
        .user("7", "5S", "p3")
        .says("8", "7", "a3"),
        "compacted, and gone on beside the summary too": Paper()
        .two_turns()
        .boundary("5", "4", "4")
        .user("6", "5S", "x1")
        .user("7", "4", "p3")
        .says("8", "7", "a3"),
    }


@pytest.mark.parametrize("part", range(4))
def test_claude_shapes(claude: Make, part: int) -> None:
    """The CLI resumes thirty different transcripts. For each one the driver reports the items that
    the CLI really loads."""
    stage = claude("\n---\n".join(["say Answer."] * 20))
    wrong = {}
    for name, paper in list(papers().items())[part::4]:
        place = stage.driver.place(stage.home, paper.session, stage.cwd, Path())
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(json.dumps(record) + "\n" for record in paper.records))
        found = told(loads_now(stage, paper.session))
        before = len(stage.rehearsal.requests)
        stage.run("go on", resume(paper.session))
        asked = shown(
            next(each for each in stage.rehearsal.requests[before:] if each.messages).messages
        )[:-1]
        if asked != found:
            wrong[name] = (asked, found)
    assert wrong == {}, "\n".join(
        f"{name}:\n  {asked}\n  {ours}" for name, (asked, ours) in wrong.items()
    )


# --- Codex
# ---------------------------------------------------------------------------------------------------------


def go_back(stage: Bench, thread: str, turns: int) -> None:
    """Remove the last turns, as a person does by pressing Esc twice."""
    terminal = opened(stage, thread)
    terminal.go_back(turns)
    terminal.close()


def opened(stage: Bench, thread: str) -> CodexTerminal:
    """Open a thread in the CLI's own terminal."""
    program = stage.driver.locate(stage.environ).path
    return CodexTerminal(program, thread, stage.cwd, stage.environ)


def test_codex_went_back(codex: Make) -> None:
    """Removing turns begins a new file for the same thread. The rest of the earlier file is loaded,
    and the removed items are named."""
    stage = codex(TOOLS + MORE)
    thread = stage.run("hello one").session_id
    stage.run("hello two", resume(thread))
    known = loads_now(stage, thread)
    go_back(stage, thread, 1)
    assert len(stage.driver.files_of(stage.home, thread)) == 2
    found, _ = goes_on(stage, thread, "another way")
    seen = compare(known.items, found)
    assert (seen.relation, seen.off_branch) == (Relation.SHORTENED, 4)
    assert seen.missing[0].said == "hello two"
    go_back(stage, thread, 1)
    goes_on(stage, thread, "a third way")
    assert stage.prompts(thread) == ["a third way"]


def test_codex_listed_after_turns_were_removed(codex: Make) -> None:
    """The list has the thread once, with its newest file, and counts the turns that are left."""
    stage = codex(TOOLS + MORE)
    thread = stage.run("hello one").session_id
    stage.run("hello two", resume(thread))
    go_back(stage, thread, 1)
    (listed,) = stage.driver.conversations(stage.home, 10)
    assert (listed.id, listed.first, listed.turns) == (thread, "hello one", 1)
    stage.run("another way", resume(thread))
    for only in ("", thread):
        (listed,) = stage.driver.conversations(stage.home, 10, only)
        assert Path(listed.path) == stage.driver.transcript(stage.home, thread)
        assert (listed.first, listed.turns) == ("hello one", 2)
        assert abs(listed.updated - Path(listed.path).stat().st_mtime * 1000) < 2


def test_codex_compacted(codex: Make) -> None:
    """After a compaction the prompts stay and a summary replaces the rest. This also holds in a
    fork, and after turns were removed."""
    stage = codex(f"summary What happened so far.\n{TOOLS}{MORE}")
    thread = stage.run("hello one").session_id
    stage.run("hello two", resume(thread))
    known = loads_now(stage, thread)
    terminal = opened(stage, thread)
    terminal.compact()
    terminal.close()
    found, _ = goes_on(stage, thread, "hello three")
    seen = compare(known.items, found)
    assert (found.compactions, seen.relation, seen.missing) == (1, Relation.COMPACTED, ())
    assert [each.kind for each in found.items] == [
        ItemKind.PROMPT,
        ItemKind.PROMPT,
        ItemKind.SUMMARY,
    ]
    fork = stage.run("a fork", Continuation(kind=Start.FORK, session_id=thread)).session_id
    goes_on(stage, fork, "in the fork")
    go_back(stage, thread, 1)
    goes_on(stage, thread, "hello four")


def test_codex_forked(codex: Make) -> None:
    """A fork's file does not repeat its parent. The parent's items are loaded up to the point of
    the fork, whatever the parent has done since."""
    stage = codex(TOOLS + MORE)
    thread = stage.run("hello one").session_id
    fork = stage.run("a fork", Continuation(kind=Start.FORK, session_id=thread)).session_id
    stage.run("the parent goes on", resume(thread))
    found, _ = goes_on(stage, fork, "in the fork")
    assert found.dropped == ()
    second = stage.run(
        "a fork of the fork", Continuation(kind=Start.FORK, session_id=fork)
    ).session_id
    goes_on(stage, second, "in the second fork")


# --- any transcript
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", ["claude", "codex", "gemini", "opencode"])
def test_nothing_that_stands_in_a_file_raises(agent: str) -> None:
    """Hostile files are read as far as possible without an error: records with unexpected types,
    cycles, and lines that are not records."""
    odd: list[Any] = [None, 1, [], {}, "x", [1], {"a": 1}, [{"type": []}]]
    keys = (
        "type",
        "uuid",
        "parentUuid",
        "message",
        "payload",
        "$set",
        "$rewindTo",
        "id",
        "data",
        "compactMetadata",
        "leafUuid",
        "content",
    )
    kinds = (
        "user",
        "assistant",
        "system",
        "last-prompt",
        "response_item",
        "compacted",
        "message",
        "part",
        "revert",
        "gemini",
    )
    lines = [
        json.dumps({"type": kind, "uuid": "a", "id": "a", key: value})
        for kind in kinds
        for key in keys
        for value in odd
    ]
    shapes = [json.dumps({"type": "assistant", "uuid": "b", "message": value}) for value in odd]
    content = "\n".join(
        [*lines, *shapes, "\x00", "{", "[]", '{"type":"user","parentUuid":"a","uuid":"a"}']
    ).encode()
    assert registry.load(agent).loads(content) is not None
    assert registry.load(agent).loads(b"") == Loaded()
