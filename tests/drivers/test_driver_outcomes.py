"""The classifiers on recorded output of the real CLIs (`recorded/`: Claude Code 2.1.329, Codex
0.169.0; paths and ports replaced)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.agents import registry
from perdure.model import Exit, Outcome, OutcomeKind, Usage
from perdure.model.events import (
    LimitSeen,
    RetrySeen,
    Said,
    SessionSeen,
    ToolEnded,
    ToolStarted,
    TurnEnded,
    Unrecognised,
    UsageSeen,
)

K = OutcomeKind
RECORDED = Path(__file__).parent / "recorded"
AT = 1795246963_000
"""Time of the recordings: 2026-11-21 07:42:43 UTC."""


@cache
def recorded(agent: str) -> dict[str, Any]:
    return json.loads((RECORDED / f"{agent}.json").read_text())


def events(agent: str, name: str) -> list[Any]:
    driver = registry.load(agent)
    return list(
        chain.from_iterable(driver.parse(line.encode()) for line in recorded(agent)[name]["stdout"])
    )


def exit_of(agent: str, name: str) -> Exit:
    run = recorded(agent)[name]
    return Exit(code=run["code"], signal=run["signal"], stderr_tail=run["stderr"], at=AT)


def outcome(agent: str, name: str) -> Outcome:
    return registry.load(agent).outcome(exit_of(agent, name), events(agent, name))


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set the time zone to UTC, in which the recordings were made: Codex prints local time."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


CLAUDE = {
    "ok": (K.SUCCEEDED, ""),
    "tool": (K.SUCCEEDED, ""),
    "sandbox": (K.SUCCEEDED, ""),
    "background": (K.SUCCEEDED, ""),
    "unknown": (K.SESSION_MISSING, "No conversation found with session ID"),
    "empty": (K.SESSION_MISSING, "No conversation found"),
    "garbage": (K.SESSION_MISSING, "No conversation found"),
    "inuse": (K.WRITER_CONFLICT, "already in use"),
    "second-inuse": (K.WRITER_CONFLICT, "already in use"),
    "400": (K.SESSION_BROKEN, "tool use concurrency"),
    "400-thinking": (K.SESSION_BROKEN, "signature"),
    "400-other": (K.FAILED, "max_tokens"),
    "prompt-too-long": (K.CONTEXT_EXHAUSTED, "Prompt is too long"),
    "413": (K.CONTEXT_EXHAUSTED, "Request too large"),
    "401": (K.AUTH_FAILED, "Invalid API key"),
    "401-oauth": (K.AUTH_FAILED, "OAuth token has expired"),
    "403": (K.AUTH_FAILED, "403"),
    "nokey": (K.AUTH_FAILED, "Not logged in"),
    "credit": (K.AUTH_FAILED, "Credit balance is too low"),
    "404": (K.CONFIG_ERROR, "selected model"),
    "root": (K.CONFIG_ERROR, "IS_SANDBOX=1"),
    "corrupt": (K.CONFIG_ERROR, ".claude.json"),
    "badflag": (K.CONFIG_ERROR, "unknown option '--nope'"),
    "badsettings": (K.CONFIG_ERROR, "Settings file not found"),
    "badid": (K.CONFIG_ERROR, "requires a valid session ID"),
    "nomodelinput": (K.CONFIG_ERROR, "only whitespace"),
    "429": (K.RATE_LIMITED, "429"),
    "429-unified": (K.RATE_LIMITED, "429"),
    "429-oauth": (K.RATE_LIMITED, "hit your limit"),
    "429-week": (K.RATE_LIMITED, "hit your limit"),
    "500": (K.OVERLOADED, "500"),
    "529": (K.OVERLOADED, "529"),
    "cut": (K.OVERLOADED, "malformed response"),
    "refused": (K.OVERLOADED, "Connection refused"),
    "maxturns": (K.MAX_TURNS, "maximum number of turns"),
    "budget": (K.BUDGET_SPENT, "maximum budget"),
    "sigint": (K.CANCELLED, "interrupted"),
    "sigterm": (K.FAILED, "killed by SIGTERM"),
    "sigkill": (K.FAILED, "killed by SIGKILL"),
}

CODEX = {
    "ok": (K.SUCCEEDED, ""),
    "tool": (K.SUCCEEDED, ""),
    "toolfail": (K.SUCCEEDED, ""),
    "fork": (K.SUCCEEDED, ""),
    "midbad": (K.SUCCEEDED, ""),
    "unknown": (K.SESSION_MISSING, "no rollout found for thread id"),
    "writer": (K.WRITER_CONFLICT, "already has an active writer"),
    "empty": (K.SESSION_BROKEN, "is empty"),
    "garbage": (K.SESSION_BROKEN, "failed to read session metadata"),
    "400-tool": (K.SESSION_BROKEN, "No tool output found"),
    "400-encrypted": (K.SESSION_BROKEN, "encrypted content"),
    "400": (K.FAILED, "Unsupported parameter"),
    "400-context": (K.CONTEXT_EXHAUSTED, "ran out of room"),
    "401": (K.AUTH_FAILED, "401"),
    "403": (K.AUTH_FAILED, "403"),
    "nokey": (K.AUTH_FAILED, "Missing environment variable"),
    "429-quota": (K.AUTH_FAILED, "Quota exceeded"),
    "429-notincluded": (K.AUTH_FAILED, "upgrade to Plus"),
    "404": (K.CONFIG_ERROR, "does not exist or you do not have access"),
    "badflag": (K.CONFIG_ERROR, "unexpected argument '--nope'"),
    "badprovider": (K.CONFIG_ERROR, "Model provider `nope` not found"),
    "badconfig": (K.CONFIG_ERROR, "Error loading config.toml"),
    "nohome": (K.CONFIG_ERROR, "Error finding codex home"),
    "empty-prompt": (K.CONFIG_ERROR, "No prompt provided"),
    "429": (K.RATE_LIMITED, "429"),
    "429-limit": (K.RATE_LIMITED, "usage limit"),
    "429-limit-days": (K.RATE_LIMITED, "usage limit"),
    "429-limit-none": (K.RATE_LIMITED, "usage limit"),
    "500": (K.OVERLOADED, "high demand"),
    "503": (K.OVERLOADED, "at capacity"),
    "cut": (K.OVERLOADED, "stream disconnected"),
    "refused": (K.OVERLOADED, "Connection failed"),
    "sigint": (K.FAILED, "without a result"),
}

CASES = [("claude", name, *found) for name, found in CLAUDE.items()] + [
    ("codex", name, *found) for name, found in CODEX.items()
]


@pytest.mark.parametrize(
    ("agent", "name", "kind", "words"), CASES, ids=[f"{agent}-{name}" for agent, name, *_ in CASES]
)
def test_each_recorded_end_has_its_outcome(
    agent: str, name: str, kind: OutcomeKind, words: str
) -> None:
    """The recorded output of the real CLI gets the right kind of outcome, and the CLI's own words
    are kept."""
    found = outcome(agent, name)
    assert found.kind is kind, found
    assert words in found.detail
    assert (found.code, found.signal) == (
        recorded(agent)[name]["code"],
        recorded(agent)[name]["signal"],
    )
    assert "\n" not in found.detail


@pytest.mark.parametrize(("agent", "table"), [("claude", CLAUDE), ("codex", CODEX)])
def test_no_recording_is_left_out(agent: str, table: dict[str, Any]) -> None:
    """Every recording has an expectation in this file."""
    assert set(recorded(agent)) == set(table)


@pytest.mark.parametrize("agent", ["claude", "codex"])
def test_no_line_of_the_real_clis_is_unknown(agent: str) -> None:
    """The parsers recognize every line of the recordings."""
    assert not [
        event
        for name in recorded(agent)
        for event in events(agent, name)
        if isinstance(event, Unrecognised)
    ]


@pytest.mark.parametrize(
    ("agent", "name", "until"),
    [
        ("claude", "429-oauth", 1795250486_000),
        ("claude", "429-week", 1795506513_000),
        ("claude", "429", None),
        ("codex", "429-limit", 1795257780_000),
        ("codex", "429-limit-days", 1795516980_000),
        ("codex", "429-limit-none", None),
    ],
)
def test_the_end_of_a_limit_is_known(agent: str, name: str, until: int | None) -> None:
    """The end of a limit is read from Claude's own event to the second. Codex's text names a
    minute, and the end of that minute is used."""
    assert outcome(agent, name).until == until


def test_claude_prose_names_the_end_of_a_limit_where_no_event_did() -> None:
    """If there is no event, the end of a limit is read from the text of the result, in the time
    zone that it names."""
    without = [event for event in events("claude", "429-week") if not isinstance(event, LimitSeen)]
    found = registry.load("claude").outcome(exit_of("claude", "429-week"), without)
    assert found.until == 1795506540_000


@pytest.mark.parametrize("agent", ["claude", "codex"])
@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        ("deadline", K.TIMED_OUT),
        ("stalled", K.STALLED),
        ("stopped", K.CANCELLED),
        ("lost", K.LOST),
        ("flooded", K.FAILED),
    ],
)
@pytest.mark.parametrize("name", ["ok", "500", "429", "unknown"])
def test_who_was_stopped_by_perdure_did_not_fail(
    agent: str, cause: str, kind: OutcomeKind, name: str
) -> None:
    """If perdure ended the agent, perdure's reason decides the outcome, not the agent's output."""
    stopped = replace(exit_of(agent, name), cause=cause, code=None, signal=15)
    assert registry.load(agent).outcome(stopped, events(agent, name)).kind is kind


@pytest.mark.parametrize("agent", ["claude", "codex"])
@pytest.mark.parametrize("end", [Exit(code=1), Exit(code=None), Exit(signal=9), Exit(code=137)])
def test_a_good_result_is_no_success_without_exit_code_zero(agent: str, end: Exit) -> None:
    """The agent's own success message without exit code 0 is not a success."""
    assert registry.load(agent).outcome(end, events(agent, "ok")).kind is K.FAILED


