"""A sweep: removal by age, unknown entries, too many entries at once, a clock that was changed, and
a missing volume."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from perdure.engine.checkpoints import save_current
from perdure.engine.sessions.service import plan_scope
from perdure.engine.sweeper import Class, Sweep, SweepVerdict, current_moment, due, rules_of, sweep
from perdure.errors import Conflict
from perdure.model import Session, SessionKey, SessionState, TaskSpec
from perdure.rules.plan import Plan, PlanRun, PlanState, PlanTask
from perdure.workspace import trash
from tests import spread
from tests.sweeper.ground import DAY_MS, Ground, hashes


def logs_of(ground: Ground, run_id: str, number: int = 1) -> Path:
    directory = ground.state / "runs" / run_id / str(number)
    directory.mkdir(parents=True)
    (directory / "stdout").write_text("said\n")
    return directory.parent


def by_class(swept: Sweep, cls: Class) -> list[str]:
    return [row.verdict for row in swept.rows if row.cls is cls]


def test_logs_and_copies_have_ages_of_their_own(ground: Ground) -> None:
    """Logs of a finished run are removed after 90 days, and the copy of its conversation after 180.
    Before that both stay."""
    run, _ = ground.run()
    logs = logs_of(ground, run.id)
    key = SessionKey("claude", run.scope)
    ground.engine.store.put_session(
        Session(
            key=key, id="s1", state=SessionState.CONFIRMED, created=run.created, updated=run.updated
        )
    )
    copy = ground.engine.copies.of("claude", "s1")
    copy.parent.mkdir(parents=True)
    copy.write_text("{}\n")
    ground.sweep(days=89)
    assert logs.exists()
    assert ground.row(ground.sweep(days=2), logs).verdict is SweepVerdict.TAKE and not logs.exists()
    assert copy.exists()
    swept = ground.sweep(days=100)
    assert ground.row(swept, copy.parent).verdict is SweepVerdict.TAKE and not copy.exists()
    (entry,) = [entry for entry in trash.entries(ground.state / "trash") if entry.kind == "copies"]
    assert trash.restore(entry) == [copy.parent] and copy.read_text() == "{}\n"


@pytest.mark.parametrize("state", ["queued", "open"])
def test_what_a_run_needs_stays(ground: Ground, state: str) -> None:
    """While a run waits, or a person has it open, its logs, its copy and its workdir stay at any
    age."""
    run, top = ground.run()
    logs = logs_of(ground, run.id)
    session = Session(
        key=SessionKey("claude", run.scope),
        id="s1",
        state=SessionState.CONFIRMED,
        created=1,
        updated=1,
    )
    ground.engine.store.put_session(session)
    copy = ground.engine.copies.of("claude", "s1").parent
    copy.mkdir(parents=True)
    if state == "queued":
        ground.engine.store.requeue(run.id, "a test")
    else:
        from perdure.model import Condition

        ground.engine.store.open_run(run.id, Condition(type="open", message="", at=0), session)
    swept = ground.sweep(days=1000)
    for path in (logs, copy, top):
        row = ground.row(swept, path)
        assert row.verdict is SweepVerdict.KEEP and state in row.why
    assert swept.taken == ()


def test_what_an_unfinished_plan_needs_stays(ground: Ground) -> None:
    """Workdir, logs and all checkpoints of a done task are kept until its plan has ended, whatever
    their age, and are removed afterwards. The output of the plan's check is recognized as the
    plan's, too."""
    seed = TaskSpec(prompt="", repo=str(ground.yard.repo))
    task = PlanTask(name="a", prompt="Do a.", agent="claude")
    plan = PlanRun(
        id="5" * 32,
        name="shop",
        plan=Plan(name="shop", tasks=(task,)),
        seed=seed,
        file="",
        strands={},
    )
    store = ground.engine.store
    held = store.claim_plan(store.add_plan(plan), "ann", 60)
    assert held is not None
    run, top = ground.run(scope=plan_scope(plan.id, "a"))
    logs = logs_of(ground, run.id)
    checked = ground.state / "plans" / plan.id / "verify-1"
    checked.mkdir(parents=True)
    for _ in range(2):
        save_current(
            ground.engine,
            run,
            ground.engine.workspaces.plan(run.spec, run.name, ground.yard.repo),
            "end",
        )
    for state in (PlanState.OPEN, PlanState.FAILED):
        held = store.put_plan(replace(held, state=state))
        swept = ground.sweep(days=1000)
        kept = [ground.row(swept, path) for path in (top, logs)] + [
            row for row in swept.rows if row.cls is Class.CHECKPOINTS
        ]
        assert {(row.verdict, row.why) for row in kept} == {
            (SweepVerdict.KEEP, "the plan shop is not finished")
        } and len(kept) == 4
    assert by_class(swept, Class.UNKNOWN) == []
    store.put_plan(replace(held, state=PlanState.SUCCEEDED))
    swept = ground.sweep(days=1000)
    assert {ground.row(swept, path).verdict for path in (top, logs)} == {SweepVerdict.TAKE}
    assert sorted(by_class(swept, Class.CHECKPOINTS)) == [SweepVerdict.KEEP, SweepVerdict.TAKE]


