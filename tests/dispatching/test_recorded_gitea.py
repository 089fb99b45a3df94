"""From the signed deliveries that a real Gitea 1.26.4 sent to the prompts: exactly the right text,
once.

`tests/servers/gitea/story.py` recorded the deliveries. Forgejo sends the same bodies for the same
events, with its own headers beside Gitea's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.forge.webhooks import receive
from perdure.model import RunState
from perdure.model.forge.deliveries import DeliveryState, Forge
from perdure.model.forge.postings import Posting
from tests.dispatching.office import Office
from tests.dispatching.test_payloads import of_the_story, unmarked
from tests.dispatching.test_reconciling import DEV, asked
from tests.forges import payloads
from tests.servers.forge import gitea as dialect

HANDLED, IGNORED = DeliveryState.HANDLED, DeliveryState.IGNORED
RECORDED = "gitea-1.26"
BRANCH = "perdure/dev-1"
both = pytest.mark.parametrize("forge", [Forge.GITEA, Forge.FORGEJO])
RED = ("status.push.failure", "workflow_run.push.completed")


class Told:
    """An office that gets recorded deliveries. `new` is what each one adds to the prompts."""

    def __init__(self, office: Office, forge: Forge = Forge.GITEA) -> None:
        self.office, self.forge = office, forge
        self.known = 0

    def new(self, name: str) -> list[str]:
        """Deliver a recorded body three times: under its own id, under the same id again, and under
        another id. Run one attempt if one is due. Return the new prompts."""
        body, found = payloads.raw(RECORDED, name), payloads.sent_headers(RECORDED, name)
        if self.forge is Forge.FORGEJO:
            found = payloads.as_forgejo(found)
        other = {key: f"again-{name}" for key in found if key.endswith("-delivery")}
        numbers = set()
        for headers in (found, found, found | other):
            arrived = receive(
                headers,
                body,
                source="hub",
                secrets=(payloads.SECRET,),
                now_s=time.time(),
                expected=self.forge,
            )
            (accepted,) = self.office.engine.store.accept([arrived])
            numbers.add(accepted.number)
            self.office.dispatcher.round()
        (number,) = numbers
        assert self.office.delivery(number).state in (HANDLED, IGNORED), name
        prompts = self.office.prompts() if self.office.runs() else []
        told, self.known = prompts[self.known :], len(prompts)
        if told and self.office.run().state is RunState.QUEUED:
            self.office.end(self.office.claim())
        return [unmarked(each) for each in told]

    def one(self, name: str) -> str:
        """Return the new prompt of a delivery, which must be the only one."""
        (told,) = self.new(name)
        return told

    def none(self, *names: str) -> None:
        """Check that deliveries add nothing to the prompts."""
        for name in names:
            assert self.new(name) == [], name

    @property
    def withdrawn(self) -> str:
        """Return the reason why the run was stopped, or an empty string if it was not."""
        found = [each for each in self.office.run().conditions if each.type == "withdrawn"]
        return found[0].message if found else ""


@both
def test_the_story_of_an_issue(office: Office, forge: Forge) -> None:
    """An issue is assigned, edited, commented, reviewed, approved and stopped: each event gives one
    prompt with its own text. Events that do not concern the agent give none."""
    told = Told(office, forge)
    told.none("issues.opened")
    assert office.runs() == []
    assert "The total is off by a cent." in told.one("issue_assign.assigned")
    told.new("issue_label.label_updated")
    edited = told.one("issues.edited")
    assert edited.endswith("Title, before: Rounding\nTitle, now: Rounding up")
    edited = told.one("issues.edited-2")
    assert edited.endswith(
        "What has changed:\n\nThe total is off by a cent.\n+ Round half to even."
    )
    assert told.one("issue_comment.created").endswith("ada has commented.\n\n@dev-bot please look")
    edited = told.one("issue_comment.edited")
    assert edited.endswith("- @dev-bot please look\n+ @dev-bot please look twice")
    told.none("push", "pull_request.opened", "pull_request_review_request.review_requested")
    assert told.one("pull_request_comment.created").endswith("Nearly.")
    assert told.one("pull_request_comment.edited").endswith("- Nearly.\n+ Nearly there.")
    assert told.one("pull_request_review_comment.reviewed").endswith("A question.")
    assert told.one("pull_request_review_rejected.reviewed").endswith("Round half to even.")
    told.none("pull_request_sync.synchronized")
    assert told.one("pull_request_review_approved.reviewed").endswith(
        "ada has approved the changes, and says:\n\nGood, but rename it."
    )
    assert told.withdrawn == ""
    told.none("issue_comment.created-2")
    assert told.withdrawn.startswith("stopped by ada;")


@both
def test_taken_off(office: Office, forge: Forge) -> None:
    """When the assignee is removed, the run stops, once, without a prompt."""
    told = Told(office, forge)
    told.one("issue_assign.assigned")
    told.none("issue_assign.unassigned")
    assert told.withdrawn.startswith("unassigned by ada;")


@both
@pytest.mark.parametrize("name", ["issue_label.label_updated-2", "issue_label.label_cleared"])
def test_the_label_taken_off(office: Office, forge: Forge, name: str) -> None:
    """When the label that began the run is removed, alone or with all others, the run stops."""
    told = Told(office, forge)
    assert "The total is off by a cent." in told.one("issue_label.label_updated")
    told.none(name)
    assert told.withdrawn.startswith("the label agent removed by ada;")


def pushed(office: Office, commit: str) -> None:
    run = office.run()
    assert office.engine.store.hold_posting(run.id, 60.0) is not None
    office.engine.store.put_posting(Posting(run=run.id, commit=commit, attempt=run.attempt))


def begun(office: Office, repository: str) -> None:
    """Make a run whose agent was assigned to issue 1 of the repository, and whose first attempt has
    ended."""
    body = of_the_story(RECORDED, "issue_assign.assigned", {"ada/web": repository})
    assert office.deliver(Forge.GITEA, "issue_assign", body).state is HANDLED
    office.end(office.claim())


def test_a_red_run_without_a_token(office: Office) -> None:
    """Gitea reports a failed run of Actions in several deliveries. The agent gets one update, from
    the delivery that names the branch, and none while the run is pending."""
    begun(office, "ada/checked")
    commit = str(payloads.recorded(RECORDED, f"actions.{RED[1]}")["workflow_run"]["head_sha"])
    pushed(office, commit)
    told = Told(office)
    told.known = 1
    names = [each for each in of_actions("push") if each != f"actions.{RED[1]}"]
    assert f"actions.{RED[0]}" in names
    told.none(*names)
    said = told.one(f"actions.{RED[1]}")
    assert f"{BRANCH} has failed" in said and "There is no log: perdure has no token" in said


@pytest.mark.parametrize("trigger", ["push", "pull_request"])
def test_a_red_run(make: Callable[..., Office], trigger: str) -> None:
    """With a forge token the status of a job and the run of its workflow become one update, with
    the log. This also holds if the workflow belongs to the pull request and names no branch."""
    with asked(make, replace(DEV, repositories=("ada/*",)), dialect, Forge.GITEA) as at:
        state, office = at.small.state, at.office
        state.repository("ada/checked", ada="admin", dev_bot="write")
        state.issue("ada/checked", "ada", "Rounding", assignees=["dev-bot"])
        begun(office, "ada/checked")
        body = payloads.recorded(RECORDED, f"actions.workflow_run.{trigger}.completed")
        commit = str(body["workflow_run"]["head_sha"])
        state.repositories["ada/checked"].named[BRANCH] = commit
        state.pull("ada/checked", "dev-bot", "Rounding", "", BRANCH, "main")
        state.job("ada/checked", commit, "build", log="E   AssertionError: 10.01 != 10.00\n")
        pushed(office, commit)
        told = Told(office)
        told.known = 1
        names = of_actions(trigger)
        red = [each for each in names if each.split(".")[-1] in ("failure", "completed")]
        assert len(red) == 2
        told.none(*(each for each in names if each not in red))
        first, second = sorted(red)
        said = told.one(first)
        assert BRANCH in said and "E   AssertionError: 10.01 != 10.00" in said
        told.none(second)


def of_actions(trigger: str) -> Sequence[str]:
    """Return the names of the recorded deliveries about runs of Actions with this trigger."""
    names = (path.stem for path in (payloads.RECORDED / RECORDED).glob("actions.*.json"))
    return sorted(each for each in names if each.split(".")[2] == trigger)


def test_the_lines_of_a_review(make: Callable[..., Office]) -> None:
    """Gitea's delivery of a review has no comments on lines. With a forge token the prompt has each
    of them, with file, line and diff."""
    with asked(make, replace(DEV, repositories=("ada/*",)), dialect, Forge.GITEA) as at:
        state, office = at.small.state, at.office
        state.repository("ada/web", ada="admin", dev_bot="write")
        state.issue("ada/web", "ada", "Rounding", assignees=["dev-bot"])
        begun(office, "ada/web")
        body: dict[str, Any] = payloads.recorded(RECORDED, "pull_request_review_comment.reviewed")
        commit = body["pull_request"]["head"]["sha"]
        state.repositories["ada/web"].named[BRANCH] = commit
        state.pull("ada/web", "dev-bot", "Rounding", "", BRANCH, "main")
        state.now_is(office.engine.store.now())
        lines = [("rounding.py", 1, "Why 1?"), ("rounding.py", 1, "Or 2?")]
        state.review("ada/web", 2, "ada", "commented", "A question.", lines)
        for each in state.repositories["ada/web"].items[2].said:
            each.hunk = "@@ -0,0 +1 @@\n+1"
        told = Told(office)
        told.known = 1
        quoted = "rounding.py:1:\n> @@ -0,0 +1 @@\n> +1\n"
        assert told.one("pull_request_review_comment.reviewed").endswith(
            f"A question.\n\n{quoted}Why 1?\n\n{quoted}Or 2?"
        )
