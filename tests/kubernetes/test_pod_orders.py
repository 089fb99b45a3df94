"""Unexpected orders: for an attempt that never reached the state, older than the state, or invalid.
The run's record counts attempts as the operator does, and no attempt begins twice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from msgspec.structs import replace

from perdure import wiring
from perdure.cli.kubernetes.pod import _engine
from perdure.config.files import load
from perdure.engine.attempt import Engine
from perdure.kubernetes import pod, pod_state
from perdure.kubernetes.order import Earlier, Order, ResumeOrder, encode
from perdure.kubernetes.pod import perform_order
from perdure.kubernetes.result import AttemptResult, trusted_result
from perdure.kubernetes.secrets import Secrets
from perdure.model import (
    Continuation,
    OutcomeKind,
    Session,
    SessionKey,
    SessionState,
    Start,
    TaskSpec,
)
from perdure.protocols import Begun
from tests.conftest import Scratch

UID = "3f0c8a52-7a4e-4f5e-9a44-0c1de2b7f001"
RUN = UID.replace("-", "")
SPEC = TaskSpec(prompt="", service="api", task="t-1")


@pytest.fixture
def engine(scratch: Scratch, tmp_path: Path, agents: dict[str, Path]) -> Engine:
    """Make a pod's engine that is already asked to end, so that only the steps before the agent's
    start are done."""
    environ = {
        **scratch.environ,
        "PERDURE_CLAUDE": str(agents["claude"]),
        "PERDURE_STATE": str(tmp_path / "state"),
    }
    made = wiring.open_engine(load(environ, Path("/")), environ)
    return replace(made, stopping=lambda: True, leaving="its pod was asked to end")


def order(attempt: int, contexts: Sequence[int] = (1,), **changes: Any) -> Order:
    plain = Order(
        run=UID,
        name="t-1",
        attempt=attempt,
        attempts_allowed=9,
        spec=SPEC,
        contexts=tuple(contexts),
    )
    return structs.replace(plain, **changes)


def test_attempts_that_never_reached_the_state_are_closed_as_the_operator_saw_them(
    engine: Engine,
) -> None:
    """The pod of the fourth attempt finds an empty volume. It first records three attempts, each
    with the outcome that the operator knows and the note that no data of it exists here."""
    earlier = (
        Earlier(number=1, outcome=OutcomeKind.RATE_LIMITED, detail="limit"),
        Earlier(number=3, outcome=OutcomeKind.SUCCEEDED),
    )
    result = perform_order(engine, order(4, (1, 7), earlier=earlier), ("First.", "Second."))
    assert (result.outcome.kind, result.outcome.began) == (OutcomeKind.LOST, False)
    run = engine.store.get(RUN)
    assert (run.attempt, run.context_version, run.spec.prompt) == (3, 2, "First.")
    kinds = [attempt.outcome and attempt.outcome.kind for attempt in engine.store.attempts(run.id)]
    assert kinds == [OutcomeKind.RATE_LIMITED, OutcomeKind.LOST, OutcomeKind.LOST]
    details = [
        attempt.outcome.detail for attempt in engine.store.attempts(run.id) if attempt.outcome
    ]
    assert all("nothing of it was saved" in detail for detail in details)
    assert details[2].startswith("succeeded")


def test_an_attempt_that_has_ended_here_is_told_and_not_begun_again(engine: Engine) -> None:
    """For the order of an attempt that has ended, or for an older order, the recorded end is
    returned. Nothing begins again."""
    perform_order(engine, order(4), ("First.",))
    for number in (3, 1):
        result = perform_order(engine, order(number), ("First.",))
        assert (result.attempt, result.outcome.kind) == (number, OutcomeKind.LOST)
        assert [each.number for each in result.earlier] == list(range(1, number))
    assert engine.store.get(RUN).attempt == 3


def test_an_attempt_whose_pod_is_gone_is_closed_before_the_next(engine: Engine) -> None:
    """A claim on the attempt that a killed pod left in the state does not stop the next attempt,
    although its worker has another host's name."""
    perform_order(engine, order(1), ("First.",))
    assert engine.store.claim("pod-7:00000000:9:1", 600.0, ref=RUN) is not None
    result = perform_order(engine, order(2), ("First.",))
    assert (result.attempt, result.outcome.began) == (2, False)
    assert [attempt.outcome and attempt.outcome.kind for attempt in engine.store.attempts(RUN)] == [
        OutcomeKind.LOST
    ]