def test_what_is_not_recognised_is_listed_and_kept(ground: Ground) -> None:
    """An unknown file, directory or link among perdure's own, or a workdir of another store, is
    `unknown` and is never removed."""
    own = ground.yard.root / ".perdure"
    ground.run()
    strangers = [
        own / "work" / ("q" * 26),
        own / "work/notes",
        own / "repos/mine.git",
        own / "views/x",
        own / "extra",
        ground.state / "mine",
    ]
    strangers += [
        ground.state / "runs/notes",
        ground.state / "transcripts/claude/other",
        ground.yard.root / "web/.task/t9",
    ]
    for path in strangers:
        path.mkdir(parents=True)
        (path / "file").write_text("x")
    swept = ground.sweep(days=1000)
    assert {
        row.path: row.verdict for row in swept.rows if row.cls is Class.UNKNOWN
    } == dict.fromkeys(map(str, strangers), SweepVerdict.KEEP)
    assert all((path / "file").exists() for path in strangers)


def test_the_registry_of_warm_agents_is_known(ground: Ground) -> None:
    """The directory in which warm agents are registered is perdure's own. No clean-up lists it as
    unknown or removes it."""
    ground.run()
    registered = ground.yard.root / ".perdure/warm" / ("q" * 26)
    registered.mkdir(parents=True)
    swept = ground.sweep(days=1000)
    assert [
        row.path for row in swept.rows if "/.perdure/warm" in row.path
    ] == [] and registered.is_dir()


def test_logs_of_no_run_go_only_where_the_store_is_older(ground: Ground) -> None:
    """Directories without a run are orphans. They stay if the store is younger than they are."""
    orphan = logs_of(ground, "0" * 32)
    assert ground.row(ground.sweep(days=30), orphan).verdict is SweepVerdict.KEEP
    ground.run()
    # One second later, because the file system's clock may be some milliseconds behind the store's.
    os.utime(orphan / "1/stdout", ns=(time.time_ns() + 10**9,) * 2)
    row = ground.row(ground.sweep(), orphan)
    assert (row.cls, row.verdict) == (Class.ORPHANS, SweepVerdict.TAKE)
    assert not orphan.exists()


def test_a_cache_goes_when_nothing_borrows_from_it(ground: Ground) -> None:
    """An isolated workdir, also one in the trash, keeps the cache. When no workdir uses the cache,
    it is removed after some time, and is created again when needed."""
    _, top = ground.run("isolated")
    (cache,) = (ground.yard.root / ".perdure/repos").glob("*.git")
    (top / "new").write_text("x")
    assert "borrows" in ground.row(ground.sweep(days=100), cache).why
    (top / "new").unlink()
    ground.sweep()
    assert not top.exists()
    assert "borrows" in ground.row(ground.sweep(days=1), cache).why
    ground.sweep(days=10)
    ground.sweep(days=10)
    assert not cache.exists()
    (entry,) = [entry for entry in trash.entries(ground.trash) if entry.kind == "cache"]
    trash.restore(entry)
    ground.yard.git("--git-dir", str(cache), "fsck")


