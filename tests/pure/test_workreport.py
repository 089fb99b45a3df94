"""The work report: the facts in an attempt's journal, and the verdict on the work."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.model import Attempt, Outcome, OutcomeKind
from perdure.model.events import (
    AnyEvent,
    ContextAdded,
    Leftover,
    LeftoversFound,
    Published,
    QuestionAsked,
    Record,
    Said,
    ToolDenied,
    ToolEnded,
    ToolStarted,
    VerifyEnded,
    WorkSeen,
)
from perdure.model.work import CommitOfWork, FileOfWork, WorkReport, WorkVerdict
from perdure.rules.work_report import work_report
from perdure.rules.work_report.commands import changes_nothing, check_of
from perdure.rules.work_report.verdict import WorkClaim, claims_of

K, V = OutcomeKind, WorkVerdict
FILE = FileOfWork(name="greet.py", state="changed", added=1, removed=1)
COMMIT = CommitOfWork(id="c" * 40, subject="fix")
CHANGED = WorkSeen(against="commit abc", files=(FILE,), file_count=1, lines_added=1)
COMMITTED = WorkSeen(
    against="commit abc", files=(FILE,), file_count=1, commits=(COMMIT,), commit_count=1
)
UNCHANGED = WorkSeen(against="commit abc")
PASSED = VerifyEnded(code=0, output="", command="make test")


def shell(line: str, code: int | None = 0, key: str = "t") -> tuple[AnyEvent, AnyEvent]:
    """Return the events of a command of Codex, which reports every exit code."""
    return (
        ToolStarted(tool_id=key, name="command_execution", summary=line),
        ToolEnded(tool_id=key, ok=not code, code=code),
    )


def claude(line: str, *, ok: bool = True, output: str = "") -> tuple[AnyEvent, AnyEvent]:
    """Return the events of a command of Claude Code, which does not report exit code 0."""
    return (
        ToolStarted(tool_id="t", name="Bash", summary=line),
        ToolEnded(tool_id="t", ok=ok, summary=output, code=None if ok else 1),
    )


def reported(
    *events: AnyEvent,
    kind: OutcomeKind | None = K.SUCCEEDED,
    before: tuple[AnyEvent, ...] = (),
    number: int = 1,
) -> WorkReport:
    """Return the report of an attempt with these events. `before`: the events of the previous
    attempt."""
    earlier = [Record("r", seq, number - 1, 0, event) for seq, event in enumerate(before)]
    own = [Record("r", 100 + seq, number, 0, event) for seq, event in enumerate(events)]
    outcome = Outcome(kind=kind, detail="why") if kind is not None else None
    attempt = Attempt(
        run="r", number=number, context_version=1, worker="w", started=0, outcome=outcome
    )
    return work_report(attempt, [*earlier, *own])


EDIT = (ToolStarted(tool_id="e", name="Edit", summary="greet.py"), ToolEnded(tool_id="e", ok=True))

TABLE: dict[str, tuple[OutcomeKind, tuple[AnyEvent, ...], WorkVerdict]] = {
    "the check passed": (K.SUCCEEDED, (CHANGED, PASSED), V.DONE),
    "the agent's tests passed": (K.SUCCEEDED, (*EDIT, *shell("pytest"), CHANGED), V.DONE),
    "Claude's tests passed": (K.SUCCEEDED, (*EDIT, *claude("pytest -q"), CHANGED), V.DONE),
    "committed after the tests": (
        K.SUCCEEDED,
        (*EDIT, *shell("pytest"), *shell("git add . && git commit -m x", key="u"), COMMITTED),
        V.DONE,
    ),
    "edited after the tests": (K.SUCCEEDED, (*shell("pytest"), *EDIT, CHANGED), V.UNVERIFIED),
    "not checked": (K.SUCCEEDED, (*EDIT, CHANGED), V.UNVERIFIED),
    "the tests' code is another's": (
        K.SUCCEEDED,
        (*shell("pytest | tail -3"), CHANGED),
        V.UNVERIFIED,
    ),
    "the tests run in the background": (
        K.SUCCEEDED,
        (*claude("pytest", output="Command running in background with ID: b1"), CHANGED),
        V.UNVERIFIED,
    ),
    "Gemini tells no exit code": (
        K.SUCCEEDED,
        (
            ToolStarted(tool_id="t", name="run_shell_command", summary="pytest"),
            ToolEnded(tool_id="t", ok=True),
            CHANGED,
        ),
        V.UNVERIFIED,
    ),
    "the tests failed": (K.SUCCEEDED, (*shell("pytest", 1), CHANGED), V.INCOMPLETE),
    "a lie about tests": (
        K.SUCCEEDED,
        (*shell("pytest", 1), Said("All tests pass."), CHANGED),
        V.INCOMPLETE,
    ),
    "a lie about a commit": (
        K.SUCCEEDED,
        (*shell("pytest"), Said("I committed the fix."), CHANGED),
        V.INCOMPLETE,
    ),
    "a lie about a change": (
        K.SUCCEEDED,
        (Said("I fixed the bug in `greet.py`."), UNCHANGED),
        V.INCOMPLETE,
    ),
    "failed, then passed": (
        K.SUCCEEDED,
        (*shell("pytest", 1), *EDIT, *shell("pytest", key="u"), Said("All tests pass."), CHANGED),
        V.DONE,
    ),
    "the check passed although the agent's failed": (
        K.SUCCEEDED,
        (*shell("pytest", 1), CHANGED, PASSED),
        V.DONE,
    ),
    "nothing changed": (K.SUCCEEDED, (Said("All is well."), UNCHANGED), V.NOTHING_TO_DO),
    "nothing changed, checked": (K.SUCCEEDED, (UNCHANGED, PASSED), V.NOTHING_TO_DO),
    "nobody looked at the files": (K.SUCCEEDED, (Said("All is well."),), V.UNVERIFIED),
    "nothing but a push": (K.SUCCEEDED, (*shell("git push"), UNCHANGED), V.UNVERIFIED),
    "a call was denied": (
        K.SUCCEEDED,
        (ToolDenied(tool_id="t", name="WebFetch", summary="https://x"), CHANGED),
        V.BLOCKED,
    ),
    "denied, and checked": (
        K.SUCCEEDED,
        (ToolDenied(tool_id="t", name="WebFetch"), CHANGED, PASSED),
        V.DONE,
    ),
    "the tests were denied": (
        K.SUCCEEDED,
        (
            ToolStarted(tool_id="t", name="Bash", summary="pytest"),
            ToolDenied(tool_id="t", name="Bash", summary="pytest"),
            CHANGED,
        ),
        V.BLOCKED,
    ),
    "a question is open": (
        K.SUCCEEDED,
        (QuestionAsked(tool_id="q", text="Which?"), CHANGED),
        V.BLOCKED,
    ),
    "a question, and work after it": (
        K.SUCCEEDED,
        (QuestionAsked(tool_id="q", text="Which?"), *EDIT, CHANGED, PASSED),
        V.DONE,
    ),
    "it needs input": (K.NEEDS_INPUT, (CHANGED,), V.BLOCKED),
    "denied by policy": (K.DENIED, (CHANGED,), V.BLOCKED),
    "no credentials": (K.AUTH_FAILED, (), V.BLOCKED),
    "the model refused": (K.REFUSED, (UNCHANGED,), V.REFUSED),
    "cut": (K.TRUNCATED, (CHANGED,), V.INCOMPLETE),
    "killed": (K.LOST, (), V.INCOMPLETE),
    "killed after its tests": (K.LOST, (*shell("pytest"), CHANGED), V.INCOMPLETE),
    "its check failed": (
        K.VERIFY_FAILED,
        (CHANGED, VerifyEnded(code=1, output="", command="make test")),
        V.INCOMPLETE,
    ),
    "stopped": (K.CANCELLED, (CHANGED,), V.INCOMPLETE),
}


@pytest.mark.parametrize("story", TABLE)
def test_the_verdict_rests_on_evidence(story: str) -> None:
    """Each row of the table has a verdict and a reason."""
    kind, events, verdict = TABLE[story]
    report = reported(*events, kind=kind)
    assert report.verdict is verdict
    assert all(report.reasons)


def test_every_outcome_has_a_verdict_that_claims_no_success() -> None:
    """Only a successful attempt can be `done` or `nothing_to_do`."""
    for kind in OutcomeKind:
        verdict = reported(CHANGED, PASSED, kind=kind).verdict
        assert (verdict is V.DONE) is (kind is K.SUCCEEDED)
        assert reported(UNCHANGED, kind=kind).verdict is not V.DONE


def test_an_attempt_at_work_has_facts_and_no_verdict() -> None:
    report = reported(*shell("pytest", 1), Said("All tests pass."), kind=None)
    assert report.verdict is None
    assert [(each.code, each.passed) for each in report.checks] == [(1, False)]
    assert report.contradictions == ()


def test_earlier_attempts_at_the_same_instructions_count() -> None:
    """If an earlier attempt at the same instructions has done the work, the next one gets neither
    `nothing_to_do` nor a contradiction. After new instructions it may get `nothing_to_do`."""
    said = Said("I fixed the bug in `greet.py` and committed it.")
    report = reported(said, UNCHANGED, before=(CHANGED,), number=2)
    assert (report.verdict, report.contradictions) == (V.UNVERIFIED, ())
    asked = ContextAdded(version=1)
    report = reported(Said("All is well."), UNCHANGED, before=(CHANGED, asked), number=2)
    assert report.verdict is V.NOTHING_TO_DO


def test_what_was_pushed_is_known_by_three_ways() -> None:
    """A push is known by git's record of the remote branch, by perdure's own push, or by a
    successful push command of the agent, and by nothing else."""
    marked = msgspec.structs.replace(COMMITTED, pushed=True)
    assert reported(marked).pushed is True
    assert reported(COMMITTED, Published(branch="b", commit=COMMIT.id)).pushed is True
    assert reported(COMMITTED, Published(branch="b", commit="d" * 40)).pushed is False
    assert reported(*shell("git push origin b"), COMMITTED).pushed is True
    assert reported(*shell("git push origin b", 1), COMMITTED).pushed is False
    assert reported(CHANGED).pushed is None


def test_a_check_that_was_denied_is_none() -> None:
    """A check whose call was denied did not run, whatever its result says."""
    call = ToolStarted(tool_id="t", name="Bash", summary="pytest")
    denied = ToolDenied(tool_id="t", name="Bash", summary="pytest")
    report = reported(call, denied, ToolEnded(tool_id="t", ok=False, code=1), CHANGED, PASSED)
    assert [each.by for each in report.checks] == ["verify"]
    assert report.verdict is V.DONE


def test_calls_and_processes_are_counted_and_bounded() -> None:
    """Ten thousand denied calls become a list of fifty. Equal calls become one entry with a count.
    An input of 5 MB is cut."""
    many = [ToolDenied(tool_id=str(n), name="Bash", summary=f"rm {n}") for n in range(10_000)]
    report = reported(*many)
    assert len(report.denied) == 50
    assert sum(each.count for each in report.denied) == 10_000
    same = [ToolDenied(tool_id=str(n), name="Bash", summary="x" * 5_000_000) for n in range(3)]
    (call,) = reported(*same).denied
    assert (call.count, len(call.input)) == (3, 300)
    left = Leftover(pid=7, command="sleep 9", age_s=1.0, became="ended")
    assert reported(LeftoversFound(processes=(left,), count=1)).left[0].became == "ended"


@pytest.mark.parametrize(
    ("line", "own"),
    [
        ("pytest", True),
        ("cd app && python -m pytest -x 2>&1", True),
        ("/bin/bash -lc 'FOO=1 uv run pytest && git status'", True),
        ("npm run test:unit", True),
        ("go test ./...", True),
        ("cargo nextest run", True),
        ("make -j4 check", True),
        ("./gradlew :app:test", True),
        ("mvn -q verify", True),
        ("bundle exec rspec", True),
        ("timeout 60 npx jest", True),
        ("(cd a && ctest)", True),
        ("pytest;", True),
        ("pytest | tail", False),
        ("pytest || true", False),
        ("pytest; echo done", False),
        ("false || pytest", False),
        ("pytest &", False),
        ("(pytest) || true", False),
        ("pytest 'open", False),
    ],
)
def test_a_check_is_recognised_and_whose_code_it_is(line: str, own: bool) -> None:
    ran = check_of(line)
    assert ran is not None
    assert ran.own is own


RUNNERS = """pytest|py.test|python3 -m unittest|tox|nox|jest|vitest|mocha|ava|jasmine|karma|ctest|rspec
phpunit|pest|gotestsum|behave|cucumber|bats|busted|prove|cargo nextest run|trial|nosetests|npm t
yarn check|bun t|pnpm run test|node --test|playwright test|mix spec|bazel runtest|cargo t|gmake verify
ninja check|mvnw verify|./gradlew check|python test_a.py|python manage.py test|sh run_tests.sh
./bin/test|sudo -E pytest|env pytest|time pytest|direnv exec . pytest|poetry run pytest
nix-shell run pytest""".replace("\n", "|").split("|")


@pytest.mark.parametrize("line", RUNNERS)
def test_every_runner_is_known(line: str) -> None:
    """The quick search before a pattern must not exclude a runner that the pattern matches."""
    assert check_of(line) is not None


@pytest.mark.parametrize(
    "line",
    ["echo pytest", "grep -r pytest .", "pytest --help", "make -n test", "test -f x", "vim pytest"],
)
def test_talk_of_a_check_is_none(line: str) -> None:
    assert check_of(line) is None


def test_what_only_reads_changes_nothing() -> None:
    for line in ("git status", "ls | head", "git commit -m x && git push", "cat a; git diff"):
        assert changes_nothing(line)
    for line in ("rm x", "echo a > b", "git checkout .", "sed -i s/a/b/ f", "ls $(rm x)"):
        assert not changes_nothing(line)


@pytest.mark.parametrize(
    ("words", "claims"),
    [
        (
            "I fixed the failing test and all tests pass now.",
            {WorkClaim.TESTS_PASS, WorkClaim.CHANGED},
        ),
        ("12 passed, 0 failed", {WorkClaim.TESTS_PASS}),
        ("Changes are committed and pushed.", {WorkClaim.COMMITTED, WorkClaim.PUSHED}),
        ("I\u2019ve pushed the branch to origin.", {WorkClaim.PUSHED}),
        (
            "I fixed `a.py` and committed it to the branch.",
            {WorkClaim.CHANGED, WorkClaim.COMMITTED},
        ),
        ("The tests do not pass.", set()),
        ("Do all tests pass?", set()),
        ("The tests should pass now.", set()),
        ("Once the tests pass I will commit.", set()),
        ("I haven't committed anything.", set()),
        ("I already fixed the bug earlier.", set()),
        ("Run the suite to make sure that the tests pass.", set()),
        ("One test fails, the others passed all tests.", set()),
    ],
)
def test_only_plain_statements_are_claims(words: str, claims: set[WorkClaim]) -> None:
    assert claims_of(words) == claims


@given(st.text(max_size=300))
def test_any_text_is_no_error(text: str) -> None:
    """A report can be made from any text and commands of an agent without an error."""
    check_of(text)
    changes_nothing(text)
    reported(Said(text), *shell(text, None), ToolDenied(tool_id="t", name=text, summary=text))


def test_hostile_text_of_five_megabytes_takes_no_time() -> None:
    """The text is cut before anything reads it, so no pattern can search for long."""
    for piece in ("i ", "tests ", "a" * 99 + " ", "-x ", "make ", "$(", "'"):
        text = piece * (5_000_000 // len(piece))
        claims_of(text)
        reported(Said(text[:16_000]), *shell(text[:500], 0))
