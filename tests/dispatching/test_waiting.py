"""Deliveries for which the forge does not answer perdure's questions wait, and do not delay
others."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from perdure.forge.dispatch import current, dispatcher
from perdure.model.forge.deliveries import DeliveryState, Forge, IntentKind
from tests.dispatching.office import Office, intent
from tests.dispatching.test_reconciling import DEV, asked
from tests.servers.forge import gitea

ASSIGNED = intent(IntentKind.ASSIGNED, whom=("dev-bot",), number=1, forge=Forge.GITEA)
WAITS, HANDLED = DeliveryState.RECEIVED, DeliveryState.HANDLED


def test_a_repository_out_of_reach_holds_up_no_other(make: Callable[..., Office]) -> None:
    """If the token has no right to ask who has write access, the deliveries of that repository
    wait. Later deliveries of other repositories do not."""
    with asked(make, replace(DEV, authors=()), gitea, Forge.GITEA) as asking:
        asking.small.state.repository("shop/far", ada="admin", dev_bot="write")
        for repository in ("shop/far", "shop/web"):
            asking.small.state.issue(repository, "ada", "Rounding", assignees=["dev-bot"])
        far, web = asking.office.told(replace(ASSIGNED, repository="shop/far"), ASSIGNED)
        assert (far.state, web.state) == (
            WAITS,
            HANDLED,
        ) and "only to its administrators" in far.reason


def test_one_that_the_forge_stumbles_over_lets_the_others_go_first(
    make: Callable[..., Office], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a forge always fails for one issue, perdure asks it about the next issue as soon as it may
    ask again."""
    clock = [time.monotonic()]
    monkeypatch.setattr(current, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with asked(make, DEV, gitea, Forge.GITEA) as asking:
        state = asking.small.state
        for title in ("One", "Two"):
            state.issue("shop/web", "ada", title, assignees=["dev-bot"])
        asking.small.fail(500)
        one, two = asking.office.told(ASSIGNED, replace(ASSIGNED, number=2))
        assert (one.state, two.state) == (WAITS, WAITS), "nothing more is asked for a while"
        clock[0] += 11.0
        asking.office.dispatcher.round()
        assert [asking.office.delivery(each.number).state for each in (one, two)] == [
            WAITS,
            HANDLED,
        ]
        clock[0] += 10.0
        asking.office.dispatcher.round()
        assert asking.office.delivery(one.number).state is HANDLED


def test_what_was_said_before_is_not_asked_again_at_once(make: Callable[..., Office]) -> None:
    """If a forge fails to list the comments of an issue, they are not requested again in each round
    of the dispatcher."""
    with asked(make, DEV, gitea, Forge.GITEA) as asking:
        asking.small.state.issue("shop/web", "ada", "One", assignees=["dev-bot"])
        (number,) = asking.office.arrive(ASSIGNED)
        asking.office.dispatcher._current.of(asking.office.delivery(number), ASSIGNED, [DEV])
        asking.small.fail(500, times=5)
        for _ in range(3):
            asking.office.dispatcher.round()
        assert asking.office.delivery(number).state is WAITS and len(asking.small.faults) == 4


def test_an_error_that_is_raised_again_does_not_grow(
    make: Callable[..., Office], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a forge limits the rate, each round of the dispatcher raises the same error object. Its
    traceback does not grow."""
    clock = [time.monotonic()]
    monkeypatch.setattr(current, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with asked(make, DEV, gitea, Forge.GITEA) as asking:
        asking.small.state.issue("shop/web", "ada", "Rounding", assignees=["dev-bot"])
        asking.small.fail(429, retry_after="120")
        for _ in range(50):
            assert [each.state for each in asking.office.told(ASSIGNED)] == [WAITS]
        waits = asking.office.dispatcher._current._waits.values()
        assert waits
        for wait in waits:
            assert len(traceback.extract_tb(wait.error.__traceback__)) < 20


def test_a_forge_that_cannot_be_asked_is_logged_once(
    make: Callable[..., Office], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the forge rejects the token, the log says once that deliveries wait, not once for each
    delivery. It says so again after some time."""
    clock = [time.monotonic()]
    monkeypatch.setattr(dispatcher, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with asked(make, DEV, gitea, Forge.GITEA) as asking:
        asking.small.state.issue("shop/web", "ada", "Rounding", assignees=["dev-bot"])
        asking.small.state.tokens.clear()
        for _ in range(2):
            told = asking.office.told(ASSIGNED, ASSIGNED)
            assert {each.state for each in told} == {WAITS}
        (line,) = [each for each in asking.office.said if "deliveries of hub wait" in each]
        assert "rejects the token in a test" in line
        clock[0] += dispatcher.COMPLAIN_S
        asking.office.dispatcher.round()
        assert len([each for each in asking.office.said if "deliveries of hub wait" in each]) == 2
