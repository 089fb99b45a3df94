"""The intents of each forge's webhooks."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.forge.webhooks import parsed, read
from perdure.model.forge.deliveries import Forge, IntentKind
from tests.forges import payloads as p

GITHUB, GITEA, FORGEJO, GITLAB = Forge.GITHUB, Forge.GITEA, Forge.FORGEJO, Forge.GITLAB

WANTED: list[tuple[Forge, str, bytes, str, dict[str, Any]]] = [
    (GITHUB, "issues", p.raw("github", "issues_assigned"), "assigned", {"number": 1, "pull": False, "whom": ("Codertocat",)}),
    (GITHUB, "issues", p.raw("github", "issues_labeled"), "labelled", {"number": 1, "labels": ("bug",), "author": "Codertocat"}),
    (GITHUB, "issues", p.raw("github", "issues_opened"), "opened", {"labels": ("bug",), "whom": ("Codertocat",)}),
    (GITHUB, "issues", p.raw("github", "issues_reopened"), "reopened", {"number": 1}),
    (GITHUB, "issues", p.derived("github", "issues_reopened", lambda b: b.update(action="closed")), "closed", {"pull": False}),
    (GITHUB, "issues", p.derived("github", "issues_reopened", lambda b: b.update(action="transferred")), "closed", {"number": 1}),
    (GITHUB, "issue_comment", p.raw("github", "issue_comment_created"), "commented", {"pull": False, "text": p.recorded(
        "github", "issue_comment_created")["comment"]["body"]}),
    (GITHUB, "issue_comment", p.derived("github", "issue_comment_created", p.on_a_pull), "commented", {
        "pull": True, "mentions": ("octo-bot", "Other")}),
    (GITHUB, "pull_request", p.raw("github", "pull_request_opened"), "opened", {"number": 2, "pull": True, "branch": "changes"}),
    (GITHUB, "pull_request", p.raw("github", "pull_request_closed"), "closed", {"pull": True, "branch": "changes"}),
    (GITHUB, "pull_request", p.derived("github", "pull_request_closed", p.merged), "merged", {"pull": True}),
    (GITHUB, "pull_request", p.raw("github", "pull_request_review_requested"), "review_requested", {"whom": ("octocat",)}),
    (GITHUB, "pull_request_review", p.derived("github", "pull_request_review_submitted", p.wants_changes), "changes_requested", {
        "text": "Round half to even.", "pull": True}),
    (GITHUB, "pull_request_review_comment", p.raw("github", "pull_request_review_comment_created"), "line_commented", {"number": 2}),
    (GITHUB, "pull_request_review_comment", p.raw("github", "pull_request_review_comment_created"), "line_commented", {
        "path": "README.md", "line": 1, "hunk": "@@ -1 +1 @@\n-# Hello-World", "comment": "284312630"}),
    (GITLAB, "Note Hook", p.raw("gitlab", "review_comment_create"), "line_commented", {
        "path": "README.md", "line": 1, "removed": False, "hunk": ""}),
    (GITEA, "issue_label", p.derived("gitea", "issues_opened", lambda b: b.update(action="label_cleared")), "unlabelled", {"number": 1}),
    (GITHUB, "check_run", p.raw("github", "check_run_completed"), "ci_failed", {"number": 2, "pull": True, "branch": "changes"}),
    (GITHUB, "delete", p.raw("github", "branch_delete"), "branch_deleted", {"branch": "feature-branch", "number": 0}),
    (GITHUB, "push", p.raw("github", "push_branch_delete"), "branch_deleted", {"branch": "feature-branch"}),
    (GITEA, "issues", p.raw("gitea", "issues_opened"), "opened", {"number": 1, "text": "Found a bug", "title": "Problem"}),
    (GITEA, "issues", p.raw("gitea", "issues_closed"), "closed", {"number": 1, "pull": False}),
    (GITEA, "issue_label", p.derived("gitea", "issues_opened", p.gitea_labels), "labelled", {"labels": ("agent", "bug")}),
    (GITEA, "issue_assign", p.derived("gitea", "issues_opened", p.gitea_assigned), "assigned", {"whom": ("dev", "ann")}),
    (GITEA, "issue_comment", p.raw("gitea", "issue_comment_created"), "commented", {"pull": False, "text": "Got it"}),
    (GITEA, "pull_request_comment", p.raw("gitea", "pull_request_comment_created"), "commented", {"pull": True, "number": 2}),
    (GITEA, "pull_request", p.raw("gitea", "pull_request_opened"), "opened", {"pull": True, "branch": "feature"}),
    (GITEA, "pull_request", p.raw("gitea", "pull_request_merged"), "merged", {"number": 1}),
    (GITEA, "pull_request", p.raw("gitea", "pull_request_closed"), "closed", {"number": 1, "pull": True}),
    (GITEA, "pull_request", p.raw("gitea", "pull_request_reopened"), "reopened", {"pull": True}),
    (GITEA, "pull_request_review_rejected", p.derived("gitea", "pull_request_opened", p.gitea_rejected), "changes_requested", {
        "text": "Round half to even.", "branch": "feature"}),
    (GITEA, "pull_request_rejected", p.derived("gitea", "pull_request_opened", p.gitea_rejected), "changes_requested", {"number": 1}),
    (GITEA, "pull_request_review_comment", p.derived("gitea", "pull_request_opened", p.gitea_rejected), "line_commented", {"number": 1}),
    (GITEA, "status", p.derived("gitea", "push", p.gitea_status), "ci_failed", {"branch": "fix", "commit": "c0ffee", "number": 0}),
    (GITEA, "workflow_run", p.derived("gitea", "push", p.gitea_workflow), "ci_failed", {"branch": "fix", "text": "test"}),
    (GITEA, "delete", p.raw("gitea", "branch_delete"), "branch_deleted", {"branch": "feature"}),
    (FORGEJO, "issue_label", p.derived("gitea", "issues_opened", p.gitea_labels), "labelled", {"forge": FORGEJO}),
    (FORGEJO, "action_run_failure", p.derived("gitea", "push", p.forgejo_run), "ci_failed", {
        "commit": "c0ffee", "branch": "fix", "text": "test.yml", "url": "https://f.example/r/1"}),
    (FORGEJO, "action_run_failure", p.derived("gitea", "push", p.forgejo_pull_run), "ci_failed", {"commit": "c0ffee", "branch": "", "number": 0}),
    (GITLAB, "Issue Hook", p.raw("gitlab", "issue_create"), "opened", {"number": 1, "text": "everything is broken"}),
    (GITLAB, "Issue Hook", p.raw("gitlab", "issue_labeled"), "labelled", {"labels": ("critical",), "author": "sytses"}),
    (GITLAB, "Issue Hook", p.derived("gitlab", "issue_labeled", p.gitlab_assigned), "assigned", {"whom": ("dev",)}),
    (GITLAB, "Issue Hook", p.raw("gitlab", "issue_closed"), "closed", {"number": 1, "at": 1_512_924_088_000}),
    (GITLAB, "Issue Hook", p.raw("gitlab", "issue_reopen"), "reopened", {"number": 1}),
    (GITLAB, "Note Hook", p.raw("gitlab", "issue_comment_create"), "commented", {"pull": False, "number": 1, "text": "bump"}),
    (GITLAB, "Note Hook", p.raw("gitlab", "merge_request_comment_create"), "commented", {"pull": True, "branch": "feature"}),
    (GITLAB, "Note Hook", p.raw("gitlab", "review_comment_create"), "line_commented", {"text": "check spelling"}),
    (GITLAB, "Merge Request Hook", p.raw("gitlab", "pull_request_create"), "opened", {"pull": True, "branch": "feature"}),
    (GITLAB, "Merge Request Hook", p.raw("gitlab", "pull_request_merge"), "merged", {"number": 1, "pull": True}),
    (GITLAB, "Merge Request Hook", p.raw("gitlab", "pull_request_close"), "closed", {"number": 1, "pull": True}),
    (GITLAB, "Merge Request Hook", p.derived("gitlab", "pull_request_create", p.gitlab_reviewer), "review_requested", {"whom": ("dev",)}),
    (GITLAB, "Push Hook", p.raw("gitlab", "branch_delete"), "branch_deleted", {"branch": "feature", "number": 0}),
    (GITLAB, "Pipeline Hook", p.derived("gitlab", "push", p.gitlab_pipeline), "ci_failed", {"number": 4, "pull": True, "branch": "fix"}),
]  # fmt: skip

DULL = [
    (GITHUB, "ping", p.raw("github", "ping")),
    (GITHUB, "push", p.raw("github", "push")),
    (GITHUB, "issues", p.raw("github", "issues_edited")),
    (GITHUB, "pull_request_review", p.raw("github", "pull_request_review_submitted")),
    (GITHUB, "workflow_run", p.raw("github", "workflow_run_completed")),
    (GITHUB, "no such event", p.raw("github", "push")),
    (GITEA, "push", p.raw("gitea", "push")),
    (
        GITEA,
        "pull_request_review_approved",
        p.derived("gitea", "pull_request_opened", lambda b: b.update(review={"content": " "})),
    ),
    (GITLAB, "Push Hook", p.raw("gitlab", "push")),
    (GITLAB, "Issue Hook", p.derived("gitlab", "issue_labeled", p.gitlab_nothing_new)),
    (GITLAB, "Note Hook", p.derived("gitlab", "issue_comment_create", p.gitlab_system)),
    (GITHUB, "issues", b"{}"),
    (GITLAB, "Push Hook", b'{"object_kind": "push"}'),
]


@pytest.mark.parametrize(
    ("forge", "event", "body", "kind", "fields"),
    WANTED,
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_webhook_comes_to(
    forge: Forge, event: str, body: bytes, kind: str, fields: dict[str, Any]
) -> None:
    """Each webhook that concerns perdure becomes an intent with its repository, author, issue or
    pull request, and other fields."""
    reading = read(forge, event, parsed(body))
    assert reading.intent is not None, reading.reason
    found = reading.intent
    assert (found.kind, found.forge) == (IntentKind(kind), forge)
    assert found.repository in ("Codertocat/Hello-World", "bradrydzewski/drone-test-go", "gogits/hello-world", "jcitizen/my-repo",
                                "gitlab-org/hello-world", "gogits/hello-world")  # fmt: skip
    assert found.author and found.clone_url.startswith("http")
    assert {name: getattr(found, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("forge", "event", "body"), DULL, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_is_of_no_interest(forge: Forge, event: str, body: bytes) -> None:
    """For every other event there is a short reason why perdure ignores it."""
    reading = read(forge, event, parsed(body))
    assert reading.intent is None and reading.reason


@pytest.mark.parametrize(
    ("forge", "event", "name"),
    [
        (GITHUB, "issues", "issues_opened"),
        (GITEA, "issues", "issues_opened"),
        (FORGEJO, "issues", "issues_opened"),
        (GITLAB, "Issue Hook", "issue_create"),
    ],
)
def test_a_text_that_is_cut_says_so(forge: Forge, event: str, name: str) -> None:
    """A text of more than 60,000 characters is cut. It ends with the number of characters that are
    missing."""

    def lengthen(body: Any) -> None:
        for thing in (body.get("issue", {}), body.get("object_attributes", {})):
            thing |= {"body": "x" * 60_007, "description": "x" * 60_007}

    folder = "gitea" if forge is FORGEJO else str(forge)
    intent = read(forge, event, parsed(p.derived(folder, name, lengthen))).intent
    assert intent is not None
    assert intent.text == "x" * 60_000 + "\n[cut here: 7 more characters]"


def from_a_fork(body: Any) -> None:
    """Change a body so that its pull request comes from a fork whose branch has the name of an
    agent's own branch."""
    for thing in (body.get("pull_request", {}), body.get("workflow_run", {})):
        if "head" in thing:
            thing["head"] |= {"ref": "perdure/dev-1", "repo": {"full_name": "mallory/fork"}}
        thing |= {
            "head_branch": "perdure/dev-1",
            "head_repository": {"full_name": "mallory/fork"},
            "conclusion": "failure",
        }
    for thing in (body.get("object_attributes", {}), body.get("merge_request", {})):
        thing |= {"source_branch": "perdure/dev-1", "source_project_id": 2, "target_project_id": 1}


