"""Threads, timelines, diffs and fingerprints, computed without a store or a browser, and slow
measurements."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from perdure.model import (
    Attempt,
    Continuation,
    Outcome,
    OutcomeKind,
    Receipt,
    RunState,
    Start,
    Verdict,
)
from perdure.model.events import ContextAdded, Record, RunFinished, RunQueued
from perdure.model.work import WorkReport
from perdure.protocols import FailedAttempt
from perdure.server.dashboard import context, tasks
from perdure.server.dashboard.context import Measured
from perdure.server.dashboard.conversations import columns
from perdure.server.dashboard.pages import lasted, money, size
from perdure.server.dashboard.records import grouped, normal
from perdure.server.dashboard.timelines import thread, timeline


def attempt(
    number: int,
    kind: OutcomeKind | None,
    verdict: Verdict | None,
    start: Start = Start.RESUME,
    detail: str = "",
) -> Attempt:
    return Attempt(
        run="r", number=number, context_version=1, worker="w", started=number, continuation=Continuation(kind=start),
        ended=number + 1 if kind else None, outcome=Outcome(kind=kind, detail=detail) if kind else None,
        receipt=Receipt(verdict=verdict) if verdict else None,
    )  # fmt: skip


def test_a_thread_is_whole_where_the_conversation_went_on() -> None:
    """Two attempts are joined by the receipt if there is one, otherwise by the decision at the
    start. An end that was not the agent's fault is a pause."""
    found = thread([
        attempt(1, OutcomeKind.LOST, Verdict.FRESH, Start.FRESH), attempt(2, OutcomeKind.RATE_LIMITED, Verdict.NATIVE),
        attempt(3, OutcomeKind.FAILED, Verdict.BROKEN), attempt(4, OutcomeKind.CANCELLED, Verdict.REBUILT, Start.REBUILD),
        attempt(5, OutcomeKind.SUCCEEDED, Verdict.REPAIRED), attempt(6, None, None),
    ])  # fmt: skip
    assert [each.tone for each in found] == ["pause", "pause", "bad", "stop", "good", "live"]
    assert [each.joint for each in found] == ["fresh", "on", "broken", "fresh", "on", "on"]


def _report(value: Any) -> Any:
    """Return a value from which the fields of a report can be read as attributes."""
    if isinstance(value, dict) and value:
        return SimpleNamespace(**{name: _report(each) for name, each in value.items()})
    return [_report(each) for each in value] if isinstance(value, list) else value


def test_a_timeline_has_its_gaps() -> None:
    """Between two attempts the timeline shows how long nobody worked, whether the run waited for
    backoff, the queue or a person, and the messages of that time."""

    def tried(number: int, started: int, ended: int | None) -> dict[str, Any]:
        empty = {
            "expired": 0,
            "rebuilt_sessions": [],
            "turn": 1,
            "map": None,
            "files": [],
            "drift": [],
            "fill": None,
            "sizes": [],
            "checks": [],
        }
        more = {
            "effects": [],
            "missed_checkpoints": [],
            "checkpoints": [],
            "receipt": None,
            "flags": {},
            "agent_version": "",
            "work": WorkReport(),
            "why": "",
        }
        outcome = {"kind": "failed", "detail": ""} if ended else None
        return (
            empty
            | more
            | {
                "number": number,
                "started": started,
                "ended": ended,
                "outcome": outcome,
                "continuation": "resume",
                "session_id": "s",
            }
        )

    report = {"created": 0, "updated": 90_000, "state": "running"}
    report["attempts"] = [tried(1, 100, 10_000), tried(2, 40_000, 50_000), tried(3, 80_000, None)]  # type: ignore[assignment]
    records = [
        Record("r", 1, 0, 10_000, RunQueued(reason="overloaded", run_after=40_000)),
        Record("r", 2, 0, 50_000, RunFinished(state="failed", reason="it broke")),
        Record("r", 3, 0, 79_000, ContextAdded(version=2)),
    ]
    shown: Any = _report(report)
    found = timeline(shown, records, 90_000)
    gaps = [(each.gap.kind, each.gap.milliseconds) if each.gap else None for each in found.tries]
    assert gaps == [None, ("backoff", 30_000), ("person", 30_000)]
    assert found.tries[2].gap is not None and found.tries[2].gap.lines == (
        "failed: it broke",
        "new instructions, version 2",
    )
    assert found.after is None
    assert [kind for kind, _, _ in found.strip] == ["bad", "backoff", "bad", "person", "live"]
    assert found.strip[-1][2] == 1000


PATCH = (
    b"""diff --git a/a.txt b/a.txt
index 1..2 100644
--- a/a.txt
+++ b/a.txt
@@ -3,3 +3,4 @@ def f():
 same
-old \x1b[31m
+new
++++ not a head
diff --git a/x b/<b>.bin
new file mode 100644
Binary files /dev/null and b/<b>.bin differ
diff --git a/was b/is
rename from was
rename to is
"""
    + b"@@ -1 +1 @@\n-\xff\n+\xe2\x80\xaetxt\n\\ No newline at end of file\n"
)


