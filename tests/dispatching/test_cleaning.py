"""Finished work is cleaned up, but nothing is removed that is saved nowhere else. Work that
continues finds everything in place."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.engine import checkpoints, service, sweeper
from perdure.engine.attempt.engine import EngineStore
from perdure.forge.dispatch import Dispatcher
from perdure.forge.dispatch.withdrawal import KEPT, is_cleaned_up
from perdure.model import Host, RunState, TaskSpec, Workspace
from perdure.model.events import BroughtBack, CleanedUp, Said
from perdure.model.forge.deliveries import DeliveryState, Forge, Intent, IntentKind
from perdure.model.forge.rules import Rule
from perdure.workspace import Workspaces, trash
from perdure.workspace.snapshot.checkpoints import WorkdirCheckpoints
from tests.dispatching.office import Office, intent
from tests.dispatching.test_reconciling import DEV, asked
from tests.servers.forge import github

ASSIGNED = intent(IntentKind.ASSIGNED, whom=("dev-bot",), title="Rounding")
CLOSED, REOPENED = intent(IntentKind.CLOSED), intent(IntentKind.REOPENED)
MERGED = intent(IntentKind.MERGED, number=9, pull=True, branch="perdure/dev-4")
DELETED = intent(IntentKind.BRANCH_DELETED, number=0, branch="perdure/dev-4")
HANDLED, IGNORED, WAITS = DeliveryState.HANDLED, DeliveryState.IGNORED, DeliveryState.RECEIVED


def worked(office: Office, *, commit: bool = True) -> Path:
    """Make a run that has completed its first turn, with one new file, committed or not."""
    office.told(ASSIGNED)
    run, claim = office.run(), office.claim()
    assert run.workspace is not None
    office.ground.prepare(run.workspace)
    top = Path(run.workspace.path)
    (top / "made.txt").write_text("by the agent\n")
    if commit:
        office.ground.yard.git("add", ".", cwd=top)
        office.ground.yard.git("commit", "-qm", "made", cwd=top)
    office.end(claim)
    return top


@pytest.mark.parametrize("over", [CLOSED, MERGED, DELETED], ids=["closed", "merged", "branch"])
def test_over_and_opened_again(office: Office, over: Intent) -> None:
    """The workdir goes to the trash with a checkpoint. When the issue is reopened, it is restored
    as it was, and the run continues from there."""
    top = worked(office)
    (done,) = office.told(over)
    run = office.run()
    assert done.state is HANDLED and f"{run.name} is cleaned up" in done.reason
    assert (
        not top.exists()
        and is_cleaned_up(office.engine.store, run)
        and run.state is RunState.SUCCEEDED
    )
    (event,) = [
        record.event
        for record in office.engine.store.history(run.id)
        if isinstance(record.event, CleanedUp)
    ]
    assert [
        entry.about["why"]
        for entry in sweeper.listed(office.engine.workspaces, office.engine.state)
    ] == [event.why] and event.checkpoint == 1
    assert [each.why for each in office.engine.store.checkpoints(run.id)] == ["clean-up"]
    (again,) = office.told(over)
    assert again.state is HANDLED and "no longer has a workdir" in again.reason
    (back,) = office.told(REOPENED)
    assert back.state is HANDLED and (top / "made.txt").read_text() == "by the agent\n"
    assert (office.run().id, office.run().state, office.run().context_version) == (
        run.id,
        RunState.QUEUED,
        2,
    )
    assert "opened again by ada" in office.prompts()[1] and "Rounding" not in office.prompts()[1]
    assert any(
        isinstance(record.event, BroughtBack) for record in office.engine.store.history(run.id)
    )
    assert office.ground.yard.git("status", "--porcelain", cwd=top) == ""


def test_the_clean_up_of_a_run_with_a_long_journal(office: Office) -> None:
    """The clean-up is found, also if the journal has more later records than are read at once."""
    worked(office)
    office.told(CLOSED)
    run = office.run()
    with office.engine.store._database.writing() as (cursor, _):
        cursor.execute(
            "WITH RECURSIVE many (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM many WHERE"
            " number <= 100000) INSERT INTO records (run, attempt, at, kind, event) SELECT ?, 1, 0,"
            """ 'said', '{"kind":"said","text":"x"}' FROM many""",
            (run.id,),
        )
    assert isinstance(office.engine.store.latest(run.id, 1)[0].event, Said)
    assert is_cleaned_up(office.engine.store, run)


def test_what_is_not_saved_stays(office: Office) -> None:
    """A workdir with work that no checkpoint has stays, and the run's condition says which work.
    Once that work is saved elsewhere, the next clean-up removes the workdir."""
    top = worked(office, commit=False)
    (top / "data.log").write_bytes(bytes(11 << 20))
    (kept,) = office.told(CLOSED)
    assert (
        kept.state is HANDLED
        and "data.log (it is ignored, and larger" in kept.reason
        and (top / "data.log").exists()
    )
    (condition,) = office.run().conditions
    assert (
        condition.type == KEPT
        and "closed by ada" in condition.message
        and "data.log" in condition.message
    )
    assert "made.txt" not in condition.message
    (top / "data.log").unlink()
    office.told(DELETED)
    assert not top.exists() and office.run().conditions == ()


@pytest.mark.parametrize("archive", ["checkpoint", "capsule"])
@pytest.mark.parametrize("backend", ["worktree", "isolated"])
def test_what_the_last_checkpoint_holds_is_saved(
    make: Callable[..., Office], backend: str, archive: str
) -> None:
    """An issue is closed while the workdir has untracked and ignored files. The workdir is removed,
    with a capsule if the rule asks for one. When the issue is reopened, every file is restored from
    the trash, or from the checkpoint if the trash was emptied."""
    office = make(
        Rule(
            name="dev", agent="claude", authors=("ada",), clone="", login="dev-bot", archive=archive
        )
    )
    office.dispatcher = Dispatcher(
        office.engine, office.rules, TaskSpec(prompt="", backend=backend), office.said.append
    )
    top = worked(office, commit=False)
    (top / "build.log").write_text("compiled\n")
    (told,) = office.told(CLOSED)
    assert told.state is HANDLED and not top.exists() and office.run().conditions == ()
    (event,) = [
        record.event
        for record in office.engine.store.history(office.run().id)
        if isinstance(record.event, CleanedUp)
    ]
    assert event.needed and (not event.capsule or Path(event.capsule).stat().st_size > 0)
    assert bool(event.capsule) == (archive == "capsule")
    (entry,) = sweeper.listed(office.engine.workspaces, office.engine.state)
    assert entry.unsaved == () and entry.about["checkpoint"]["number"] == event.checkpoint
    if archive == "capsule":
        sweeper.purge(office.engine.workspaces, office.engine.state, entry.id)
    office.told(REOPENED)
    assert (top / "made.txt").read_text() == "by the agent\n" and (
        top / "build.log"
    ).read_text() == "compiled\n"


def test_after_a_reset_nothing_is_unsaved_any_more(office: Office) -> None:
    """The condition `unsaved` concerns the workdir. When a reset moves the workdir away, the
    condition is removed."""
    top = worked(office)
    (top / "data.log").write_bytes(bytes(11 << 20))
    office.told(CLOSED)
    assert [each.type for each in office.run().conditions] == [KEPT]
    sweeper.reset(
        office.engine.store,
        office.engine.workspaces,
        office.engine.host,
        sweeper.Target(run=office.run().name),
        Path("/"),
    )
    assert office.run().conditions == () and not top.exists()


def conditions(office: Office) -> list[str]:
    return [each.type for each in office.run().conditions]


def test_what_is_saved_meanwhile_is_not_unsaved_any_more(office: Office) -> None:
    """The condition is checked again after an apply and a restore. It names the work that is still
    unsaved, and is removed when there is none. A run that is queued again does not have the
    condition until the next clean-up."""
    top = worked(office)
    (top / "data.log").write_bytes(bytes(11 << 20))
    (top / "more.log").write_bytes(bytes(11 << 20))
    office.told(CLOSED)
    name = office.run().name
    (told,) = office.run().conditions
    assert told.type == KEPT and "data.log" in told.message and "more.log" in told.message
    (top / "more.log").unlink()
    service.apply(
        office.engine.store,
        office.engine.workspaces,
        office.engine.host,
        name,
        office.ground.yard.repo,
    )
    (told,) = office.run().conditions
    assert "data.log" in told.message and "more.log" not in told.message
    assert told.message.count("exist nowhere else") == 1
    (top / "data.log").unlink()
    checkpoints.restore(office.engine, name)
    assert office.run().conditions == () and top.exists()
    (top / "data.log").write_bytes(bytes(11 << 20))
    office.told(CLOSED)
    assert conditions(office) == [KEPT]
    office.told(REOPENED)
    assert (office.run().state, conditions(office)) == (RunState.QUEUED, [])


def test_back_from_its_checkpoint(office: Office) -> None:
    """If the trash was purged since, the clean-up's checkpoint restores everything."""
    top = worked(office)
    office.told(CLOSED)
    for entry in sweeper.listed(office.engine.workspaces, office.engine.state):
        sweeper.purge(office.engine.workspaces, office.engine.state, entry.id)
    office.told(REOPENED)
    assert (
        top / "made.txt"
    ).read_text() == "by the agent\n" and office.run().state is RunState.QUEUED
    (back,) = [
        record.event
        for record in office.engine.store.history(office.run().id)
        if isinstance(record.event, BroughtBack)
    ]
    assert back.checkpoint == 1


