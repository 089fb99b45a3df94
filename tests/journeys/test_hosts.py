"""Two hosts with one PostgreSQL: a run whose host is gone continues on the other one in the same
conversation, or waits for its host."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from perdure.agents.rehearsal import Rehearsal
from tests.journeys.machines import begin, in_second_tool, manifests
from tests.journeys.stage import Stage
from tests.journeys.test_every_verb import MORE_WORDS, tried, verbs_of_a_run
from tests.journeys.test_requests_told import STOPS, command, escalated, outside
from tests.servers.postgres import Server

SCRIPT = """by history
run echo one > one.txt
---
run echo begun > begun.txt; until test -e go.txt; do sleep 0.1; done; echo late > late.txt
---
say It is done.
"""

Pair = Callable[..., tuple[Stage, Stage, Path]]


@pytest.fixture
def agent() -> str:
    """Return one CLI for these tests, because they do not depend on the agent."""
    return "claude"


@pytest.fixture
def hosts(agent: str, postgres: Server) -> Iterator[Pair]:
    """Make two stages with their own homes, roots and state directories, one database, and a
    directory that both can reach."""
    top = Path(tempfile.mkdtemp(prefix="ph"))
    made: list[Stage] = []
    with ExitStack() as stack:

        def make(script: str = SCRIPT, **extra: str) -> tuple[Stage, Stage, Path]:
            rehearsal = stack.enter_context(Rehearsal(script))
            (top / "shared").mkdir()
            shared = {
                "PERDURE_DATABASE": postgres.database(migrated=True),
                "PERDURE_LEASE": "8s",
                "PERDURE_CHECKPOINT_EVERY": "0.01s",
                **extra,
            }
            made.extend(
                Stage(top / name, agent, rehearsal, dict(shared)) for name in ("one", "two")
            )
            return made[0], made[1], top / "shared"

        yield make
        for stage in made:
            stage.close()
    shutil.rmtree(top, ignore_errors=True)


def test_a_run_goes_on_at_another_host(hosts: Pair, tmp_path: Path) -> None:
    """The host of a run vanishes in the middle of a tool, and its agent is ended. A pool on another
    host takes over, fetches workdir and conversation from the checkpoint store, and the agent
    continues natively. The receipt, the lists on both hosts and `why` show that."""
    store = (tmp_path / "store").as_uri()
    (tmp_path / "store").mkdir()
    one, two, _ = hosts(PERDURE_CHECKPOINT_STORE=store)
    begun = begin(one)
    in_second_tool(one)
    one.until(lambda: manifests(one), "a checkpoint is brought out")
    agent = one.agent_pid()
    os.kill(begun.pid, signal.SIGKILL)
    pool = two.start("work")
    two.until(lambda: two.show()["attempts"][0]["outcome"], "the other host takes over")
    assert (
        two.show()["attempts"][0]["outcome"]["kind"] == "lost"
        and not Path(f"/proc/{agent}/cmdline").exists()
    )
    two.until(
        lambda: Path(two.show()["workspace"]["path"]).is_relative_to(two.directory),
        "the workdir is brought there",
    )
    place = Path(two.show()["workspace"]["path"])
    two.until(lambda: (place / "one.txt").exists(), "the workdir is here")
    (place / "go.txt").write_text("")
    two.until(lambda: two.show()["state"] == "succeeded", "it succeeds")
    last = two.show()["attempts"][-1]
    assert (last["receipt"]["verdict"], last["session_id"]) == (
        "native",
        two.show()["attempts"][0]["session_id"],
    )
    assert one.show() == two.show() and "fetched from" in two.perdure("logs", "task").out
    pool.send_signal(signal.SIGTERM)
    assert two.finish(pool).code == 0


def test_a_run_waits_for_its_host(hosts: Pair) -> None:
    """Without a checkpoint store no other host starts the run. Pools on other hosts skip it, and
    `why` and `retry` name the host that it waits for. On that host it continues in the same
    conversation."""
    one, two, _ = hosts()
    begun = begin(one)
    place = in_second_tool(one)
    os.kill(begun.pid, signal.SIGKILL)
    two.until(
        lambda: two.perdure("work", "--once").code == 0 and two.show()["state"] == "queued",
        "the other host records the loss",
    )
    assert two.perdure("work", "--once").code == 0 and len(two.show()["attempts"]) == 1
    assert (
        "it waits for" in two.perdure("why", "task").out
        and "no checkpoint_store" in two.perdure("why", "task").out
    )
    refused = two.perdure("retry", "task")
    assert refused.code == 6 and "its workdir and conversation are on" in refused.err
    (place / "go.txt").write_text("")
    retried = one.perdure("retry", "task", "--json")
    assert retried.code == 0 and retried.json["attempts"][-1]["receipt"]["verdict"] == "native"


def test_a_plan_goes_on_where_its_branches_lie(hosts: Pair) -> None:
    """A plan that is run on another host gives an error that names the host of its workdirs, and
    nothing changes. On its own host the plan continues."""
    one, two, shared = hosts("by history\nsay It is done.\n")
    plan = shared / "shop.toml"
    head = f'name = "shop"\nagent = "claude"\npermissions = "full"\nrepo = "{one.repo}"\n'
    tasks = [
        f'[[tasks]]\nname = "{name}"\nprompt = "Do {name}."\nneeds = {needs}\n'
        for name, needs in (("a", []), ("b", ["a"]))
    ]
    plan.write_text(
        head + tasks[0] + tasks[1] + f'verify = "test -e {shared}/right"\nattempts = 1\n'
    )
    assert one.perdure("plan", "run", str(plan)).code == 1
    before = two.perdure("plan", "show", "shop", "--json").json
    refused = two.perdure("plan", "retry", "shop")
    assert refused.code == 6, refused.err
    assert "The plan shop cannot continue here: its workdir and conversation are on" in refused.err
    assert two.perdure("plan", "show", "shop", "--json").json == before
    (shared / "right").touch()
    assert one.perdure("plan", "retry", "shop").code == 0


def test_every_verb_with_a_run_of_another_host(hosts: Pair) -> None:
    """Verbs that read only the database work as at the run's own host. Verbs that need the workdir
    or the conversation are refused with the host's name, and nothing changes."""
    one, two, _ = hosts("by history\nrun echo one > one.txt\n---\nsay It is done.\n")
    assert one.perdure("run", "--permissions", "full", "--name", "task", "Do it.").code == 0
    before = one.show()
    lines = [(verb, "task", *MORE_WORDS.get(verb, ())) for verb in verbs_of_a_run()]
    lines = [words for words in lines if words[0] != "update"]
    away = one.directory.rename(one.directory.with_name("another machine"))
    ends = dict(zip(lines, tried(two, lines), strict=True))
    away.rename(one.directory)
    assert one.show() == before
    reads = {words[0] for words, done in ends.items() if not done.code}
    assert reads == {"attach", "checkpoints", "logs", "requests", "show", "wait", "why"}
    refused = {words[0]: done for words, done in ends.items() if done.code}
    for verb in ("answer", "approve", "deny", "stop", "tell"):
        assert refused.pop(verb).code == 6
    place = f" on {before['host']}"
    for verb, done in refused.items():
        assert done.code == 6 and place in done.err and done.out == "", (verb, done)
    gone = two.perdure("rm", "--force", "task")
    assert gone.code == 0 and f"it is{place}" in gone.out, gone
    assert Path(before["workspace"]["path"], "one.txt").read_text() == "one\n"