def test_scratch_goes_into_the_trash(ground: Ground) -> None:
    """Incomplete files of a killed perdure are removed after two days. Younger ones may be in use."""
    ground.run()
    left = ground.yard.root / ".perdure/tmp/desk-x"
    left.mkdir(parents=True)
    (left / "index").write_text("x")
    assert ground.row(ground.sweep(days=1), left).verdict is SweepVerdict.KEEP
    assert ground.row(ground.sweep(days=2), left).verdict is SweepVerdict.TAKE and not left.exists()


def test_too_much_at_once_is_stopped(ground: Ground) -> None:
    """Eleven of twelve logs would be removed. None of them is, and a person is asked. With `--many`
    they are removed."""
    runs = [
        ground.engine.store.add(spec, f"{n:032x}", f"r{n}", ground.yard.plan("here"))
        for n, spec in _specs(ground, 12)
    ]
    for run in runs:
        logs_of(ground, run.id)
    for run in runs[:11]:
        ground.engine.store.request_cancel(run.id)
    swept = ground.sweep(days=100)
    assert not swept.taken and swept.for_a_person
    assert "11 of 12 would go" in swept.rows[0].why
    assert len(ground.sweep(many=True).taken) == 11
    assert len(list((ground.state / "runs").iterdir())) == 1


def _specs(ground: Ground, count: int) -> list[tuple[int, object]]:
    return [(n, replace(ground.yard.spec("here"), scope=f"s{n}")) for n in range(count)]


def test_few_go_without_a_word(ground: Ground) -> None:
    """Ten of ten logs are removed without a question, as in a small store after a holiday."""
    for n, spec in _specs(ground, 10):
        run = ground.engine.store.add(spec, f"{n:032x}", f"r{n}", ground.yard.plan("here"))
        logs_of(ground, run.id)
        ground.engine.store.request_cancel(run.id)
    assert len(ground.sweep(days=100).taken) == 10


JUMPS = {
    "an hour and a bit forward": (1.1, 0.0),
    "a year forward": (365 * 24.0, 0.0),
    "a year back": (-365 * 24.0, 0.0),
    "an hour and a bit back": (-1.1, 0.0),
}


@pytest.mark.parametrize("jump", JUMPS)
def test_a_clock_that_was_moved_stops_everything(ground: Ground, jump: str) -> None:
    """The wall clock was changed, but the machine's own clock was not. No sweep removes anything
    until the wall clock is right again."""
    _, top = ground.run()
    ground.sweep(days=20, dry=True)
    ground.passed = 0
    ground.sweep()
    hours, _ = JUMPS[jump]
    moved = replace(ground.now, wall=ground.now.wall + int(hours * 3_600_000))
    for _ in range(2):
        swept = sweep(
            ground.engine.store,
            ground.engine.workspaces,
            ground.engine.state,
            rules_of(ground.settings),
            now=replace(moved, boot=moved.boot + 20 * 86_400, wall=moved.wall + 20 * DAY_MS),
        )
        assert swept.trouble and not swept.taken and swept.for_a_person and top.is_dir()
    assert ground.row(ground.sweep(days=20), top).verdict is SweepVerdict.TAKE


def test_a_suspended_machine_has_its_time(ground: Ground) -> None:
    """The machine's own clock includes the time in which it was suspended: a month of sleep counts
    as a month."""
    _, top = ground.run()
    ground.sweep()
    assert ground.row(ground.sweep(days=30), top).verdict is SweepVerdict.TAKE


def test_after_a_restart_a_long_absence_is_believed_an_hour_later(ground: Ground) -> None:
    """A machine that was off may start with any date. The first sweep removes nothing; one an hour
    later trusts the clock."""
    _, top = ground.run()
    ground.sweep()
    woken = replace(ground.now, wall=ground.now.wall + 40 * DAY_MS, boot=60.0, boot_id="another")
    rules = rules_of(ground.settings)
    assert (
        "nothing confirms"
        in sweep(
            ground.engine.store, ground.engine.workspaces, ground.engine.state, rules, now=woken
        ).trouble
    )
    soon = replace(woken, wall=woken.wall + 60_000, boot=120.0)
    assert (
        sweep(
            ground.engine.store, ground.engine.workspaces, ground.engine.state, rules, now=soon
        ).trouble
        and top.is_dir()
    )
    later = replace(woken, wall=woken.wall + 4_000_000, boot=4_060.0)
    assert (
        ground.row(
            sweep(
                ground.engine.store, ground.engine.workspaces, ground.engine.state, rules, now=later
            ),
            top,
        ).verdict
        is SweepVerdict.TAKE
    )