def test_cut_off_while_it_is_brought_back(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """perdure is killed when the workdir has been created again but is still empty. The workdir is
    filled before the agent continues, although its branch is gone."""
    yard = office.ground.yard
    office.dispatcher = Dispatcher(
        office.engine, office.rules, TaskSpec(prompt="", backend="isolated"), office.said.append
    )
    top = worked(office)
    yard.git("fetch", "-q", str(top), "perdure/dev-4:perdure/dev-4")
    office.told(CLOSED)
    assert not top.exists()
    yard.git("branch", "-D", "perdure/dev-4")
    for entry in sweeper.listed(office.engine.workspaces, office.engine.state):
        sweeper.purge(office.engine.workspaces, office.engine.state, entry.id)

    class Killed(BaseException): ...

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as broken, pytest.raises(Killed):
        broken.setattr(WorkdirCheckpoints, "restore", killed)
        office.told(REOPENED)
    assert top.exists() and not (top / "made.txt").exists()
    office.dispatcher.round()
    assert (top / "made.txt").read_text() == "by the agent\n"
    assert office.run().state is RunState.QUEUED and office.run().conditions == ()


def test_a_remark_afterwards_wakes_nobody(office: Office) -> None:
    """A comment of thanks on a closed issue starts nothing. A comment that mentions the agent
    continues the run, with its workdir restored."""
    top = worked(office)
    thanks = intent(IntentKind.COMMENTED, text="thanks!")
    assert [each.state for each in office.told(CLOSED, thanks)] == [HANDLED, IGNORED]
    assert not top.exists()
    office.told(intent(IntentKind.COMMENTED, text="@dev-bot why?", mentions=("dev-bot",)))
    assert top.exists() and office.run().state is RunState.QUEUED


def test_while_nobody_has_begun(office: Office) -> None:
    """An issue that is closed before its agent began is not worked on. When it is reopened, the
    agent works on it."""
    office.told(ASSIGNED, intent(IntentKind.COMMENTED, text="hurry"), CLOSED)
    assert office.run().state is RunState.CANCELLED and office.run().context_version == 1
    office.told(REOPENED)
    assert office.run().state is RunState.QUEUED


def test_out_of_order(office: Office) -> None:
    """An issue was closed and reopened, but the two deliveries arrive in the opposite order. The
    forge's own times decide, so the workdir stays. An issue that was reopened and then closed is
    tested, too."""
    top = worked(office)
    assert [
        each.state for each in office.told(replace(REOPENED, at=2000), replace(CLOSED, at=1000))
    ] == [HANDLED, IGNORED]
    assert top.exists()
    office.end(office.claim())
    (gone, late) = office.told(replace(CLOSED, at=4000), replace(REOPENED, at=3000))
    assert (
        (gone.state, late.state) == (HANDLED, IGNORED)
        and "it has been closed since" in late.reason
        and not top.exists()
    )


def test_a_capsule_is_kept(make: Callable[..., Office]) -> None:
    """With `archive = "capsule"` a capsule is written before the workdir is removed."""
    office = make(
        Rule(
            name="dev",
            agent="claude",
            authors=("ada",),
            clone="",
            login="dev-bot",
            archive="capsule",
        )
    )
    top = worked(office)
    office.told(CLOSED)
    (event,) = [
        record.event
        for record in office.engine.store.history(office.run().id)
        if isinstance(record.event, CleanedUp)
    ]
    assert not top.exists() and Path(event.capsule).stat().st_size > 0


@pytest.mark.parametrize("moved", [False, True], ids=["before", "after"])
def test_cut_off_at_the_move(office: Office, monkeypatch: pytest.MonkeyPatch, moved: bool) -> None:
    """perdure is killed just before or just after the workdir is moved to the trash. The next round
    completes the move. When the issue is reopened, everything is there."""
    top = worked(office)
    trash_workdir = office.engine.workspaces.trash_workdir

    def cut_off(workspace: Workspace, about: Mapping[str, Any]) -> None:
        if moved:
            trash_workdir(workspace, about)
        raise KeyboardInterrupt

    monkeypatch.setattr(office.engine.workspaces, "trash_workdir", cut_off)
    (number,) = office.arrive(CLOSED)
    with pytest.raises(KeyboardInterrupt):
        office.dispatcher.round()
    monkeypatch.setattr(office.engine.workspaces, "trash_workdir", trash_workdir)
    assert office.delivery(number).state is WAITS and top.exists() is not moved
    office.dispatcher.round()
    assert office.delivery(number).state is HANDLED and not top.exists()
    office.told(REOPENED)
    assert (
        top / "made.txt"
    ).read_text() == "by the agent\n" and office.run().state is RunState.QUEUED


def test_somebody_stands_in_it(office: Office) -> None:
    """While a process uses the workdir, the clean-up waits and says so. No part of it is done
    yet."""
    top = worked(office)
    workspace = office.run().workspace
    assert workspace is not None
    fd = office.engine.workspaces.lock(workspace, "a test")
    (waits,) = office.told(CLOSED)
    assert waits.state is WAITS and "a test" in waits.reason and top.exists()
    os.close(fd)
    office.dispatcher.round()
    assert office.delivery(waits.number).state is HANDLED and not top.exists()


def test_what_a_person_has_reset_stays_so(office: Office) -> None:
    """After a person has reset a run, it starts over: no earlier clean-up is undone."""
    top = worked(office)
    office.told(CLOSED)
    sweeper.reset(
        office.engine.store,
        office.engine.workspaces,
        office.engine.host,
        sweeper.Target(run=office.run().name),
        Path("/"),
    )
    office.told(intent(IntentKind.COMMENTED, text="@dev-bot again", mentions=("dev-bot",)))
    assert not top.exists() and office.run().state is RunState.QUEUED


def test_a_stranger_reopens(office: Office) -> None:
    """A login for which no rule works cannot cause a restore by reopening the issue."""
    top = worked(office)
    office.told(CLOSED)
    assert [each.state for each in office.told(replace(REOPENED, author="mallory"))] == [IGNORED]
    assert not top.exists()


def test_brought_back_by_another_server(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers restore the same workdir at the same time. The second one waits for the first,
    and no comment is lost."""
    top, restore = worked(office), sweeper.restore
    office.told(CLOSED)

    def twice(store: EngineStore, workspaces: Workspaces, state: Path, name: str) -> None:
        entry = next(each for each in sweeper.listed(workspaces, state) if each.id == name)
        monkeypatch.setattr(trash, "find", lambda *_: entry)
        restore(store, workspaces, state, name)
        restore(store, workspaces, state, name)

    monkeypatch.setattr(sweeper, "restore", twice)
    (told,) = office.told(REOPENED)
    assert told.state is WAITS and "being restored" in told.reason and top.exists()
    office.dispatcher.round()
    assert office.delivery(told.number).state is HANDLED and office.run().context_version == 2


@pytest.mark.parametrize(
    "place", ["shop/other/issues/7", "shop/other/issues/1"], ids=["number", "repository"]
)
def test_transferred_on_github(make: Callable[..., Office], place: str) -> None:
    """GitHub redirects from a transferred issue to the new one, which is open. The work of the old
    issue ends nevertheless. After a mere rename of the repository it does not end."""
    with asked(make, DEV, github, Forge.GITHUB) as asking:
        office, state = asking.office, asking.small.state
        old = state.issue("shop/web", "ada", "Rounding", assignees=["dev-bot"])
        office.told(replace(ASSIGNED, number=1))
        state.repositories["shop/web"].renamed = "shop/site"
        (refused,) = office.told(replace(CLOSED, number=1))
        assert (refused.state, refused.reason) == (IGNORED, "shop/web#1 is now open")
        state.repositories["shop/web"].renamed = ""
        state.repository("shop/other", ada="admin", dev_bot="admin")
        for _ in range(7):
            state.issue("shop/other", "ada", "Rounding")
        old.moved = place
        (told,) = office.told(replace(CLOSED, number=1))
        assert told.state is HANDLED and office.run().state is RunState.CANCELLED


def test_on_another_host(office: Office) -> None:
    """Among several hosts on one database, the host that has the workdir cleans it up. Other hosts
    wait, and name that host."""
    top, engine = worked(office), office.engine
    run = office.run()
    there = Host(id="a" * 32, name="anna")
    get = engine.store.get
    engine.store.get = lambda ref: replace(get(ref), host=there.id, host_name=there.name)  # type: ignore[method-assign]
    office.engine = replace(engine, host=Host(id="b" * 32, name="ben"))
    office.dispatcher = Dispatcher(
        office.engine, office.rules, TaskSpec(prompt=""), office.said.append
    )
    (told,) = office.told(CLOSED)
    assert told.state is WAITS and f"{run.name} is on anna" in told.reason and top.exists()
    office.engine = replace(engine, host=there)
    office.dispatcher = Dispatcher(
        office.engine, office.rules, TaskSpec(prompt=""), office.said.append
    )
    office.dispatcher.round()
    assert office.delivery(told.number).state is HANDLED and not top.exists()
