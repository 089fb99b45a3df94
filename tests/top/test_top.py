"""The board in a terminal: its layout, its live updates, its keys, and its safety against hostile
text."""

from __future__ import annotations

import re
from pathlib import Path

from msgspec.structs import force_setattr, replace

from perdure.cli.top.screens import LogScreen
from perdure.config.files import load
from perdure.engine import service
from perdure.model import Condition, OutcomeKind, RunState, TaskSpec
from perdure.model.events import Said, ToolStarted
from perdure.store.sql import SqlStore
from perdure.testing.stores.samples import FAILURE, SUCCESS, begun, claimed, ending, submit
from perdure.wiring import open_engine
from tests.metrics.lives import a_life
from tests.top.playing import Play, play

HOSTILE = (
    "\x1b]0;pwned\x07\x1b[2J[bold red on white]x[/] [link=http://evil.invalid]y[/link] "
    "[@click=app.quit]z[/] \u202egnp.exe \r\b"
)


def asks(store: SqlStore, name: str, message: str = "answer it with perdure update") -> str:
    """Make a run that needs a person, and return its id."""
    run = submit(store, TaskSpec(prompt=f"do {name}"), name=name)
    condition = Condition(type="needs_person", message=message, at=1)
    store.finish(
        claimed(store, run), ending(OutcomeKind.NEEDS_INPUT, RunState.FAILED, condition=condition)
    )
    return run.id


def test_each_run_stands_where_a_person_looks_for_it(store: SqlStore) -> None:
    """Runs that need input come first, then running ones with their latest message, waiting ones,
    and finished ones. Each heading has the number of its runs."""
    asks(store, "asker")
    working = claimed(store, submit(store, name="worker"))
    store.begin(working, begun(working.run))
    store.record(
        working,
        [Said(text="half done"), ToolStarted(tool_id="1", name="Bash", summary="pytest -x")],
    )
    submit(store, TaskSpec(prompt="sit there", agent="codex"), name="waiter")
    for name, how in (("winner", SUCCESS), ("loser", FAILURE)):
        store.finish(claimed(store, submit(store, name=name)), how)

    async def story(at: Play) -> None:
        await at.shows("needs input  1", "working  1", "waiting  1", "failed  1", "done  1")
        lines = at.screen()
        order = [next(i for i, line in enumerate(lines) if word in line and i) for word in (
            "needs input", "asker", "working", "worker", "waiting", "waiter", "failed  1", "loser", "done", "winner")]  # fmt: skip
        assert order == sorted(order) and len(set(order)) == len(order)
        assert re.search(
            r"asker +claude +asks +1/3 +\d+s +answer it with perdure update", lines[order[1]]
        )
        assert "Bash: pytest -x" in lines[order[3]] and "running" in lines[order[3]]
        assert re.search(r"waiter +codex +queued +0/3 +\d+s +sit there", lines[order[5]])
        assert re.search(r"loser +claude +failed +1/3 +\d+s +it broke", lines[order[7]])

    play(store, story)


def test_it_changes_under_the_eyes_and_the_cursor_stays(store: SqlStore) -> None:
    """A run that begins, asks or ends moves to its group at once, and the cursor stays on the same
    run."""
    first = submit(store, name="first")

    async def story(at: Play) -> None:
        await at.shows("waiting  1", "first")
        assert at.app.chosen == first.id
        second = submit(store, name="second")
        await at.shows("waiting  2", "second")
        claim = claimed(store, first)
        await at.shows("working  1")
        store.finish(claim, SUCCESS)
        await at.shows("done  1")
        await at.hides("working  1")
        assert at.app.chosen == first.id
        store.request_cancel(second.id)
        await at.shows("done  2")
        store.remove(first.id)
        await at.shows("done  1")
        await at.until(lambda: at.app.chosen == second.id, "the cursor on what is left")

    play(store, story)