def test_a_patch_is_read() -> None:
    """A patch is read as files with their kind of change and numbered lines; invisible characters
    are shown, and lines beyond the limit are only counted."""
    found = tasks.read(PATCH)
    assert [(each.name, each.how, each.added, each.removed) for each in found.files] == [
        ("a.txt", "changed", 2, 1), ("<b>.bin", "new", 0, 0), ("is", "renamed", 1, 1),
    ]  # fmt: skip
    assert found.files[0].lines == [
        ("hunk", "", "", "def f():"), ("same", "3", "3", "same"), ("del", "4", "", "old ^[[31m"), ("add", "", "4", "new"),
        ("add", "", "5", "+++ not a head"),
    ]  # fmt: skip
    assert found.files[2].lines[-1][3] == "<U+202E>txt"
    long = tasks.read(b"diff --git a/a b/a\n@@ -1 +1 @@\n" + b"+x\n" * (tasks.LINES + 10))
    many = tasks.read(
        b"".join(
            b"diff --git a/f%d b/f%d\n" % (number, number) for number in range(tasks.FILES + 3)
        )
    )
    assert (len(many.files), many.more, many.files[-1].name) == (
        tasks.FILES,
        3,
        f"f{tasks.FILES - 1}",
    )
    assert long.left == 11 and long.added == tasks.LINES + 10
    assert tasks.read(b"") == tasks.read(b"nonsense\n+x\n") == tasks.Patch((), 0)


def test_failures_are_one_where_only_numbers_differ() -> None:
    """Failures that differ only in ids, paths, numbers and addresses form one group. Those of other
    agents or outcomes form another."""
    one = normal(
        "API Error 529 at /home/ada/x.py:12, request 4f3a9c1b7d22, see https://example.com/a?b=1"
    )
    assert one == normal(
        "API Error 500 at /srv/y/z.py:7, request 00ab34cd99ef, see https://example.com/c"
    )
    assert one == "API Error <n> at <path>:<n>, request <id>, see <url>"

    def failed(
        name: str,
        number: int,
        detail: str,
        kind: OutcomeKind = OutcomeKind.FAILED,
        state: RunState = RunState.FAILED,
    ) -> FailedAttempt:
        made = attempt(number, kind, None, detail=detail)
        return FailedAttempt(
            name,
            "claude",
            state,
            Attempt(**{each: getattr(made, each) for each in made.__slots__} | {"run": name}),
        )

    found = grouped([
        failed("c", 9, "exit 3"), failed("a", 7, "exit 1", state=RunState.SUCCEEDED), failed("a", 5, "exit 2", state=RunState.SUCCEEDED),
        failed("b", 6, "exit 1", OutcomeKind.TIMED_OUT), failed("d", 8, "", OutcomeKind.CANCELLED),
    ])  # fmt: skip
    assert [(each.kind, each.count, each.resolved, list(each.runs)) for each in found] == [
        (OutcomeKind.FAILED, 3, 1, ["c", "a"]), (OutcomeKind.TIMED_OUT, 1, 0, ["b"]),
    ]  # fmt: skip
    assert (found[0].first, found[0].last) == (6, 10) and "more time" in found[1].suggestion


def test_a_plan_stands_in_columns() -> None:
    """Each task is to the right of all tasks that it needs."""
    needs = {"d": ["b", "c"], "a": [], "b": ["a"], "c": []}
    tasks: Any = [SimpleNamespace(name=name, needs=needed) for name, needed in needs.items()]
    assert [[each.name for each in column] for column in columns(tasks)] == [
        ["a", "c"],
        ["b"],
        ["d"],
    ]
    assert columns([]) == []


def test_what_takes_long_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many simultaneous requests start one measurement. If it fails, the failure is reported, and
    the measurement is repeated after the cached failure has expired."""
    monkeypatch.setattr(context, "FIRST_S", 60.0)
    measured, begun, may_end = Measured(), [], threading.Event()

    def measure() -> str:
        begun.append(1)
        may_end.wait(60)
        return "done"

    threads = [threading.Thread(target=measured.get, args=("x", measure, 60, 0)) for _ in range(5)]
    for each in threads:
        each.start()
    may_end.set()
    for each in threads:
        each.join()
    found, _ = measured.get("x", measure, 10**9, 0)
    assert found is not None and found.value == "done" and len(begun) == 1

    def fail() -> str:
        raise OSError("no such disk")

    measured.forget("x")
    found, under_way = measured.get("x", fail, 60, 0)
    assert found is not None and "no such disk" in found.problem and not under_way

    def break_down() -> str:
        raise RuntimeError

    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda said: told.append(said.exc_type))
    measured.forget("x")
    found, under_way = measured.get("x", break_down, 60, 0)
    assert found is not None and "could not be measured" in found.problem and not under_way
    while not told:
        time.sleep(0.01)


def test_figures() -> None:
    """Numbers are shown in a readable form."""
    assert [lasted(each) for each in (-5, 850, 12_000, 185_000, 7_800_000, 273_600_000)] == [
        "0 ms", "850 ms", "12 s", "3 m 05 s", "2 h 10 m", "3 d 4 h",
    ]  # fmt: skip
    assert [size(each) for each in (0, 999, 12_300, 3_400_000_000)] == [
        "0 B",
        "999 B",
        "12 kB",
        "3.4 GB",
    ]
    assert [money(each) for each in (0, 0.0004, 0.42, 12)] == [
        "$0.00",
        "$0.0004",
        "$0.42",
        "$12.00",
    ]
