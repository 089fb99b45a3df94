"""Everything that can happen to an issue and its pull request, on a real Gitea, one thing after
the other.

`python -m tests.servers.gitea.story DIRECTORY` writes the bodies of the webhooks into a directory,
unchanged, one file for each event and action: `tests/forges/recorded/gitea-1.26` was made so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.servers.gitea.listener import Call, Listener, listening
from tests.servers.gitea.server import Gitea, running

SECRET = "a secret of sixteen or more"
BRANCH = "perdure/dev-1"


class Story:
    """A repository `ada/web` with its webhook, the users `ada` (owner) and `dev-bot` (may write),
    and what they do in turn."""

    def __init__(self, gitea: Gitea, listener: Listener) -> None:
        self.gitea, self.listener = gitea, listener
        for name in ("ada", "dev-bot"):
            gitea.user(name)
        self.at = f"/repos/{gitea.repository('ada', 'web', dev_bot='write')}"
        gitea.webhook("ada/web", listener.address, SECRET)

    def tell(self) -> list[Call]:
        """All that Gitea sent of it, in its order."""
        by, gitea = self._by, self.gitea
        label = by("ada", "POST", "/labels", {"name": "agent", "color": "#00ff00"})["id"]
        self._step(
            "issues",
            lambda: by(
                "ada",
                "POST",
                "/issues",
                {"title": "Rounding", "body": "The total is off by a cent."},
            ),
        )
        self._step(
            "issue_assign", lambda: by("ada", "PATCH", "/issues/1", {"assignees": ["dev-bot"]})
        )
        self._step(
            "issue_label", lambda: by("ada", "POST", "/issues/1/labels", {"labels": [label]})
        )
        self._step(
            "issue_comment",
            lambda: by("ada", "POST", "/issues/1/comments", {"body": "@dev-bot please look"}),
        )
        self._step(
            "push",
            lambda: gitea.commit(
                "ada/web", "main", "rounding.py", "1\n", by="dev-bot", onto=BRANCH
            ),
        )
        pull = {"head": BRANCH, "base": "main", "title": "Round half to even", "body": "Closes #1"}
        self._step("pull_request", lambda: by("dev-bot", "POST", "/pulls", pull))
        self._step(
            "pull_request_review_request",
            lambda: by("dev-bot", "POST", "/pulls/2/requested_reviewers", {"reviewers": ["ada"]}),
        )
        self._step(
            "pull_request_comment",
            lambda: by("ada", "POST", "/issues/2/comments", {"body": "Nearly."}),
        )
        line = {"path": "rounding.py", "body": "Why 1?", "new_position": 1}
        self._step(
            "pull_request_review_comment", lambda: self._review("COMMENT", "A question.", line)
        )
        self._step(
            "pull_request_review_rejected",
            lambda: self._review("REQUEST_CHANGES", "Round half to even."),
        )
        self._step(
            "pull_request_sync",
            lambda: gitea.commit("ada/web", BRANCH, "more.py", "2\n", by="dev-bot"),
        )
        self._step("pull_request_review_approved", lambda: self._review("APPROVED", "Good."))
        head = gitea.api("GET", f"{self.at}/branches/{BRANCH}")["commit"]["id"]
        status = {
            "state": "failure",
            "context": "ci/test",
            "description": "1 failed",
            "target_url": "https://ci.example.com/7",
        }
        self._step("status", lambda: by("ada", "POST", f"/statuses/{head}", status))
        self._step("pull_request", lambda: by("ada", "PATCH", "/pulls/2", {"state": "closed"}))
        self._step("pull_request", lambda: by("ada", "PATCH", "/pulls/2", {"state": "open"}))
        self._step("pull_request", lambda: gitea.merge("ada/web", 2, by="ada"))
        self._step("delete", lambda: by("ada", "DELETE", f"/branches/{BRANCH}"))
        self._step("issues", lambda: by("ada", "PATCH", "/issues/1", {"state": "open"}))
        self._step("issue_label", lambda: by("ada", "DELETE", f"/issues/1/labels/{label}"))
        self._step("issue_assign", lambda: by("ada", "PATCH", "/issues/1", {"assignees": []}))
        return list(self.listener.calls)

    def _by(self, login: str, method: str, path: str, body: object = None) -> Any:
        return self.gitea.api(method, f"{self.at}{path}", body, by=login)

    def _review(self, event: str, text: str, *lines: object) -> None:
        self._by(
            "ada", "POST", "/pulls/2/reviews", {"event": event, "body": text, "comments": lines}
        )

    def _step(self, event: str, act: Callable[[], object]) -> None:
        seen = len(self.listener.calls)
        act()
        self.gitea.until(
            lambda: event in [call.event for call in self.listener.calls[seen:]],
            f"{event} is delivered",
        )


def named(told: Sequence[Call]) -> dict[str, Call]:
    """Each by its event and action; a second one of the same is numbered, of pushes only the first
    is there."""
    found: dict[str, Call] = {}
    for call in told:
        action = json.loads(call.body).get("action", "")
        name = f"{call.event}.{action}" if action else call.event
        if name == "push" and name in found:
            continue
        number = sum(
            each.removeprefix(name)[:1] in ("", "-") for each in found if each.startswith(name)
        )
        found[f"{name}-{number + 1}" if number else name] = call
    return found


def main(directory: Path) -> None:
    """Writes the bodies."""
    with running("https://gitea.example.com") as gitea, listening() as listener:
        for name, call in named(Story(gitea, listener).tell()).items():
            (directory / f"{name}.json").write_bytes(call.body)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