def from_an_unknown_project(body: Any) -> None:
    """Change a body of GitLab so that it does not say to which projects its branches belong."""
    for thing in (body.get("object_attributes", {}), body.get("merge_request", {})):
        thing["source_branch"] = "perdure/dev-1"
        thing.pop("source_project_id", None)
        thing.pop("target_project_id", None)


def from_a_fork_that_is_gone(body: Any) -> None:
    body["pull_request"]["head"] |= {"ref": "perdure/dev-1", "repo": None}


@pytest.mark.parametrize(
    ("forge", "event", "body"),
    [
        (GITHUB, "pull_request", p.derived("github", "pull_request_closed", from_a_fork)),
        (GITHUB, "pull_request", p.derived("github", "pull_request_closed", from_a_fork_that_is_gone)),
        (GITHUB, "pull_request_review_comment", p.derived("github", "pull_request_review_comment_created", from_a_fork)),
        (GITHUB, "workflow_run", p.derived("github", "workflow_run_completed", from_a_fork)),
        (GITEA, "pull_request", p.derived("gitea-1.26", "pull_request.closed", from_a_fork)),
        (GITEA, "pull_request_comment", p.derived("gitea-1.26", "pull_request_comment.created", from_a_fork)),
        (GITLAB, "Note Hook", p.derived("gitlab", "merge_request_comment_create", from_a_fork)),
        (GITLAB, "Merge Request Hook", p.derived("gitlab", "pull_request_close", from_a_fork)),
        (GITLAB, "Merge Request Hook", p.derived("gitlab", "pull_request_close", from_an_unknown_project)),
    ],
)  # fmt: skip
def test_a_fork_has_no_branch_of_ours(forge: Forge, event: str, body: bytes) -> None:
    """Events of a fork's pull request do not concern the agent's own, whatever its branch is
    called. Anybody can open and close such a pull request, or make its checks fail."""
    found = read(forge, event, parsed(body)).intent
    assert found is not None and found.branch == "" and "perdure/dev-1" in body.decode()
