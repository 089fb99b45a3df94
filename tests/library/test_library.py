"""perdure as a library, with the real Claude Code: the verbs as typed methods, for ordinary
programs and for event loops."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

import perdure
from perdure.agents.rehearsal import Rehearsal
from perdure.cli.main import VERBS
from perdure.host.wakeup import Bell
from perdure.model.codec import plain
from perdure.model.events import AttemptEnded, Said
from tests.journeys.stage import Stage

SCRIPT = (
    "by history\nrun echo one > one.txt\n---\nsay The first file is written.\n---\nsay More is "
    "done.\n"
)


@pytest.fixture
def stage() -> Iterator[Callable[[str], Stage]]:
    """Make a machine with Claude Code and a scripted model."""
    directory = Path(tempfile.mkdtemp(prefix="pl"))
    made: list[Stage] = []

    def make(script: str) -> Stage:
        made.append(Stage(directory, "claude", Rehearsal(script).start()))
        return made[-1]

    yield make
    for each in made:
        each.close()
        each.rehearsal.stop()
    shutil.rmtree(directory, ignore_errors=True)


def test_both_doors_have_the_same_verbs() -> None:
    """The methods for an event loop have the same names and arguments as those for an ordinary
    program. `async with` closes the runner."""
    verbs = {name for name in vars(perdure.Runner) if not name.startswith("_")}
    assert verbs == {name for name in vars(perdure.AsyncRunner) if not name.startswith("_")}
    for name in verbs - {"settings", "sessions"}:
        one, other = (
            inspect.signature(getattr(door, name)).parameters
            for door in (perdure.Runner, perdure.AsyncRunner)
        )
        assert one == other, name
        assert getattr(perdure.AsyncRunner, name).__doc__, name


def test_every_verb_of_the_command_is_here() -> None:
    """The page on the library has a row for each verb, with the methods that do the same, or with a
    reason why there are none."""
    page = (Path(__file__).parents[2] / "docs/how-to/python.md").read_text()
    page = page.partition("| Verb | Methods |")[2]
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.*?) \|$", page, re.MULTILINE))
    assert rows.keys() == {verb for verb, (_, text) in VERBS.items() if text}
    for verb, methods in rows.items():
        for name in re.findall(r"`(\w+)`", methods):
            assert hasattr(perdure.Runner, name), f"{verb}: there is no method {name}"


def test_the_fields_are_those_of_a_task() -> None:
    """A program may give every field of a task as a keyword argument, and a duration also as text.
    `files` are the task files."""
    fields = set(perdure.TaskSpec.__struct_fields__) - {"prompt", "files"}
    assert set(perdure.TaskOptions.__annotations__) == fields | {
        "timeout",
        "stall",
        "verify_timeout",
    }


def test_wrong_fields(tmp_path: Path) -> None:
    """An unknown field is a TypeError that suggests the nearest one. An invalid value is a
    UsageError with the field, before anything is stored. A duration may be given as text."""
    environ = {"HOME": str(tmp_path), "PATH": os.defpath}
    with perdure.open(cwd=tmp_path, environ=environ) as runner:
        anything = cast(Any, runner)
        with pytest.raises(TypeError, match="'reop'; did you mean 'repo'"):
            anything.run("x", reop="/srv")
        for wrong in ({"attempts": "five"}, {"timeout": "soon"}, {"permissions": "all"}):
            for verb in (anything.run, anything.submit, anything.spec):
                with pytest.raises(perdure.UsageError, match=next(iter(wrong))):
                    verb("x", **wrong)
        with pytest.raises(perdure.UsageError, match="timeout"):
            runner.spec("x", timeout="1h", timeout_s=5)
        with pytest.raises(perdure.UsageError, match="continuity"):
            anything.retry("x", continuity="loose")
        assert runner.spec("x", timeout="30m", stall=5).timeout_s == 1800
        assert runner.spec("x", repo=tmp_path).repo == str(tmp_path)
        assert not runner.runs()


def test_settings_that_do_not_fit_a_task(tmp_path: Path) -> None:
    """The settings' model is not used for another agent, and their check not for a task that may
    only read. What the program itself gives is used."""
    environ = {"HOME": str(tmp_path), "PERDURE_MODEL": "opus", "PERDURE_VERIFY": "make usual"}
    with perdure.open(cwd=tmp_path, environ=environ) as runner:
        usual = runner.spec("x")
        assert (usual.model, usual.verify) == ("opus", "make usual")
        other = runner.spec("x", agent="codex", permissions="read")
        assert (other.model, other.verify) == ("", "")
        own = runner.spec("x", agent="codex", model="m", permissions="read", verify="make own")
        assert (own.model, own.verify) == ("m", "make own")


def test_the_package_can_be_explored() -> None:
    """`dir`, `help` and completion show the public names, even if no module of the package was
    loaded before."""
    words = (
        "import perdure, pydoc; print(*dir(perdure)); print(pydoc.plain(pydoc.render_doc(perdure)))"
    )
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    shown, _, text = done.stdout.partition("\n")
    assert set(perdure.__all__) <= set(shown.split())
    for word in ("class Runner", "class AsyncRunner", "include_changes", "class Receipt"):
        assert word in text, word
    for name in perdure.__all__:
        assert getattr(perdure, name) is not None
    with pytest.raises(AttributeError, match="'opne'"):
        _ = cast(Any, perdure).opne


def test_files_from_a_program(stage: Callable[[str], Stage]) -> None:
    """`files`, `context` and `on_edit` work like the command's flags. An unknown strategy is
    refused."""
    one = stage("by history\nrun echo more >> notes/a.md\n---\nsay Done.\n---\nsay Again.\n")
    notes = one.directory / "notes"
    notes.mkdir()
    (notes / "a.md").write_text("first\n")
    with perdure.open(cwd=one.repo, environ=one.environ) as runner:
        run = runner.run(
            "Read it.",
            agent="claude",
            permissions="full",
            name="task",
            files=[f"{notes}/a.md=notes/a.md"],
        )
        assert run.workspace is not None
        assert (Path(run.workspace.path) / "notes/a.md").read_text() == "first\nmore\n"
        (notes / "a.md").write_text("second\n")
        with pytest.raises(perdure.PerdureError, match="on_edit"):
            runner.update("task", "Again.", files=[notes / "a.md"], on_edit="overwrite")
        runner.update(
            "task",
            "Again.",
            context=notes.parent / "notes",
            files=[f"{notes}/a.md=notes/a.md"],
            on_edit="replace",
        )
        assert (Path(run.workspace.path) / "notes/a.md").read_text() == "second\n"
        done = {
            file["name"]: file["action"] for file in runner.report("task")["attempts"][1]["files"]
        }
        assert done == {"a.md": "written", "notes/a.md": "replaced"}


def test_the_sync_door(stage: Callable[[str], Stage], caplog: pytest.LogCaptureFixture) -> None:
    """`run`, `update`, `report` and `history` give the same results as the command, and the command
    shows the same run."""
    one = stage(SCRIPT)
    seen: list[perdure.Record] = []

    def failing(record: perdure.Record) -> None:
        seen.append(record)
        raise ValueError("an observer's own mistake")

    with perdure.open(cwd=one.repo, environ=one.environ, observers=[failing]) as runner:
        run = runner.run("Write one.txt.", agent="claude", permissions="full", name="task")
        assert run.workspace is not None
        assert any(isinstance(record.event, AttemptEnded) for record in seen)
        assert "an observer's own mistake" in caplog.text
        assert run.result == "The first file is written."
        assert run.ok and run.workdir == Path(run.workspace.path)
        assert run.receipt is not None and run.receipt.verdict is perdure.Verdict.FRESH
        assert run.outcome is not None and run.outcome.ok
        assert run.usage.output > 0
        assert runner.get("task") == run
        assert list(runner.events("task")) == list(runner.history("task"))
        assert run.workspace.repo == str(one.repo.resolve())
        assert run.state is perdure.RunState.SUCCEEDED
        again = runner.update("task", "Do more.")
        assert again.state is perdure.RunState.SUCCEEDED
        attempts = runner.attempts("task")
        assert len(attempts) == 2, "\n".join(f"{each.outcome}" for each in attempts)
        first, second = attempts
        assert first.receipt is not None
        assert second.receipt is not None
        assert (first.receipt.verdict, second.receipt.verdict) == (
            perdure.Verdict.FRESH,
            perdure.Verdict.NATIVE,
        )
        assert any(isinstance(record.event, AttemptEnded) for record in runner.history("task"))
        assert runner.report("task") == one.show()
        work = runner.work("task")
        assert plain(work) == one.show()["attempts"][-1]["work"]
        assert again.verdict == work.verdict == second.work == one.show()["verdict"]
        assert work.verdict == "nothing_to_do"
        with pytest.raises(perdure.NotFound, match="no attempt 9"):
            runner.work("task", 9)
        with pytest.raises(perdure.PerdureError, match="nothing to retry"):
            runner.retry("task")
        (Path(run.workspace.path) / "one.txt").write_text("lost\n")
        restored = runner.restore("task")
        assert restored.checkpoint.why == "end" and restored.undo == runner.checkpoints("task")[-1]
        assert (Path(run.workspace.path) / "one.txt").read_text() != "lost\n"
        look_and_tidy(runner, one)
    one.nothing_survives()


def look_and_tidy(runner: perdure.Runner, one: Stage) -> None:
    """Call the other verbs on a finished run, and compare each with the command."""
    assert b"+one" in runner.diff("task")
    assert any("The first file is written." in line for line in runner.logs("task", attempt=1))
    assert [each["number"] for each in runner.why("task")["attempts"]] == [1, 2]
    assert runner.conversations()[0].run == runner._engine.store.get("task")
    assert "claude" in [agent["name"] for agent in runner.agents()]
    applied = runner.apply("task")
    assert applied.files == ("one.txt",) and (one.repo / "one.txt").read_text() == "one\n"
    by_hand = runner.open("task")
    assert by_hand.session_id in " ".join(by_hand.argv)
    with pytest.raises(perdure.Conflict, match="is open"):
        runner.update("task", "Not now.")
    assert runner.take_back("task").kept
    capsule = one.directory / "task.capsule"
    runner.export("task", capsule)
    arrived = runner.import_(capsule, name="arrived", into=one.directory / "arrived")
    assert arrived.run.name == "arrived"
    with pytest.raises(perdure.NotFound, match="no file"):
        runner.import_("nothing.capsule")
    assert runner.reset("task", dry_run=True).runs
    assert runner.du().total > 0
    assert not runner.gc(dry_run=True).taken
    removed = runner.remove("task", force=True)
    assert removed.trash is not None
    assert [entry["run"] for entry in runner.trash()] == ["task"]
    assert runner.trash_restore(removed.trash.name) and runner.get("task").ok
    forked = runner.fork("task", "Do more in a fork.", name="side")
    assert forked.receipt is not None and forked.receipt.verdict is perdure.Verdict.FORKED
    resumed = runner.resume("side", "And more.")
    assert resumed.receipt is not None and resumed.receipt.verdict is perdure.Verdict.NATIVE


def test_a_pool_hears_of_what_is_submitted(stage: Callable[[str], Stage]) -> None:
    """`submit` rings the bells of all pools of the state directory. A caller that follows a run
    waits for the pool that runs it."""
    one = stage(SCRIPT)
    with (
        closing(Bell(one.state)) as bell,
        perdure.open(cwd=one.repo, environ=one.environ) as runner,
    ):
        run = runner.submit("Write one.txt.", agent="claude", permissions="full")
        bell.wait(3600)
        pool = one.start("work", "--once")
        one.until(
            lambda: runner.get(run.id).state is perdure.RunState.RUNNING, "the pool has begun it"
        )
        assert runner.follow(run.id).state is perdure.RunState.SUCCEEDED
        assert one.finish(pool).code == 0


def test_the_async_door(stage: Callable[[str], Stage]) -> None:
    """Events arrive while the agent works, as an asynchronous iterator that ends with the run."""
    one = stage(SCRIPT)

    async def program() -> tuple[perdure.TaskRun, list[str]]:
        async with perdure.connect(cwd=one.repo, environ=one.environ) as runner:
            run = await runner.submit(
                "Write one.txt.", agent="claude", repo=str(one.repo), permissions="full"
            )
            working = asyncio.create_task(runner.follow(run.id))
            said = [
                record.event.text
                async for record in runner.events(run.id)
                if isinstance(record.event, Said)
            ]
            return await working, said

    run, said = asyncio.run(program())
    assert run.state is perdure.RunState.SUCCEEDED
    assert said == ["The first file is written."]
    one.nothing_survives()


def test_cancelling_stops_the_agent(stage: Callable[[str], Stage]) -> None:
    """If a task of the event loop is cancelled, its agent is stopped, and the run can be continued
    later."""
    one = stage("by history\nhang\nsay Hello.\n")

    async def program() -> str:
        async with perdure.connect(cwd=one.repo, environ=one.environ) as runner:
            run = await runner.submit(
                "Say hello.", agent="claude", repo=str(one.repo), permissions="full"
            )
            working = asyncio.create_task(runner.follow(run.id))
            await asyncio.to_thread(one.rehearsal.wait_for, 1)
            working.cancel()
            with pytest.raises(asyncio.CancelledError):
                await working
            return run.name

    name = asyncio.run(program())
    one.nothing_survives()
    assert one.show(name)["state"] == "cancelled"
    assert one.perdure("retry", name).code == 0


def _held(method: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> list[threading.Event]:
    """Replace a method of `perdure.Runner` so that it does its work, but waits before it returns.
    The first event is set when the work is done. Setting the second event lets the method
    return."""
    done, leave = threading.Event(), threading.Event()

    def held(*args: Any, **words: Any) -> Any:
        returned = method(*args, **words)
        done.set()
        assert leave.wait(60)
        return returned

    monkeypatch.setattr(perdure.Runner, method.__name__, held)
    return [done, leave]


def test_cancelling_while_a_run_begins(
    stage: Callable[[str], Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that is cancelled while its run is stored leaves no queued run."""
    one = stage("by history\nsay Hello.\n")
    stored, leave = _held(perdure.Runner._begin, monkeypatch)

    async def program() -> None:
        async with perdure.connect(cwd=one.repo, environ=one.environ) as runner:
            working = asyncio.create_task(runner.run("Say hello.", agent="claude"))
            assert await asyncio.to_thread(stored.wait, 60)
            working.cancel()
            leave.set()
            with pytest.raises(asyncio.CancelledError):
                await working
            assert [run.state for run in await runner.runs()] == ["cancelled"]

    asyncio.run(program())


