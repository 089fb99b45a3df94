"""The choice among several agents for a delivery, and the settings under which each of them
works."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from perdure.engine.attempt import account_slot, wait_for
from perdure.forge.dispatch import Dispatcher
from perdure.model import Permissions, TaskSpec
from perdure.model.forge.deliveries import DeliveryState, IntentKind
from perdure.model.forge.rules import OWN_MARK, Rule
from tests.dispatching.office import Office, intent

DEV = Rule(name="dev", agent="claude", authors=("ada", "eye-bot"), clone="", login="dev-bot")
EYE = Rule(name="eye", agent="codex", authors=("ada", "dev-bot"), clone="", login="eye-bot")
OPENED = {"pull": True, "number": 9, "branch": "perdure/dev-4"}


def test_each_gets_what_is_its_own(make: Callable[..., Office]) -> None:
    """`dev` is assigned the issue, and `eye` is asked to review dev's pull request. Comments on the
    pull request, even eye's own, go to dev, who owns the branch, unless they mention eye."""
    office = make(EYE, DEV)
    office.ground.yard.git("branch", "perdure/dev-4")
    office.told(intent(IntentKind.ASSIGNED, whom=("dev-bot",)))
    office.told(intent(IntentKind.REVIEW_REQUESTED, whom=("eye-bot",), author="dev-bot", **OPENED))
    dev, eye = office.run("dev"), office.run("eye")
    assert (dev.spec.scope, eye.spec.scope) == ("hub:dev:shop/web#4", "hub:eye:shop/web#9")
    assert (
        eye.spec.base == "perdure/dev-4"
        and eye.workspace is not None
        and eye.workspace.branch == "perdure/eye-9"
    )
    office.told(intent(IntentKind.COMMENTED, text="plain", **OPENED))
    office.told(intent(IntentKind.CHANGES_REQUESTED, text="by eye", author="eye-bot", **OPENED))
    office.told(intent(IntentKind.COMMENTED, text="for @eye-bot", mentions=("eye-bot",), **OPENED))
    assert [
        text for text in office.prompts("dev")[1:] if "plain" in text or "by eye" in text
    ] == office.prompts("dev")[1:]
    assert len(office.prompts("eye")) == 2 and "for @eye-bot" in office.prompts("eye")[1]


def test_nobody_hears_himself(make: Callable[..., Office]) -> None:
    """An agent's own events, and perdure's own comments, start nothing."""
    office = make(DEV)
    office.told(intent(IntentKind.ASSIGNED, whom=("dev-bot",)))
    own = intent(IntentKind.COMMENTED, author="dev-bot", text="done")
    sticky = intent(IntentKind.COMMENTED, text=f"{OWN_MARK}task=1 -->\nAttempt 1")
    assert [each.state for each in office.told(own, sticky)] == [DeliveryState.IGNORED] * 2


def test_a_quoted_comment_of_perdure(make: Callable[..., Office]) -> None:
    """Some forges quote a comment with its invisible marker. The reply below the quote is a
    person's, and the run gets it."""
    office = make(DEV)
    office.told(intent(IntentKind.ASSIGNED, whom=("dev-bot",)))
    reply = f"> {OWN_MARK}task=1 -->\n>\n> Attempt 1\n\nRound up."
    (told,) = office.told(intent(IntentKind.COMMENTED, text=reply))
    assert told.state is DeliveryState.HANDLED and "Round up." in office.prompts()[-1]


def test_handed_over(make: Callable[..., Office]) -> None:
    """A run that was handed over to another agent, or whose rule now names another agent, still
    belongs to the issue. That run gets later deliveries, and no second run begins."""
    office = make()
    office.told(intent(IntentKind.ASSIGNED, whom=("dev-bot",)))
    run = office.end(office.claim())
    office.engine.store.reassign(run.id, replace(run.spec, agent="codex"))
    said, again = office.told(
        intent(IntentKind.COMMENTED, text="Round up."),
        intent(IntentKind.ASSIGNED, whom=("dev-bot",)),
    )
    assert (said.state, again.state) == (DeliveryState.HANDLED, DeliveryState.HANDLED)
    assert len(office.runs()) == 1 and "Round up." in office.prompts()[1]


