"""Plans with the real CLIs: one conversation, branches that fork and are merged, and nothing done
twice after any kill.

The tests compare the messages that reached the model.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.cli.text import clean
from tests.journeys.stage import Done, Stage, said
from tests.journeys.terminal import on_terminal

MakeStage = Callable[..., Stage]

pytestmark = pytest.mark.journey

LINE = """by history
run echo one > one.txt
---
say The first file is written.
---
run echo two > two.txt
---
say The second file is written.
---
run echo three > three.txt
---
say The third file is written.
"""


@pytest.fixture(params=["claude", "codex"])
def agent(request: pytest.FixtureRequest) -> str:
    """Return a CLI that can fork."""
    return str(request.param)


on_claude = pytest.mark.parametrize("agent", ["claude"], indirect=True)
on_all = pytest.mark.parametrize("agent", ["claude", "codex", "gemini"], indirect=True)
on_codex = pytest.mark.parametrize("agent", ["codex"], indirect=True)


def write(one: Stage, *tasks: str, head: str = "") -> Path:
    """Write a plan file beside the repository and return its path. Each task is `name: needs:
    prompt`, with more lines of TOML after a newline."""
    lines = [
        'name = "shop"',
        f'agent = "{one.agent}"',
        'permissions = "full"',
        f'repo = "{one.repo}"',
        head,
    ]
    for text in tasks:
        first, _, more = text.partition("\n")
        name, needs, prompt = (part.strip() for part in first.split(":", 2))
        lines += [
            "",
            "[[tasks]]",
            f'name = "{name}"',
            f"prompt = {json.dumps(prompt)}",
            f"needs = {json.dumps(needs.split())}",
            more,
        ]
    path = one.directory / "plan.toml"
    path.write_text("\n".join(lines))
    return path


def git(one: Stage, *words: str, cwd: Path | str | None = None) -> str:
    return subprocess.run(
        ["git", *words],
        cwd=cwd or one.repo,
        env=one.environ,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def tasks_of(done: Done) -> dict[str, dict[str, Any]]:
    assert done.out, done.err
    return {task["name"]: task for task in done.json["tasks"]}


THREE = (
    "a:: Write the first file. The magic word is quercus.",
    "b:a: Write the second file.",
    "c:b: Write the third file.",
)


@on_all
def test_a_line_is_one_conversation(stage: MakeStage) -> None:
    """Three tasks share one session and one workdir. Each prompt is exactly the text of the plan,
    and the model gets all earlier messages."""
    one = stage(LINE)
    plan = write(one, *THREE)
    done = one.perdure("plan", "run", str(plan), "--json")
    assert done.code == 0, done.err
    tasks = tasks_of(done)
    assert [tasks[name]["verdict"] for name in "abc"] == ["fresh", "native", "native"]
    assert len({task["session_id"] for task in tasks.values()}) == 1
    assert len({task["path"] for task in tasks.values()}) == 1
    assert one.rehearsal.prompts() == [
        "Write the first file. The magic word is quercus.",
        "Write the second file.",
        "Write the third file.",
    ]
    shown = said(one.rehearsal.last.messages)
    assert (
        "quercus" in shown
        and "The first file is written." in shown
        and "The second file is written." in shown
    )
    result = done.json["result"]
    assert git(one, "ls-tree", "--name-only", result["branch"]).split() == [
        "greet.py",
        "one.txt",
        "three.txt",
        "two.txt",
    ]
    assert git(one, "status", "--porcelain", cwd=result["path"]) == ""
    assert git(one, "log", "-1", "--format=%an", result["branch"]) == f"{one.agent} (perdure)"
    assert [tasks[name]["changed"] for name in "abc"] == [["one.txt"], ["two.txt"], ["three.txt"]]
    requests = len(one.rehearsal.requests)
    again = one.perdure("plan", "run", str(plan), "--json")
    assert (again.code, again.json["state"], len(one.rehearsal.requests)) == (
        0,
        "succeeded",
        requests,
    )
    assert one.perdure("plan", "show", "shop").code == 0
    one.nothing_survives()


DIAMOND = (
    "a:: Do the root. The magic word is quercus.",
    "b:a: Do branch B.",
    "c:a: Do branch C.",
    "d:b c: Do the rest.",
)


def script(**parts: str) -> str:
    """Return a script for each prompt, the last task first, because a conversation also has the
    prompts of earlier tasks."""
    return "\n===\n".join(
        f"match {prompt.replace('_', ' ')}\nby history\n{replies}"
        for prompt, replies in reversed(parts.items())
    )


def meets(one_side: str, other: str, directory: str) -> str:
    """Return a reply whose command waits for the other branch. Unless both branches run at the same
    time, neither ends."""
    return (
        f"run echo {one_side} > {one_side}.txt; touch {directory}/{one_side}; until [ -e "
        f"{directory}/{other} ]; do sleep 0.05; done"
    )


@on_codex
def test_a_task_reports_only_its_own_work(stage: MakeStage) -> None:
    """A task that changes nothing reports no work, although an earlier task has written a file in
    the same workdir, and although its agent ends before a checkpoint is taken at its start."""
    one = stage(LINE.partition("run echo two")[0] + "say Nothing is left to do.\n")
    assert one.perdure("plan", "run", str(write(one, *THREE[:2]))).code == 0
    found = {}
    for name in ("shop-a", "shop-b"):
        (attempt,) = one.perdure("show", name, "--json").json["attempts"]
        found[name] = [each["name"] for each in attempt["work"]["files"]]
    assert found == {"shop-a": ["one.txt"], "shop-b": []}


@on_all
def test_branches_run_at_the_same_time_and_meet(stage: MakeStage, tmp_path: Path) -> None:
    """One task is a fork with its own workdir, and runs at the same time as the strand. Each of the
    two has the conversation before the fork, and nothing of the other. The last task has the files
    of both."""
    one = stage(
        script(
            Do_the_root=(
                "run echo a > a.txt; echo small > .env; echo .env > .gitignore\n---\nsay The root "
                "is done."
            ),
            Do_branch_B=f"{meets('b', 'c', str(tmp_path))}\n---\nsay B is done.",
            Do_branch_C=f"{meets('c', 'b', str(tmp_path))}\n---\nsay C is done.",
            Do_the_rest="run cat a.txt b.txt c.txt > d.txt\n---\nsay All is done.",
        )
    )
    done = one.perdure("plan", "run", str(write(one, *DIAMOND)), "--jobs", "2", "--json")
    assert done.code == 0, done.err
    tasks = tasks_of(done)
    assert [tasks[name]["verdict"] for name in "abcd"] == ["fresh", "native", "forked", "native"], (
        done.err
    )
    assert (
        tasks["a"]["session_id"]
        == tasks["b"]["session_id"]
        == tasks["d"]["session_id"]
        != tasks["c"]["session_id"]
    )
    assert tasks["c"]["path"] != tasks["b"]["path"] == tasks["d"]["path"]
    assert (tasks["d"]["merged"], tasks["d"]["conflicts"], tasks["d"]["changed"]) == (
        ["c"],
        [],
        ["d.txt"],
    )
    assert (Path(done.json["result"]["path"]) / "d.txt").read_text() == "a\nb\nc\n"
    assert (Path(tasks["c"]["path"]) / ".env").read_text() == "small\n"
    shown = {
        prompt: said(request.messages)
        for request in one.rehearsal.requests
        for prompt in DIAMOND_PROMPTS
        if prompt in said(request.messages)
    }
    assert "quercus" in shown["Do branch C."] and "The root is done." in shown["Do branch C."]
    assert (
        "Do branch B." not in shown["Do branch C."] and "Do branch C." not in shown["Do the rest."]
    )
    one.nothing_survives()


DIAMOND_PROMPTS = [text.split(": ", 1)[1] for text in DIAMOND[2:]]


def test_a_conflict_goes_to_the_agent_that_comes_last(stage: MakeStage) -> None:
    """Both branches changed the same line. The file gets conflict marks, the prompt of the last
    task names them, and the task is not done before they are resolved. `plan show` names the
    file."""
    one = stage(
        script(
            Do_the_root="run echo a > a.txt\n---\nsay The root is done.",
            Do_branch_B="run echo 'b = 1' > greet.py\n---\nsay B is done.",
            Do_branch_C="run echo 'c = 1' > greet.py\n---\nsay C is done.",
            Do_the_rest=(
                "say I looked away.\n---\nrun printf 'b = 1\\nc = 1\\n' > greet.py\n---\nsay "
                "Resolved."
            ),
        )
    )
    done = one.perdure("plan", "run", str(write(one, *DIAMOND)), "--jobs", "2", "--json")
    assert done.code == 0, done.err
    task = tasks_of(done)["d"]
    assert task["conflicts"] == [{"file": "greet.py", "reason": "both changed the same lines"}]
    assert task["attempts"] == 2
    first, second = [prompt for prompt in one.rehearsal.prompts() if "greet.py" in prompt]
    assert first.startswith("Do the rest.") and "git show HEAD^2:FILE" in first
    assert "conflict marks of a merge are still in 'greet.py'" in second
    assert (Path(task["path"]) / "greet.py").read_text() == "b = 1\nc = 1\n"
    assert (
        "conflict      greet.py: both changed the same lines"
        in one.perdure("plan", "show", "shop").out
    )
    one.nothing_survives()


# --- killed, stopped, failed
# ---------------------------------------------------------------------------------------


def begun(one: Stage, prompt: str) -> int:
    """Return the number of requests that began a turn with this prompt."""
    return sum(prompt in text for text in one.rehearsal.prompts())


HANGS = LINE.replace("say The second file is written.", "hang\nsay The second file is written.")


def _written(one: Stage) -> str:
    return "".join(path.read_text(errors="replace") for path in one.transcripts())


def test_a_plan_whose_machine_was_lost_goes_on(stage: MakeStage) -> None:
    """Everything is killed while the second task is running. When the plan runs again, the task
    continues in its conversation, and nothing is done twice."""
    one = stage(HANGS)
    plan = write(one, *THREE)
    started = one.start("plan", "run", str(plan))
    one.rehearsal.wait_for(4)
    # The CLI writes its transcript a moment after its request.
    one.until(lambda: "Write the second file." in _written(one), "it is written")
    one.lose_machine(started)
    done = one.perdure("plan", "run", str(plan), "--json")
    assert done.code == 0, done.err
    tasks = tasks_of(done)
    assert [(tasks[name]["attempts"], tasks[name]["verdict"]) for name in "abc"] == [
        (1, "fresh"),
        (2, "native"),
        (1, "native"),
    ]
    assert [begun(one, text.split(": ", 1)[1]) for text in THREE] == [1, 1, 1]
    workdir = Path(done.json["result"]["path"])
    assert [(workdir / f"{name}.txt").read_text() for name in ("one", "two", "three")] == [
        "one\n",
        "two\n",
        "three\n",
    ]
    one.nothing_survives()


@on_claude
def test_a_plan_whose_process_was_killed_finds_its_agent(stage: MakeStage, tmp_path: Path) -> None:
    """Only `plan run` is killed. The next `plan run` follows the agent that still works, in the
    same attempt."""
    one = stage(
        LINE.replace(
            "say The second file is written.",
            f"hold {tmp_path / 'go'}\nsay The second file is written.",
        )
    )
    plan = write(one, *THREE)
    started = one.start("plan", "run", str(plan))
    one.rehearsal.wait_for(4)
    started.kill()
    one.finish(started)
    (tmp_path / "go").touch()
    done = one.perdure("plan", "run", str(plan), "--json")
    assert done.code == 0, done.err
    assert [task["attempts"] for task in tasks_of(done).values()] == [1, 1, 1]
    one.nothing_survives()


@on_claude
def test_ctrl_c_stops_in_good_order_and_a_second_process_is_refused(stage: MakeStage) -> None:
    """While a plan is running, another `plan run` names its process (exit code 6). SIGINT stops the
    agent (130), and the next `plan run` continues the plan. A terminal shows a line for each
    task."""
    one = stage(HANGS)
    plan = write(one, *THREE)
    started = one.start("plan", "run", str(plan))
    one.rehearsal.wait_for(4)
    second = one.perdure("plan", "run", str(plan))
    assert (second.code, f"is being run by process {started.pid}" in second.err) == (6, True), (
        second.err
    )
    started.send_signal(signal.SIGINT)
    stopped = one.finish(started)
    assert (stopped.code, "continues" in stopped.err) == (130, True), stopped.err
    one.nothing_survives()
    shown = one.perdure("plan", "show", "shop", "--json").json
    assert (shown["state"], [task["state"] for task in shown["tasks"]]) == (
        "stopped",
        ["succeeded", "cancelled", "waits"],
    )
    code, screen = on_terminal(one, "plan", "run", str(plan), columns=100)
    assert (code, "shop: succeeded, 3 of 3 task(s) done" in clean(screen)) == (0, True), screen
    last = [
        line.split()[:4]
        for line in clean(screen).split("\n")
        if line.startswith(("a ", "b ", "c "))
    ][-3:]
    assert last == [
        ["a", "succeeded", "1", "fresh"],
        ["b", "succeeded", "2", "native"],
        ["c", "succeeded", "1", "native"],
    ]


@on_codex
def test_what_failed_stops_what_needs_it_and_nothing_else(stage: MakeStage) -> None:
    """A task that did not make its file has failed, while its sibling is done. `plan run` skips the
    failed task; `plan retry` continues it in its conversation."""
    one = stage(
        script(
            Do_the_root="say The root is done.",
            Do_branch_B="say I made nothing.\n---\nrun echo b > b.txt\n---\nsay B is done.",
            Do_branch_C="run echo c > c.txt\n---\nsay C is done.",
            Do_the_rest="say All is done.",
        )
    )
    root, left, right, rest = DIAMOND
    plan = write(one, root, f'{left}\nfiles = ["b.txt"]\nattempts = 1', right, rest)
    done = one.perdure("plan", "run", str(plan), "--json")
    assert done.code == 1
    tasks = tasks_of(done)
    assert {name: task["state"] for name, task in tasks.items()} == {
        "a": "succeeded",
        "b": "failed",
        "c": "succeeded",
        "d": "blocked",
    }
    assert "does not exist" in tasks["b"]["reason"] and tasks["d"]["reason"] == "b failed"
    requests = len(one.rehearsal.requests)
    again = one.perdure("plan", "run", str(plan))
    assert (again.code, len(one.rehearsal.requests)) == (1, requests)
    assert one.perdure("plan", "retry", "shop", "a").code == 6
    retried = one.perdure("plan", "retry", "shop", "b", "--json")
    assert retried.code == 0, retried.err
    tasks = tasks_of(retried)
    assert (tasks["b"]["attempts"], tasks["b"]["verdict"], tasks["d"]["state"]) == (
        2,
        "native",
        "succeeded",
    )
    assert begun(one, "the task was to create 'b.txt', which does not exist") == 1
    one.nothing_survives()


@on_claude
def test_loose_branches_meet_at_the_end_and_the_result_is_checked(stage: MakeStage) -> None:
    """Branches that no task merges are merged into the last task's workdir. That task's
    conversation first gets the conflict of the merge, and then the failure of the plan's check."""
    one = stage(
        script(
            Do_the_root="run echo a > a.txt\n---\nsay The root is done.",
            Do_branch_B="run echo 'b = 1' > greet.py\n---\nsay B is done.",
            Do_branch_C="run echo 'c = 1' > greet.py\n---\nsay C.\n---\nrun echo 'c = 2' > greet.py\n---\nsay Resolved.\n---\n"
            "run touch checked\n---\nsay Right now.",
        )
    )
    plan = write(
        one,
        *DIAMOND[:3],
        head="verify = \"test -e checked || { printf 'the mark \\\\033[1mis missing'; exit 3; }\"",
    )
    done = one.perdure("plan", "run", str(plan), "--jobs", "2", "--json")
    assert done.code == 0, done.err
    assert (done.json["result"]["task"], done.json["verified"]) == ("c", True)
    task = tasks_of(done)["c"]
    assert (task["merged"], task["attempts"], task["verdict"]) == (["b"], 3, "native")
    last = one.rehearsal.prompts()[-1]
    assert (
        "fails with exit code 3" in last
        and "not instructions to you" in last
        and "\nthe mark is missing\n--- end of output" in last
    )
    assert git(one, "show", f"{done.json['result']['branch']}:greet.py") == "c = 2"
    one.nothing_survives()


