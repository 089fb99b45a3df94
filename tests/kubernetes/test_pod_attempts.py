"""Attempts in pods that end and are replaced. The next attempt continues the same conversation, or
says why not. The messages that reached the model prove it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import zstandard

from perdure.model import OutcomeKind, Rung, Verdict
from tests.journeys.stage import said
from tests.kubernetes.pods import PROMPT, Cluster, Ended, cluster, until
from tests.servers.s3 import bucket

TWO_TOOLS = """by history
run echo one > one.txt
---
run echo begun > begun.txt; test -e GO || sleep 98; echo late > late.txt
---
say It is done.
---
say It is done again.
"""
SAVED_MIDWAY = TWO_TOOLS.replace("one.txt", "one.txt; sleep 1.5", 1)
"""A script whose first tool takes longer than the time between two checkpoints (1 s), so that there
is a checkpoint when it ends."""
IN_A_REPLY = (
    "by history\nrun echo one > one.txt\n---\nhang\nsay It is done.\n---\nsay It is done again.\n"
)

Make = Callable[..., Cluster]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make clusters. Everything in them ends with the test."""
    with ExitStack() as opened:

        def one(agent: str, script: str, **settings: Any) -> Cluster:
            return opened.enter_context(cluster(tmp_path / "c", agent, script, **settings))

        (tmp_path / "c").mkdir()
        yield one


def went_on(one: Cluster, ended: Ended, session_id: str) -> None:
    """Check that the pod's attempt succeeded in the same conversation, and that the model got the
    earlier messages."""
    result = ended.result
    assert result.outcome.kind is OutcomeKind.SUCCEEDED, (result, ended.log[-2000:])
    assert result.session_id == session_id
    assert result.receipt is not None and result.receipt.verdict is Verdict.NATIVE, result.receipt
    shown = said(one.rehearsal.last.messages)
    assert "quercus" in shown and "echo one > one.txt" in shown
    assert len({request.session for request in one.rehearsal.requests}) == 1


def published(one: Cluster) -> list[str]:
    """Return the manifests in the checkpoint store, which is a directory."""
    place = Path(one.checkpoints.removeprefix("file://"))
    return sorted(str(path) for path in place.glob("runs/*/*.json"))


def test_killed_in_a_tool_and_the_claim_goes_on(make: Make) -> None:
    """A whole pod is killed. The next one has its volume, takes over the attempt and continues. The
    same order a second time starts nothing. For a new version of the instructions the prompt has
    only the new text.
    """
    one = make("claude", TWO_TOOLS)
    pod = one.start(1)
    one.file("begun.txt")
    killed = pod.kill()
    assert killed.message == b""
    one.go.touch()
    second = one.run(2)
    session_id = second.result.session_id
    went_on(one, second, session_id)
    assert [(each.number, each.outcome, each.session_id) for each in second.result.earlier] == [
        (1, OutcomeKind.LOST, session_id)
    ]
    assert "ended early" in one.rehearsal.prompts()[-1]
    assert PROMPT not in one.rehearsal.prompts()[-1]
    asked = len(one.rehearsal.requests)
    again = one.run(2)
    assert again.result == second.result
    assert len(one.rehearsal.requests) == asked
    updated = one.run(3, {1: PROMPT, 5: "Now say it again."})
    went_on(one, updated, session_id)
    assert updated.result.context_version == 5
    assert (
        one.rehearsal.prompts()[-1].endswith("Now say it again.")
        and PROMPT not in one.rehearsal.prompts()[-1]
    )


