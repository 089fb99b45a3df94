"""Conversations that become too long, on the real CLIs: their size is shown, they are compacted or
rolled over, and they are never sent again unchanged.

The rehearsal reports large counts and refuses requests as the services do. The tests compare the
messages that reached the model.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import perdure
from perdure.engine.attempt.finish import close_unopened
from perdure.engine.worker import drive
from perdure.errors import LostLease
from perdure.model import Outcome, OutcomeKind, Usage
from perdure.model.events import Summarised
from tests.journeys.stage import Stage, said

MakeStage = Callable[..., Stage]
pytestmark = pytest.mark.journey

PROMPT = "Write one.txt. The magic word is quercus."
SUMMARY = "The magic word was quercus, and one.txt is written."
WINDOW = "rehearsal=200000,claude-*=200000"
REFUSALS = {"claude": 3, "codex": 2}
"""Number of refusals: Claude Code compacts twice by itself before it gives up, Codex has to be
asked once."""
WORK = f"""summary {SUMMARY}
run echo one > one.txt
---
run echo more >> one.txt
---
say The first file is written.
usage in=150000 out=9 cached=20000
---
"""


@pytest.fixture(params=["claude", "codex"])
def agent(request: pytest.FixtureRequest) -> str:
    """Return a CLI that can be told when to compact."""
    return str(request.param)


def carried(one: Stage) -> int:
    """Return the token count that is expected for the full request. OpenAI's input includes its
    cached part, Anthropic's does not."""
    return 170_000 if one.agent == "claude" else 150_000


def begun(one: Stage, *words: str, code: int = 0) -> dict:
    done = one.perdure(
        "run",
        "--name",
        "task",
        "--permissions",
        "full",
        "--json",
        "--agent",
        one.agent,
        *words,
        PROMPT,
    )
    assert done.code == code, (done.out, done.err)
    return done.json


def goes_on(one: Stage, words: str = "Go further.", code: int = 0) -> dict:
    done = one.perdure("update", "task", words, "--json")
    assert done.code == code, (done.out, done.err)
    return done.json


def stage_at(
    stage: MakeStage, script: str, at: str = "70", policy: str = "compact", windows: str = WINDOW
) -> Stage:
    return stage(
        script,
        extra={"PERDURE_FULL_AT": at, "PERDURE_WHEN_FULL": policy, "PERDURE_WINDOWS": windows},
    )


def sizes(attempt: dict) -> list[str]:
    return [each["event"] for each in attempt["sizes"]]


def test_how_full_it_is_is_shown(stage: MakeStage) -> None:
    """`show`, `why` and --json show the tokens of the newest request and the size of the window, as
    the agent reports them."""
    one = stage_at(stage, WORK + "say Two.", policy="cli", windows="")
    report = begun(one)
    fill = report["fill"]
    assert fill["tokens"] == carried(one)
    assert (fill["window"], fill["source"]) == (
        (1_000_000 if one.agent == "claude" else 258_400),
        "agent",
    )
    assert report["attempts"][0]["fill"] == fill
    (listed,) = one.perdure("ls", "--json").json["runs"]
    assert (listed["fill_tokens"], listed["fill_window"]) == (fill["tokens"], fill["window"])
    for verb in ("show", "why"):
        assert f"{carried(one) // 1000}.0k tokens of " in one.perdure(verb, "task").out


def test_it_is_compacted_before_the_wall(stage: MakeStage) -> None:
    """Over the limit the agent itself shortens the conversation, which continues. The receipt is
    native, and the conversation is smaller than before. The model gets the summary and the new
    prompt."""
    one = stage_at(stage, WORK + "say Two.\n---\nsay Three.")
    first = begun(one)["attempts"][0]
    session = first["session_id"]
    report = goes_on(one)
    attempt = report["attempts"][1]
    assert (attempt["continuation"], attempt["session_id"]) == ("resume", session)
    assert attempt["receipt"]["verdict"] == "native", attempt["receipt"]
    assert attempt["why"].endswith("is compacted before it continues")
    assert sizes(attempt) == ["compacted"]
    assert attempt["sizes"][0]["before"] >= carried(one)
    assert attempt["sizes"][0]["asked"] is True
    assert report["fill"]["tokens"] < first["fill"]["tokens"]
    told = said(one.rehearsal.last.messages)
    assert SUMMARY in told
    assert "echo more" not in told
    assert "Go further." in told
    third = goes_on(one, "And further.")["attempts"][2]
    assert (third["continuation"], third["receipt"]["verdict"], sizes(third)) == (
        "resume",
        "native",
        [],
    )
    one.nothing_survives()


