"""Recorded deliveries of a real Gitea 1.26.4, all about one issue and its pull request
(`tests/servers/gitea/story.py`), and the intents that they become."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.forge.webhooks import parsed, read
from perdure.model.forge.deliveries import Forge, IntentKind
from tests.forges import payloads

RECORDED = "gitea-1.26"
BRANCH = "perdure/dev-1"
PULL: dict[str, Any] = {"number": 2, "pull": True, "branch": BRANCH}
ISSUE: dict[str, Any] = {"number": 1, "pull": False, "author": "ada"}

SAID: dict[str, tuple[str, dict[str, Any]]] = {
    "issues.opened": (
        "opened",
        ISSUE | {"title": "Rounding", "text": "The total is off by a cent."},
    ),
    "issue_assign.assigned": ("assigned", ISSUE | {"whom": ("dev-bot",)}),
    # Nobody is named: `unassigned` is found by what was told before.
    "issue_assign.unassigned": ("unassigned", ISSUE | {"whom": ()}),
    "issue_label.label_updated": ("labelled", ISSUE | {"labels": ("agent",)}),
    "issue_label.label_updated-2": ("labelled", ISSUE | {"labels": ()}),
    "issue_comment.created": (
        "commented",
        ISSUE | {"text": "@dev-bot please look", "mentions": ("dev-bot",)},
    ),
    "push": ("", {}),
    "pull_request.opened": ("opened", PULL | {"author": "dev-bot", "text": "Closes #1"}),
    "pull_request_review_request.review_requested": (
        "review_requested",
        PULL | {"whom": ("ada",), "author": "dev-bot"},
    ),
    "pull_request_comment.created": ("commented", PULL | {"text": "Nearly.", "author": "ada"}),
    # What was said of single lines is not in it.
    "pull_request_review_comment.reviewed": ("line_commented", PULL | {"text": "A question."}),
    "pull_request_review_rejected.reviewed": (
        "changes_requested",
        PULL | {"text": "Round half to even."},
    ),
    "pull_request_review_approved.reviewed": ("approved", PULL | {"text": "Good."}),
    "pull_request_sync.synchronized": ("", {}),
    # It names no branch: modules/structs/hook.go has that as a thing to do.
    "status": (
        "ci_failed",
        {"number": 0, "branch": "", "text": "ci/test", "url": "https://ci.example.com/7"},
    ),
    "pull_request.closed": ("closed", PULL),
    "pull_request.reopened": ("reopened", PULL),
    "issues.closed": ("closed", ISSUE),
    "pull_request.closed-2": ("merged", PULL),
    "delete": ("branch_deleted", {"branch": BRANCH, "number": 0}),
    "issues.reopened": ("reopened", ISSUE),
}


def comes_to(forge: Forge, event: str, body: bytes, name: str) -> None:
    """Fails where the body comes to something else than `SAID` has under the name."""
    kind, fields = SAID[name]
    found = read(forge, event, parsed(body)).intent
    if not kind:
        assert found is None
        return
    assert found is not None
    assert (found.kind, found.forge, found.repository) == (IntentKind(kind), forge, "ada/web")
    assert {each: getattr(found, each) for each in fields} == fields
    assert len(found.commit) == 40 or kind != "ci_failed"


def test_every_recorded_body_is_read_here() -> None:
    """The table above has all that was recorded, and nothing else."""
    assert {path.stem for path in (payloads.RECORDED / RECORDED).iterdir()} == set(SAID)


@pytest.mark.parametrize("forge", [Forge.GITEA, Forge.FORGEJO])
@pytest.mark.parametrize("name", SAID)
def test_what_a_real_gitea_sends(name: str, forge: Forge) -> None:
    """Each body comes to what was done; Forgejo sends the same ones under its own headers."""
    comes_to(forge, name.split(".")[0], payloads.raw(RECORDED, name), name)