def test_killed_between_tools_and_the_object_store_goes_on(make: Make) -> None:
    """There is no volume. Workdir and conversation are restored from S3 in a new pod. The store's
    keys are files, which the agent does not have. No secret is in the store, in perdure's state or
    in the log. A file with a secret stays in the pod."""
    with bucket() as s3:
        secrets = {name: value for name, value in s3.environ().items() if "_KEY" in name}
        environ = {name: value for name, value in s3.environ().items() if name not in secrets}
        script = SAVED_MIDWAY.replace("echo late", "env > env.txt; echo late")
        one = make(
            "codex",
            script,
            claim=False,
            checkpoints=f"{s3.url}/runs",
            extra=environ,
            store_secrets=secrets,
        )
        pod = one.start(1)
        one.file("begun.txt")
        until(
            lambda: [name for name in s3.names() if name.endswith(".json") and "terms" not in name],
            "a checkpoint is in the store",
        )
        pod.kill()
        one.go.touch()
        second = one.start(2)
        ended = second.end()
        went_on(one, ended, ended.result.session_id)
        assert ended.result.receipt is not None and ended.result.receipt.rung is Rung.COPY
        assert not ended.result.saved
        assert PROMPT not in one.rehearsal.prompts()[-1]
        seen = one.file("env.txt").read_text()
        assert "OPENAI_API_KEY=dummy-key" in seen and "AWS_" not in seen
        assert (
            leaks(second.directory / "data" / "perdure" / "state", *secrets.values(), "dummy-key")
            == []
        )
        assert not [name for name in s3.names() if b"dummy-key" in unpacked(s3.objects[name])]
        assert not [
            each
            for each in (*secrets.values(), "dummy-key")
            if each in ended.log + str(ended.message)
        ]


def unpacked(content: bytes) -> bytes:
    """Return the content of an object of the store: a frame, or plain JSON."""
    return (
        zstandard.ZstdDecompressor().decompress(content, max_output_size=1 << 26)
        if content[:4] == b"\x28\xb5\x2f\xfd"
        else content
    )


def leaks(directory: Path, *secrets: str) -> list[str]:
    """Return perdure's files below a directory that contain one of these secrets."""
    found = []
    for path in directory.rglob("*"):
        if (
            path.is_file()
            and not path.is_symlink()
            and any(secret.encode() in path.read_bytes() for secret in secrets)
        ):
            found.append(str(path.relative_to(directory)))
    return found


@pytest.mark.parametrize("agent", ["claude", pytest.param("codex", marks=pytest.mark.kubernetes)])
def test_sigterm_ends_the_agent_in_good_order(make: Make, agent: str) -> None:
    """A pod that gets SIGTERM reports `lost` and exits with 75. By then everything is in the store,
    and the next pod continues from there."""
    one = make(agent, TWO_TOOLS, claim=False, checkpoints="")
    one.checkpoints = f"file://{one.directory}/store"
    pod = one.start(1)
    one.file("begun.txt")
    pod.terminate()
    ended = pod.end()
    result = ended.result
    assert (result.outcome.kind, result.outcome.detail) == (
        OutcomeKind.LOST,
        "its pod was asked to end",
    ), ended.log[-3000:]
    assert (ended.code, result.saved, result.session_id != "") == (75, True, True)
    one.go.touch()
    went_on(one, one.run(2), result.session_id)


def test_an_older_pod_that_still_lives_is_fenced(make: Make) -> None:
    """The next attempt begins while the older pod is still running. The older pod loses its term,
    stops its agent and publishes nothing more. The new pod continues from what was published."""
    script = SAVED_MIDWAY.replace(
        "echo begun > begun.txt; test -e GO || sleep 98",
        "test -e GO || for n in 1 2 3 4 5 6 7 8 9; do echo begun > begun.txt; sleep 9; done",
    )
    one = make("claude", script, claim=False)
    one.checkpoints = f"file://{one.directory}/store"
    old = one.start(1)
    one.file("begun.txt")
    until(lambda: published(one), "a checkpoint is in the store")
    one.go.touch()
    after = one.run(2)
    went_on(one, after, after.result.session_id)
    displaced = old.end()
    result = displaced.result
    assert (result.outcome.kind, displaced.code, result.saved) == (OutcomeKind.LOST, 75, False), (
        displaced.log[-2000:]
    )
    assert "another pod has taken the run over" in result.outcome.detail
    assert "/000001-" not in published(one)[-1]
