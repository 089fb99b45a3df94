"""The digest for a person who was away: by group, with titles, links and costs."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from perdure import store as stores
from perdure.cli.runs.digest import since_of
from perdure.engine import digest as module
from perdure.engine.digest import digest
from perdure.model import Decision, Outcome, OutcomeKind, RunState, TaskSpec, Usage
from perdure.protocols import Ending
from perdure.store.sql import SqlStore
from perdure.testing.stores.samples import claimed, submit
from tests.notices.kills import ASKS, DONE

FAILED = Ending(
    outcome=Outcome(kind=OutcomeKind.FAILED),
    decision=Decision(state=RunState.FAILED, reason="failed: it \x1b[31mbroke"),
    usage=Usage(cost_usd=0.25),
)
LINK = "https://tea.example/shop/web/issues/12"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    found = stores.open(tmp_path / "perdure.db")
    yield found
    found.close()


def filled(store: SqlStore) -> dict[str, str]:
    """Make runs in every group. Return their names by group."""
    spec = TaskSpec(prompt="Do it.\nAnd more.", title="#12 Fix it", link=LINK, rule="reviewer")
    names = {}
    for group, one, ending in (
        ("needs_you", spec, ASKS),
        ("failed", TaskSpec(prompt="Tidy \u202eup\n"), FAILED),
        ("done", TaskSpec(prompt="Paint it."), replace(DONE, usage=Usage(cost_usd=0.5))),
    ):
        run = submit(store, one)
        store.finish(claimed(store, run), ending)
        names[group] = run.name
    names["waiting"] = submit(store).name
    assert store.defer(store.get(names["waiting"]).id, store.now() + 3_600_000, "the limit")
    names["working"] = claimed(store, submit(store)).run.name
    return names


def test_every_run_is_in_one_group(store: SqlStore) -> None:
    names = filled(store)
    found = digest(store, store.now() - 60_000)
    for group, name in names.items():
        assert [run.name for run in getattr(found, group)] == [name], group
    (asks,), (waits,) = found.needs_you, found.waiting
    assert (asks.title, asks.link, asks.role, asks.message) == ("#12 Fix it", LINK, "reviewer", "which one?")  # fmt: skip
    assert waits.until > found.until and waits.message == "the limit"
    assert (found.cost_usd, found.attempts, found.cut) == (0.75, 3, False)
    # A run that ended before the given time is left out. A run that needs a person is still named.
    later = digest(store, store.now() + 1)
    assert later.done == later.failed == [] and later.cost_usd == 0
    assert [run.name for run in later.needs_you] == [names["needs_you"]]


def test_long_lists_are_cut(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    monkeypatch.setattr(module, "PAGE", 2)
    for _ in range(5):
        store.finish(claimed(store, submit(store)), DONE)
    found = digest(store, 0)
    assert found.cut and len({run.name for run in found.done}) == 3


def test_the_command(store: SqlStore, tmp_path: Path) -> None:
    names = filled(store)
    environ = {**os.environ, "PERDURE_STATE": str(tmp_path)}

    def perdure(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "perdure", "digest", *words], env=environ, capture_output=True, text=True, check=False
        )  # fmt: skip

    shown = perdure("--since", "today").stdout
    head, *lines = shown.splitlines()
    assert head.endswith("1 needs you, 1 failed, 1 done, 1 waiting, 1 running; 3 attempt(s), $0.75")
    (asks,) = [line for line in lines if names["needs_you"] in line]
    assert "#12 Fix it  [reviewer (claude)]: which one?" in asks and f"    {LINK}" in lines
    (failed,) = [line for line in lines if names["failed"] in line]
    assert "Tidy up  [claude, $0.25]: failed: it broke" in failed
    found = json.loads(perdure("--json").stdout)
    assert found["schema_version"] == 1 and found["done"][0]["name"] == names["done"]
    for bad in ("soon", "2026-13-01", "-5h", "0s", "99999999999d", ""):
        done = perdure(f"--since={bad}")
        assert done.returncode == 2 and "expected today, yesterday" in done.stderr, bad
    assert "in the future" in perdure("--since", str(date.today() + timedelta(days=2))).stderr


def test_days_begin_at_midnight() -> None:
    midnight = datetime.combine(date.today(), datetime.min.time()).astimezone()
    assert since_of("today") == midnight.timestamp() * 1000
    assert since_of("2026-01-02") == datetime(2026, 1, 2).astimezone().timestamp() * 1000
    assert since_of("yesterday") < since_of("today")
    with pytest.raises(argparse.ArgumentTypeError):
        since_of("the day before")