def test_the_verdict_on_the_work_is_shown(store: SqlStore) -> None:
    """The verdict on the work is in the line of a run that succeeded, and in its panel."""
    claim = claimed(store, submit(store, TaskSpec(prompt="do it"), name="winner"))
    store.finish(claim, replace(SUCCESS, work="unverified"))

    async def story(at: Play) -> None:
        await at.shows("unverified: do it")
        await at.press("space")
        await at.shows("attempt 1", "work unverified")

    play(store, story)


def test_peek(store: SqlStore) -> None:
    """Space shows the attempts of the selected run with their receipts and its last messages, and
    keeps them up to date. Space again, or Escape, closes the panel."""
    run_id = a_life(store)
    other = asks(store, "asker")

    async def story(at: Play) -> None:
        await at.chooses(run_id)
        await at.press("space")
        await at.shows(
            "attempt 1  fresh",
            "receipt fresh",
            "attempt 2  resume",
            "receipt native",
            "attempt 3  rebuild",
            "$0.25",
        )
        claim = claimed(store, store.get(run_id))
        store.record(claim, [Said(text="new words")])
        await at.shows("  new words")
        await at.press("k")
        await at.until(lambda: at.app.chosen == other, "the other run")
        await at.shows("needs_person: answer it")
        await at.press("space")
        await at.hides("needs_person: answer it")
        await at.press("space")
        await at.shows("needs_person: answer it")
        await at.press("escape")
        await at.hides("needs_person: answer it")

    play(store, story)


def test_attach_to_the_log(store: SqlStore) -> None:
    """Enter shows the log from its last two thousand records and follows it, each record once. The
    left arrow returns to the board, and the run continues."""
    run = submit(store, name="task")
    claim = claimed(store, run)
    store.record(claim, [Said(text=f"word {number}.") for number in range(30)])

    async def story(at: Play) -> None:
        await at.until(lambda: at.app.chosen, "the run")
        await at.press("enter")
        await at.shows("word 29.", "running, attempt 1")
        for number in range(30, 35):
            store.record(claim, [Said(text=f"word {number}.")])
        await at.shows("word 34.")
        # These are the records of two reads, of which one was slow and one quick.
        log = at.app.screen
        assert isinstance(log, LogScreen)
        log._show(store.history(run.id)[-3:], store.get(run.id))
        await at.pilot.pause()
        shown = [line for line in at.screen() if "word" in line]
        assert len(shown) == len(set(shown)) > 5
        await at.press("s", "r", "space")
        store.finish(claim, SUCCESS)
        await at.shows("succeeded, attempt 1")
        await at.press("left")
        await at.shows("done  1")

    play(store, story)


def test_filter(store: SqlStore) -> None:
    """After a slash and words, only runs that contain these words are shown and counted, even if
    the words are not in a name. Escape shows all runs again."""
    for name, prompt in (("one", "mend the flux"), ("two", "paint the door"), ("three", "50% [b]")):
        submit(store, TaskSpec(prompt=prompt), name=name)

    async def story(at: Play) -> None:
        await at.shows("waiting  3")
        await at.press("slash", *"door", "enter")
        await at.shows("waiting  1", "two", "with: door")
        await at.hides("mend the flux")
        await at.press("escape")
        await at.shows("waiting  3")
        await at.press("slash", "percent_sign", *" ", "left_square_bracket", "b")
        await at.shows("waiting  1", "three")
        await at.press("x")
        await at.shows("no run has this text")
        await at.press("escape")
        await at.shows("waiting  3", "one")

    play(store, story)


def test_stop_asks_first(store: SqlStore) -> None:
    """Only `y` stops the run, as the verb `stop` does. If that is impossible, the verb's sentence
    and its hint are shown."""
    waiting = submit(store, name="waiter")

    async def story(at: Play) -> None:
        await at.until(lambda: at.app.chosen == waiting.id, "the run")
        for no in ("n", "escape", "enter"):
            await at.press("s")
            await at.shows("Stop waiter?", "perdure retry waiter continues where it stopped")
            await at.press(no)
            await at.hides("Stop waiter?")
        assert store.get(waiting.id).state is RunState.QUEUED
        await at.press("s", "y")
        await at.shows("done  1", "waiter is cancelled")
        assert store.get(waiting.id).state is RunState.CANCELLED
        await at.press("s", "y")
        await at.shows("waiter is already stopped; perdure show waiter")
        await at.press("escape")
        await at.hides("is not running")

    engine = open_engine(load({"HOME": str(Path(store._database.place).parent)}, Path("/")), {})
    real = engine.store
    real.close()
    force_setattr(engine, "store", store)

    def stop(run_id: str) -> str:
        run = service.stop(engine, run_id)
        return f"{run.name} is {run.state}"

    play(store, story, stop=stop)


