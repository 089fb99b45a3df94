"""A run as a forge shows it, step by step. Each test acts as people and an agent would, and then
checks the forge."""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.engine.attempt.opening_steps import _locked
from perdure.errors import ForgeRefused, InUse
from perdure.forge.replies import Poster
from perdure.forge.replies.comments import GIVEN_UP
from perdure.host.actors import acting
from perdure.model import Condition, Decision, OutcomeKind, RunState, TaskRun
from perdure.model.forge.deliveries import Forge
from perdure.model.forge.postings import Posting, origin_of
from perdure.model.requests import AgentRequest, AnswerKind, RequestKind
from perdure.rules.requests import short_id
from perdure.testing.stores.samples import begun, claimed, ending
from tests.posting.bench import PASSWORD, TOKEN, Bench, make_bench


def test_one_comment_from_acceptance_to_the_end(bench: Bench) -> None:
    """One comment is made and then only edited, through attempts in two conversations. Reactions
    mark the request as seen and as done."""
    answering = bench.answering()
    run = bench.dispatched()
    answering.answer(run.id)
    assert bench.issue.reactions == {("dev-bot", "eyes")}
    (first,) = bench.comments
    assert first.startswith("<!-- perdure:task=") and "**dev** (claude) is about to start." in first
    answering.answer(bench.begin(run).id)
    assert "is running (attempt 1)" in bench.comments[0]
    answering.answer(bench.end(run).id)
    assert "is done." in bench.comments[0] and "| 1 | succeeded | fresh | " in bench.comments[0]
    assert (
        "| 12.3k / 1.2k | $0.12 |" in bench.comments[0]
        and f"perdure open {run.name}" in bench.comments[0]
    )
    assert f"https://perdure.example.com/runs/{run.name}" in bench.comments[0]
    assert bench.issue.reactions == {("dev-bot", "eyes"), ("dev-bot", "rocket")}
    bench.again(run)
    bench.worked(run)
    answering.answer(run.id)
    assert (
        len(bench.comments) == 1
        and "| 2 | succeeded |" in bench.comments[0]
        and "| all | " in bench.comments[0]
    )
    assert bench.engine.store.postings_due() == [] and bench.posting(run).reason == ""
    assert bench.small.asked("DELETE", ".") == []


def test_nothing_is_said_twice(bench: Bench) -> None:
    """A run that has not changed is not reported again. If perdure's record of the comment is lost,
    the comment is found again."""
    answering = bench.answering()
    run = bench.dispatched()
    answering.answer(run.id)
    asked = len(bench.small.requests)
    answering.answer(run.id)
    assert len(bench.small.requests) == asked
    bench.engine.store.put_posting(Posting(run=run.id))
    answering.answer(run.id)
    assert len(bench.comments) == 1


def test_work_that_was_taken_back(bench: Bench) -> None:
    """The comment of a withdrawn run says that the work was taken back, and how to continue it. If
    a person is needed, the comment gives the reason."""
    answering = bench.answering()
    run = bench.worked(bench.dispatched())
    for kind, words, shown in (
        (
            "withdrawn",
            "unassigned by ada; to continue, assign it to dev-bot again, or mention it",
            "**No longer working on it:** ",
        ),
        (
            "needs_person",
            "checks failed after each of 3 attempts (ci_attempts)",
            "**A person is needed:** ",
        ),
    ):
        bench._told(
            bench.engine.store.record_outside_attempt(
                run.id, [], Condition(type=kind, message=words, at=1)
            )
        )
        answering.answer(run.id)
        (said,) = bench.comments
        assert f"{shown}`{words}`" in said
    assert (
        "Comments here reach the agent when it continues." in said
        and "a comment here continues" not in said
    )
    bench.again(run)
    answering.answer(run.id)
    assert (
        "No longer working on it" not in bench.comments[0]
        and "a comment here continues" in bench.comments[0]
    )