def test_a_person_may_accept_the_clock(ground: Ground) -> None:
    """`--accept` accepts clock and volume as they are, and the next sweep needs no confirmation."""
    _, top = ground.run()
    ground.sweep()
    moved = replace(ground.now, wall=ground.now.wall + 30 * DAY_MS)
    assert sweep(
        ground.engine.store,
        ground.engine.workspaces,
        ground.engine.state,
        rules_of(ground.settings),
        now=moved,
    ).trouble
    swept = sweep(
        ground.engine.store,
        ground.engine.workspaces,
        ground.engine.state,
        rules_of(ground.settings),
        now=moved,
        accept=True,
    )
    assert not swept.trouble and not top.exists()
    assert not sweep(
        ground.engine.store,
        ground.engine.workspaces,
        ground.engine.state,
        rules_of(ground.settings),
        now=replace(moved, wall=moved.wall + 1000, boot=moved.boot + 1),
    ).trouble


def test_times_in_the_future_are_for_a_person(ground: Ground) -> None:
    """An entry that was last used tomorrow shows that a clock was wrong, so a person is asked."""
    _, top = ground.run()
    then = current_moment().wall / 1000 + 90_000
    os.utime(top, (then, then))
    assert ground.row(ground.sweep(), top).verdict is SweepVerdict.PERSON


def test_another_volume_at_the_root_stops_everything(ground: Ground) -> None:
    """If the root's volume is not mounted, nothing is removed, not even in the state directory."""
    run, top = ground.run()
    logs = logs_of(ground, run.id)
    ground.sweep()
    aside = ground.yard.top / "aside"
    spread.rename(ground.yard.root, aside)
    swept = ground.sweep(days=400)
    assert "check that it is mounted" in swept.trouble and not swept.taken and logs.exists()
    shutil.rmtree(ground.yard.root)
    aside.rename(ground.yard.root)
    assert ground.row(ground.sweep(), top).verdict is SweepVerdict.TAKE


def test_only_one_sweep_at_a_time(ground: Ground) -> None:
    """A second sweep at the same time is refused, so that neither decides by the other's incomplete
    results."""
    from perdure.engine.sweeper.sweeps import _sweep_lock

    with _sweep_lock(ground.engine.state), pytest.raises(Conflict, match="Another sweep"):
        ground.sweep()


def test_it_is_due_once_a_day(ground: Ground) -> None:
    """A sweep is due if there was none yet, or if the last one was a day ago."""
    assert due(ground.engine.state)
    sweep(
        ground.engine.store,
        ground.engine.workspaces,
        ground.engine.state,
        rules_of(ground.settings),
    )
    assert not due(ground.engine.state)
    record = json.loads((ground.state / "sweep.json").read_text())
    (ground.state / "sweep.json").write_text(
        json.dumps({**record, "wall": record["wall"] - DAY_MS - 1000})
    )
    assert due(ground.engine.state)


@pytest.mark.parametrize("how", ["written since", "process inside"])
def test_an_entry_that_somebody_uses_is_not_purged(ground: Ground, how: str) -> None:
    """An entry of the trash is not deleted while a program still works in it."""
    _, top = ground.run("task")
    entry = Path(ground.row(ground.sweep(days=20), top).trash)
    with subprocess.Popen(
        ["sleep", "600"], cwd=entry / "workdir" if how == "process inside" else "/"
    ) as sleeper:
        if how == "written since":
            # The sweep ran "20 days later", so the write must get a time after that.
            about = json.loads((entry / "about.json").read_text())
            (entry / "about.json").write_text(
                json.dumps({**about, "at": about["at"] - 21 * DAY_MS})
            )
            (entry / "workdir/late.txt").write_text("precious\n")
        row = ground.row(ground.sweep(days=20), entry)
        sleeper.kill()
    assert row.verdict is SweepVerdict.KEEP and (
        "was written to after" in row.why or "works in it" in row.why
    )
    assert entry.is_dir()