def test_it_rolls_over(stage: MakeStage) -> None:
    """With this policy the old conversation writes a summary, and a new conversation begins with
    it. The old one is kept."""
    one = stage_at(stage, WORK + f"say {SUMMARY}\n---\nsay Two.", policy="roll-over")
    first = begun(one)["attempts"][0]
    old = first["session_id"]
    report = goes_on(one)
    attempt = report["attempts"][1]
    assert attempt["continuation"] == "rebuild"
    assert attempt["lost_session_id"] == old != attempt["session_id"]
    assert attempt["receipt"]["verdict"] == "rebuilt"
    assert attempt["receipt"]["reasons"][0].startswith(
        f"rolled over at {carried(one):,} tokens of 200,000"
    )
    assert sizes(attempt) == ["summarised", "rolled_over"]
    asked, answered = one.rehearsal.requests[-2:]
    assert "This conversation has become too long" in asked.prompts[-1]
    assert "The first file is written." in said(asked.messages)
    told = said(answered.messages)
    assert SUMMARY in told
    assert "Go further." in told
    assert "The first file is written." not in told
    assert old in one.conversations()
    one.nothing_survives()


def test_a_refused_conversation_is_compacted(stage: MakeStage) -> None:
    """The service refuses the conversation as too long. Claude Code compacts it by itself in the
    same attempt; Codex is told to compact it in the next attempt. It stays the same conversation,
    and no receipt says `broken`."""
    one = stage_at(stage, WORK + "full\nsay Two.", windows="")
    old = begun(one, "--continuity", "strict")["attempts"][0]["session_id"]
    attempts = goes_on(one)["attempts"][1:]
    kinds = [attempt["outcome"]["kind"] for attempt in attempts]
    assert kinds == (["succeeded"] if one.agent == "claude" else ["context_exhausted", "succeeded"])
    last = attempts[-1]
    assert (last["continuation"], last["session_id"], sizes(last)) == ("resume", old, ["compacted"])
    assert last["sizes"][0]["asked"] is (one.agent == "codex")
    assert last["receipt"]["verdict"] == "native", last["receipt"]
    told = said(one.rehearsal.last.messages)
    assert SUMMARY in told
    assert "Go further." in told


def test_a_conversation_that_stays_too_long_rolls_over(stage: MakeStage, agent: str) -> None:
    """A conversation that is refused again after it was compacted is not sent a third time. A new
    conversation continues, with a brief of what was done."""
    one = stage_at(stage, WORK + f"full x{REFUSALS[agent]}\nsay Two.", windows="")
    old = begun(one)["attempts"][0]["session_id"]
    attempts = goes_on(one)["attempts"][1:]
    assert {attempt["outcome"]["kind"] for attempt in attempts[:-1]} == {"context_exhausted"}
    assert "compacted" in [event for attempt in attempts[:-1] for event in sizes(attempt)]
    last = attempts[-1]
    assert (last["continuation"], last["lost_session_id"], last["receipt"]["verdict"]) == (
        "rebuild",
        old,
        "rebuilt",
    )
    assert "rolled over at" in last["receipt"]["reasons"][0]
    assert "rolled_over" in sizes(attempts[-2])
    told = said(one.rehearsal.last.messages)
    assert "The magic word is quercus." in told
    assert "echo one > one.txt" in told
    assert "Go further." in told
    assert old in one.conversations()
    one.nothing_survives()


@pytest.mark.parametrize("agent", ["codex"])
def test_a_strict_policy_refuses_and_says_so(stage: MakeStage) -> None:
    """With a strict policy no new conversation replaces one that is too long. Nothing is launched,
    and perdure tells a person what can be done."""
    one = stage_at(stage, WORK + "say Two.", policy="roll-over")
    old = begun(one, "--continuity", "strict")["attempts"][0]["session_id"]
    requests = len(one.rehearsal.everything)
    report = goes_on(one, code=3)
    attempt = report["attempts"][1]
    assert attempt["outcome"]["kind"] == "context_exhausted"
    assert "a strict policy allows no new conversation" in attempt["outcome"]["detail"]
    assert [condition["type"] for condition in report["conditions"]] == ["needs_person"]
    assert len(one.rehearsal.everything) == requests
    one.environ["PERDURE_WHEN_FULL"] = "cli"
    done = one.perdure("retry", "task", "--json")
    assert done.code == 0, done.err
    assert done.json["attempts"][2]["session_id"] == old