def test_a_person_who_is_needed_is_called(bench: Bench) -> None:
    """The last person who gave instructions is mentioned in a separate comment. This happens once
    each time a person is needed, even if perdure was killed before it stored that the comment
    exists."""
    answering, store = bench.answering(login="dev-bot"), bench.engine.store
    with acting("forge:tea/ada"):
        run = bench.worked(bench.dispatched())
    needs = Condition(type="needs_person", message="push @ben by hand `now`", at=1)
    with acting("forge:tea/eve"):  # Eve may not give instructions.
        bench._told(store.record_outside_attempt(run.id, [], needs))
    before = bench.posting(run)
    answering.answer(run.id)
    assert len(bench.comments) == 2
    words = bench.comments[1].partition("\n\n")[2]
    assert words.startswith("@ada **dev** needs you: `push @ben by hand 'now'`. [Its page]")
    held = store.hold_posting(run.id, 60)
    assert held is not None and held.called and not before.called
    store.put_posting(replace(held, called=""))  # As it was before the kill.
    answering.answer(run.id)
    answering.answer(run.id)
    assert len(bench.comments) == 2
    # Another person gives instructions, and again a person is needed.
    with acting("forge:tea/ben,carl"):
        bench.again(run)
    answering.answer(run.id)
    assert len(bench.comments) == 2
    bench._told(store.record_outside_attempt(run.id, [], needs))
    answering.answer(run.id)
    assert bench.comments[2].partition("\n\n")[2].startswith("@carl **dev** needs you")


@pytest.mark.parametrize("kind", [Forge.GITHUB, Forge.GITLAB])
def test_a_request_is_shown_with_how_to_answer_it(tmp_path: Path, kind: Forge) -> None:
    """The comment that mentions a person shows the whole call, with hidden characters by name and a
    word in place of the workdir's path, and the commands that answer it. An answer makes no new
    comment, but the next request does."""
    with make_bench(tmp_path, kind=kind) as bench:
        answering, store = bench.answering(login="dev-bot"), bench.engine.store
        with acting("forge:tea/ada"):
            run = bench.dispatched()
        assert run.workspace is not None
        command = f"cd {run.workspace.path} && rm -rf \u202e\x1b[8m```\n@ben /approve"
        one, two = _asks(bench, run, {"command": command}, {"command": "make " + "x" * 3000})
        answering.answer(run.id)
        assert len(bench.comments) == 2
        shown = bench.comments[1]
        prefix = {Forge.GITHUB: "/", Forge.GITLAB: "/perdure "}[kind]
        assert "command: cd <workdir> && rm -rf <U+202E>^[[8m```\\n@ben /approve" in shown
        assert "\n````text\ntool: Bash\n" in shown, "no text of an agent ends the code"
        assert f"`{prefix}approve {short_id(one)}`, or `{prefix}deny {short_id(one)} why`" in shown
        assert f"approve {short_id(two)}" not in shown and "too long to be shown here" in shown
        bench._told(store.answer(run.id, 2, AnswerKind.DENY, "no")[0])
        answering.answer(run.id)
        bench._told(store.answer(run.id, 1, AnswerKind.ALLOW, "")[0])
        answering.answer(run.id)
        assert len(bench.comments) == 2
        *_, three = _asks(bench, run, {"questions": [{"question": "Which <b>?", "options": []}]})
        answering.answer(run.id)
        assert f"`{prefix}answer {short_id(three)} your answer`" in bench.comments[2]
        assert "```text\nWhich <b>?\n```" in bench.comments[2]
        answering.answer(run.id)
        assert len(bench.comments) == 3


def _asks(bench: Bench, run: TaskRun, *given: dict[str, Any]) -> list[AgentRequest]:
    """End the run's next attempt with a request for each of these calls. Return the requests."""
    store = bench.engine.store
    claim = claimed(store, run)
    store.begin(claim, begun(run))
    earlier, now = len(store.requests(run.id)), store.now()
    made = [
        AgentRequest(
            run=run.id, number=number, attempt=claim.attempt, tool="Bash", call=f"c{number}", summary="s",
            kind=RequestKind.QUESTION if "questions" in each else RequestKind.APPROVAL,
            payload=json.dumps(each), size=len(json.dumps(each)), sha256=f"{number:064}", parked=True, asked=now,
            expires=now + 3_600_000,
        )
        for number, each in enumerate(given, earlier + 1)
    ]  # fmt: skip
    waits = Condition(type="needs_input", message="it waits", at=now)
    decision = Decision(state=RunState.QUEUED, run_after=now + 3_600_000, condition=waits)
    asks = ending(OutcomeKind.NEEDS_INPUT, RunState.QUEUED)
    bench._told(store.finish(claim, replace(asks, decision=decision, requests=tuple(made))))
    return made


