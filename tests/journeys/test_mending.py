"""A conversation that its own agent refuses continues as `repaired`, with the real CLIs: a copy is
repaired, proven and put in its place."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.journeys.stage import Stage, said

MakeStage = Callable[..., Stage]
pytestmark = pytest.mark.journey

RUN = ("run", "--name", "task", "--permissions", "full", "--json", "--agent")
PROMPT = "Write one.txt. The magic word is quercus."
SCRIPT = """by history
run echo one > one.txt
---
say The file is written.
---
say I still know the word.
"""


def poisoned(agent: str, content: bytes) -> bytes:
    """Return the transcript changed so that the agent refuses it: Claude because of an image over
    the service's limit, Codex and Gemini because of the first line."""
    first, _, rest = content.partition(b"\n")
    if agent != "claude":
        return first[:60] + b"\n" + rest
    lines = content.split(b"\n")
    at = next(n for n, line in enumerate(lines) if b'"tool_result"' in line)
    entry = json.loads(lines[at])
    image = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": "A" * 6_000_000},
    }
    entry["message"]["content"][0]["content"] = [{"type": "text", "text": "made"}, image]
    lines[at] = json.dumps(entry, separators=(",", ":")).encode()
    return b"\n".join(lines)


def poison(one: Stage) -> dict[Path, bytes]:
    """Damage the agent's transcript and perdure's copy of it. Return the contents of the agent's
    files afterwards."""
    for path in [*one.transcripts(), *one.copies()]:
        path.write_bytes(poisoned(one.agent, path.read_bytes()))
    return {path: path.read_bytes() for path in one.transcripts()}


@pytest.mark.parametrize("agent", ["claude", "codex", "gemini"], indirect=True)
def test_a_refused_conversation_goes_on_repaired(stage: MakeStage) -> None:
    """All earlier rungs fail, and the repaired copy is proven and used. The model gets the history,
    the receipt has the edit log, and the broken transcript is kept aside unchanged."""
    one = stage(SCRIPT)
    assert one.perdure(*RUN, one.agent, "--attempts", "9", PROMPT).code == 0
    broken = poison(one)
    done = one.perdure("update", "task", "Which word was it?", "--json")
    assert done.code == 0, (done.err, done.out[-3000:])
    last = done.json["attempts"][-1]
    assert (last["rung"], last["receipt"]["verdict"], last["outcome"]["kind"]) == (
        "repaired",
        "repaired",
        "succeeded",
    ), last
    assert any(
        "perdure repaired the transcript first: line" in reason
        for reason in last["receipt"]["reasons"]
    )
    history = said(one.rehearsal.last.messages)
    assert (
        "The magic word is quercus." in history
        and "The file is written." in history
        and "Which word was it?" in history
    )
    assert "a repaired copy was put in place" in one.perdure("logs", "task").out
    aside = [path.read_bytes() for path in one.agent_home.rglob("*perdure-unusable*")]
    assert all(any(each.startswith(content) for each in aside) for content in broken.values())
    again = one.perdure("update", "task", "And again?", "--json")
    assert (
        again.json["attempts"][-1]["rung"],
        again.json["attempts"][-1]["receipt"]["verdict"],
    ) == ("native", "native"), again.out[-2000:]
    one.nothing_survives()


@pytest.mark.parametrize("agent", ["codex", "claude"], indirect=True)
def test_a_person_checks_and_mends(stage: MakeStage) -> None:
    """`check` names the damage and ends with 1. `repair` only shows the changes; with --write the
    copy is proven and put in place. The original is kept aside, and the run continues natively."""
    one = stage(SCRIPT)
    assert one.perdure(*RUN, one.agent, PROMPT).code == 0
    assert one.perdure("sessions", "check", "--all").code == 0
    broken = poison(one)
    ((path, content),) = broken.items()
    session = one.show()["attempts"][0]["session_id"]
    checked = one.perdure("sessions", "check", session)
    assert checked.code == 1 and "refused" in checked.out and "line " in checked.out, (
        checked.out + checked.err
    )
    shown = one.perdure("sessions", "repair", session)
    assert (
        shown.code == 0 and "nothing was written" in shown.out and path.read_bytes() == content
    ), shown.out + shown.err
    report = one.perdure("sessions", "repair", session, "--json").json
    assert (report["schema_version"], report["mendable"], report["written"]) == (
        1,
        True,
        False,
    ) and report["edits"]
    before = len(one.rehearsal.requests)
    done = one.perdure("sessions", "repair", session, "--write", "--json")
    assert done.code == 0, done.err
    assert [Path(each).read_bytes() for each in done.json["moved"]] == [content]
    assert len(one.rehearsal.requests) == before, "the proof has a model of its own"
    assert one.perdure("sessions", "check", session).code == 0
    assert one.perdure("sessions", "repair", session).out.splitlines()[-1] == "nothing to repair"
    went_on = one.perdure("update", "task", "Which word was it?", "--json")
    assert went_on.code == 0, went_on.err
    assert (
        went_on.json["attempts"][-1]["rung"],
        went_on.json["attempts"][-1]["receipt"]["verdict"],
    ) == ("native", "native")
    assert "The magic word is quercus." in said(one.rehearsal.last.messages)