def test_new_instructions_wait_for_the_host(hosts: Pair) -> None:
    """`update` on another host stores the instructions once and says so, with exit code 75. The
    run's own host continues with them in the same conversation."""
    script = "by history\nsay It is done.\n---\nsay That too.\n"
    one, two, _ = hosts(script)
    assert one.perdure("run", "--name", "task", "Do it.").code == 0
    updated = two.perdure("update", "task", "That too.")
    assert updated.code == 75 and "the new instructions are stored" in updated.err, updated.err
    assert f"perdure retry task, on {one.show()['host']}" in updated.err
    assert [each["text"] for each in one.show()["contexts"]] == ["Do it.", "That too."]
    assert one.perdure("work", "--once").code == 0
    last = one.show()["attempts"][-1]
    assert (last["result"], last["receipt"]["verdict"]) == ("That too.", "native")
    later = two.perdure("update", "task", "--detach", "And this.")
    assert (later.code, later.out) == (0, "task\n") and "are stored" in later.err


def test_a_key_on_another_host_cancels_nothing(hosts: Pair) -> None:
    """A run that is queued for its own host is refused on another host under the same key, and
    stays queued. A command cancels only a run that it made itself."""
    one, two, _ = hosts("say It is done.\n")
    submit = (
        "import sys, perdure\n"
        "with perdure.open(cwd=sys.argv[1]) as runner:\n"
        "    runner.submit('Do it.', name='task', key='nightly')\n"
    )
    command = [sys.executable, "-c", submit, str(one.repo)]
    subprocess.run(command, cwd=one.repo, env=one.environ, check=True)
    words = ("run", "--repo", str(one.repo), "--name", "task", "--key", "nightly", "Do it.")
    refused = two.perdure(*words)
    assert refused.code == 6 and "cannot continue here" in refused.err, refused.err
    assert one.show()["state"] == "queued"
    assert one.perdure(*words).code == 0


@pytest.mark.parametrize("agent", ["codex"])
def test_an_answer_of_another_host(hosts: Pair, tmp_path: Path) -> None:
    """An agent asks a person on one host, and its process has ended. The person answers on another
    host, which has neither the workdir nor the conversation. The call then runs once, on the run's
    own host."""
    file = outside(tmp_path)
    one, two, _ = hosts("---\n".join([command(file), STOPS, escalated(file), "say Done.\n"]))
    try:
        assert one.perdure("run", "--agent", "codex", "--name", "task", "Do it.").code == 3
        one.nothing_survives()
        done = two.perdure("approve", "task")
        assert not file.exists() and (done.code, done.err) == (0, "")
        assert one.perdure("work", "--once").code == 0
        assert file.read_text() == "ran\n"
        assert two.show()["attempts"][-1]["receipt"]["verdict"] == "native"
        late = two.perdure("deny", "task", "--request", "1")
        assert (late.code, "was answered already" in late.err) == (6, True)
    finally:
        file.unlink(missing_ok=True)
