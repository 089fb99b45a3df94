"""The comment on a forge has the verdict on a run's work with its evidence, and the signed receipt.
perdure's own code posts it in the Markdown of each forge."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from msgspec.structs import replace

from perdure.engine.attestation import signatures
from perdure.engine.attestation.attachment import signed_receipt
from perdure.engine.attestation.signatures import key_id, opened
from perdure.model import OutcomeKind, Receipt, RunState, TaskRun, Verdict
from perdure.model.events import (
    AnyEvent,
    QuestionAsked,
    Said,
    ToolDenied,
    ToolEnded,
    ToolStarted,
    TurnEnded,
    VerifyEnded,
    WorkSeen,
)
from perdure.model.forge.deliveries import Forge
from perdure.model.work import CommitOfWork, FileOfWork
from perdure.testing.stores.samples import ending
from tests.posting.bench import Bench, make_bench

DENIED = ToolDenied(tool_id="d", name="WebFetch", summary="https://example.invalid/a @ada <b>")
QUESTION = QuestionAsked(tool_id="q", text="Which database? (Postgres, SQLite)")
LIES: tuple[AnyEvent, ...] = (
    ToolStarted(tool_id="t", name="Bash", summary="pytest -q"),
    ToolEnded(tool_id="t", ok=False, code=1),
    Said("All tests pass."),
)
SEEN = WorkSeen(
    against="commit abc",
    files=(FileOfWork(name="greet.py", state="changed", added=3, removed=1),),
    file_count=1,
    lines_added=3,
    lines_removed=1,
    commits=(CommitOfWork(id="c" * 40, subject="fix"),),
    commit_count=1,
)


def ends(
    bench: Bench,
    run: TaskRun,
    *events: AnyEvent,
    kind: OutcomeKind = OutcomeKind.SUCCEEDED,
    state: RunState = RunState.SUCCEEDED,
) -> TaskRun:
    """End the running attempt with these events in its journal."""
    (claim,) = [each for each in bench.engine.store.claims() if each.run.id == run.id]
    told = (*events, TurnEnded(ok=True, text="Done."))
    done = replace(ending(kind, state), events=told, receipt=Receipt(verdict=Verdict.FRESH))
    return bench._told(bench.engine.store.finish(claim, done))


@pytest.mark.parametrize("kind", [Forge.GITEA, Forge.GITHUB, Forge.GITLAB])
def test_the_comment_shows_the_verdict(tmp_path: Path, kind: Forge) -> None:
    """The comment has the verdict on the newest attempt, with what was denied, asked, claimed and
    checked. While the first attempt runs, there is no verdict."""
    with make_bench(tmp_path, kind=kind) as bench:
        answering = bench.answering()
        run = bench.dispatched()
        answering.answer(bench.begin(run).id)
        assert "**Work" not in bench.comments[0]
        needs = OutcomeKind.NEEDS_INPUT, RunState.FAILED
        ends(bench, run, DENIED, DENIED, QUESTION, kind=needs[0], state=needs[1])
        answering.answer(run.id)
        (text,) = bench.comments
        assert "**Work: blocked** (`the attempt ended as needs_input" in text
        assert "Denied: `WebFetch https://example.invalid/a @ada <b>` (2)" in text
        assert "It asks: `Which database? (Postgres, SQLite)`" in text
        bench.begin(bench.again(run))
        ends(bench, run, *LIES, SEEN)
        answering.answer(run.id)
        (text,) = bench.comments
        assert "**Work: incomplete** (`it says that tests pass" in text
        assert "Contradiction: `it says that tests pass" in text
        assert "Changed: 1 file(s), +3 -1 lines, 1 commit(s)" in text
        assert "Check (`agent`): `pytest -q` exit code 1" in text
        bench.begin(bench.again(run))
        ends(bench, run, SEEN, VerifyEnded(code=0, output="", command="make test"))
        answering.answer(run.id)
        (text,) = bench.comments
        assert "**Work: done**" in text and "Contradiction" not in text
        assert "Check (`verify`): `make test` exit code 0" in text


@pytest.mark.parametrize("kind", [Forge.GITEA, Forge.GITHUB, Forge.GITLAB])
def test_the_receipt_is_attached_to_the_pull_request(tmp_path: Path, kind: Forge) -> None:
    """The receipt is once on the issue and once on the pull request that was opened. Its text,
    copied from there, verifies with the public key. The comment is edited when a later attempt has
    another receipt."""
    with make_bench(tmp_path, kind=kind) as bench:
        public = signatures.make(bench.engine.state)
        answering = replace(
            bench.answering(publish="pull"),
            receipt=lambda run: signed_receipt(bench.engine.store, run, bench.engine.state),
        )
        run = bench.dispatched()
        answering.answer(bench.worked(run).id)
        for number in (1, 2):
            assert bench.posting(run).reason == ""
            (pull,) = bench.pulls
            assert len(bench.comments) == len(pull.said) == 1
            for text in (bench.comments[0], pull.said[0].text):
                (line,) = [
                    each
                    for each in text.splitlines(keepends=True)
                    if each.startswith('{"payloadType"')
                ]
                statement = opened(line.encode(), {key_id(public): public})
                assert (statement.run, statement.attempt) == ((run.id, run.name), number)
            bench.again(run)
            answering.answer(bench.worked(run, f"more-{number}.txt").id)
            answering.answer(run.id)


def test_a_host_without_a_key_posts_all_the_same(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """On a host without a key no receipt is attached, and a warning gives the reason. The comment
    is posted nevertheless."""
    answering = replace(
        bench.answering(publish="pull"),
        receipt=lambda run: signed_receipt(bench.engine.store, run, bench.engine.state),
    )
    with caplog.at_level(logging.WARNING, "perdure"):
        answering.answer(bench.worked(bench.dispatched()).id)
    (pull,) = bench.pulls
    assert pull.said == [] and "**Work: " in bench.comments[0]
    assert "no signing key" in caplog.text