@pytest.mark.parametrize("agent", ["codex"], indirect=True)
def test_what_cannot_be_mended_is_left_alone(stage: MakeStage) -> None:
    """An empty transcript, and two files of one conversation with different continuations, are not
    repaired: the reason is given, and nothing is written. A file that is only the beginning of the
    other one is moved aside."""
    one = stage(SCRIPT)
    assert one.perdure(*RUN, one.agent, PROMPT).code == 0
    (path,) = one.transcripts()
    session, content = one.show()["attempts"][0]["session_id"], path.read_bytes()
    path.write_bytes(b"")
    refused = one.perdure("sessions", "repair", session, "--write")
    assert (
        refused.code == 1
        and "cannot be repaired: nothing of the thread is left" in refused.out
        and path.read_bytes() == b""
    )
    path.write_bytes(content)
    second = path.with_name(path.name.replace("rollout-2", "rollout-1"))
    second.write_bytes(content[:-200] + b'"other"}\n')
    refused = one.perdure("sessions", "repair", session, "--write")
    assert refused.code == 1 and "a person must choose one" in refused.out and second.exists()
    second.write_bytes(content[: content.index(b"\n") + 1])
    assert one.perdure("sessions", "check", session).code == 1
    done = one.perdure("sessions", "repair", session, "--write", "--json")
    assert done.code == 0 and not second.exists() and path.read_bytes() == content, done.err
    assert one.perdure("sessions", "mend", "ffffffff").code == 5


@pytest.mark.parametrize("agent", ["claude"], indirect=True)
def test_a_conversation_is_read_without_its_tricks(stage: MakeStage) -> None:
    """`show` prints the whole conversation without control characters."""
    one = stage("say Begin \x1b]0;title\x07\x1b[2J middle \u202e end.")
    assert one.perdure(*RUN, one.agent, PROMPT).code == 0
    session = one.show()["attempts"][0]["session_id"]
    shown = one.perdure("sessions", "show", session)
    assert shown.code == 0 and "person: Write one.txt." in shown.out and "middle" in shown.out
    assert not {letter for letter in shown.out if not letter.isprintable()} - {"\n"}


@pytest.mark.parametrize("agent", ["claude"], indirect=True)
def test_a_mended_copy_that_is_not_proven_is_not_used(stage: MakeStage) -> None:
    """If the agent continues from the repaired copy but sends its model only a part of it, the copy
    is not used, and the policy decides."""
    one = stage(SCRIPT)
    assert one.perdure(*RUN, one.agent, "--attempts", "9", PROMPT).code == 0
    for path in [*one.transcripts(), *one.copies()]:
        lines = poisoned("claude", path.read_bytes()).split(b"\n")
        call = next(n for n, line in enumerate(lines) if b'"tool_use","id"' in line)
        entry = json.loads(lines[call])
        lines[call] = json.dumps(
            {**entry, "parentUuid": None, "entrypoint": "cli"}, separators=(",", ":")
        ).encode()
        path.write_bytes(b"\n".join(lines))
    session = one.show()["attempts"][0]["session_id"]
    refused = one.perdure("sessions", "repair", session, "--write")
    assert refused.code == 1 and "did not get" in refused.err, refused.err + refused.out
    assert not list(one.agent_home.rglob("*perdure-unusable*"))
    done = one.perdure("update", "task", "Which word was it?", "--json")
    last = done.json["attempts"][-1]
    assert (last["rung"], last["receipt"]["verdict"]) == ("rebuilt", "rebuilt"), last
    assert "a repaired copy" not in one.perdure("logs", "task").out


