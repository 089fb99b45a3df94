"""A comment that was written before its issue was closed is not lost: its author gets a reply, and
the agent gets the comment if the work continues."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.model import RunState
from perdure.model.forge.deliveries import Delivery, DeliveryState, Forge, Intent, IntentKind
from perdure.model.forge.rules import Rule
from tests.dispatching.office import Office, intent
from tests.dispatching.test_cleaning import worked
from tests.dispatching.test_reconciling import DEV, ChildProcess, asked
from tests.servers.forge import gitea, github, gitlab

HANDLED, IGNORED, WAITS = DeliveryState.HANDLED, DeliveryState.IGNORED, DeliveryState.RECEIVED
DIALECTS = {Forge.GITHUB: github, Forge.GITLAB: gitlab, Forge.GITEA: gitea, Forge.FORGEJO: gitea}
BEN = "ben"
RULE = replace(DEV, authors=("ada", "ben"))


def of_one(kind: IntentKind, **more: Any) -> Intent:
    return intent(kind, **({"number": 1, "forge": Forge.GITEA} | more))


CLOSED = of_one(IntentKind.CLOSED)
WISH = of_one(IntentKind.COMMENTED, author=BEN, text="Round up, too.")


@pytest.fixture
def asking(make: Callable[..., Office]) -> Iterator[ChildProcess]:
    """Make an office with a forge token, whose run has ended its first turn."""
    with asked(make, RULE, gitea, Forge.GITEA) as found:
        begin(found)
        yield found


def begin(asking: ChildProcess, *, end: bool = True) -> None:
    asking.small.state.issue("shop/web", "ada", "Rounding", assignees=["dev-bot"])
    begins = of_one(IntentKind.ASSIGNED, whom=("dev-bot",), forge=asking.kind)
    assert asking.office.told(begins)[0].state is HANDLED
    if end:
        asking.office.end(asking.office.claim())


def close(asking: ChildProcess) -> None:
    asking.small.state.end("shop/web", 1)


def replies(asking: ChildProcess) -> list[str]:
    found = [each.text for each in asking.small.state.repositories["shop/web"].items[1].said]
    return [text.rpartition("-->")[2].strip() for text in found]


def reopen(asking: ChildProcess) -> Delivery:
    asking.small.state.reopen("shop/web", 1, "ada")
    (told,) = asking.office.told(of_one(IntentKind.REOPENED, forge=asking.kind))
    return told


REPLY = (
    "@ben This issue was closed before **dev** had read your comment, so nothing was done about "
    "it. If you still want it, open the issue again, or mention dev-bot: **dev** then gets your "
    "comment."
)


def read_later(asking: ChildProcess, wish: str = "Round up, too.") -> None:
    """Reopen the issue, and check that the agent gets the comment once."""
    office = asking.office
    before = len(office.prompts())
    assert reopen(asking).state is HANDLED
    assert len(office.prompts()) == before + 1 and wish in office.prompts()[-1]
    office.end(office.claim())
    office.told(of_one(IntentKind.COMMENTED, text="More.", forge=asking.kind))
    assert "More." in office.prompts()[-1] and wish not in office.prompts()[-1]


@pytest.mark.parametrize("forge", list(Forge))
def test_closed_by_somebody_else(make: Callable[..., Office], forge: Forge) -> None:
    """Ben comments, and Ada closes the issue at the same moment. One reply tells Ben that the agent
    did not read his comment. When the issue is reopened, the agent gets the comment."""
    with asked(make, RULE, DIALECTS[forge], forge) as asking:
        begin(asking)
        close(asking)
        told, end = asking.office.told(replace(WISH, forge=forge), replace(CLOSED, forge=forge))
        name = asking.office.run().name
        assert (told.state, end.state) == (IGNORED, HANDLED)
        assert told.reason == (
            f"closed before {name} had read it: it gets the comment if it continues"
        )
        assert replies(asking) == [REPLY]
        read_later(asking)
        assert replies(asking) == [REPLY]


def test_while_the_agent_works(asking: ChildProcess) -> None:
    """A comment during an attempt waits for the end of the attempt. Then the closing stops the
    attempt, and Ben gets the reply."""
    office = asking.office
    office.told(of_one(IntentKind.COMMENTED, text="Go on."))
    claim = office.claim()
    (waits,) = office.told(WISH)
    assert waits.state is WAITS
    close(asking)
    (end,) = office.told(CLOSED)
    assert end.state is WAITS and replies(asking) == []
    office.stop(claim)
    office.dispatcher.round()
    assert office.delivery(waits.number).state is IGNORED
    assert office.delivery(end.number).state is HANDLED
    assert replies(asking) == [REPLY]
    read_later(asking)


def test_given_to_a_run_that_has_not_begun_with_it(asking: ChildProcess) -> None:
    """The comment became instructions, but the issue is closed before an attempt begins with them.
    Ben gets the reply. When the issue is reopened, the agent gets the comment."""
    office = asking.office
    assert office.told(WISH)[0].state is HANDLED
    assert office.run().state is RunState.QUEUED
    close(asking)
    assert office.told(CLOSED)[0].state is HANDLED
    assert office.run().state is RunState.CANCELLED and replies(asking) == [REPLY]
    reopen(asking)
    assert [text.count("Round up, too.") for text in office.prompts()] == [0, 1, 0]
    assert replies(asking) == [REPLY]


@pytest.mark.parametrize(
    ("text", "mentions", "told"),
    [("Thanks!", (), False), ("@dev-bot round up, too.", ("dev-bot",), True)],
    ids=["thanks", "to the agent"],
)
def test_closed_by_its_author(
    asking: ChildProcess, text: str, mentions: tuple[str, ...], told: bool
) -> None:
    """A person who comments and then closes the issue gets no reply, unless the comment names the
    agent. The agent gets the comment if the issue is reopened."""
    close(asking)
    asking.office.told(replace(WISH, text=text, mentions=mentions), replace(CLOSED, author=BEN))
    assert len(replies(asking)) == told
    read_later(asking, text)


def test_its_webhook_comes_late(asking: ChildProcess) -> None:
    """The closing is handled before the webhook of an older comment arrives. Ben gets the reply. A
    comment that is newer than the closing starts nothing, and its author gets no reply."""
    office = asking.office
    close(asking)
    office.told(replace(CLOSED, at=2000))
    (late,) = office.told(replace(WISH, at=1000))
    assert late.state is IGNORED and replies(asking) == [REPLY]
    (after,) = office.told(replace(WISH, text="Nice.", at=3000))
    assert (after.state, after.reason) == (IGNORED, "shop/web#1 is now closed")
    assert replies(asking) == [REPLY]
    read_later(asking)


def test_the_agent_is_named_after_the_closing(asking: ChildProcess) -> None:
    """A comment on a closed issue that names the agent continues its run."""
    office = asking.office
    close(asking)
    office.told(replace(CLOSED, at=2000))
    wish = "@dev-bot round up, too."
    (told,) = office.told(replace(WISH, text=wish, mentions=("dev-bot",), at=3000))
    assert told.state is HANDLED and wish in office.prompts()[-1] and replies(asking) == []
    assert office.run().state is RunState.QUEUED


def test_the_run_is_not_ended_again(asking: ChildProcess) -> None:
    """A comment that names the agent continues its run although the issue is closed. The search for
    missed events does not stop that run. When the run has ended, it is cleaned up."""
    office, item = asking.office, asking.small.state.repositories["shop/web"].items[1]
    asking.small.state.now_is(office.engine.store.now() - 60_000)
    close(asking)
    office.told(CLOSED)
    asking.small.state.say("shop/web", 1, BEN, "@dev-bot again")
    office.told(replace(WISH, text="@dev-bot again", mentions=("dev-bot",)))
    assert asking.round() == 0 and office.run().state is RunState.QUEUED
    claim = office.claim()
    assert asking.round() == 0 and office.run().state is RunState.RUNNING
    office.end(claim)
    assert not item.open and asking.round() == 1
    assert office.run().state is RunState.SUCCEEDED and asking.round() == 0


def test_killed_after_the_reply(asking: ChildProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """perdure is killed after it has posted the reply and before it has stored that fact. The reply
    is not posted again."""
    store = asking.office.engine.store
    close(asking)
    numbers = asking.office.arrive(WISH, CLOSED)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(type(store), "settle_delivery", killed)
        asking.office.dispatcher.round()
    assert replies(asking) == [REPLY]
    asking.office.dispatcher.round()
    states = [asking.office.delivery(number).state for number in numbers]
    assert states == [IGNORED, HANDLED] and replies(asking) == [REPLY]


def test_a_stranger_is_neither_told_nor_read(make: Callable[..., Office]) -> None:
    """The comment of a person for whom the rule does not work has no effect, whether it is older or
    newer than the closing."""
    with asked(make, replace(DEV, authors=()), gitea, Forge.GITEA) as asking:
        begin(asking)
        close(asking)
        told, _ = asking.office.told(replace(WISH, author="mallory", text="mine"), CLOSED)
        assert (told.state, told.reason) == (IGNORED, "mallory may not write in shop/web")
        reopen(asking)
        assert replies(asking) == [] and "mine" not in "".join(asking.office.prompts())


def test_nothing_is_reported(make: Callable[..., Office]) -> None:
    """With `report = false` there is no reply, but the agent gets the comment later."""
    with asked(make, replace(RULE, report=False), gitea, Forge.GITEA) as asking:
        begin(asking)
        close(asking)
        asking.office.told(WISH, CLOSED)
        assert replies(asking) == []
        read_later(asking)


def test_the_forge_refuses_the_reply(asking: ChildProcess) -> None:
    """If the login may not comment there, the run is cleaned up nevertheless."""
    asking.small.state.repositories["shop/web"].access["dev-bot"] = "read"
    close(asking)
    told, end = asking.office.told(WISH, CLOSED)
    assert (told.state, end.state) == (IGNORED, HANDLED)
    read_later(asking)


def test_without_a_token(make: Callable[..., Office]) -> None:
    """Without a forge token there is no reply. The agent still gets the comment when the issue is
    reopened."""
    office = make(
        Rule(name="dev", agent="claude", authors=("ada", "ben"), clone="", login="dev-bot")
    )
    worked(office)
    wish, closed = intent(IntentKind.COMMENTED, author=BEN), intent(IntentKind.CLOSED, at=2000)
    told, end = office.told(replace(wish, text="Round up.", at=1000), closed)
    assert (told.state, end.state) == (IGNORED, HANDLED)
    (late,) = office.told(replace(wish, text="Late words.", at=1500))
    assert late.state is IGNORED and late.reason == told.reason
    (after,) = office.told(replace(wish, text="Nice.", at=2500))
    assert after.state is IGNORED and after.reason != told.reason
    office.told(intent(IntentKind.REOPENED, at=3000))
    assert [each in office.prompts()[1] for each in ("Round up", "Late words", "Nice")] == [
        True,
        True,
        False,
    ]