@pytest.mark.parametrize("agent", ["claude", "codex"])
def test_exit_code_zero_is_no_success_without_a_result(agent: str) -> None:
    """Exit code 0 with an incomplete stream is a failure."""
    before_the_end = [event for event in events(agent, "ok") if not isinstance(event, TurnEnded)]
    assert registry.load(agent).outcome(Exit(code=0), before_the_end).kind is K.FAILED
    assert registry.load(agent).outcome(Exit(code=0), []).kind is K.FAILED


def test_claude_that_dies_in_its_second_turn_did_not_succeed() -> None:
    """A background task starts another turn after the first result. If that turn is killed, the
    first result does not count."""
    claude = registry.load("claude")
    lines = recorded("claude")["background"]["stdout"]
    second = max(at for at, line in enumerate(lines) if '"subtype":"init"' in line)
    cut = list(chain.from_iterable(claude.parse(line.encode()) for line in lines[: second + 1]))
    assert any(isinstance(event, TurnEnded) and event.ok for event in cut)
    kept = [event for event in cut if isinstance(event, (SessionSeen, TurnEnded, UsageSeen))]
    for part in (cut, kept):
        assert claude.outcome(Exit(signal=9), part).kind is K.FAILED
        assert claude.outcome(Exit(code=0), part).kind is K.FAILED