def test_two_pods_never_work_with_one_state(engine: Engine) -> None:
    """While one pod uses the state, another pod is refused, whatever its order is."""
    from perdure.host.homes import durable

    engine.state.mkdir(exist_ok=True)
    with durable.lock(engine.state / "pod.lock", "busy"):
        result = perform_order(engine, order(1), ("First.",))
    assert (result.outcome.kind, result.attempt) == (OutcomeKind.WRITER_CONFLICT, 1)


def test_an_order_that_knows_fewer_instructions_than_the_run_is_refused(engine: Engine) -> None:
    """An order with fewer instructions than the run has is refused: it comes from an operator that
    has not seen the newest request."""
    perform_order(engine, order(1, (1, 2)), ("First.", "Second."))
    result = perform_order(engine, order(2), ("First.",))
    assert result.outcome.kind is OutcomeKind.WRITER_CONFLICT
    assert "its instructions end with version 1" in result.outcome.detail
    assert "t-1 has version 2" in result.outcome.detail


def test_instructions_that_are_gone_are_missed_where_the_run_does_not_know_them(
    engine: Engine,
) -> None:
    """A text that the run has read may be gone or changed. A text that the run has not read is
    requested by its version, and nothing begins without it."""
    result = perform_order(engine, order(1, (3, 5)), (None, "Second."))
    assert result.outcome.kind is OutcomeKind.CONFIG_ERROR and "contexts/3" in result.outcome.detail
    assert engine.store.find() == []
    perform_order(engine, order(1, (3,)), ("First.",))
    perform_order(engine, order(2, (3, 5)), (None, "Second."))
    perform_order(engine, order(3, (3, 5)), ("Changed.", None))
    assert [each.text for each in engine.store.contexts(RUN)] == ["First.", "Second."]
    result = perform_order(engine, order(3, (3, 5, 6, 7)), (None, None, None, "Fourth."))
    assert result.outcome.kind is OutcomeKind.CONFIG_ERROR and "contexts/6" in result.outcome.detail


def test_instructions_that_the_cluster_lost_keep_their_place(engine: Engine) -> None:
    """The order lists only the third version of the instructions. A run that has two versions
    stores it as the third, and a run that has none also counts three."""
    perform_order(engine, order(1, (1, 4)), ("First.", "Second."))
    result = perform_order(engine, order(2, (7,), unlisted=2), ("Third.",))
    assert result.outcome.kind is OutcomeKind.LOST, result.outcome
    assert [each.text for each in engine.store.contexts(RUN)] == ["First.", "Second.", "Third."]
    other = structs.replace(order(1, (7,), unlisted=2), run=UID.replace("3f", "4f"), name="t-2")
    perform_order(engine, other, ("Third.",))
    perform_order(engine, structs.replace(other, attempt=2, contexts=(7, 8)), ("Third.", "Fourth."))
    texts = [each.text for each in engine.store.contexts(other.run_id)]
    assert texts == [pod.GONE, pod.GONE, "Third.", "Fourth."]


def test_what_changed_in_the_spec_holds_from_the_next_attempt_on(engine: Engine) -> None:
    """For the next attempt, model and limits are taken from the resource. The prompt, the workdir
    and the conversation's scope do not change."""
    perform_order(engine, order(1), ("First.",))
    before = engine.store.get(RUN)
    perform_order(
        engine,
        order(2, spec=replace(SPEC, model="opus", timeout_s=60.0)),
        ("First.",),
        ["ANTHROPIC_API_KEY"],
    )
    run = engine.store.get(RUN)
    assert (run.spec.model, run.spec.timeout_s, run.spec.prompt, run.spec.pass_env) == (
        "opus",
        60.0,
        "First.",
        ("ANTHROPIC_API_KEY",),
    )
    assert (
        (run.workspace, run.scope)
        == (before.workspace, before.scope)
        == (before.workspace, "task:api/t-1")
    )


