"""More stories of pods with real agents: unsaved work, interrupted replies, repositories, chosen
conversations."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from perdure.kubernetes.order import ResumeOrder
from perdure.model import Backend, OutcomeKind, Rung, Verdict
from tests.journeys.stage import said
from tests.kubernetes.pods import PROMPT, Ended, cluster
from tests.servers.githttp import serving

pytestmark = pytest.mark.kubernetes

IN_THE_FIRST_TOOL = (
    "by history\nrun echo begun > begun.txt; test -e GO || sleep 98; echo late > "
    "late.txt\n---\nsay It is done.\n"
)
IN_A_REPLY = (
    "by history\nrun echo one > one.txt\n---\nhang\nsay It is done.\n---\nsay It is done again.\n"
)


@pytest.fixture(params=["claude", "codex"])
def agent(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def stored(directory: Path) -> str:
    (directory / "c").mkdir(exist_ok=True)
    return f"file://{directory}/store"


def succeeded(ended: Ended) -> Ended:
    assert ended.result.outcome.kind is OutcomeKind.SUCCEEDED, (ended.result, ended.log[-3000:])
    return ended


def test_nothing_saved_begins_anew_and_says_so(agent: str, tmp_path: Path) -> None:
    """A pod is killed before its first checkpoint. The next one takes the run over in the store,
    which has no checkpoint, and begins a conversation with the whole prompt. Result, receipt and
    record say that nothing of the first attempt was saved."""
    with cluster(
        tmp_path / "c", agent, IN_THE_FIRST_TOOL, claim=False, checkpoints=stored(tmp_path)
    ) as one:
        pod = one.start(1)
        one.file("begun.txt")
        pod.kill()
        one.go.touch()
        ended = succeeded(one.run(2))
        assert ended.result.receipt is not None and ended.result.receipt.verdict is Verdict.FRESH
        assert [(each.number, each.outcome, each.verdict) for each in ended.result.earlier] == [
            (1, OutcomeKind.LOST, None)
        ]
        assert one.rehearsal.prompts()[-1].endswith(PROMPT)
        assert (
            "nothing of it was saved for its next attempt"
            in ended.log + one.rehearsal.prompts()[-1]
        )


def test_killed_in_a_reply_and_the_claim_goes_on(agent: str, tmp_path: Path) -> None:
    """The pod is killed while the model answers. The next one continues in the same conversation."""
    (tmp_path / "c").mkdir()
    with cluster(tmp_path / "c", agent, IN_A_REPLY) as one:
        pod = one.start(1)
        one.file("one.txt")
        one.rehearsal.wait_for(2)
        pod.kill()
        ended = succeeded(one.run(2))
        assert ended.result.receipt is not None and ended.result.receipt.verdict is Verdict.NATIVE
        assert "echo one > one.txt" in said(one.rehearsal.last.messages)


def test_a_repository_is_fetched_with_a_secret_that_nobody_sees(
    agent: str, tmp_path: Path, repository: Path
) -> None:
    """A clone over HTTP needs a password. git gets it from a file of the pod; the agent, the
    address of the clone's remote, and the result do not have the password. The next attempt, in a
    new pod, has the agent's commit from the checkpoint store."""
    script = (
        "by history\nrun env > ../env.txt; echo new > new.txt; git add new.txt; git commit -q -m "
        "new\n---\nsay Done.\n---\nrun git log --format=%s > ../log.txt; git status --short >> "
        "../log.txt\n---\nsay More.\n"
    )
    with serving(tmp_path / "served", "a-password-of-git") as server:
        server.make("r", repository)
        spec = {"service": "", "task": "", "repo": server.url("r"), "backend": Backend.ISOLATED}
        with cluster(
            tmp_path / "c", agent, script, claim=False, checkpoints=stored(tmp_path), spec=spec
        ) as one:
            one.repository = {"username": "ada", "password": "a-password-of-git"}
            first = succeeded(one.run(1))
            assert first.result.saved and first.result.workspace.branch == "perdure/t-1"
            place = one.pods[-1].directory / "data"
            (env,) = place.rglob("env.txt")
            assert "a-password-of-git" not in env.read_text()
            told = subprocess.run(
                ["grep", "-rl", "a-password-of-git", str(place)], capture_output=True, text=True
            )
            assert told.stdout == "", told.stdout
            second = succeeded(one.run(2, {1: PROMPT, 2: "Now more."}))
            assert (
                second.result.receipt is not None
                and second.result.receipt.verdict is Verdict.NATIVE
            )
            (log,) = (one.pods[-1].directory / "data").rglob("log.txt")
            assert log.read_text().split() == ["new", "second", "first"]
            assert second.result.workspace.commit


def test_another_run_s_conversation_goes_on_in_a_new_one(agent: str, tmp_path: Path) -> None:
    """A TaskRun with `Session` and `from` continues the conversation of another run, from that
    run's checkpoint store, in its own task's workdir."""
    script = "by history\nrun echo one > one.txt\n---\nsay Written.\n---\nsay I remember quercus.\n"
    with cluster(tmp_path / "c", agent, script, claim=False, checkpoints=stored(tmp_path)) as one:
        first = succeeded(one.run(1))
        session = first.result.session_id
        one.spec = {"task": "t-2"}
        resume = ResumeOrder(mode="Session", session_id=session, from_="t-1")
        uid = "3f0c8a52-7a4e-4f5e-9a44-0c1de2b7f009"
        second = succeeded(
            one.run(1, {1: "What was the magic word?"}, run=uid, name="t-2", resume=resume)
        )
        assert second.result.session_id == session
        assert second.result.receipt is not None and (
            second.result.receipt.verdict,
            second.result.receipt.rung,
        ) == (
            Verdict.NATIVE,
            Rung.COPY,
        )
        assert "quercus" in said(one.rehearsal.last.messages)