def test_an_error_told_as_the_answer_is_an_error() -> None:
    """A successful result whose text is the CLI's own error message is a failure."""
    notice = TurnEnded(ok=True, text="Prompt is too long", turns=1, facts={"subtype": "success"})
    assert registry.load("claude").outcome(Exit(code=0), [notice]).kind is K.CONTEXT_EXHAUSTED


def test_an_answer_about_an_error_of_the_service_is_an_answer() -> None:
    """An answer may begin with the text of an API error, because the task was about that error. It
    counts as an answer if the CLI says that the turn was completed."""
    text = "API Error: 429 means that the client sent too many requests."
    facts = {"subtype": "success", "terminal_reason": "completed"}
    answer = TurnEnded(ok=True, text=text, turns=1, facts=facts)
    claude = registry.load("claude")
    assert claude.outcome(Exit(code=0), [answer]).kind is K.SUCCEEDED
    assert claude.outcome(Exit(code=1), [answer]).kind is K.FAILED
    unnamed = replace(answer, facts={"subtype": "success"})
    assert claude.outcome(Exit(code=0), [unnamed]).kind is K.RATE_LIMITED


@pytest.mark.parametrize("name", [name for name, want in CLAUDE.items() if want[1]])
def test_a_recorded_error_of_claude_never_says_completed(name: str) -> None:
    """No recorded failure of Claude Code ends with a result that says that its turn was
    completed."""
    ends = [event for event in events("claude", name) if isinstance(event, TurnEnded)]
    assert all(event.facts.get("terminal_reason") != "completed" for event in ends)


def test_a_prompt_that_was_eaten_as_a_command_is_a_failure() -> None:
    """`/cost` ends with success, code 0 and no turn of the model."""
    eaten = TurnEnded(ok=True, text="Estimated cost: $0", turns=0)
    assert registry.load("claude").outcome(Exit(code=0), [eaten]).kind is K.FAILED


def test_a_damaged_index_of_codex_says_what_to_do() -> None:
    """The outcome's sentence names the index files to move away, which Codex then creates again."""
    end = Exit(
        code=1,
        stderr_tail=(
            "Error: thread/resume: thread/resume failed: list_turns is not supported yet (code "
            "-32601)\n"
        ),
    )
    found = registry.load("codex").outcome(end, [])
    assert found.kind is K.CONFIG_ERROR
    assert "state_5.sqlite" in found.detail