def test_a_volume_that_outlived_a_taskrun_takes_its_successor(engine: Engine) -> None:
    """A TaskRun that was deleted and made again under the same name is another run, in the same
    workdir and conversation."""
    perform_order(engine, order(2), ("First.",))
    perform_order(engine, order(2, run=UID.replace("f001", "f002")), ("Second.",))
    first, second = engine.store.get(RUN), engine.store.get(RUN.replace("f001", "f002"))
    assert (first.name, second.name) == ("t-1", "t-1-3f0c8a52")
    assert (first.workspace, first.scope) == (second.workspace, second.scope)


def talked(engine: Engine, session_id: str) -> None:
    """Make a conversation of the task, as an earlier TaskRun left it whose pod was killed and whose
    attempt's files are lost."""
    spec = replace(SPEC, prompt="Before.")
    run = engine.store.add(
        spec, "0" * 32, "earlier", engine.workspaces.plan(spec, "earlier", Path("/"))
    )
    claim = engine.store.claim("w", 1.0, ref=run.id)
    assert claim is not None and run.workspace is not None
    session = Session(
        key=SessionKey("claude", run.scope),
        id=session_id,
        state=SessionState.CONFIRMED,
        created=1,
        updated=1,
        attempts=1,
    )
    asked = Continuation(kind=Start.FRESH, session_id=session_id)
    engine.store.begin(
        claim,
        Begun(
            continuation=asked, directory="/nowhere", prompt_sha256="0" * 64, flags={}, agent_version="", before=None, session=session,
            workspace=run.workspace,
        ),
    )  # fmt: skip


def test_how_a_run_begins_is_as_the_order_says(engine: Engine) -> None:
    """`Auto` continues the task's conversation. `Fresh` retires it, once, for the whole task.
    `Session` continues exactly the named one."""
    talked(engine, "talk-1")
    key = SessionKey("claude", "task:api/t-1")
    assert [s.id for s in engine.store.lineage(key) if s.state is not SessionState.RETIRED] == [
        "talk-1"
    ]
    named = order(
        1,
        run=UID.replace("f001", "f003"),
        spec=replace(SPEC, task="t-2"),
        resume=ResumeOrder(mode="Session", session_id="talk-1"),
    )
    perform_order(engine, named, ("Go on.",))
    assert engine.store.get(RUN.replace("f001", "f003")).scope == "task:api/t-1"
    perform_order(engine, order(1, resume=ResumeOrder(mode="Fresh")), ("Anew.",))
    assert [s.state for s in engine.store.lineage(key)] == [SessionState.RETIRED]
    unknown = order(
        1,
        run=UID.replace("f001", "f004"),
        spec=replace(SPEC, task="t-3"),
        resume=ResumeOrder(mode="Session", session_id="talk-9"),
    )
    result = perform_order(engine, unknown, ("Go on.",))
    assert (
        result.outcome.kind is OutcomeKind.CONFIG_ERROR
        and "no conversation talk-9" in result.outcome.detail
    )
    retired = structs.replace(unknown, resume=ResumeOrder(mode="Session", session_id="talk-1"))
    assert "is retired" in perform_order(engine, retired, ("Go on.",)).outcome.detail


def test_a_checkpoint_store_that_does_not_answer_begins_nothing(
    engine: Engine, tmp_path: Path
) -> None:
    """While the checkpoint store does not answer, it is not known whether the run has a
    conversation there. The attempt does not count and is repeated, and no run is created."""
    (tmp_path / "file").touch()
    result = perform_order(
        engine,
        order(2, checkpoints=f"file://{tmp_path}/file/store", state="checkpoints"),
        ("First.",),
    )
    assert (result.outcome.kind, result.outcome.began) == (OutcomeKind.OVERLOADED, False)
    assert pod_state.known(engine.store, RUN) is None