def test_only_its_sources(make: Callable[..., Office]) -> None:
    """A rule that lists its sources ignores a repository of the same name on another forge."""
    office = make(replace(DEV, sources=("hub",)))
    (other,) = office.told(intent(IntentKind.ASSIGNED, whom=("dev-bot",)), source="elsewhere")
    assert other.state is DeliveryState.IGNORED
    (own,) = office.told(intent(IntentKind.ASSIGNED, whom=("dev-bot",)))
    assert own.state is DeliveryState.HANDLED


def test_under_what_conditions(make: Callable[..., Office]) -> None:
    """Model, permissions, budget, timeout, attempts, check and author of the commits come from the
    rule. What the rule does not set comes from the settings."""
    rule = replace(
        DEV,
        model="haiku",
        permissions="read",
        budget_usd=2.5,
        timeout=90.0,
        attempts=5,
        verify="make",
        git_name="Dev",
        git_email="dev@x.example",
    )
    office = make(rule, EYE)
    office.told(
        intent(IntentKind.ASSIGNED, whom=("dev-bot",)),
        intent(IntentKind.ASSIGNED, whom=("eye-bot",)),
    )
    spec, usual = office.run("dev").spec, office.run("eye").spec
    assert (spec.model, spec.permissions, spec.budget_usd, spec.timeout_s) == (
        "haiku",
        Permissions.READ,
        2.5,
        90.0,
    )
    assert (spec.attempts, spec.verify, office.run("dev").attempts_allowed) == (5, "make", 5)
    assert (usual.model, usual.permissions, usual.timeout_s, usual.verify) == (
        "",
        Permissions.EDIT,
        3600.0,
        "",
    )
    committer = office.engine.committer(office.run("dev"))
    assert office.engine.committer(office.run("eye")) == {"GIT_AUTHOR_NAME": "eye (codex)"}
    office.ground.yard.git("commit", "-q", "--allow-empty", "-m", "by dev", env=committer)
    assert (
        office.ground.yard.git("log", "-1", "--format=%an %ae %cn %ce")
        == "Dev dev@x.example Dev dev@x.example"
    )


def test_settings_that_do_not_fit_a_rule(make: Callable[..., Office]) -> None:
    """The settings' model is not used for another agent, and their check not for an agent that may
    only read. What the rule itself says is used."""
    reader = replace(EYE, permissions="read")
    office = make(reader, replace(DEV, permissions="read", verify="make own"))
    usual = TaskSpec(prompt="", agent="claude", model="opus", verify="make usual")
    office.dispatcher = Dispatcher(office.engine, office.rules, usual, office.said.append)
    office.told(
        intent(IntentKind.ASSIGNED, whom=("dev-bot",)),
        intent(IntentKind.ASSIGNED, whom=("eye-bot",)),
    )
    dev, eye = office.run("dev").spec, office.run("eye").spec
    assert (dev.model, dev.verify) == ("opus", "make own")
    assert (eye.model, eye.verify) == ("", "")


def test_so_many_at_once(make: Callable[..., Office]) -> None:
    """With a concurrency of one, the second run of the agent waits for the first, and says so.
    Another agent's run does not wait."""
    office = make(replace(DEV, concurrency=1), EYE)
    office.told(
        *(intent(IntentKind.ASSIGNED, whom=("dev-bot",), number=number) for number in (4, 5))
    )
    office.told(intent(IntentKind.ASSIGNED, whom=("eye-bot",)))
    one, two, eye = sorted(
        office.runs(), key=lambda run: (run.spec.rule != "dev", run.created, run.spec.branch)
    )
    seats = [
        account_slot(
            office.engine.driver,
            office.engine.environ,
            office.engine.rules,
            office.engine.account_jobs,
            run,
        )
        for run in (one, two, eye)
    ]
    claim = office.engine.store.claim("ann", 60.0, one.id, seats[0])
    assert claim is not None
    assert office.engine.store.claim("ann", 60.0, two.id, seats[1]) is None
    assert wait_for(office.engine.store, two, seats[1]) and not wait_for(
        office.engine.store, eye, seats[2]
    )
    assert (
        office.engine.store.get(two.id).reason
        == "waits for its turn: 1 of 1 runs of the agent dev are running"
    )
    assert office.engine.store.claim("ann", 60.0, eye.id, seats[2]) is not None
    office.end(claim)
    assert office.engine.store.claim("ann", 60.0, two.id, seats[1]) is not None