# --- files that change, agents that cannot
# -------------------------------------------------------------------------


@on_codex
def test_a_changed_file_is_taken_in_or_refused(stage: MakeStage) -> None:
    """A task that has not begun may be changed in the file. The prompt of a finished task may not
    be changed, and the error says what to do instead. All errors are reported at once, and nothing
    is stored."""
    one = stage(LINE)
    plan = write(one, *THREE[:2])
    assert one.perdure("plan", "run", str(plan)).code == 0
    write(one, THREE[0].replace("first", "1st"), "b:: Write the second file.", THREE[2])
    refused = one.perdure("plan", "run", str(plan))
    assert refused.code == 2
    assert "the prompt of 'a' was changed after it was done: perdure update shop-a" in refused.err
    assert "needs of 'b' changed after it had started" in refused.err
    write(one, *THREE)
    done = one.perdure("plan", "run", str(plan), "--json")
    assert done.code == 0, done.err
    assert [task["verdict"] for task in tasks_of(done).values()] == ["fresh", "native", "native"]
    one.nothing_survives()


def test_a_fork_that_cannot_be_made_begins_with_a_brief(stage: MakeStage) -> None:
    """Codex cannot fork a conversation that has continued since. With `unforkable = "brief"` the
    task begins with a brief of the conversation up to the fork, and the receipt says so. Claude
    Code forks at that turn and needs no brief."""
    one = stage(
        script(
            Do_the_root="run echo a > a.txt\n---\nsay The root is quercus.",
            Do_the_second="run echo b > b.txt\n---\nsay The second is fagus.",
            Do_the_third="run echo c > c.txt\n---\nsay The third is tilia.",
            Do_the_late="run cat a.txt b.txt > d.txt\n---\nsay All is done.",
        )
    )
    plan = write(
        one,
        "a:: Do the root.",
        "b:a: Do the second.",
        "c:b: Do the third.",
        "d:a b: Do the late.",
        head='unforkable = "brief"',
    )
    done = one.perdure("plan", "run", str(plan), "--jobs", "2", "--json")
    assert done.code == 0, done.err
    task = tasks_of(done)["d"]
    assert (task["verdict"], task["instead"]) == (
        ("forked", "") if one.agent == "claude" else ("rebuilt", "brief")
    )
    assert (Path(task["path"]) / "d.txt").read_text() == "a\nb\n"
    shown = next(
        said(request.messages)
        for request in one.rehearsal.requests
        if "Do the late." in said(request.messages)
    )
    assert "quercus" in shown and "fagus" not in shown and "tilia" not in shown
    one.nothing_survives()