@pytest.mark.parametrize("actor", ["token:ada", "forge:tea/dev-bot", "forge:tea/a[bot]", "forge:tea/@all x"])  # fmt: skip
def test_nobody_can_be_called(bench: Bench, actor: str) -> None:
    with acting(actor):
        run = bench.worked(bench.dispatched())
    needs = Condition(type="needs_person", message="which one?", at=1)
    bench._told(bench.engine.store.record_outside_attempt(run.id, [], needs))
    bench.answering(login="dev-bot").answer(run.id)
    assert len(bench.comments) == 1


def test_the_title_of_a_confidential_issue(tmp_path: Path) -> None:
    """The pull request for an issue that only members may read does not repeat the issue's
    title."""
    with make_bench(tmp_path, kind=Forge.GITLAB) as bench:
        bench.issue.confidential = True
        run = bench.worked(bench.dispatched())
        bench.answering(publish="pull").answer(run.id)
        (pull,) = bench.pulls
        assert pull.title == "Work (#1)" and "Rounding" not in pull.text


def test_a_comment_that_somebody_deleted(bench: Bench) -> None:
    """If somebody deleted perdure's comment, later events of the run are reported in a new one."""
    answering = bench.answering()
    run = bench.dispatched()
    answering.answer(run.id)
    bench.issue.said.clear()
    answering.answer(bench.worked(run).id)
    assert len(bench.comments) == 1 and "is done" in bench.comments[0]


def test_the_mark_in_a_strangers_comment(bench: Bench) -> None:
    """If a person writes perdure's mark into a comment, the comment is not changed."""
    answering = bench.answering()
    run = bench.dispatched()
    origin = origin_of(run)
    assert origin is not None
    marker = answering.marker(origin)
    bench.small.state.say("shop/prices", 1, "mallory", f"{marker} mine")
    answering.answer(run.id)
    assert bench.comments[0] == f"{marker} mine" and len(bench.comments) == 2


def test_hostile_words_do_nothing(bench: Bench) -> None:
    """Mentions, references, commands, HTML and broken fences in an agent's text appear in the
    comment as code. Secrets do not appear."""
    says = (
        "@ada closes #1\n/close\n<img src=x onerror=alert(1)>\n```\n@ben "
        f"{TOKEN}\n````\nAKIAABCDEFGHIJKLMNOP \x1b[31m"
    )
    run = bench.worked(bench.dispatched(), says=says)
    bench.answering().answer(run.id)
    (text,) = bench.comments
    before, _, rest = text.partition("`````text\n")
    inside, _, after = rest.partition("\n`````")
    assert "@ada closes #1\n/close\n<img" in inside and "@ben" in inside and "\x1b" not in text
    assert "@" not in before + after and "<img" not in before + after
    assert TOKEN not in text and "AKIAABCDEFGHIJKLMNOP" not in text and "*" * len(TOKEN) in inside


def test_published_with_a_pull_request(bench: Bench) -> None:
    """After success the branch is pushed with the agent's uncommitted changes, a pull request is
    opened against the default branch, and the commit has a status. Later work goes to the same
    branch and pull request."""
    answering = bench.answering(publish="pull")
    run = bench.dispatched()
    answering.answer(bench.begin(run).id)
    assert bench.branch() == "" and bench.pulls == []
    assert run.workspace is not None
    Path(run.workspace.path, "work.txt").write_text("x\n")
    answering.answer(bench.end(run).id)
    head = bench.branch()
    assert bench.git("show", f"{head}:work.txt") == "x"
    (pull,) = bench.pulls
    assert (pull.head, pull.base, pull.text.split("\n")[0]) == (
        "perdure/dev-1",
        "main",
        "Closes #1.",
    )
    assert "<" not in pull.title and pull.title.endswith("(#1)")
    assert [(each.name, each.state) for each in bench.shop.statuses[head]] == [
        ("perdure/dev", "success")
    ]
    assert f"at `{head[:12]}`, [pull request {pull.number}]" in bench.comments[0]
    assert PASSWORD not in bench.comments[0] + pull.text
    bench.again(run)
    answering.answer(bench.begin(run).id)
    assert bench.shop.statuses[head][-1].state == "pending"
    Path(run.workspace.path, "more.txt").write_text("y\n")
    answering.answer(bench.end(run).id)
    assert bench.branch() != head and len(bench.pulls) == 1 and len(bench.comments) == 1
    assert [each.state for each in bench.shop.statuses[bench.branch()]] == ["success"]
    kinds = [
        str(record.event.__struct_config__.tag) for record in bench.engine.store.history(run.id)
    ]
    assert kinds.count("published") == 2 and kinds.count("told_forge") == 1
    saved = bench.engine.store.checkpoints(run.id)
    assert [each.why for each in saved] == ["publish", "publish"] and saved[
        -1
    ].workdir.head == bench.branch()


