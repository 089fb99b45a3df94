"""Requests of agents on the board: each is shown whole and harmless, and answered once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import force_setattr, replace

from perdure import store as stores
from perdure.config.files import load
from perdure.engine import service
from perdure.engine.attempt import Engine
from perdure.model import TaskRun
from perdure.model.requests import AnswerKind, RequestKind, RequestState
from perdure.rules.requests import QUESTION, SHOWN
from perdure.store.sql import SqlStore
from perdure.testing.stores.requests import waiting
from perdure.wiring import open_engine
from tests.top.playing import Play, play
from tests.top.test_top import HOSTILE, _harmless

REASON = "a reason of several words"


@pytest.fixture
def engine(store: SqlStore) -> Iterator[Engine]:
    """The engine of a person's own command, with a connection of its own."""
    place = Path(store._database.place)
    made = open_engine(load({"HOME": str(place.parent)}, Path("/")), {})
    made.store.close()
    with closing(stores.open(place)) as own:
        own.actor = "local:ada@host"
        force_setattr(made, "store", own)
        yield made


def asks(store: SqlStore, **given: Any) -> TaskRun:
    """Return a run whose agent asks for a call with these arguments."""
    payload = json.dumps(given or {"command": "make deploy"})
    return waiting(store, payload=payload, size=len(payload))


def questions(store: SqlStore, *asked: str) -> TaskRun:
    """Return a run whose agent asks these questions, each with two options."""
    options = [{"label": "Postgres"}, {"label": "SQLite"}]
    payload = json.dumps({"questions": [{"question": each, "options": options} for each in asked]})
    return waiting(
        store, kind=RequestKind.QUESTION, tool=QUESTION, payload=payload, size=len(payload)
    )