@pytest.mark.parametrize("agent", ["codex"], indirect=True)
def test_nobody_else_may_be_on_it(stage: MakeStage) -> None:
    """While an attempt is running in the conversation, no repaired copy is put in place."""
    one = stage("hang\nsay Never.")
    started = one.start(*RUN, one.agent, PROMPT)
    one.rehearsal.wait_for(1)
    (path,) = one.until(
        lambda: [each for each in one.transcripts() if b"quercus" in each.read_bytes()],
        "the prompt is written",
    )
    session, content = path.stem[-36:], path.read_bytes()
    path.write_bytes(poisoned("codex", content))
    refused = one.perdure("sessions", "repair", session, "--write")
    assert refused.code == 6 and path.read_bytes() == poisoned("codex", content), refused.err
    assert one.perdure("stop", "task").code == 0
    one.finish(started)


@pytest.mark.parametrize("agent", ["claude"], indirect=True)
def test_one_id_in_two_places(stage: MakeStage) -> None:
    """If two directories have a conversation with the same id, Claude finds neither from a third
    directory. After the older file was moved aside, the conversation continues."""
    one = stage(SCRIPT)
    assert one.perdure(*RUN, one.agent, PROMPT).code == 0
    (path,) = one.transcripts()
    session, content = path.stem, path.read_bytes()
    for name, kept in (
        ("-one", content),
        ("-two", content[: content.index(b"The file is written.")].rpartition(b"\n")[0] + b"\n"),
    ):
        path.parent.with_name(name).mkdir()
        path.parent.with_name(name).joinpath(path.name).write_bytes(kept)
    path.unlink()
    os.utime(path.parent.with_name("-two") / path.name, (1, 1))
    elsewhere = one.directory / "elsewhere"
    elsewhere.mkdir()
    assert "No conversation found" in one.resume_by_hand(session, "hello?", elsewhere).stderr
    mended = one.perdure("sessions", "repair", session, "--write", "--json")
    assert mended.code == 0 and [each["trouble"] for each in mended.json["findings"]] == [
        "one id in two places"
    ], mended.err
    assert one.resume_by_hand(session, "hello?", elsewhere).returncode == 0
    assert "The magic word is quercus." in said(one.rehearsal.last.messages)


@pytest.mark.parametrize("agent", ["opencode"], indirect=True)
def test_a_broken_row_is_told_and_left_alone(stage: MakeStage) -> None:
    """A broken row in OpenCode's database is shown with the reason why it is not repaired. The
    database is not written."""
    one = stage(SCRIPT)
    assert one.perdure(*RUN, one.agent, PROMPT).code == 0
    session = one.show()["attempts"][0]["session_id"]
    database = one.agent_home / "opencode/opencode.db"
    with closing(sqlite3.connect(database)) as opened:
        opened.execute(
            "update part set data = '{broken' where json_extract(data, '$.text') = 'The file is "
            "written.'"
        )
        opened.commit()
    checked = one.perdure("sessions", "check", session)
    assert checked.code == 1 and "refused" in checked.out, checked.out + checked.err
    mended = one.perdure("sessions", "repair", session, "--write")
    assert mended.code == 1 and "in the agent's database" in mended.out


@pytest.mark.parametrize("agent", ["claude"], indirect=True)
def test_a_loss_that_a_repair_cannot_undo(stage: MakeStage) -> None:
    """If a line in the middle is unreadable, `repair` says that the agent would continue without
    it, and that perdure's own copy has it. The next attempt restores that copy and is native."""
    one = stage(SCRIPT)
    assert one.perdure(*RUN, one.agent, PROMPT).code == 0
    (path,) = one.transcripts()
    lines = path.read_bytes().split(b"\n")
    lines[len(lines) // 2] = lines[len(lines) // 2][:50] + b"\0\0"
    path.write_bytes(b"\n".join(lines))
    session = one.show()["attempts"][0]["session_id"]
    done = one.perdure("sessions", "repair", session)
    assert done.code == 0 and "  loss " in done.out, done.out
    assert "perdure's own copy\nnothing to repair" in done.out, done.out
    went_on = one.perdure("update", "task", "Which word was it?", "--json")
    assert went_on.json["attempts"][-1]["receipt"]["verdict"] == "native", went_on.err