def test_a_purge_follows_no_link(ground: Ground) -> None:
    """Links in an entry of the trash are deleted, but not their targets. A directory without access
    rights is deleted too."""
    outside = ground.yard.top / "outside"
    outside.mkdir()
    (outside / "file").write_text("of the user\n")
    _, top = ground.run("task")
    entry = Path(ground.row(ground.sweep(days=20), top).trash)
    (entry / "workdir/link").symlink_to(outside)
    (entry / "workdir/locked").mkdir(mode=0)
    from perdure.engine.sweeper import purge

    purge(ground.engine.workspaces, ground.engine.state, entry.name)
    assert not entry.exists() and (outside / "file").read_text() == "of the user\n"


def test_a_deletion_that_was_killed_is_finished(ground: Ground) -> None:
    """An entry that was only partly deleted at a kill no longer counts as an entry. The next sweep
    that may delete removes the rest. A dry run does not."""
    _, top = ground.run("task")
    entry = Path(ground.row(ground.sweep(days=20), top).trash)
    doomed = entry.with_name(f".doomed-{entry.name}")
    entry.rename(doomed)
    (doomed / "workdir/locked").mkdir(mode=0)
    ground.sweep(dry=True)
    assert doomed.is_dir()
    ground.sweep()
    assert not doomed.exists()


def test_a_restore_overwrites_nothing(ground: Ground) -> None:
    """If there is a new workdir, the old one stays in the trash. When the new one is gone, the old
    one is restored with git's state."""
    from perdure.engine.sweeper import restore

    run, top = ground.run()
    ground.yard.git("checkout", "-q", "--detach", cwd=top)
    ground.yard.git("checkout", "-q", "work", cwd=top)
    entry = Path(ground.row(ground.sweep(days=20), top).trash)
    assert run.workspace is not None
    ground.prepare(run.workspace)
    (top / "new").write_text("of the second\n")
    before = hashes(top, entry)
    with pytest.raises(Conflict, match="exists again"):
        restore(ground.engine.store, ground.engine.workspaces, ground.engine.state, entry.name)
    assert hashes(top, entry) == before
    (top / "new").unlink()
    second = Path(ground.row(ground.sweep(days=20), top).trash)
    restore(ground.engine.store, ground.engine.workspaces, ground.engine.state, second.name)
    assert ground.yard.git("status", "--porcelain", cwd=top) == ""
    assert ground.yard.git("rev-parse", "--abbrev-ref", "HEAD", cwd=top) == "work"


def test_the_daily_command_shows_rows_and_asks_for_a_person(ground: Ground) -> None:
    """`perdure gc --json` prints a row with a reason for each entry, and exits with 3 if a person
    is needed."""
    _, top = ground.run()
    (top / "new").write_text("x")
    old = current_moment().wall / 1000 - 400 * 86_400
    os.utime(top, (old, old))
    environ = {
        **ground.yard.environ,
        "PERDURE_ROOT": str(ground.yard.root),
        "PERDURE_STATE": str(ground.state),
        "PERDURE_GC_WORKDIRS": "0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "perdure", "gc", "--json"],
        env=environ,
        cwd=ground.yard.repo,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    (row,) = [row for row in json.loads(done.stdout)["rows"] if row["class"] == "workdirs"]
    assert (
        row["verdict"] == "person"
        and "untracked files: new" in row["why"]
        and row["path"] == str(top)
    )
    assert hashlib.sha256((top / "new").read_bytes()).hexdigest()


def test_usage_counts_each_file_once(ground: Ground) -> None:
    """Disk usage is reported by class, agent and repository. A file with two names counts once, and
    files behind a link do not count."""
    from perdure.engine.sweeper import usage

    _, top = ground.run()
    before = usage(ground.engine.store, ground.engine.workspaces, ground.engine.state).total
    (top / "big").write_bytes(b"x" * 1_000_000)
    os.link(top / "big", top / "again")
    (top / "away").symlink_to("/usr")
    found = usage(ground.engine.store, ground.engine.workspaces, ground.engine.state)
    assert 1_000_000 <= found.total - before < 1_100_000
    assert dict(found.by(0))["workdirs"] >= 1_000_000
    assert (
        dict(found.by(1))["claude"] >= 1_000_000
        and dict(found.by(2))[str(ground.yard.repo)] >= 1_000_000
    )
