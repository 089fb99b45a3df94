"""The parsers and the transcript readers with arbitrary input."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.agents import registry
from perdure.model import Exit, codec
from perdure.model.events import (
    MAX_TEXT,
    RequestSeen,
    Said,
    SessionSeen,
    TurnEnded,
    Unrecognised,
    UsageSeen,
)
from perdure.protocols import TakesMessages

AGENTS = ("claude", "codex")

TYPES = (
    *("system", "assistant", "user", "result", "rate_limit_event", "response_item"),
    *(
        "thread.started",
        "turn.started",
        "item.started",
        "item.completed",
        "turn.completed",
        "turn.failed",
        "error",
    ),
)
WORDS = (
    *(
        "type",
        "subtype",
        "init",
        "api_retry",
        "session_writes_lost",
        "message",
        "content",
        "text",
        "tool_use",
        "tool_result",
        "id",
        "input",
        "name",
    ),
    *(
        "is_error",
        "num_turns",
        "errors",
        "result",
        "usage",
        "input_tokens",
        "total_cost_usd",
        "model_usage_since_last_result",
        "rate_limit_info",
    ),
    *(
        "status",
        "rejected",
        "resetsAt",
        "item",
        "agent_message",
        "command_execution",
        "exit_code",
        "changes",
        "payload",
        "role",
        "user",
        "message",
    ),
    *(
        "lost",
        "error_status",
        "promptSource",
        "session_id",
        "thread_id",
        "permission_denials",
        "content_item_metadata",
        "provenance",
    ),
)
words = st.sampled_from(WORDS) | st.text(max_size=20)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | words
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=5),
    max_leaves=25,
)
objects = st.builds(
    lambda kind, rest: {**rest, "type": kind},
    st.sampled_from(TYPES),
    st.dictionaries(words, values, max_size=6),
)


def in_contract(agent: str, line: bytes) -> None:
    """Check that any line gives events that the journal can store, and an outcome."""
    driver = registry.load(agent)
    found = driver.parse(line)
    for event in found:
        text = codec.encode(event)
        assert codec.decode_event(text) == event
        assert all(len(value) <= MAX_TEXT for value in vars_of(event) if isinstance(value, str))
    driver.outcome(Exit(code=1, at=1), found)
    driver.prompts(line)
    driver.fill(line)
    driver.replies(line)
    driver.total(line)
    if isinstance(driver, TakesMessages):
        driver.messages(line)


def vars_of(event: Any) -> list[Any]:
    return [getattr(event, field) for field in event.__struct_fields__]


@pytest.mark.parametrize("agent", AGENTS)
@settings(max_examples=100, deadline=None)
@given(line=st.binary(max_size=200))
def test_any_bytes_are_events(agent: str, line: bytes) -> None:
    """No bytes raise an error, and unknown lines are kept."""
    in_contract(agent, line)


@pytest.mark.parametrize("agent", AGENTS)
@settings(max_examples=150, deadline=None)
@given(value=objects | values)
def test_any_json_is_events(agent: str, value: Any) -> None:
    """No JSON raises an error, whatever the types of its fields are, and even with lone surrogates
    and infinite numbers."""
    in_contract(agent, json.dumps(value).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("agent", AGENTS)
@settings(max_examples=100, deadline=None)
@given(value=objects, cut=st.integers(0, 400), junk=st.binary(max_size=5))
def test_any_torn_line_is_events(agent: str, value: Any, cut: int, junk: bytes) -> None:
    """A line that was cut anywhere, or has broken bytes in it, raises no error."""
    line = json.dumps(value).encode("utf-8", "surrogatepass")
    in_contract(agent, line[:cut] + junk)
    in_contract(agent, line[:cut] + junk + line[cut:])


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"type":"result","num_turns":' + b"9" * 5000 + b"}",
        b'{"type":"result","total_cost_usd":1e999}',
        b'{"type":"result","num_turns":' + b"9" * 400 + b"}",
        b'{"type":"result","num_turns":1,"total_cost_usd":' + b"9" * 400 + b"}",
        b'{"type":"turn.completed","usage":{"input_tokens":' + b"9" * 400 + b"}}",
        b'{"type":"system","subtype":"session_writes_lost","lost":5}',
        b'{"type":"attachment","attachment":'
        b'{"type":"hook_additional_context","hookEvent":"Stop","content":5}}',
    ],
    ids=[
        *("lists", "objects", "digits", "infinity"),
        *("turns", "cost", "tokens", "lost", "message"),
    ],
)
def test_hostile_nesting_and_numbers_are_events(agent: str, line: bytes) -> None:
    """Nesting and numbers that break a JSON reader give an unknown line, or a number within the
    limits of the journal."""
    in_contract(agent, line)


@pytest.mark.parametrize("agent", AGENTS)
def test_what_is_not_known_is_kept(agent: str) -> None:
    """Lines of other programs, and types of newer versions, are kept whole as Unrecognised. Blank
    lines are ignored."""
    driver = registry.load(agent)
    for line in (b"npm warn something", b'{"type":"brand_new","x":1}', b"[1,2]", b'{"type":[]}'):
        assert driver.parse(line) == (Unrecognised(line.decode()),)
    assert list(driver.parse(b"")) == list(driver.parse(b"  \r")) == []


def test_long_text_is_cut_and_said_so() -> None:
    """A text over the limit keeps its beginning. A note at its end says how much is missing."""
    long = {
        "type": "assistant",
        "message": {"content": [{"type": "text", "text": "x" * (MAX_TEXT + 5)}]},
    }
    (event,) = registry.load("claude").parse(json.dumps(long).encode())
    assert isinstance(event, Said)
    assert len(event.text) <= MAX_TEXT
    assert event.text.endswith("characters more]")


def test_a_result_with_broken_characters_is_still_the_result() -> None:
    """The agent's last words may contain half a surrogate pair or a broken byte. The run still has
    its result."""
    claude = registry.load("claude")
    line = b'{"type":"result","subtype":"success","is_error":false,"num_turns":1,"session_id":"s","result":"a\\ud83d b\xff c"}'
    seen, used, ended = claude.parse(line)
    assert isinstance(seen, SessionSeen)
    assert isinstance(used, UsageSeen)
    assert isinstance(ended, TurnEnded)
    assert ended.ok
    codec.encode(ended)
    assert claude.outcome(Exit(code=0), [seen, used, ended]).ok


def test_claude_says_when_it_asks_its_model() -> None:
    """2.1.329 prints a status before each request. Other statuses do not count."""
    line = b'{"type":"system","subtype":"status","status":"requesting","session_id":"a"}'
    assert registry.load("claude").parse(line) == (RequestSeen(),)
    assert registry.load("claude").parse(line.replace(b"requesting", b"compacting")) == ()


def test_the_last_id_counts() -> None:
    """The conversation's id in the result counts, because the id may have changed during the
    run."""
    line = b'{"type":"result","subtype":"success","is_error":false,"num_turns":1,"session_id":"the-new-one","result":""}'
    assert registry.load("claude").parse(line)[0] == SessionSeen("the-new-one")


def test_an_id_of_a_run_without_a_turn_is_not_believed() -> None:
    """For an unknown conversation the CLI prints a result with the requested id. That does not mean
    that the conversation exists."""
    line = b'{"type":"result","subtype":"error_during_execution","is_error":true,"num_turns":0,"session_id":"asked","errors":["x"]}'
    assert [type(event) for event in registry.load("claude").parse(line)] == [TurnEnded]