def test_pushed_without_a_pull_request(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the forge refuses a pull request for the pushed branch, the comment says that, and not
    that nothing was pushed."""

    def refuse(*_: object, **__: object) -> None:
        raise ForgeRefused("no base")

    monkeypatch.setattr(bench.api, "open_pull", refuse)
    run = bench.worked(bench.dispatched())
    bench.answering(publish="pull").answer(run.id)
    assert bench.branch() and "**No pull request:** `no pull request: no base`" in bench.comments[0]
    assert "ot pushed" not in bench.comments[0] + bench.posting(run).reason


def test_nothing_new_is_nothing_to_review(bench: Bench) -> None:
    """If an agent changed nothing, no branch is pushed and there is no pull request."""
    run = bench.begin(bench.dispatched())
    bench.end(run)
    bench.answering(publish="pull").answer(run.id)
    assert (
        bench.branch() == ""
        and bench.pulls == []
        and "is done" in bench.comments[0]
        and "Branch" not in bench.comments[0]
    )
    assert bench.posting(run).tries == 0


@pytest.mark.parametrize(
    "where", ["a file", "a file that was taken out again", "a message", "a name"]
)
def test_a_secret_is_not_pushed(bench: Bench, where: str) -> None:
    """A secret in any commit to be pushed holds the branch back. The report says where the secret
    is, not what it is. When the secret is gone, the branch is pushed, and no person is needed any
    more."""
    secret = "AKIA" + "ABCDEFGHIJKLMNOP"
    run = bench.begin(bench.dispatched())
    assert run.workspace is not None
    place = Path(run.workspace.path)
    base = bench.git("rev-parse", "HEAD", cwd=place)
    (place / (secret if where == "a name" else "key.txt")).write_text(
        f"one\n{secret if where.startswith('a file') else ''}\n"
    )
    bench.git("add", "-A", cwd=place)
    bench.git("commit", "-qm", secret if where == "a message" else "a commit", cwd=place)
    if where == "a file that was taken out again":
        bench.git("rm", "-q", "key.txt", cwd=place)
        bench.git("commit", "-qm", "another", cwd=place)
    bench.end(run)
    answering = bench.answering(publish="branch")
    answering.answer(run.id)
    assert bench.branch() == ""
    (needs,) = bench.engine.store.get(run.id).conditions
    assert (
        needs.type == "needs_person"
        and "AWS access key" in needs.message
        and secret not in needs.message
    )
    assert "**A person is needed:**" in bench.comments[0] and secret not in bench.comments[0]
    assert bench.posting(run).tries == 1 and bench.posting(run).due > bench.engine.store.now()
    answering.answer(run.id)
    kinds = [
        str(record.event.__struct_config__.tag) for record in bench.engine.store.history(run.id)
    ]
    assert kinds.count("not_published") == 1, "a person is told once"
    bench.git("reset", "-q", "--soft", base, cwd=place)
    bench.git("commit", "-q", "--allow-empty", "-m", "clean", cwd=place)
    if where != "a file that was taken out again" and where != "a message":
        for path in (place / "key.txt", place / secret):
            path.unlink(missing_ok=True)
        bench.git("add", "-A", cwd=place)
        bench.git("commit", "-q", "--amend", "--allow-empty", "-m", "clean", cwd=place)
    answering.answer(run.id)
    assert (
        bench.branch()
        and bench.engine.store.get(run.id).conditions == ()
        and "needed" not in bench.comments[0]
    )
    assert bench.posting(run).tries == 0


def test_a_branch_that_is_held_back_for_days(bench: Bench) -> None:
    """A branch that is held back is checked again until the cause is removed, however often the
    check fails. A comment that the forge refuses is given up after a while."""
    run = bench.begin(bench.dispatched())
    assert run.workspace is not None
    base = bench.git("rev-parse", "HEAD", cwd=Path(run.workspace.path))
    Path(run.workspace.path, "key.txt").write_text("AKIA" + "ABCDEFGHIJKLMNOP\n")
    bench.end(run)
    answering = bench.answering(publish="branch")
    answering.answer(run.id)
    store = bench.engine.store
    for _ in range(2):
        held = store.hold_posting(run.id, 60)
        assert held is not None
        store.put_posting(replace(held, tries=GIVEN_UP))
        answering.answer(run.id)
        posting = bench.posting(run)
        assert (
            posting.tries == GIVEN_UP + 1 and store.now() < posting.due <= store.now() + 3_600_000
        )
    bench.git("reset", "-q", "--hard", base, cwd=Path(run.workspace.path))
    bench.shop.access["dev-bot"] = "none"
    answering.answer(run.id)
    posting = bench.posting(run)
    assert posting.tries == 0 and "no comment" in posting.reason
    assert "not pushed" not in posting.reason


def test_a_branch_that_somebody_moved(bench: Bench, tmp_path: Path) -> None:
    """Commits of other people on the branch are not overwritten. A person is needed, and after a
    merge the branch is pushed."""
    answering = bench.answering(publish="branch")
    run = bench.worked(bench.dispatched())
    answering.answer(run.id)
    other = tmp_path / "other"
    bench.git("clone", "-q", "-b", "perdure/dev-1", str(bench.bare), str(other), cwd=tmp_path)
    (other / "theirs.txt").write_text("t\n")
    bench.git("add", "-A", cwd=other)
    bench.git("commit", "-qm", "theirs", cwd=other)
    bench.git("push", "-q", cwd=other)
    theirs = bench.branch()
    bench.again(run)
    bench.worked(run, "mine.txt")
    answering.answer(run.id)
    assert (
        bench.branch() == theirs
        and "does not have" in bench.engine.store.get(run.id).conditions[0].message
    )
    bench.again(run)
    run = bench.begin(run)
    assert run.workspace is not None
    bench.git("merge", "-q", "--no-edit", "origin/perdure/dev-1", cwd=Path(run.workspace.path))
    bench.end(run)
    answering.answer(run.id)
    assert bench.branch() != theirs and bench.engine.store.get(run.id).conditions == ()


def test_a_failure_is_told_and_not_pushed(bench: Bench) -> None:
    """The comment of a failed run gives the reason, and its branch is not pushed."""
    run = bench.begin(bench.dispatched())
    assert run.workspace is not None
    Path(run.workspace.path, "half.txt").write_text("x")
    bench.end(run, OutcomeKind.FAILED, RunState.FAILED)
    bench.answering(publish="pull").answer(run.id)
    assert (
        "has failed: `it broke`" in bench.comments[0]
        and f"perdure retry {run.name}" in bench.comments[0]
    )
    assert bench.branch() == "" and ("dev-bot", "confused") in bench.issue.reactions


def test_a_forge_that_is_down(bench: Bench) -> None:
    """A report that cannot be posted waits as long as the forge says. In that time no request is
    sent. It is posted when the forge is back."""
    answering = bench.answering()
    run = bench.dispatched()
    bench.small.fail(429, retry_after="120")
    answering.answer(run.id)
    assert bench.comments == [] and bench.issue.reactions == set() and not bench.small.faults
    posting = bench.posting(run)
    assert (
        posting.tries == 1 and posting.due >= bench.engine.store.now() + 100_000 and posting.reason
    )
    assert bench.engine.store.postings_due() == [] and [
        each.run for each in bench.engine.store.postings_waiting()
    ] == [run.id]
    with bench.another_client():
        answering.answer(run.id)
    assert len(bench.comments) == 1 and bench.posting(run).tries == 0


@pytest.mark.parametrize("done", [True, False])
def test_an_answer_that_was_lost(bench: Bench, done: bool) -> None:
    """A connection breaks off before or after the forge has carried out a request. There is still
    one comment."""
    answering = bench.answering()
    run = bench.dispatched()
    for number in range(6):
        bench.small.fail(times=1, break_off=True, done=done)
        answering.answer(run.id)
        assert len(bench.comments) <= 1, number
        bench.engine.store.hurry_posting(run.id)
    bench.small.faults.clear()
    answering.answer(run.id)
    assert len(bench.comments) == 1 and bench.issue.reactions == {("dev-bot", "eyes")}


def test_git_that_is_down(bench: Bench) -> None:
    """If the git server does not answer, the push waits. The comment is posted nevertheless and
    says so. No person is needed."""
    answering = bench.answering(publish="branch")
    run = bench.worked(bench.dispatched())
    bench.http.down = True
    answering.answer(run.id)
    assert (
        "**Not pushed:**" in bench.comments[0] and bench.engine.store.get(run.id).conditions == ()
    )
    assert str(bench.engine.workspaces.root) not in bench.comments[0]
    bench.http.down = False
    answering.answer(run.id)
    assert bench.branch() and "Not pushed" not in bench.comments[0]


def test_a_token_without_rights(bench: Bench) -> None:
    """A denial by the forge is reported to the owner, and the step is retried rarely."""
    bench.shop.access["dev-bot"] = "none"
    run = bench.dispatched()
    bench.answering().answer(run.id)
    assert (
        bench.comments == []
        and "no comment" in bench.posting(run).reason
        and bench.posting(run).tries == 1
    )


def test_who_does_not_want_it(bench: Bench) -> None:
    """With `report = false` and `publish = "no"` nothing is changed on the forge. If a task was
    started over, only its newest run is reported."""
    run = bench.worked(bench.dispatched())
    bench.answering(report=False).answer(run.id)
    assert (
        bench.small.requests == []
        and bench.posting(run).tries == 0
        and bench.engine.store.postings_due() == []
    )
    bench.engine.store.remove(run.id)
    bench.answering().answer(bench.dispatched().id)
    assert "about to start" in bench.comments[0] and bench.engine.store.postings_due() == []


def test_an_attempt_waits_for_who_only_commits(bench: Bench) -> None:
    """If another step uses the workdir for a moment, an attempt waits. If the workdir is in use for
    longer, the attempt gets a conflict."""
    run = bench.worked(bench.dispatched())
    assert run.workspace is not None
    held = bench.engine.workspaces.lock(
        run.workspace, "perdure publish", keep_waiting_agents=True, brief=True
    )
    with ThreadPoolExecutor(1) as beside:
        waiting = beside.submit(_locked, bench.engine.workspaces, run.workspace)
        assert not waiting.done()
        os.close(held)
        got = waiting.result()
    with pytest.raises(InUse):
        _locked(bench.engine.workspaces, run.workspace)
    os.close(got)


@pytest.mark.parametrize("kind", [Forge.GITHUB, Forge.GITLAB])
def test_on_the_other_forges(tmp_path: Path, kind: Forge) -> None:
    """GitHub and GitLab get the same: one comment, reactions, the branch with its pull request, and
    a status."""
    with make_bench(tmp_path, kind=kind) as bench:
        answering = bench.answering(publish="pull")
        run = bench.dispatched()
        answering.answer(bench.begin(run).id)
        assert run.workspace is not None
        Path(run.workspace.path, "work.txt").write_text("x\n")
        bench.end(run)
        for _ in range(2):
            answering.answer(run.id)
            assert bench.posting(run).reason == ""
        (pull,) = bench.pulls
        assert (pull.head, pull.base) == ("perdure/dev-1", "main") and pull.text.startswith(
            "Closes #1."
        )
        assert (
            len(bench.comments) == 1
            and "is done" in bench.comments[0]
            and "[pull request " in bench.comments[0]
        )
        assert len(bench.issue.reactions) == 2 and len(bench.shop.statuses[bench.branch()]) >= 1


def test_what_nobody_foresaw_ends_no_thread(bench: Bench) -> None:
    """A run that cannot be reported because of an unforeseen error is skipped for a while, with a
    line in the log. Then it is reported."""
    well, said, tried = threading.Event(), list[str](), list[str]()

    def page(name: str) -> str:
        tried.append(name)
        if not well.is_set():
            raise RuntimeError("nobody foresaw this")
        return ""

    bench.dispatched()
    with Poster(replace(bench.answering(), page=page), said.append) as poster:
        while not poster._later:
            time.sleep(0.01)
        assert said == ["a report to a forge failed: nobody foresaw this"]
        well.set()
        poster._later.clear()
        while not bench.comments:
            time.sleep(0.01)
    assert len(tried) == 2
