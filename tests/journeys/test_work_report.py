"""The work report with the real CLIs: facts are compared with the agent's own report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.journeys.stage import Stage
from tests.journeys.test_one_task import PROMPT, run_to

MakeStage = Callable[..., Stage]

pytestmark = pytest.mark.journey

LIES = """by history
run printf 'test -e ok\\n' > test.sh; echo '# more' >> greet.py
---
run sh ./test.sh
---
say I fixed the bug in `greet.py` and committed it. \x1b[31mAll tests pass.\u202e
---
run touch ok && git add . && git commit -qm 'Fix the greeting'
---
run sh ./test.sh
---
say I committed the fix, and all tests pass.
"""

INTERRUPTED = """by history
run echo one > one.txt
---
hang
run echo two > two.txt
---
say All is well.
"""


@pytest.fixture(params=["claude", "codex"])
def agent(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def work_of(report: dict[str, Any], number: int = -1) -> dict[str, Any]:
    work: dict[str, Any] = report["attempts"][number]["work"]
    return work


def test_a_last_word_that_lies_is_contradicted(stage: MakeStage) -> None:
    """The agent reports that tests pass and that it committed. Neither is true, and every view says
    why. In the next turn the agent does both and reports the same; the verdict is `done`."""
    one = stage(LIES)
    done = one.perdure(*run_to(one), PROMPT)
    assert done.code == 0, done.err
    assert "work incomplete" in done.err.splitlines()[-1]
    work = work_of(done.json)
    assert work["verdict"] == done.json["verdict"] == "incomplete"
    assert [each.split(",")[0] for each in work["contradictions"]] == [
        "it says that tests pass",
        "it says that it committed",
    ]
    (check,) = work["checks"]
    assert (check["code"], check["passed"]) == (1, False)
    files = {(each["name"], each["state"], each["added"]) for each in work["files"]}
    assert files == {("greet.py", "changed", 1), ("test.sh", "added", 1)}
    assert (work["commit_count"], work["uncommitted"]) == (0, 2)
    why, show = one.perdure("why", "task").out, one.perdure("show", "task").out
    for shown in (why, show):
        assert "incomplete: it says that tests pass, but the last check" in shown
        assert "\x1b" not in shown and "\u202e" not in shown
    again = one.perdure("update", "task", "Once more.", "--json")
    work = work_of(again.json)
    assert (work["verdict"], work["contradictions"]) == ("done", [])
    assert [each["subject"] for each in work["commits"]] == ["Fix the greeting"]
    assert work["files"] == [{"name": "ok", "state": "added", "added": 0, "removed": 0}]
    assert work["pushed"] is False
    # The report of the first attempt has not changed.
    assert work_of(again.json, 0)["verdict"] == "incomplete"


def test_a_killed_attempt_has_the_report_of_what_is_known(stage: MakeStage) -> None:
    """The machine was lost during an attempt. perdure finds the attempt's changes afterwards, and
    the next attempt, which changes nothing, does not get the verdict `nothing_to_do`."""
    one = stage(INTERRUPTED)
    started = one.start(*run_to(one), PROMPT)
    one.rehearsal.wait_for(2)
    one.lose_machine(started)
    done = one.perdure("retry", "task", "--json")
    assert done.code == 0, done.err
    first, second = work_of(done.json, 0), work_of(done.json, 1)
    assert (first["verdict"], first["observed"]) == ("incomplete", True)
    assert "one.txt" in [each["name"] for each in first["files"]]
    assert second["verdict"] == "unverified"
