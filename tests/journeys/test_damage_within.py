"""Lines in the middle of a transcript that were damaged before perdure had read them, with the real
CLIs.

No copy and no journal has the content of such a line. Only the file itself shows the damage.
"""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.finding import first_file
from tests.journeys.stage import Stage
from tests.journeys.test_damage import (
    FILES,
    PROMPT,
    RUN,
    SELDOM,
    TWO_TURNS,
    database,
    lose,
    reasons,
    retried,
    shown,
)

MakeStage = Callable[..., Stage]

pytestmark = pytest.mark.journey


def zeros(line: bytes) -> bytes:
    """Return the line as zeros, as if its page of the file was lost."""
    return b"\0" * len(line)


def no_utf8(line: bytes) -> bytes:
    """Return the line with a changed byte, so that it is not valid UTF-8."""
    return line.replace(b"alder", b"al\xffer")


def no_record(line: bytes) -> bytes:
    """Return the line with a changed key: it is JSON, but not a record of this CLI."""
    return line.replace(b'"type":', b'"tipe":')


RESULT = re.compile(rb"(?<!echo )alder")
"""The first tool call's result in a transcript. The pattern does not match the command that prints
it."""


def lost_unread(one: Stage, go: Path, *more: str) -> Path:
    """Run attempt 1 until its machine is lost in the second tool call, and the transcript has the
    first one's result. perdure has read no line after the conversation's id, and has no copy. `go`:
    the file for which the first reply waits. Return the transcript."""
    started = one.start(*RUN, one.agent, "--attempts", "1", *more, PROMPT)
    one.until(
        lambda: "session_seen" in one.perdure("logs", "task", "--json").out, "the agent is heard"
    )
    started.send_signal(signal.SIGSTOP)
    stdout = one.attempt_directory(1) / "stdout"
    heard = stdout.stat().st_size
    go.touch()
    one.until(lambda: first_file(one.home, "third.txt"), "the second tool runs")
    one.until(
        lambda: any(RESULT.search(path.read_bytes()) for path in one.transcripts()),
        "the agent writes the first result to its transcript",
    )
    lose(one, started)
    with stdout.open("r+b") as file:
        file.truncate(heard)
    (transcript,) = one.transcripts()
    return transcript


SCRIPT = """by history
hold {go}
run echo alder > one.txt; cat one.txt
---
say Cedar is next.
run echo dogwood > third.txt; test -e go.txt || sleep 98
---
say Everything is written.
---
say Another answer.
"""


@pytest.mark.parametrize(
    ("agent", "harm"),
    [
        ("claude", zeros),
        ("claude", no_record),
        ("codex", zeros),
        ("codex", no_utf8),
        ("gemini", zeros),
    ],
    indirect=["agent"],
)
def test_a_damaged_line_that_perdure_had_not_read(
    stage: MakeStage, tmp_path: Path, harm: Callable[[bytes], bytes]
) -> None:
    """The CLI skips the damaged line, or loads it changed. The receipt is not native and names the
    damage. The prompt tells the agent about it. Even a strict policy continues. The next receipt is
    native again."""
    go = tmp_path / "asked"
    one = stage(SCRIPT.format(go=go), extra=SELDOM)
    transcript = lost_unread(one, go, "--continuity", "strict")
    lines = transcript.read_bytes().split(b"\n")
    at = next(at for at, line in enumerate(lines) if RESULT.search(line))
    lines[at] = harm(lines[at])
    transcript.write_bytes(b"\n".join(lines))
    (_, second), first_request = retried(one)
    assert second["receipt"]["verdict"] == "repaired", reasons(second)
    assert "1 damaged line(s) of the transcript" in reasons(second)
    assert "quercus" in first_request
    told = first_request.rpartition("user: ")[2]
    assert "1 damaged line(s)" in told, told
    assert "1 damaged line(s) of the transcript" in one.perdure("why", "task").out
    done = one.perdure("update", "task", "Now the second one.", "--json")
    again = done.json["attempts"][-1]
    assert again["receipt"]["verdict"] == "native", reasons(again)


@FILES
def test_a_torn_last_record_is_no_damage(stage: MakeStage, tmp_path: Path) -> None:
    """A kill left an incomplete record that perdure had not read. The CLI continues after it, so
    the record is now in the middle of the file. No receipt calls it damage, even after another
    kill."""
    go = tmp_path / "asked"
    one = stage(SCRIPT.format(go=go), extra=SELDOM)
    transcript = lost_unread(one, go)
    content = transcript.read_bytes().rstrip(b"\n")
    transcript.write_bytes(content[: content.rindex(b"\n") + 40])
    attempts, first_request = retried(one)
    assert attempts[-1]["receipt"]["verdict"] == "native", reasons(attempts[-1])
    assert "quercus" in first_request
    done = one.perdure("update", "task", "Now the second one.", "--json")
    again = done.json["attempts"][-1]
    assert again["receipt"]["verdict"] == "native", reasons(again)


@pytest.mark.parametrize("agent", ["opencode"], indirect=True)
def test_a_broken_row_of_a_database_and_no_copy(stage: MakeStage) -> None:
    """OpenCode fails on a session with such a row. If there is no copy, a note replaces the row,
    also with a strict policy. The rest of the conversation is complete."""
    one = stage(TWO_TURNS)
    assert one.perdure(*RUN, one.agent, "--continuity", "strict", PROMPT).code == 0
    shutil.rmtree(one.state / "transcripts")
    with database(one) as rows:
        changed = rows.execute(
            "update part set data = substr(data, 1, 30) where data like '%alder%' and "
            "json_extract(data, '$.type') = 'tool'"
        )
        assert changed.rowcount == 1
    since = len(one.rehearsal.requests)
    done = one.perdure("update", "task", "Now the second one.", "--json")
    assert done.code == 0, done.err
    last = done.json["attempts"][-1]
    assert (last["rung"], last["receipt"]["verdict"]) == ("repaired", "repaired"), reasons(last)
    assert "replaced by a note" in reasons(last)
    first_request = shown(one, since)
    assert "quercus" in first_request and "The first turn is over." in first_request, first_request
    assert "the text here cannot be read any more" in first_request
    again = one.perdure("update", "task", "Now the third one.", "--json").json["attempts"][-1]
    assert (again["rung"], again["receipt"]["verdict"]) == ("native", "native"), reasons(again)