def test_codex_refuses_a_resume_in_unknown_words() -> None:
    """If Codex ends before a turn has begun, the resume counts as refused, whatever the message
    says. So another copy of the conversation is tried."""
    words = "final paginated rollout record in /x.jsonl is missing an ordinal (code -32603)"
    end = Exit(code=1, stderr_tail=f"Error: thread/resume: thread/resume failed: {words}\n")
    assert registry.load("codex").outcome(end, []).kind is K.SESSION_BROKEN


def test_usage_of_claude_is_what_this_launch_added() -> None:
    """The second turn of a conversation reports only its own tokens and cost, although the CLI's
    totals include the first turn."""
    (used,) = [event for event in events("claude", "tool") if isinstance(event, UsageSeen)]
    assert used == UsageSeen(
        Usage(input=300, output=14, cached=80, cache_write=20, cost_usd=0.001196), cumulative=False
    )


def test_several_results_of_claude_add_up() -> None:
    """Each result of Claude has totals. Only the difference from the previous result is counted, so
    the sum is the usage of the launch."""
    used = [event.usage for event in events("claude", "background") if isinstance(event, UsageSeen)]
    assert len(used) == 2
    assert sum(used, Usage()).cost_usd == pytest.approx(0.001736)


def test_usage_of_codex_counts_over_the_thread() -> None:
    """Codex reports the tokens of earlier launches again. The flag on the usage says that it is
    cumulative."""
    (used,) = [event for event in events("codex", "tool") if isinstance(event, UsageSeen)]
    assert used == UsageSeen(Usage(input=300, output=21, cached=120), cumulative=True)


@pytest.mark.parametrize(
    ("agent", "command"),
    [("claude", "id -u; touch made"), ("codex", "/bin/bash -lc 'id -u; touch made'")],
)
def test_a_tool_is_seen_with_its_command_and_its_end(agent: str, command: str) -> None:
    """The events name the conversation, the tool, its command, its output and the answer, in
    order."""
    found = events(agent, "tool")
    started, ended = (
        next(e for e in found if isinstance(e, ToolStarted)),
        next(e for e in found if isinstance(e, ToolEnded)),
    )
    assert isinstance(found[0], SessionSeen)
    assert started.summary == command
    assert (ended.tool_id, ended.ok, ended.summary.strip()) == (started.tool_id, True, "0")
    assert [event.text[:6] for event in found if isinstance(event, Said)] == ["answer"]


def test_a_tool_that_failed_is_seen_as_failed() -> None:
    """A command of Codex with a non-zero exit code, and a refused tool of Claude, are reported as
    failed."""
    failed = b'{"type":"item.completed","item":{"id":"item_1","type":"command_execution","exit_code":3,"status":"failed"}}'
    (event,) = registry.load("codex").parse(failed)
    assert event == ToolEnded("item_1", False, code=3)
    block = b'{"type":"tool_result","tool_use_id":"t","content":[{"type":"text","text":"no"}],"is_error":true}'
    refused = b'{"type":"user","message":{"content":[' + block + b"]}}"
    (event,) = registry.load("claude").parse(refused)
    assert event == ToolEnded("t", False, "no")


def test_an_api_error_is_no_word_of_the_agent() -> None:
    """Claude prints its own errors as text of the assistant. They do not count as an answer."""
    for name in CLAUDE:
        if CLAUDE[name][0] in (K.AUTH_FAILED, K.OVERLOADED, K.RATE_LIMITED, K.CONFIG_ERROR):
            assert not [event for event in events("claude", name) if isinstance(event, Said)], name


@pytest.mark.parametrize(
    ("agent", "name", "status"),
    [("claude", "500", 500), ("claude", "refused", None), ("codex", "401", 401)],
)
def test_retries_of_the_cli_are_seen(agent: str, name: str, status: int | None) -> None:
    """The CLI's own retries are events, with the status if there is one."""
    assert [event.status for event in events(agent, name) if isinstance(event, RetrySeen)] == [
        status
    ]


def test_a_warning_of_a_limit_is_no_limit() -> None:
    """Only a rejected request means that the limit was reached."""
    near = b'{"type":"rate_limit_event","rate_limit_info":{"status":"allowed_warning","resetsAt":1795506513}}'
    assert registry.load("claude").parse(near) == ()
    assert [
        event.until for event in events("claude", "429-oauth") if isinstance(event, LimitSeen)
    ] == [1795250486_000]
