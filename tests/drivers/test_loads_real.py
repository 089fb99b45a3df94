"""The slow CLIs (Gemini CLI, OpenCode): the items that a resume loads are compared with the
requests that the model server recorded. Also, a conversation continues after its home was moved."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from perdure.model import Permissions, Relation, compare
from perdure.testing.drivers import Bench
from perdure.testing.drivers.bench import resume
from tests.drivers.moving import goes_on_elsewhere
from tests.drivers.talk import goes_on, loads_now
from tests.drivers.test_driver_real import Make, benches

TOOLS = "say Let me see.\nrun echo a\nrun echo b\n---\nsay First done."
MORE = "".join(f"\n---\nsay Answer {number}." for number in range(8))
FULL = Permissions.FULL


@pytest.fixture
def gemini() -> Iterator[Make]:
    """Makes benches for Gemini CLI."""
    yield from benches("gemini")


@pytest.fixture
def opencode() -> Iterator[Make]:
    """Makes benches for OpenCode."""
    yield from benches("opencode")


def test_gemini_turns_with_tools_and_a_rewind(gemini: Make) -> None:
    """Every result is loaded once, however often the CLI repeats it. The items that a rewind
    removed are named as removed."""
    stage = gemini(TOOLS + MORE)
    session = stage.run("hello one", permissions=FULL).session_id
    goes_on(stage, session, "hello two")
    known = loads_now(stage, session)
    path = stage.driver.transcript(stage.home, session)
    assert path is not None
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    last = next(each["id"] for each in reversed(records) if each.get("type") == "user")
    with path.open("a") as file:
        file.write(json.dumps({"$rewindTo": last}) + "\n")
    found, _ = goes_on(stage, session, "another way")
    seen = compare(known.items, found)
    assert (seen.relation, seen.off_branch) == (Relation.SHORTENED, 2)
    assert seen.missing[0].said == "hello two"


def test_gemini_prompts_that_name_files(gemini: Make) -> None:
    """A prompt with `@file` is loaded as it was given, also after a resume. The model gets the
    file's content after it."""
    stage = gemini("\n---\n".join(f"say Answer {number}." for number in range(6)))
    (stage.cwd / "f.txt").write_text("secret plan")
    prompt = "look at @f.txt please"
    session = stage.run(prompt).session_id
    assert "secret plan" in stage.reached_the_model()
    assert stage.prompts(session) == [prompt]
    stage.run("go on", resume(session))
    assert "secret plan" in stage.reached_the_model()
    assert stage.prompts(session) == [prompt, "go on"]
    stage.run(f"again: {prompt}", resume(session))
    assert stage.prompts(session) == [prompt, "go on", f"again: {prompt}"]


def test_opencode_turns_with_tools_and_a_revert(opencode: Make) -> None:
    """Items after the point to which a session was reverted are not loaded. They are named as long
    as they exist in the database."""
    stage = opencode(TOOLS + MORE)
    session = stage.run("hello one", permissions=FULL).session_id
    goes_on(stage, session, "hello two", permissions=FULL)
    known = loads_now(stage, session)
    _revert(stage, session)
    found = loads_now(stage, session)
    seen = compare(known.items, found)
    assert (seen.relation, seen.off_branch) == (Relation.SHORTENED, 2)
    assert seen.missing[0].said == "hello two"
    goes_on(stage, session, "another way", permissions=FULL)


def _revert(stage: Bench, session: str) -> None:
    """Revert the last prompt, with the record that the CLI's own `/undo` makes."""
    with closing(sqlite3.connect(stage.home)) as database, database:
        question = (
            "select id from message where session_id = ? and json_extract(data, '$.role') = 'user' "
            "order by time_created desc limit 1"
        )
        (message,) = database.execute(question, (session,)).fetchone()
        database.execute(
            "update session set revert = ? where id = ?",
            (json.dumps({"messageID": message}), session),
        )


@pytest.mark.parametrize("agent", ["gemini", "opencode"])
def test_a_conversation_goes_on_at_another_path(agent: str) -> None:
    """A conversation continues after its home was moved, copied or linked to another path."""
    for make in benches(agent):
        goes_on_elsewhere(
            make("\n---\n".join(f"say Answer {number}." for number in range(6))), "moved"
        )