class Person:
    """Answers by the engine, as the board of `perdure top` does."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __call__(self, run_id: str, number: int, verdict: AnswerKind, words: str) -> str:
        _, request = service.answer(self.engine, run_id, number, verdict, words)
        return f"answered: {request.answer}"


async def types(at: Play, text: str) -> None:
    keys = ["space" if each == " " else each for each in text]
    await at.press(*keys, "enter")


def test_a_call_is_allowed_or_refused_from_the_board(store: SqlStore, engine: Engine) -> None:
    """The run says that a key answers it. The key shows the exact call. Escape leaves it open, a
    word that decides nothing asks again, `y` allows the call once, and a reason refuses it."""
    allowed, refused = asks(store), asks(store, command="make publish")

    async def story(at: Play) -> None:
        await at.shows("needs input  2", "i answers; it asks")
        await at.chooses(allowed.id)
        await at.press("i")
        await at.shows("tool: Bash", "$ make deploy", "Allow it once? y, n, or a reason")
        await at.press("escape")
        await at.hides("Allow it once?")
        assert store.requests(allowed.id)[0].state is RequestState.OPEN
        await at.press("i")
        await at.shows("$ make deploy")
        await types(at, "yep")
        await at.press("q")
        await at.shows("Allow it once?")
        await at.press("backspace")
        await types(at, "y")
        await at.shows("answered: allow", "needs input  1")
        await at.press("escape")
        await at.chooses(refused.id)
        await at.press("i")
        await at.shows("$ make publish")
        await types(at, REASON)
        await at.shows("answered: deny", "0 needs input")

    play(store, story, answer=Person(engine))
    (first,), (second,) = store.requests(allowed.id), store.requests(refused.id)
    assert (first.answer, first.words, first.by) == (AnswerKind.ALLOW, "", "local:ada@host")
    assert (second.answer, second.words) == (AnswerKind.DENY, REASON)
    assert all(store.get(each.id).run_after <= store.now() for each in (allowed, refused))


def test_questions_are_answered_one_after_the_other(store: SqlStore, engine: Engine) -> None:
    """The number of an option stands for its text. No text of an answer becomes the filter of the
    board."""
    run = questions(store, "Which database?", "Which port?")

    async def story(at: Play) -> None:
        await at.until(lambda: at.app.chosen, "the run")
        await at.press("i")
        await at.shows("Which database?", "  2. SQLite", "Question 1 of 2. Your answer:")
        await types(at, "")
        await types(at, "2")
        await at.shows("Question 2 of 2. Your answer:")
        await types(at, "5432 of course")
        await at.shows("answered: text", "waiting  1")
        await at.hides("with:")

    play(store, story, answer=Person(engine))
    assert store.requests(run.id)[0].words == "SQLite\n5432 of course"


def test_a_late_or_second_answer_shows_the_reason(store: SqlStore, engine: Engine) -> None:
    """Another person answers while the request is on the screen: the first answer counts, and the
    second person reads who was first. The key tells the same afterwards."""
    run = asks(store)

    async def story(at: Play) -> None:
        await at.until(lambda: at.app.chosen, "the run")
        await at.press("i")
        await at.shows("$ make deploy")
        store.answer(run.id, 1, AnswerKind.DENY, "no", "bob")
        await types(at, "y")
        await at.shows("Request 1 was answered already by bob: deny; perdure requests")
        await at.press("escape", "i")
        await at.shows(f"{run.name} has no open request. Request 1 was answered already by bob")

    play(store, story, answer=Person(engine))
    assert store.requests(run.id)[0].answer is AnswerKind.DENY


def test_an_expired_request_is_not_offered(store: SqlStore) -> None:
    waiting(store, lasts_ms=1)

    async def story(at: Play) -> None:
        await at.until(lambda: at.app.chosen, "the run")
        await at.press("i")
        await at.shows("Request 1 has expired, so the call was refused")

    play(store, story)


def test_a_hostile_call_is_shown_by_name(store: SqlStore, engine: Engine) -> None:
    """Control characters and direction marks are named. Markup has no style and no action, also in
    the names of arguments."""
    run = asks(store, command=HOSTILE, **{HOSTILE: "[red]x[/]\r\n"})

    async def story(at: Play) -> None:
        await at.until(lambda: at.app.chosen, "the run")
        await at.press("i")
        await at.shows("^[]0;pwned^G^[[2J[bold red on white]x[/]", "<U+202E>gnp.exe ^M^H")
        _harmless(at)
        await at.pilot.resize_terminal(30, 12)
        await at.until(lambda: len(at.screen()) == 12, "a small screen")
        _harmless(at)
        await at.press("escape")
        await at.hides("pwned")

    play(store, story, answer=Person(engine), size=(220, 40))
    assert store.requests(run.id)[0].state is RequestState.OPEN


def test_a_cut_call_can_only_be_refused(store: SqlStore, engine: Engine) -> None:
    """The beginning of a call of one megabyte is shown, and a line says that it is cut. `y` decides
    nothing."""
    text = json.dumps({"command": "x" * 1_000_000})
    run = waiting(store)
    (request,) = store.requests(run.id)
    with store._database.writing() as (cursor, _):
        cut = replace(request, payload=text[:SHOWN], size=len(text))
        body = json.dumps({**json.loads(_body(cursor)), "payload": cut.payload, "size": cut.size})
        cursor.execute("UPDATE requests SET body = ?", (body,))

    async def story(at: Play) -> None:
        await at.until(lambda: at.app.chosen, "the run")
        await at.press("i")
        await at.shows(
            f"too long to be shown whole ({len(text)} characters): it can only be refused"
        )
        await types(at, "y")
        await at.shows("It can only be refused: n, or a reason:")
        await types(at, "n")
        await at.shows("answered: deny")

    play(store, story, answer=Person(engine))
    assert store.requests(run.id)[0].answer is AnswerKind.DENY


def _body(cursor: Any) -> str:
    return str(cursor.execute("SELECT body FROM requests").fetchone()[0])


def test_a_call_is_allowed_only_after_its_end_was_on_the_screen(
    store: SqlStore, engine: Engine
) -> None:
    """A long call begins harmlessly. `y` counts only while the last line is shown."""
    run = asks(store, command="\n".join([*["true"] * 60, "rm -rf /"]))

    async def story(at: Play) -> None:
        await at.until(lambda: at.app.chosen, "the run")
        await at.press("i")
        await at.shows("$ true")
        await types(at, "y")
        await at.shows("Read the call to its end first (Page Down).")
        assert store.requests(run.id)[0].state is RequestState.OPEN
        await at.press("pagedown", "pagedown", "pagedown", "down")
        await at.shows("$ rm -rf /")
        await types(at, "y")
        await at.shows("answered: allow")

    play(store, story, answer=Person(engine), size=(100, 30))