def test_the_keys_are_told(store: SqlStore) -> None:
    """An empty board says how to begin. The question mark lists the keys, and any of the usual keys
    closes that list."""

    async def story(at: Play) -> None:
        await at.shows(
            "no runs yet; start with: perdure run",
            "0 needs input, 0 working, 0 waiting, 0 failed, 0 done",
        )
        await at.press("enter", "space", "r", "s", "j", "k")
        await at.press("question_mark")
        await at.shows("continue where it stopped", "quit; nothing is stopped")
        await at.press("escape")
        await at.hides("quit; nothing is stopped")

    play(store, story)


def test_hostile_texts_are_texts(store: SqlStore) -> None:
    """Text of an agent, of a prompt or of a workdir's name is shown without control characters. It
    gets no style, no link and no action."""
    run_id = asks(store, "asker", HOSTILE)
    hostile = submit(
        store, TaskSpec(prompt=HOSTILE, agent="[red]x"), name="worker", where=f"w{HOSTILE}"
    )
    claim = claimed(store, hostile)
    store.record(
        claim, [Said(text=HOSTILE), ToolStarted(tool_id="1", name=HOSTILE, summary=HOSTILE)]
    )

    async def story(at: Play) -> None:
        await at.shows(
            "[bold red on white]x[/] [link=http://evil.invalid]y[/link] [@click=app.quit]z[/]"
        )
        for chosen in (run_id, hostile.id):
            await at.chooses(chosen)
            await at.press("space")
            await at.shows("[@click=app.quit]z")
            _harmless(at)
            await at.press("enter")
            await at.shows("asker  failed" if chosen == run_id else "worker  running")
            _harmless(at)
            await at.press("escape", "space")
        await at.pilot.resize_terminal(30, 8)
        await at.until(lambda: len(at.screen()) == 8, "a small screen")
        _harmless(at)

    play(store, story, size=(220, 40))


def _harmless(at: Play) -> None:
    for strip in at.app.screen._compositor.render_strips():
        for segment in strip:
            assert segment.text.isprintable() and "\u202e" not in segment.text, segment
            if segment.style:
                assert not segment.style.link and "quit" not in str(
                    segment.style.meta.get("@click")
                ), segment
                assert segment.style.bgcolor is None or segment.style.bgcolor.name != "white", (
                    segment
                )


def test_ten_thousand_runs(store: SqlStore) -> None:
    """All of ten thousand runs are counted. Of each group the newest hundred are shown, and the
    heading says so."""
    run = submit(store, name="first")
    with store._database.writing() as (cursor, _):
        columns = [row[1] for row in cursor.execute("PRAGMA table_info(runs)").fetchall()]
        same = ", ".join(
            name for name in columns if name not in ("ordinal", "id", "name", "workspace_id")
        )
        numbers = "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)"
        new = f"SELECT 'id-' || i, 'run-' || i, 'w-' || i, {same} FROM runs, n WHERE id = ?"
        cursor.execute(
            f"{numbers} INSERT INTO runs (id, name, workspace_id, {same}) {new}", (run.id,)
        )
        cursor.execute(
            "INSERT INTO contexts (run, version, at, text) SELECT id, 1, 1, 'do it' FROM runs "
            "WHERE id LIKE 'id-%'"
        )

    async def story(at: Play) -> None:
        await at.shows("waiting  10000 (the newest 100 are shown)")

    play(store, story)
