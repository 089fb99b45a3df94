"""Plays every event of an issue and its pull request on a real Gitea, one after the other.

`python -m tests.servers.gitea.story DIRECTORY` writes the bodies of the webhooks into a directory,
unchanged, one file for each event and action. All their headers are in DIRECTORY.headers.json.
`tests/forges/recorded/gitea-1.26` was made by this program.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.servers.gitea.listener import Call, Listener, listening
from tests.servers.gitea.runner import Runner, workflow
from tests.servers.gitea.server import Gitea, running

SECRET = "a secret of sixteen or more"
BRANCH = "perdure/dev-1"
ON_PUSH = "{push: {branches: ['perdure/**']}}"
OF_ACTIONS = ("status", "workflow_run")


class Story:
    """A repository `ada/web` with its webhook, the users `ada` (owner) and `dev-bot` (may write),
    and their actions."""

    def __init__(self, gitea: Gitea, listener: Listener) -> None:
        self.gitea, self.listener = gitea, listener
        for name in ("ada", "dev-bot"):
            gitea.user(name)
        self.at = f"/repos/{gitea.repository('ada', 'web', dev_bot='write')}"
        gitea.webhook("ada/web", listener.address, SECRET)

    def tell(self) -> list[Call]:
        """Play the story. Return everything that Gitea sent, in order."""
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
        self._step("issues", lambda: by("ada", "PATCH", "/issues/1", {"title": "Rounding up"}))
        text = "The total is off by a cent.\nRound half to even."
        self._step("issues", lambda: by("ada", "PATCH", "/issues/1", {"body": text}))
        self._said("issue_comment", 1, "@dev-bot please look", "@dev-bot please look twice")
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
        self._said("pull_request_comment", 2, "Nearly.", "Nearly there.")
        lines = [
            {"path": "rounding.py", "body": text, "new_position": 1} for text in ("Why 1?", "Or 2?")
        ]
        self._step(
            "pull_request_review_comment", lambda: self._review("COMMENT", "A question.", *lines)
        )
        self._step(
            "pull_request_review_rejected",
            lambda: self._review("REQUEST_CHANGES", "Round half to even."),
        )
        self._step(
            "pull_request_sync",
            lambda: gitea.commit("ada/web", BRANCH, "more.py", "2\n", by="dev-bot"),
        )
        self._step(
            "pull_request_review_approved", lambda: self._review("APPROVED", "Good, but rename it.")
        )
        head = gitea.api("GET", f"{self.at}/branches/{BRANCH}")["commit"]["id"]
        status = {
            "state": "failure",
            "context": "ci/test",
            "description": "1 failed",
            "target_url": "https://ci.example.com/7",
        }
        for login in ("dev-bot", "ada"):
            self._step("status", partial(by, login, "POST", f"/statuses/{head}", status))
        stop = {"body": "Thanks.\n@dev-bot stop"}
        self._step("issue_comment", lambda: by("ada", "POST", "/issues/1/comments", stop))
        self._step("pull_request", lambda: by("ada", "PATCH", "/pulls/2", {"state": "closed"}))
        self._step("pull_request", lambda: by("ada", "PATCH", "/pulls/2", {"state": "open"}))
        self._step("pull_request", lambda: gitea.merge("ada/web", 2, by="ada"))
        self._step("delete", lambda: by("ada", "DELETE", f"/branches/{BRANCH}"))
        self._step("issues", lambda: by("ada", "PATCH", "/issues/1", {"state": "open"}))
        self._step("issue_label", lambda: by("ada", "DELETE", f"/issues/1/labels/{label}"))
        self._step(
            "issue_label", lambda: by("ada", "POST", "/issues/1/labels", {"labels": [label]})
        )
        self._step("issue_label", lambda: by("ada", "DELETE", "/issues/1/labels"))
        self._step("issue_assign", lambda: by("ada", "PATCH", "/issues/1", {"assignees": []}))
        return list(self.listener.calls)

    def _by(self, login: str, method: str, path: str, body: object = None) -> Any:
        return self.gitea.api(method, f"{self.at}{path}", body, by=login)

    def _said(self, event: str, number: int, text: str, edited: str) -> None:
        """Make a comment, and edit it."""
        place = f"/issues/{number}/comments"
        ids: list[int] = []
        self._step(event, lambda: ids.append(self._by("ada", "POST", place, {"body": text})["id"]))
        at = f"/issues/comments/{ids[0]}"
        self._step(event, lambda: self._by("ada", "PATCH", at, {"body": edited}))

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


class Checked:
    """A repository `ada/checked` whose Actions check the pushes of `dev-bot`, and a pull request.
    All checks fail."""

    def __init__(self, gitea: Gitea, listener: Listener) -> None:
        self.gitea, self.listener = gitea, listener
        for name in ("ada", "dev-bot"):
            gitea.user(name)
        repository = gitea.repository("ada", "checked", dev_bot="write")
        for name, event in (("push", ON_PUSH), ("pull", "pull_request")):
            path = f".gitea/workflows/{name}.yml"
            gitea.commit(repository, "main", path, workflow(event), by="ada")
        self.runner = Runner(gitea, repository)
        gitea.api("POST", f"/repos/{repository}/issues", {"title": "Rounding"}, by="ada")
        gitea.webhook(repository, listener.address, SECRET)

    def tell(self) -> list[Call]:
        """Let two runs of Actions fail. Return the deliveries that Gitea sent, in order."""
        seen = len(self.listener.calls)
        self.gitea.commit("ada/checked", "main", "rounding.py", "1\n", by="dev-bot", onto=BRANCH)
        self._fail("actions.workflow_run.push.completed", seen)
        pull = {"head": BRANCH, "base": "main", "title": "Round half to even", "body": ""}
        self.gitea.api("POST", "/repos/ada/checked/pulls", pull, by="dev-bot")
        self._fail("actions.workflow_run.pull_request.completed", seen)
        return self.listener.calls[seen:]

    def _fail(self, until: str, seen: int) -> None:
        self.runner.fail("make test", "E   AssertionError: 10.01 != 10.00")
        self.gitea.until(
            lambda: until in of_actions(self.listener.calls[seen:]), f"{until} is delivered"
        )


def of_actions(told: Sequence[Call]) -> dict[str, Call]:
    """Return the deliveries about Actions by event, trigger, and action or state. Of several with
    the same name, only the first is returned."""
    found: dict[str, Call] = {}
    for call in told:
        if call.event not in OF_ACTIONS:
            continue
        body = json.loads(call.body)
        trigger = body.get("workflow_run", {}).get("event", "")
        if not trigger:
            trigger = "push" if "(push)" in body["context"] else "pull_request"
        state = body.get("action") or body["state"]
        found.setdefault(f"actions.{call.event}.{trigger}.{state}", call)
    return found


def recording(gitea: Gitea, listener: Listener) -> dict[str, Call]:
    """Play everything, and return each delivery by its name."""
    told = named(Story(gitea, listener).tell())
    return told | of_actions(Checked(gitea, listener).tell())


def named(told: Sequence[Call]) -> dict[str, Call]:
    """Return each delivery by a name made of its event and action. A second one with the same name
    gets a number. Only the first push is returned."""
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
    """Play everything, and write the bodies and the headers."""
    headers: dict[str, dict[str, str]] = {}
    with running("https://gitea.example.com") as gitea, listening() as listener:
        for name, call in sorted(recording(gitea, listener).items()):
            (directory / f"{name}.json").write_bytes(call.body)
            headers[name] = {
                key: value
                for key, value in sorted(call.headers.items())
                if key == "content-type" or key.startswith("x-")
            }
    text = json.dumps(headers, indent=1)
    directory.with_name(f"{directory.name}.headers.json").write_text(f"{text}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
