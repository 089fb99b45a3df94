"""An exchange between agents and checks ends by itself; a comment by a person continues it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from perdure.forge.dispatch.selection import UPDATES_MOST
from perdure.model.forge.deliveries import DeliveryState, Forge, Intent, IntentKind
from perdure.model.forge.rules import Rule
from perdure.model.forge.state import CheckState
from tests.dispatching.office import Office, intent
from tests.dispatching.test_reconciling import DEV, asked
from tests.servers.forge import gitlab

ASSIGNED = intent(IntentKind.ASSIGNED, whom=("dev-bot",))
HANDLED, IGNORED = DeliveryState.HANDLED, DeliveryState.IGNORED
ANSWER = intent(IntentKind.COMMENTED, author="eye-bot", text="Not good enough.")
CHECK = intent(IntentKind.CI_FAILED, number=0, branch="perdure/dev-4", text="build")


@pytest.mark.parametrize("event", [ANSWER, CHECK], ids=["agent", "check"])
def test_nobody_goes_on_for_ever(make: Callable[..., Office], event: Intent) -> None:
    """Answers of another agent and failed checks cause a limited number of updates in a row. Then a
    person is needed. After a comment by a person, the count starts again."""
    dev = Rule(
        name="dev",
        agent="claude",
        authors=("ada", "eye-bot"),
        clone="",
        login="dev-bot",
        ci_attempts=100,
    )
    office = make(dev, Rule(name="eye", agent="codex", authors=("ada",), clone="", login="eye-bot"))
    office.told(ASSIGNED)
    for _ in range(UPDATES_MOST):
        office.end(office.claim())
        told = office.told(event, event)
        assert [each.state for each in told] == [HANDLED, HANDLED], (
            "what comes together is one update"
        )
    office.end(office.claim())
    assert office.told(event)[0].state is IGNORED
    (condition,) = office.run().conditions
    assert condition.type == "needs_person" and "a comment by a person" in condition.message
    assert office.told(intent(IntentKind.COMMENTED, text="Go on."))[0].state is HANDLED
    assert office.run().conditions == ()
    office.end(office.claim())
    assert office.told(event)[0].state is HANDLED


def test_its_own_status_as_a_pipeline(make: Callable[..., Office]) -> None:
    """GitLab makes a pipeline from perdure's own status and reports that it failed, without a
    reason. No agent continues because of that. Another failed check of the same commit reaches the
    agent."""
    with asked(make, replace(DEV, authors=("ada", "cid")), gitlab, Forge.GITLAB) as asking:
        office, state = asking.office, asking.small.state
        state.issue("shop/web", "ada", "Rounding", assignees=["dev-bot"])
        office.told(replace(ASSIGNED, number=1, forge=Forge.GITLAB))
        office.end(office.claim())
        commit = "5" * 40
        state.repositories["shop/web"].named["perdure/dev-1"] = commit
        failed = replace(
            CHECK, branch="perdure/dev-1", text="", author="cid", commit=commit, forge=Forge.GITLAB
        )
        asking.forge.set_status("shop/web", commit, CheckState.FAILURE, context="perdure/dev")
        (told,) = office.told(failed)
        assert (told.state, told.reason) == (IGNORED, "no check has failed but perdure's own")
        asking.forge.set_status("shop/web", commit, CheckState.FAILURE, context="build")
        assert office.told(failed)[0].state is HANDLED
