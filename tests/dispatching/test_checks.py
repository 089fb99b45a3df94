"""Failed checks on a forge that can be asked: all of a commit at once, with the end of each log,
and only while they are current."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.forge.dispatch.checks import job_excerpt
from perdure.model.forge.deliveries import Delivery, DeliveryState, Forge
from perdure.model.forge.postings import Posting
from perdure.model.forge.rules import Rule
from perdure.model.forge.state import CheckState
from tests.dispatching.office import Office
from tests.dispatching.test_payloads import send, unmarked
from tests.dispatching.test_reconciling import DEV, ChildProcess, asked
from tests.forges import minimal
from tests.servers.forge import gitea, github, gitlab

REPOSITORY = "shop/web"
HANDLED, IGNORED, WAITS = DeliveryState.HANDLED, DeliveryState.IGNORED, DeliveryState.RECEIVED
DIALECTS: dict[Forge, Any] = {
    Forge.GITHUB: github,
    Forge.GITEA: gitea,
    Forge.FORGEJO: gitea,
    Forge.GITLAB: gitlab,
}
BRANCH, COMMIT = "perdure/dev-4", "ab" * 20
GITHUB_LOG = """2026-01-02T03:04:05.1234567Z ##[group]Run make test
2026-01-02T03:04:05.2234567Z \x1b[36;1mmake test\x1b[0m
2026-01-02T03:04:06.1234567Z ##[endgroup]
2026-01-02T03:04:07.1234567Z E   AssertionError: 10.01 != 10.00
2026-01-02T03:04:07.2234567Z token ghp_0123456789abcdefghijABCDEFGHIJ012345 was used
2026-01-02T03:04:08.1234567Z ##[error]Process completed with exit code 2.
2026-01-02T03:04:09.1234567Z Post job cleanup.
2026-01-02T03:04:09.2234567Z [command]/usr/bin/git version
2026-01-02T03:04:09.3234567Z git version 2.43.0
2026-01-02T03:04:09.4234567Z Cleaning up orphan processes
"""
GITLAB_LOG = (
    "section_start:1700000000:step_script\r\x1b[0K$ make test\n"
    "progress 1%\rprogress 100%\n"
    "E   AssertionError: 10.01 != 10.00\n"
    "section_end:1700000001:step_script\r\x1b[0K\n"
    "\x1b[31;1mERROR: Job failed: exit code 2\n"
)


@pytest.fixture(params=list(Forge))
def at(request: pytest.FixtureRequest, make: Callable[..., Office]) -> Iterator[ChildProcess]:
    """Make an office whose agent has pushed a commit for issue 4. Yield it with its forge."""
    with opened(make, request.param) as found:
        yield found


@contextmanager
def opened(make: Callable[..., Office], forge: Forge, rule: Rule = DEV) -> Iterator[ChildProcess]:
    """Make the same office for a given rule and forge, as a context manager."""
    with asked(make, rule, DIALECTS[forge], forge) as found:
        state, office = found.small.state, found.office
        for number in range(1, 5):
            state.issue(REPOSITORY, "ada", f"Issue {number}", assignees=["dev-bot"])
        assert send(office, minimal.assigned(forge)).state is HANDLED
        office.end(office.claim())
        state.repositories[REPOSITORY].named[BRANCH] = COMMIT
        state.pull(REPOSITORY, "dev-bot", "Rounding (#4)", "Closes #4", BRANCH, "main")
        pushed(office, COMMIT)
        yield found


def pushed(office: Office, commit: str) -> None:
    run = office.run()
    assert office.engine.store.hold_posting(run.id, 60.0) is not None
    office.engine.store.put_posting(Posting(run=run.id, commit=commit, attempt=run.attempt))


def red(at: ChildProcess, **more: Any) -> list[Delivery]:
    return [
        send(at.office, sent)
        for sent in minimal.red(at.kind, "dev-bot", **{"commit": COMMIT, **more})
    ]


def test_all_failed_checks_with_their_logs(at: ChildProcess) -> None:
    """Two failed jobs and a failed status become one update with the error of each log, redacted.
    Passed checks, perdure's own status and the rest of the log are left out."""
    state = at.small.state
    log = GITLAB_LOG if at.kind is Forge.GITLAB else GITHUB_LOG
    state.job(REPOSITORY, COMMIT, "build", log=log)
    state.job(REPOSITORY, COMMIT, "lint", log="src/total.py:3: error: unused import\n")
    state.job(REPOSITORY, COMMIT, "docs", "success", log="all is well")
    at.forge.set_status(
        REPOSITORY,
        COMMIT,
        CheckState.FAILURE,
        context="coverage",
        text="71 % is less than 80 %",
        url="https://cov.example/7",
    )
    at.forge.set_status(REPOSITORY, COMMIT, CheckState.FAILURE, context="perdure/dev")
    found = red(at)
    assert [each.state for each in found] == [HANDLED, *([IGNORED] * (len(found) - 1))]
    (prompt,) = at.office.prompts()[1:]
    said = unmarked(prompt)
    assert f"Checks of {BRANCH} have failed." in said
    assert (
        "AssertionError: 10.01 != 10.00" in said and "src/total.py:3: error: unused import" in said
    )
    assert "coverage (https://cov.example/7)\n71 % is less than 80 %" in said
    for left_out in (
        "ghp_0123",
        "all is well",
        "perdure/dev\n",
        "2026-01-02",
        "\x1b",
        "orphan processes",
        "section_start",
    ):
        assert left_out not in said, left_out


def test_what_is_checked_still_is_waited_for(at: ChildProcess) -> None:
    """While other jobs of the commit are running, the agent gets no failure. When all have ended,
    it gets all failures together, once."""
    state = at.small.state
    state.job(REPOSITORY, COMMIT, "build", log="it broke\n")
    slow = state.job(REPOSITORY, COMMIT, "slow", "")
    at.forge.set_status(REPOSITORY, COMMIT, CheckState.PENDING, context="perdure/dev")
    waits = red(at)
    assert {each.state for each in waits} == {WAITS}
    name = "CI / slow (push)" if at.kind in (Forge.GITEA, Forge.FORGEJO) else "slow"
    assert (
        waits[0].reason
        == f"waits: {name} is still being checked; all failures are reported together"
    )
    assert len(at.office.prompts()) == 1
    slow.conclusion = "failure"
    more = red(at, name="slow")
    at.office.dispatcher._checks._pending.clear()
    at.office.dispatcher.round()
    states = {at.office.delivery(each.number).state for each in (*waits, *more)}
    assert states <= {HANDLED, IGNORED} and len(at.office.prompts()) == 2
    assert "build" in at.office.prompts()[1] and "slow" in at.office.prompts()[1]


def test_another_check_of_the_same_commit(at: ChildProcess) -> None:
    """If another check of the same commit fails later, the agent gets that failure without the
    earlier ones."""
    state = at.small.state
    state.job(REPOSITORY, COMMIT, "build", log="it broke\n")
    red(at)
    at.office.end(at.office.claim())
    state.job(REPOSITORY, COMMIT, "nightly", log="it broke at night\n")
    if at.kind in (Forge.GITLAB, Forge.FORGEJO):
        assert {each.state for each in red(at, name="nightly")} == {IGNORED}, (
            "they report pipelines and runs, not jobs"
        )
        return
    assert red(at, name="nightly")[0].state is HANDLED
    said = at.office.prompts()[2]
    assert "it broke at night" in said and "it broke\n" not in said


def test_a_commit_that_the_branch_has_left(at: ChildProcess) -> None:
    """A failed check of a commit that is no longer the newest of its branch is ignored."""
    at.small.state.job(REPOSITORY, COMMIT, "build")
    at.small.state.repositories[REPOSITORY].named[BRANCH] = "cd" * 20
    reasons = {each.reason for each in red(at) if each.intent is not None and each.intent.branch}
    assert (
        reasons == {f"{BRANCH} is not at the commit that failed"} and len(at.office.prompts()) == 1
    )


def test_a_log_that_cannot_be_had(at: ChildProcess) -> None:
    """A log that is gone, or that this login may not read, is no error. The agent gets the failure,
    with the reason why the log is missing."""
    at.small.state.job(REPOSITORY, COMMIT, "build")
    assert red(at)[0].state is HANDLED
    said = at.office.prompts()[1]
    assert "build" in said and "There is no log: " in said


def test_the_limit_is_said_on_the_forge_and_by_why(make: Callable[..., Office]) -> None:
    """When the attempts of a pull request are used up, the run needs a person. Its comment on the
    forge says so (tested in `tests.posting`), and so does `perdure why`."""
    with opened(make, Forge.GITHUB, replace(DEV, ci_attempts=1)) as at:
        state, office = at.small.state, at.office
        state.job(REPOSITORY, COMMIT, "build", log="it broke\n")
        assert red(at)[0].state is HANDLED
        office.end(office.claim())
        other = "cd" * 20
        state.repositories[REPOSITORY].named[BRANCH] = other
        pushed(office, other)
        state.job(REPOSITORY, other, "build", log="it broke\n")
        (first, *_) = red(at, commit=other)
        assert first.state is IGNORED and "(ci_attempts)" in first.reason
        (condition,) = office.run().conditions
        assert condition.type == "needs_person" and condition.message == first.reason
        told = subprocess.run(
            [sys.executable, "-m", "perdure", "why", office.run().name], cwd=office.ground.yard.top, capture_output=True, text=True,
            check=True, env={**office.ground.yard.environ, "PERDURE_STATE": str(office.ground.state)},
        )  # fmt: skip
        assert f"needs_person {first.reason}" in told.stdout


def test_the_hunk_of_a_comment_on_gitlab(make: Callable[..., Office]) -> None:
    """GitLab sends a comment on a line without the diff. perdure asks for the diff, and the agent
    gets the end of the hunk."""
    with asked(make, DEV, gitlab, Forge.GITLAB) as at:
        state, office = at.small.state, at.office
        for number in range(1, 5):
            state.issue(REPOSITORY, "ada", f"Issue {number}", assignees=["dev-bot"])
        for number in range(5, 10):
            state.repositories[REPOSITORY].named[BRANCH] = COMMIT
            state.pull(REPOSITORY, "dev-bot", f"Pull {number}", "", BRANCH, "main")
        diff = (
            "@@ -1,2 +1,2 @@\n a\n-b\n+c\n@@ -10,3 +10,4 @@ def total\n     a = 1\n-    b = 2\n+   "
            " b = 3\n+    c = 4\n+    d = 5\n"
        )
        state.repositories[REPOSITORY].diffs[9] = [
            ("README.md", "@@ -12 +12 @@\n-x\n+y\n"),
            ("src/total.py", diff),
        ]
        assert send(office, minimal.assigned(Forge.GITLAB)).state is HANDLED
        office.end(office.claim())
        assert send(office, minimal.on_a_line(Forge.GITLAB, "Why 4?", line=12)).state is HANDLED
        quoted = (
            "> @@ -10,3 +10,4 @@ def total\n>      a = 1\n> -    b = 2\n> +    b = 3\n> +    c = "
            "4\n"
        )
        assert unmarked(office.prompts()[1]).endswith(f"src/total.py:12:\n{quoted}Why 4?")


@pytest.mark.parametrize("forge", [Forge.GITEA, Forge.FORGEJO])
def test_the_lines_of_a_review_with_their_hunks(make: Callable[..., Office], forge: Forge) -> None:
    """Gitea and Forgejo send a review without its comments on lines. perdure asks for them, and the
    agent gets each with file, line and diff."""
    with asked(make, DEV, gitea, forge) as at:
        state, office = at.small.state, at.office
        for number in range(1, 5):
            state.issue(REPOSITORY, "ada", f"Issue {number}", assignees=["dev-bot"])
        for number in range(5, 10):
            state.repositories[REPOSITORY].named[BRANCH] = COMMIT
            state.pull(REPOSITORY, "dev-bot", f"Pull {number}", "", BRANCH, "main")
        assert send(office, minimal.assigned(forge)).state is HANDLED
        office.end(office.claim())
        state.now_is(office.engine.store.now())
        state.review(
            REPOSITORY, 9, "ada", "commented", "See below.", [("src/total.py", 12, "Why 3?")]
        )
        state.repositories[REPOSITORY].items[9].said[
            -1
        ].hunk = "@@ -12 +12 @@\n-    b = 2\n+    b = 3"
        assert send(office, minimal.on_a_line(forge, "See below.")).state is HANDLED
        quoted = "> @@ -12 +12 @@\n> -    b = 2\n> +    b = 3\n"
        assert unmarked(office.prompts()[1]).endswith(
            f"See below.\n\nsrc/total.py:12:\n{quoted}Why 3?"
        )


def test_an_excerpt_is_bounded() -> None:
    """However long a log is, its excerpt contains the error and has at most the requested number of
    characters."""
    log = (
        "\n".join(f"line {number}" for number in range(200_000))
        + "\nE   AssertionError: no\n"
        + "x" * 100_000
        + "\n##[error]Failed.\n"
    )
    found = job_excerpt(log, 2000)
    assert len(found) <= 2000 and "AssertionError: no" in found and "error: Failed." in found