def run_pod(
    scratch: Scratch,
    tmp_path: Path,
    files: dict[str, bytes],
    *,
    secrets: dict[str, bytes] | None = None,
) -> tuple[int, AttemptResult]:
    """Run `perdure work --run` with these files as its order. Return its result, checked as the
    operator does."""
    for name, content in {
        **{f"order/{name}": content for name, content in files.items()},
        **(secrets or {}),
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    words = [
        sys.executable,
        "-m",
        "perdure",
        "work",
        "--run",
        "--order",
        str(tmp_path / "order"),
        "--result",
        str(tmp_path / "message"),
    ]
    done = subprocess.run(
        words,
        cwd="/",
        env={**scratch.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    result = trusted_result((tmp_path / "message").read_bytes(), 5, done.returncode)
    assert result is not None, (done.returncode, done.stderr)
    assert "hush-hush" not in done.stderr + done.stdout + str(result)
    return done.returncode, result


GOOD = {"order.json": encode(order(5, (3,))), "contexts/3": b"Do it."}


@pytest.mark.parametrize(
    ("files", "secrets", "words"),
    [
        ({}, {}, "no file order.json"),
        ({"order.json": b"\xff\xfe nonsense"}, {}, "cannot be followed"),
        ({"order.json": GOOD["order.json"]}, {}, "contexts/3 is missing"),
        (GOOD, {}, "claude is not installed"),
        ({**GOOD, "order.json": encode(order(5, (3,), spec=replace(SPEC, agent="nobody")))}, {}, "nobody"),
        (GOOD, {"secrets/credentials/LD PRELOAD": b"hush-hush-hush"}, "cannot be the name of a variable"),
        (GOOD, {"secrets/credentials/PERDURE_STATE": b"hush-hush-hush"}, "cannot be the name of a variable"),
        (GOOD, {"secrets/repository/ssh-privatekey": b"hush-hush-hush"}, "perdure takes `token`"),
        (GOOD, {"secrets/checkpoints/PATH": b"hush-hush-hush"}, "names that begin with AWS_"),
        (GOOD, {"secrets/checkpoints/GOOGLE_SERVICE_ACCOUNT_KEY": b'{"private_key": "' + b"hush-hush" * 300 + b'"}'}, "not installed"),
    ],
)  # fmt: skip
def test_nonsense_ends_with_a_sentence(
    scratch: Scratch, tmp_path: Path, files: dict[str, bytes], secrets: dict[str, bytes], words: str
) -> None:
    """For an invalid order the pod exits with 7, and its result says what is wrong. Nothing begins,
    and no value of a Secret is repeated."""
    (tmp_path / "order").mkdir()
    code, result = run_pod(scratch, tmp_path, files, secrets=secrets)
    assert (code, result.outcome.kind, result.outcome.began) == (7, OutcomeKind.CONFIG_ERROR, False)
    assert words in result.outcome.detail


def test_a_pod_loads_no_client_of_kubernetes() -> None:
    """A pod imports neither kopf nor lightkube."""
    look = (
        "import sys, perdure.cli.kubernetes.pod, perdure.kubernetes.pod; print({'kopf', 'lightkube'} & "
        "set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_operator_is_named_as_the_actor(
    scratch: Scratch, tmp_path: Path, agents: dict[str, Path]
) -> None:
    """The order's content is recorded as requested by the operator. Attempts are recorded as
    perdure's own actions."""
    environ = {
        **scratch.environ,
        "PERDURE_CLAUDE": str(agents["claude"]),
        "PERDURE_STATE": str(tmp_path / "state"),
    }
    made = _engine(order(1), environ, Secrets(), None)
    engine = replace(made, stopping=lambda: True, leaving="its pod was asked to end")
    perform_order(engine, order(1), ("First.",))
    perform_order(engine, order(2, (1, 2)), ("First.", "Second."))
    actors = {line.kind: line.actor for line in engine.store.audit()}
    assert actors["run_submitted"] == actors["context_added"] == "operator:taskrun/t-1"
    assert actors["attempt_claimed"] == "perdure"
