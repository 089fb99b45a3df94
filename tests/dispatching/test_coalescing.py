"""Several events become one update: each event is in it once, in order, and none is lost."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from msgspec.structs import replace

from perdure.errors import WorkspaceError
from perdure.model import (
    Condition,
    RunState,
    Session,
    SessionKey,
    SessionState,
    TaskRun,
    TaskSpec,
    Workspace,
)
from perdure.model.events import RunTakenBack
from perdure.model.forge.deliveries import DeliveryState, Forge, Intent, IntentKind
from tests.dispatching.office import Office, intent

ASSIGNED = intent(
    IntentKind.ASSIGNED, whom=("dev-bot",), title="Rounding", description="Off by a cent."
)
HANDLED, IGNORED, WAITS = DeliveryState.HANDLED, DeliveryState.IGNORED, DeliveryState.RECEIVED


def comment(text: str, **more: object) -> Intent:
    return intent(IntentKind.COMMENTED, text=text, **more)


def test_events_while_an_agent_is_at_work(office: Office) -> None:
    """Events during an attempt wait, and the reason is shown. Afterwards they become one update,
    which has each event once, in order."""
    office.told(ASSIGNED)
    claim = office.claim()
    waiting = [office.told(comment(f"remark {number}"))[0] for number in range(3)]
    assert [each.state for each in waiting] == [WAITS] * 3
    assert (
        waiting[0].reason
        == f"waits: {claim.run.name} is running, and gets the delivery when its attempt has ended"
    )
    assert office.run().context_version == 1
    office.end(claim)
    office.dispatcher.round()
    assert {office.delivery(each.number).state for each in waiting} == {HANDLED}
    assert (office.run().state, office.run().context_version) == (RunState.QUEUED, 2)
    text = office.prompts()[1]
    places = [text.index(f"remark {number}") for number in range(3)]
    assert places == sorted(places) and text.count("remark") == 3 and "Off by a cent" not in text


def test_events_of_one_round(office: Office) -> None:
    """Among events that wait together before the first attempt, the first becomes the task, and all
    others become one update."""
    found = office.told(
        ASSIGNED,
        comment("first"),
        intent(IntentKind.COMMENTED, number=5, text="of another"),
        comment("second"),
    )
    assert [each.state for each in found] == [HANDLED, HANDLED, IGNORED, HANDLED]
    assert office.run().context_version == 2
    assert "first" in office.prompts()[1] and "second" in office.prompts()[1]


def test_an_issue_that_is_opened_with_everything(office: Office) -> None:
    """If an issue is opened, labelled and assigned in three events, they make one task and no
    update."""
    opened = intent(
        IntentKind.OPENED,
        whom=("dev-bot",),
        labels=("agent",),
        title="Rounding",
        description="Off by a cent.",
        text="Off by a cent.",
    )
    found = office.told(opened, intent(IntentKind.LABELLED, labels=("agent",)), ASSIGNED)
    assert [each.state for each in found] == [HANDLED] * 3
    assert office.run().context_version == 1 and office.prompts()[0].count("Off by a cent.") == 1
    assert found[1].reason == f"{office.run().name} already works on it"


def test_gitea_tells_all_labels_at_each_change(office: Office) -> None:
    """On Gitea, another label on a finished issue starts nothing. On GitHub, another assignment
    continues the run."""
    office.told(ASSIGNED)
    office.end(office.claim())
    (again,) = office.told(intent(IntentKind.LABELLED, labels=("agent", "bug"), forge=Forge.GITEA))
    assert again.state is HANDLED and office.run().state is RunState.SUCCEEDED
    office.told(ASSIGNED)
    assert office.run().state is RunState.QUEUED


def test_too_much_for_one_prompt(office: Office) -> None:
    """Events that are too long for one update become several. An event that no prompt could hold
    fails, with the reason."""
    office.told(ASSIGNED)
    limit = office.engine.driver("claude").abilities.max_prompt_bytes
    long = "x" * 60_000
    count = limit // len(long) + 2
    assert limit
    found = office.told(*(comment(f"{long} {number}") for number in range(count)))
    assert {each.state for each in found} == {HANDLED}
    told = "".join(office.prompts()[1:])
    assert all(f"{long} {number}\n" in told for number in range(count))
    assert all(len(text.encode()) <= limit for text in office.prompts())


def test_while_a_person_has_it_open(office: Office) -> None:
    """A conversation that a person has open is not continued. The delivery waits and says so."""
    office.told(ASSIGNED)
    office.end(office.claim())
    run = office.run()
    session = Session(
        key=SessionKey("claude", run.scope),
        id="s",
        state=SessionState.CONFIRMED,
        created=1,
        updated=1,
    )
    office.engine.store.open_run(run.id, Condition(type="open", message="", at=1), session)
    (waits,) = office.told(comment("hello"))
    assert waits.state is WAITS and "is open in the agent's own program" in waits.reason
    office.engine.store.take_back(run.id, [], RunTakenBack(session_id="s"))
    office.dispatcher.round()
    assert office.delivery(waits.number).state is HANDLED


def test_two_servers_at_once(office: Office) -> None:
    """With two dispatchers on one store, each delivery reaches the agent once."""
    office.told(ASSIGNED)
    claim = office.claim()
    office.arrive(*(comment(f"<{number}>") for number in range(20)))
    office.end(claim)
    both = [threading.Thread(target=office.dispatcher.round) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    office.dispatcher.round()
    told = "".join(office.prompts()[1:])
    assert [told.count(f"<{number}>") for number in range(20)] == [1] * 20


def test_one_that_makes_trouble_holds_up_nobody(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delivery that fails for an unforeseen reason waits and says so. The other deliveries are
    handled, and the failed one is tried again later."""
    plan = office.engine.workspaces.plan

    def broken(spec: TaskSpec, name: str, cwd: Path) -> Workspace:
        if spec.branch.endswith("-4"):
            raise WorkspaceError("the volume is away")
        return plan(spec, name, cwd)

    monkeypatch.setattr(office.engine.workspaces, "plan", broken)
    first, second = office.told(ASSIGNED, replace(ASSIGNED, number=5))
    assert (first.state, first.reason, second.state) == (
        WAITS,
        "waits: the volume is away",
        HANDLED,
    )
    monkeypatch.setattr(office.engine.workspaces, "plan", plan)
    office.dispatcher.round()
    assert office.delivery(first.number).state is WAITS, "not at once"
    office.dispatcher._later.clear()
    office.dispatcher.round()
    assert office.delivery(first.number).state is HANDLED


