"""Session records on the real CLIs: expired, lost, or created for later runs. The messages that
reached the model prove which conversation continued."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from msgspec.structs import replace

import perdure
from perdure import store as stores
from perdure.model import Session
from perdure.model.codec import decode, plain
from perdure.store.session_cache.records import SessionRecords
from tests.journeys.stage import PATIENCE_S, TOP, Stage, said
from tests.servers.redis import server

MakeStage = Callable[..., Stage]

TALK = "by history\nrun echo one > one.txt\n---\nsay The first file is written.\n" + "".join(
    f"---\nsay Answer {n}.\n" for n in range(2, 7)
)
PROMPT = "Write one.txt. The magic word is quercus."
RUN = ("run", "--name", "task", "--permissions", "full", "--json")

pytestmark = pytest.mark.journey


@pytest.fixture(params=["claude", "codex"])
def agent(request: pytest.FixtureRequest) -> str:
    """Return one of two CLIs, which are enough for these tests of perdure's own part. One of them
    lets the caller choose the id."""
    return str(request.param)


def begun(one: Stage) -> dict[str, Any]:
    done = one.perdure(*RUN, "--agent", one.agent, PROMPT)
    assert done.code == 0, done.err
    return done.json


def updated(one: Stage, text: str) -> tuple[dict[str, Any], str]:
    """Return the attempt that an update made, and the last conversation that the model got."""
    done = one.perdure("update", "task", text, "--json")
    assert done.code == 0, done.err
    return done.json["attempts"][-1], said(one.rehearsal.requests[-1].messages)


def verdict(attempt: dict[str, Any]) -> tuple[str, str]:
    return attempt["receipt"]["verdict"], attempt["rung"]


def records(one: Stage) -> list[Session]:
    with closing(sqlite3.connect(one.state / "perdure.db")) as database:
        return [
            decode(row[0], Session)
            for row in database.execute("SELECT body FROM sessions ORDER BY ordinal")
        ]


def told(session: Session) -> dict[str, Any]:
    """Return the fields of a record, except for the time of writing."""
    return {
        name: value
        for name, value in plain(session).items()
        if name not in ("created", "updated", "revision")
    }


def lose_records(one: Stage) -> None:
    with closing(sqlite3.connect(one.state / "perdure.db", isolation_level=None)) as database:
        database.execute("DELETE FROM sessions")


def test_a_lifetime_that_has_passed_is_told_and_the_ladder_runs(stage: MakeStage) -> None:
    """An expired session continues from its transcript, or from the own copy if the transcript is
    lost. Each attempt is marked as expired. With `session_expiry = "rebuild"` a new conversation
    begins with a brief."""
    one = stage(TALK, extra={"PERDURE_SESSION_LIFETIME": "0.001s"})
    begun(one)
    attempt, shown = updated(one, "Go on.")
    assert (
        verdict(attempt) == ("native", "native")
        and attempt["expired"]
        and "it had expired" in attempt["why"]
    )
    assert "quercus" in shown and "The first file is written." in shown

    for path in one.transcripts():
        path.unlink()
    attempt, shown = updated(one, "And on.")
    assert verdict(attempt) == ("native", "copy") and attempt["expired"]
    assert "The first file is written." in shown and "Answer 2." in shown

    one.environ["PERDURE_SESSION_EXPIRY"] = "rebuild"
    attempt, shown = updated(one, "Now anew.")
    assert (
        verdict(attempt) == ("rebuilt", "rebuilt")
        and attempt["lost_session_id"]
        and attempt["expired"]
    )
    assert (
        "is not continued" in attempt["why"]
        and "This is what is known of it" in shown
        and "quercus" in shown
    )
    assert "assistant: The first file is written." not in shown

    journal = one.perdure("logs", "task", "--json").out
    assert journal.count('"session_expired"') == 3
    why = one.perdure("why", "task").out
    assert why.count("  expired   ") == 3
    found = one.perdure("sessions", "stats", "--json").json
    assert (found["begun"], found["to_go_on"], found["went_on"], found["expired"]) == (1, 3, 2, 3)
    assert found["fallbacks"] == {
        "transcript gone, own copy put back": 1,
        "lifetime passed, new conversation": 1,
    }


def test_lost_records_are_made_again(stage: MakeStage) -> None:
    """After all session records were deleted, the next attempt recreates its record, says so, and
    continues natively. `sessions rebuild` also recreates the records as they were."""
    one = stage(TALK)
    begun(one)
    lose_records(one)
    attempt, shown = updated(one, "Go on.")
    assert verdict(attempt) == ("native", "native") and "The first file is written." in shown
    assert attempt["rebuilt_sessions"] == [attempt["session_id"]]
    assert "lost records" in one.perdure("why", "task").out

    before = records(one)
    lose_records(one)
    done = one.perdure("sessions", "rebuild", "--json")
    assert [row["sessions"][0]["id"] for row in done.json["rebuilt"]] == [attempt["session_id"]]
    assert [told(each) for each in records(one)] == [told(each) for each in before]
    assert one.perdure("sessions", "rebuild").out == "no record was missing\n"
    attempt, shown = updated(one, "And on.")
    assert (
        verdict(attempt) == ("native", "native")
        and "Answer 2." in shown
        and not attempt["rebuilt_sessions"]
    )


def test_the_documented_program(stage: MakeStage) -> None:
    """The program of docs/how-to/sessions.md works. A session is created before anything runs. Its
    runs share one conversation and are counted. Once it is closed, the next run starts a new one
    and says so."""
    one = stage(TALK)
    page = (TOP / "docs/how-to/sessions.md").read_text()
    program = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert program is not None
    words = [sys.executable, "-c", program[1].replace('"claude"', repr(one.agent))]
    done = subprocess.run(
        words,
        cwd=one.repo,
        env=one.environ,
        text=True,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told, rate = done.stdout.splitlines()
    shown = said(one.rehearsal.requests[-1].messages)
    assert "Write the model" in shown and "Write the views" in shown
    with perdure.open(cwd=one.repo, environ=one.environ) as runner:
        scope = perdure.plan_scope("shop-2026", "main")
        session = runner.sessions.lineage(one.agent, scope)[-1]
        assert (told, rate) == (f"{session.id} 2", "1.0")
        assert (session.cause, session.tasks, session.attempts) == ("the plan is done", 2, 2)
        assert (session.lifetime_s, len(runner.sessions.lineage(one.agent, scope))) == (
            28_800,
            1 if one.agent == "claude" else 2,
        )
        last = runner.run("Task 3.", agent=one.agent, scope=scope, branch="shop")
        assert "the plan is done" in runner.report(last.name)["attempts"][0]["why"]


@pytest.mark.parametrize("agent", ["claude"])
def test_an_attempt_never_asks_the_cache(stage: MakeStage) -> None:
    """The cache in Redis has a record that names another conversation, is the newest, and has a
    valid signature of the store. The attempt continues the conversation that the database names."""
    with server() as redis:
        one = stage(TALK, extra={"PERDURE_SESSION_CACHE": redis.url})
        begun(one)
        (session,) = records(one)
        with closing(stores.open(one.state / "perdure.db")) as store, redis.client() as client:
            signed = SessionRecords(*store.identity())
            (name,) = client.keys("perdure:*:session:*")
            wrong = replace(session, id="00000000-0000-4000-8000-000000000000", revision=2**40)
            client.set(name, signed.write(wrong, store.now()))
        attempt, shown = updated(one, "Go on.")
        assert verdict(attempt) == ("native", "native") and attempt["session_id"] == session.id
        assert "The first file is written." in shown
