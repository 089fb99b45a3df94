"""The sums of receipts and usage."""

from __future__ import annotations

from pathlib import Path

from perdure.cli.data import records
from perdure.engine.sessions.statistics import Statistics, statistics
from perdure.model import (
    Attempt,
    Continuation,
    Outcome,
    OutcomeKind,
    Receipt,
    Rung,
    SessionKey,
    Start,
    Usage,
    Verdict,
)

KEY = SessionKey("claude", "run:1")


def attempt(
    kind: Start | None,
    verdict: Verdict | None,
    rung: Rung = Rung.NATIVE,
    *,
    lost: str = "",
    expired: int = 0,
    outcome: OutcomeKind = OutcomeKind.SUCCEEDED,
    usage: Usage = Usage(),  # noqa: B008
) -> Attempt:
    asked = (
        Continuation(kind=kind, session_id="s", rung=rung, lost_session_id=lost, expired=expired)
        if kind
        else None
    )
    receipt = Receipt(verdict=verdict, rung=rung) if verdict else None
    return Attempt(
        run="r", number=1, context_version=1, worker="w", started=1, continuation=asked, outcome=Outcome(kind=outcome), receipt=receipt,
        usage=usage,
    )  # fmt: skip


def of(*attempts: Attempt, agent: str = "claude") -> Statistics:
    return statistics((SessionKey(agent, "x"), each) for each in attempts)


def test_nothing_is_no_success() -> None:
    """If no attempt had to continue a conversation, there is no rate, and nothing was saved."""
    found = of(attempt(Start.FRESH, Verdict.FRESH))
    assert (found.attempts, found.begun, found.to_go_on, found.success_rate, found.saved) == (
        1,
        1,
        0,
        None,
        None,
    )
    assert of().success_rate is None


def test_every_fallback_has_its_cause() -> None:
    """The verdicts native and forked need no reason. Each lower rung, each new conversation and
    each refusal is counted with its reason."""
    found = of(
        attempt(Start.FRESH, Verdict.FRESH),
        attempt(Start.RESUME, Verdict.NATIVE),
        attempt(Start.FORK, Verdict.FORKED),
        attempt(Start.RESUME, Verdict.NATIVE, Rung.COPY, expired=5),
        attempt(Start.RESUME, Verdict.REPAIRED, Rung.REPAIRED),
        attempt(Start.RESUME, Verdict.BROKEN, outcome=OutcomeKind.CONTINUITY_LOST),
        attempt(Start.RESUME, None, outcome=OutcomeKind.SESSION_MISSING),
        attempt(Start.REBUILD, Verdict.REBUILT, Rung.REBUILT, lost="a"),
        attempt(Start.REBUILD, Verdict.REBUILT, Rung.REBUILT, lost="a", expired=5),
        attempt(Start.FRESH, Verdict.FRESH, Rung.FRESH, lost="a"),
        attempt(None, None, outcome=OutcomeKind.CONTINUITY_LOST),
        attempt(None, None, outcome=OutcomeKind.AUTH_FAILED),
    )
    assert (found.attempts, found.begun, found.to_go_on, found.went_on, found.expired) == (
        11,
        1,
        10,
        4,
        2,
    )
    assert found.success_rate == 0.4
    assert sorted(found.fallbacks) == sorted(
        [
            "transcript gone, own copy put back",
            "transcript unusable, mended",
            "went elsewhere: broken receipt",
            "refused by the agent",
            "lost, new conversation with a brief",
            "lifetime passed, new conversation",
            "lost, new conversation",
            "lost, refused by policy",
        ]
    )
    assert sum(found.verdicts.values()) == 9 and found.verdicts["native"] == 2


def test_tokens_saved_are_against_cold_starts_of_the_same_agent() -> None:
    """Tokens that did not come from the cache had to be paid for. Continued attempts are compared
    with the mean of fresh starts of the same agent. A conversation that was more expensive counts
    as negative."""
    cold = attempt(Start.FRESH, Verdict.FRESH, usage=Usage(1000, 100, 0))
    warm = attempt(Start.RESUME, Verdict.NATIVE, usage=Usage(1500, 50, 1400))
    failed = attempt(
        Start.RESUME, Verdict.NATIVE, outcome=OutcomeKind.FAILED, usage=Usage(10, 0, 0)
    )
    found = of(cold, warm, failed)
    assert (found.bought, found.cached, found.saved) == (1100 + 150 + 10, 1400, 950)
    assert of(warm, failed).saved is None
    dear = attempt(Start.RESUME, Verdict.NATIVE, usage=Usage(5000, 100, 0))
    assert of(cold, dear).saved == 1100 - 5100
    other = statistics([(SessionKey("codex", "x"), cold), (KEY, warm)])
    assert other.saved is None


def test_the_manual_shows_the_lines_that_are_printed() -> None:
    """Every label of the sample in the manual is one that `perdure sessions stats` prints, in the
    same order."""
    again = attempt(Start.RESUME, Verdict.NATIVE, Rung.COPY, usage=Usage(10, 1, 5))
    found = of(attempt(Start.FRESH, Verdict.FRESH, usage=Usage(10, 1, 0)), again)
    printed = [f"{name:16}  {value}" for name, value in records._lines(found)]
    page = (Path(__file__).parents[2] / "docs/how-to/sessions.md").read_text(encoding="utf-8")
    sample = page.partition("sessions stats --since 7d\n")[2].partition("```")[0].splitlines()
    labels = list(dict.fromkeys(line[:18].strip() for line in sample))
    assert labels == [line[:18].strip() for line in printed]
    assert sample[0].partition("them")[2] == printed[0].partition("them")[2]