@pytest.mark.parametrize("agent", ["claude"])
def test_a_kill_while_it_is_asked_leaves_nothing_behind(stage: MakeStage) -> None:
    """perdure is killed while it asks for the summary of the old conversation. The next attempt
    ends that turn, asks again, and continues."""
    one = stage_at(stage, WORK + f"hang\n---\nsay {SUMMARY}\n---\nsay Two.", policy="roll-over")
    old = begun(one)["attempts"][0]["session_id"]
    supervisor = one.start("update", "task", "Go further.", "--json")
    assert "This conversation has become too long" in one.rehearsal.wait_for(4).prompts[-1]
    supervisor.kill()
    one.finish(supervisor)
    done = one.perdure("retry", "task", "--json")
    assert done.code == 0, done.err
    *_, lost, last = done.json["attempts"]
    assert (lost["outcome"]["kind"], lost["continuation"]) == ("lost", None)
    assert (last["continuation"], last["lost_session_id"], sizes(last)) == (
        "rebuild",
        old,
        ["summarised", "rolled_over"],
    )
    assert SUMMARY in said(one.rehearsal.last.messages)
    one.nothing_survives()


@pytest.mark.parametrize("agent", ["claude"])
def test_who_loses_the_run_while_it_is_asked_leaves_no_agent(stage: MakeStage) -> None:
    """Another supervisor takes the run over while this one asks for a summary, before its next
    heartbeat. The turn for the summary is ended, and no agent keeps running without a
    supervisor."""
    one = stage_at(stage, WORK + "hang", policy="roll-over")
    begun(one)
    with (
        perdure.open(cwd=one.repo, environ={**one.environ, "PERDURE_LEASE": "4"}) as runner,
        ThreadPoolExecutor(1) as thread,
    ):
        store = runner._engine.store
        work = thread.submit(
            drive, runner._engine, store.update(runner.get("task").id, "Go further.").id
        )
        one.rehearsal.wait_for(4)
        (claim,) = store.claims()
        store.adopt(claim, "elsewhere:00000000:1:1", 60.0)
        with pytest.raises(LostLease):
            work.result()
    one.nothing_survives()


@pytest.mark.parametrize("agent", ["claude"])
def test_what_a_summary_cost_is_counted(stage: MakeStage) -> None:
    """If an attempt asked for a summary and then could not begin, its cost is the cost of that
    summary."""
    one = stage_at(stage, WORK + f"say {SUMMARY}\nusage in=150000 out=9", policy="roll-over")
    begun(one)
    with perdure.open(cwd=one.repo, environ=one.environ) as runner:
        store = runner._engine.store
        run = store.update(runner.get("task").id, "Go further.")
        claim = store.claim("here", 60.0, ref=run.id)
        assert claim is not None
        store.record(
            claim,
            [Summarised(session_id="s", text=SUMMARY, usage=Usage(input=150_000, cost_usd=0.5))],
        )
        close_unopened(runner._engine, claim, Outcome(kind=OutcomeKind.OVERLOADED))
        assert store.attempts(run.id)[-1].usage.cost_usd == 0.5


@pytest.mark.parametrize("agent", ["codex"])
def test_instructions_that_are_too_long_need_a_person(stage: MakeStage) -> None:
    """A new conversation that is refused before its first answer is not started again and again."""
    one = stage_at(stage, "full x99\nsay Never.", windows="")
    report = begun(one, code=3)
    assert [attempt["outcome"]["kind"] for attempt in report["attempts"]] == ["context_exhausted"]
    assert [condition["type"] for condition in report["conditions"]] == ["needs_person"]


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["gemini", "opencode"])
def test_it_rolls_over_with_an_agent_that_compacts_only_by_itself(
    stage: MakeStage, agent: str
) -> None:
    """perdure reports the size of the conversation, and a roll-over works as with the other agents.
    With the policy `compact`, perdure only resumes the conversation, and the agent decides when to
    compact it."""
    script = (
        f"say The first file is written.\nusage in=90000\n---\nsay {SUMMARY}\n---\nsay Two.\nusage "
        "in=90000\n---\nsay Three."
    )
    one = stage_at(stage, script, policy="roll-over", windows="*=100000", at="85")
    first = begun(one)["attempts"][0]
    assert (first["fill"]["tokens"], first["fill"]["window"]) == (90_000, 100_000)
    rolled = goes_on(one)["attempts"][1]
    assert (rolled["continuation"], rolled["lost_session_id"]) == ("rebuild", first["session_id"])
    assert rolled["receipt"]["verdict"] == "rebuilt"
    assert SUMMARY in said(one.rehearsal.last.messages)
    one.environ["PERDURE_WHEN_FULL"] = "compact"
    left = goes_on(one, "And further.")["attempts"][2]
    assert (left["continuation"], left["session_id"], left["receipt"]["verdict"]) == (
        "resume",
        rolled["session_id"],
        "native",
    )
    one.nothing_survives()
