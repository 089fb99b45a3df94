"""The deletion guard: in no state of a workdir is any work of an agent lost. If something is
unknown, the workdir is kept."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import pytest

from perdure.engine import service
from perdure.engine.sweeper import SweepVerdict, Target, reset, restore
from perdure.errors import PerdureError
from tests.sweeper.ground import Ground, hashes
from tests.sweeper.states import STATES

PAGE = Path(__file__).parents[2] / "docs/reference/deletion.md"
REACHABLE = ("not finished", "same workdir under another run")
"""States that concern the run and not the workdir. `reset` is meant for such runs."""


@pytest.mark.parametrize("name", STATES)
def test_nothing_is_lost(ground: Ground, name: str) -> None:
    """In this state the sweeper and `rm` leave the workdir where it is and say why. `reset` refuses
    as well, or moves all of it into the trash, where it is kept without a time limit and can be
    restored."""
    state = STATES[name]
    _, top = ground.run(state.backend)
    ground.sweep(dry=True)
    undo = state.make(ground, top)
    try:
        before = hashes(
            *(
                place
                for place in ground.yard.top.iterdir()
                if place not in (ground.yard.root, ground.state)
            ),
            top,
        )
        swept = ground.sweep(days=400)
        said = " ".join(row.why for row in swept.rows if row.path == str(top)) or "mounted"
        assert state.word in said and str(top) not in [row.path for row in swept.taken], said
        with pytest.raises(PerdureError) as refused:
            service.remove(
                ground.engine.store, ground.engine.workspaces, ground.engine.host, "task"
            )
            assert name == "same workdir under another run"
            raise PerdureError(f"{name}: the workdir stays for again: {state.word}")
        assert state.word in str(refused.value) or name in REACHABLE
        assert before <= hashes(ground.yard.top)
        _reset(ground, name, before)
    finally:
        if undo is not None:
            with suppress(PerdureError):
                undo()


def _reset(ground: Ground, name: str, before: set[tuple[str, str]]) -> None:
    state = STATES[name]
    on_list = "again" if name == "same workdir under another run" else "task"
    if not state.movable:
        with pytest.raises(PerdureError, match=state.word):
            reset(
                ground.engine.store,
                ground.engine.workspaces,
                ground.engine.host,
                Target(run=on_list),
                ground.yard.repo,
            )
        assert before <= hashes(ground.yard.top)
        return
    cleared = reset(
        ground.engine.store,
        ground.engine.workspaces,
        ground.engine.host,
        Target(run=on_list),
        ground.yard.repo,
    )
    (entry,) = cleared.trash
    assert before <= hashes(ground.yard.top)
    if name in REACHABLE:
        return
    assert any(state.word in sentence for sentence in cleared.unsaved)
    ground.sweep(days=400)
    assert entry.is_dir()
    restore(ground.engine.store, ground.engine.workspaces, ground.engine.state, entry.name)
    assert before <= hashes(ground.yard.top)


@pytest.mark.parametrize("backend", ["worktree", "isolated", "task"])
def test_what_is_saved_goes_after_its_time(ground: Ground, backend: str) -> None:
    """A workdir without unsaved work stays until its age is reached, goes to the trash, and is
    deleted after the grace period."""
    _, top = ground.run(backend)
    assert not ground.sweep(days=13).taken
    row = ground.row(ground.sweep(days=2), top)
    assert row.verdict is SweepVerdict.TAKE and not top.exists()
    ground.sweep(days=6)
    assert Path(row.trash).is_dir()
    gone = ground.row(ground.sweep(days=2), Path(row.trash))
    assert gone.verdict is SweepVerdict.TAKE and not Path(row.trash).exists()


def test_a_dry_run_changes_nothing(ground: Ground) -> None:
    """A dry run reports what would go, and every file stays."""
    _, top = ground.run()
    there = hashes(ground.yard.root / ".perdure/work", ground.yard.repo)
    swept = ground.sweep(days=400, dry=True)
    assert ground.row(swept, top).verdict is SweepVerdict.TAKE and swept.dry
    assert (
        top.is_dir()
        and there == hashes(ground.yard.root / ".perdure/work", ground.yard.repo)
        and not ground.trash.exists()
    )


def test_a_directory_of_the_users_own_is_not_even_looked_at(ground: Ground) -> None:
    """A directory that belongs to the user (`here`) has no row in the report, and no verb moves
    it."""
    _, top = ground.run("here")
    swept = ground.sweep(days=400)
    assert not [row for row in swept.rows if row.path == str(top)]
    assert (
        reset(
            ground.engine.store,
            ground.engine.workspaces,
            ground.engine.host,
            Target(run="task"),
            ground.yard.repo,
        ).trash
        == ()
    )
    service.remove(ground.engine.store, ground.engine.workspaces, ground.engine.host, "task")
    assert top.is_dir()


def test_a_second_close_of_the_same_run_finds_nothing(ground: Ground) -> None:
    """If an event about the end of a run comes twice, or its name is used again, the new run's work
    is not affected."""
    run, top = ground.run()
    service.remove(ground.engine.store, ground.engine.workspaces, ground.engine.host, run.id)
    _, place = ground.run()
    assert place == top
    (top / "new").write_text("of the second run\n")
    with pytest.raises(PerdureError, match="no run"):
        service.remove(ground.engine.store, ground.engine.workspaces, ground.engine.host, run.id)
    assert (top / "new").read_text() == "of the second run\n"


def test_a_kill_between_list_and_trash_is_finished_by_the_sweeper(ground: Ground) -> None:
    """`rm` removes the run from the list and then moves its workdir. After a kill in between, the
    workdir is an orphan. The sweeper knows its owner, and moves it only if all of it is saved."""
    run, top = ground.run()
    ground.engine.store.remove(run.id)
    row = ground.row(ground.sweep(days=1), top)
    assert (str(row.cls), row.verdict) == ("orphans", SweepVerdict.KEEP)
    (top / "new").write_text("x")
    assert ground.row(ground.sweep(days=10), top).verdict is SweepVerdict.PERSON
    (top / "new").unlink()
    assert ground.row(ground.sweep(days=10), top).verdict is SweepVerdict.TAKE and not top.exists()


def test_the_page_has_every_state(ground: Ground) -> None:
    """docs/reference/deletion.md names exactly the tested states."""
    rows = re.findall(
        r"^\| ([^|]+?) \| `(worktree|isolated|task)` \|",
        PAGE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert rows == [(name, state.backend) for name, state in STATES.items()]
    assert len(rows) >= 24