def test_cancelling_when_the_run_has_ended(
    stage: Callable[[str], Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that is cancelled just when its run has ended raises CancelledError like any other.
    The library raises no Conflict."""
    one = stage("by history\nsay Hello.\n")
    ended, leave = _held(perdure.Runner.follow, monkeypatch)

    async def program() -> None:
        async with perdure.connect(cwd=one.repo, environ=one.environ) as runner:
            run = await runner.submit("Say hello.", agent="claude")
            await runner.stop(run.id)
            working = asyncio.create_task(runner.follow(run.id))
            assert await asyncio.to_thread(ended.wait, 60)
            working.cancel()
            leave.set()
            with pytest.raises(asyncio.CancelledError):
                await working

    asyncio.run(program())


@pytest.mark.parametrize("events", [False, True])
def test_closing_waits_for_what_works(stage: Callable[[str], Stage], events: bool) -> None:
    """Closing the runner stops the runs of other threads or tasks, and the end of each attempt is
    stored. The program gets no error about a closed database."""
    one = stage("by history\nhang\nsay Hello.\n")
    words: dict[str, Any] = {"agent": "claude", "repo": str(one.repo), "permissions": "full"}

    async def program() -> perdure.RunResult:
        async with perdure.connect(cwd=one.repo, environ=one.environ) as runner:
            run = await runner.submit("Say hello.", **words)
            working = asyncio.create_task(runner.follow(run.id))
            await asyncio.to_thread(one.rehearsal.wait_for, 1)
        return await working

    if events:
        ended = asyncio.run(program())
    else:
        with ThreadPoolExecutor(1) as threads:
            with perdure.open(cwd=one.repo, environ=one.environ) as runner:
                working = threads.submit(runner.run, "Say hello.", **words)
                one.rehearsal.wait_for(1)
            ended = working.result()
    assert one.show(ended.name)["state"] == ended.state == "cancelled"
    one.nothing_survives()


def test_many_that_work_hold_up_nothing() -> None:
    """With more runs than an event loop has threads, other calls are still answered, and all runs
    are stopped when they are cancelled."""

    class Working:
        """A runner whose runs take until they are stopped."""

        def __init__(self) -> None:
            self.over = {str(number): threading.Event() for number in range(40)}
            self.working = threading.Semaphore(0)

        def follow(self, ref: str) -> str:
            self.working.release()
            assert self.over[ref].wait(90), f"{ref} was never stopped"
            return ref

        def stop(self, ref: str) -> None:
            self.over[ref].set()

        def get(self, ref: str) -> str:
            return ref

    async def program() -> list[object]:
        door = Working()
        runner = perdure.AsyncRunner(cast(Any, door))
        following = [asyncio.create_task(runner.follow(ref)) for ref in door.over]
        assert await runner.get("1") == cast(Any, "1")
        for _ in following:
            while not door.working.acquire(blocking=False):
                await asyncio.sleep(0.01)
        for each in following:
            each.cancel()
        return list(await asyncio.gather(*following, return_exceptions=True))

    assert [type(each) for each in asyncio.run(asyncio.wait_for(program(), 90))] == [
        asyncio.CancelledError
    ] * 40


def test_importing_costs_nothing() -> None:
    """`import perdure` loads no package of perdure's own."""
    words = (
        "import sys, perdure; print([name for name in sys.modules if name.startswith('perdure.')])"
    )
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


PLAN = """
name = "shop"
agent = "claude"
permissions = "full"

[[tasks]]
name = "models"
prompt = "Write the models."
files = ["one.txt"]

[[tasks]]
name = "views"
prompt = "Write the views."
needs = ["models"]
"""


def test_a_plan_from_a_program(stage: Callable[[str], Stage]) -> None:
    """A plan that is cancelled on an event loop is stopped properly. A runner for ordinary programs
    continues it, and its report equals the command's."""
    one = stage(SCRIPT.replace("say More", "hang\nsay More"))
    (one.directory / "plan.toml").write_text(PLAN)

    async def cancelled() -> None:
        async with perdure.connect(cwd=one.repo, environ=one.environ) as runner:
            planning = asyncio.create_task(runner.plan_run("../plan.toml"))
            await asyncio.to_thread(one.rehearsal.wait_for, 3)
            planning.cancel()
            with pytest.raises(asyncio.CancelledError):
                await planning
            assert [task["state"] for task in (await runner.plan_report("shop"))["tasks"]] == [
                "succeeded",
                "cancelled",
            ]

    asyncio.run(cancelled())
    one.nothing_survives()
    with perdure.open(cwd=one.repo, environ=one.environ) as runner:
        plan = runner.plan_run("../plan.toml")
        assert plan.state is perdure.PlanState.SUCCEEDED
        report = runner.plan_report("shop")
        assert [(task["verdict"], task["attempts"]) for task in report["tasks"]] == [
            ("fresh", 1),
            ("native", 2),
        ]
        with pytest.raises(perdure.PerdureError, match="is done"):
            runner.plan_retry("shop", "views")
    shown = one.perdure("plan", "show", "shop", "--json")
    assert shown.json == report
    assert json.loads(json.dumps(report)) == report