def test_in_order_though_the_agent_ends_in_between(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If an attempt ends while deliveries are handled, no later delivery overtakes an earlier one."""
    office.told(ASSIGNED)
    claim = office.claim()
    get, looks = office.engine.store.get, []

    def once_at_work(ref: str) -> TaskRun:
        found = get(ref)
        looks.append(ref)
        if len(looks) == 1:
            office.end(claim)
        return found

    monkeypatch.setattr(office.engine.store, "get", once_at_work)
    told = office.told(comment("before"), comment("after"))
    assert [each.state for each in told] == [WAITS, WAITS]
    office.dispatcher.round()
    text = office.prompts()[1]
    assert text.index("before") < text.index("after") and office.run().context_version == 2


def test_comments_in_the_round_of_the_withdrawal(office: Office) -> None:
    """Comments that wait in the same round as the withdrawal are ignored, and the run gets them
    when its work is given to the agent again."""
    office.told(ASSIGNED)
    office.end(office.claim())
    *ignored, _ = office.told(
        *(comment(f"remark {number}") for number in range(8)),
        intent(IntentKind.UNASSIGNED, unassigned=("dev-bot",)),
    )
    assert {each.state for each in ignored} == {IGNORED}
    office.told(ASSIGNED)
    assert [number for number in range(8) if f"remark {number}" not in office.prompts()[-1]] == []
