"""The fill of a conversation according to each CLI's transcript, and the setting of the fill at
which the CLI compacts it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perdure.agents import registry
from perdure.model import CompactAt, Continuation, Fill, Launch, Program, Start, TaskSpec
from perdure.model.events import AgentEvent, ContextSeen

RECORDINGS = Path(__file__).parents[1] / "mending" / "recordings"
ID = "2c1f2a3e-0000-4000-8000-000000000001"


def jsonl(*entries: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)


def said(tokens: int, cached: int = 0, **more: Any) -> dict[str, Any]:
    """Return Claude Code's record of an answer."""
    used = {
        "input_tokens": tokens,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 5,
        "output_tokens": 9,
    }
    return {"type": "assistant", "message": {"model": "claude-opus-5", "usage": used}, **more}


def counted(tokens: int, total: int = 0) -> dict[str, Any]:
    """Return Codex's record of a token count."""
    info = {
        "last_token_usage": {"input_tokens": tokens, "total_tokens": total or tokens + 9},
        "model_context_window": 258_400,
    }
    return {"type": "event_msg", "payload": {"type": "token_count", "info": info}}


@pytest.mark.parametrize("agent", ["claude", "codex", "gemini", "opencode"])
def test_a_recorded_conversation_tells_its_fill(agent: str) -> None:
    """The fill of a recorded conversation is the size of its last request, with the model's
    name."""
    fill = registry.load(agent).fill((RECORDINGS / f"{agent}.jsonl").read_bytes())
    assert fill.tokens == 100
    assert fill.model
    assert fill.window == (258_400 if agent == "codex" else 0)
    assert fill.compactions == 0


def test_a_recorded_compaction_is_counted() -> None:
    """From Claude Code's record of a compaction the size before and after it is read."""
    fill = registry.load("claude").fill((RECORDINGS / "claude-compacted.jsonl").read_bytes())
    assert fill.compactions == 1
    assert (fill.held, fill.left) == (107, 2591)


@pytest.mark.parametrize("agent", ["claude", "codex", "gemini", "opencode", "acp-codex"])
def test_damage_tells_nothing(agent: str) -> None:
    """Invalid lines, torn lines and lines of the wrong shape are ignored."""
    driver = registry.load(agent)
    torn = b'{"type":"assistant","message":{"usage":[1]}}\n{"type":"compacted"}\n[]\n\x00\n{"tokens":"usage compact_boundary token_count'
    assert driver.fill(b"") == Fill()
    assert driver.fill(torn).tokens == 0


def test_claude_counts_its_own_answers_alone() -> None:
    """Subagents, and the CLI's own error texts, do not count for the fill. After a compaction the
    CLI's estimate counts until the next answer."""
    fill = registry.load("claude").fill
    whole = [
        said(100),
        said(1000, cached=200),
        said(9, isSidechain=True),
        said(8, isApiErrorMessage=True),
    ]
    assert fill(jsonl(*whole)) == Fill(tokens=1205, model="claude-opus-5")
    shrunk = {
        "type": "system",
        "subtype": "compact_boundary",
        "compactMetadata": {"preTokens": 1300, "postTokens": 70},
    }
    assert fill(jsonl(*whole, shrunk)) == Fill(
        tokens=70, model="claude-opus-5", compactions=1, held=1300, left=70
    )
    assert fill(jsonl(*whole, shrunk, said(90))).tokens == 95


def test_codex_counts_what_the_summary_carried() -> None:
    """The size before a compaction is that of the request for the summary. The size after it is
    Codex's own estimate."""
    fill = registry.load("codex").fill
    model = {"type": "turn_context", "payload": {"model": "gpt-6"}}
    shrunk = {"type": "compacted", "payload": {"message": "..."}}
    found = fill(jsonl(model, counted(150_000), counted(100), shrunk, counted(0, 6063)))
    assert found == Fill(
        tokens=6063, window=258_400, model="gpt-6", compactions=1, held=150_000, left=6063
    )
    assert fill(jsonl(counted(5), counted(0, 108_177))).tokens == 108_177


def test_claude_tells_its_fill_while_it_works() -> None:
    """Each answer reports the size of its request as the fill. A subagent's answer does not count.
    The result has the windows of the models."""
    parse = registry.load("claude").parse

    def sizes(line: bytes) -> list[AgentEvent]:
        return [event for event in parse(line.strip()) if isinstance(event, ContextSeen)]

    assert sizes(jsonl(said(100, cached=20))) == [ContextSeen(125, model="claude-opus-5")]
    assert sizes(jsonl(said(100, parent_tool_use_id="toolu_1"))) == []
    result = {
        "type": "result",
        "subtype": "success",
        "is_error": False,
        "num_turns": 1,
        "modelUsage": {"m": {"contextWindow": 200_000}},
    }
    assert ContextSeen(window=200_000, model="m") in parse(jsonl(result).strip())


def launched(
    agent: str, level: CompactAt | None, *words: str
) -> tuple[tuple[str, ...], dict[str, str]]:
    launch = Launch(
        spec=TaskSpec(prompt="p", agent=agent, agent_args=words),
        continuation=Continuation(kind=Start.RESUME, session_id=ID),
        prompt="p",
        cwd="/work",
        home="/home",
        program=Program(path="/bin/agent"),
        compact_at=level,
    )
    command = registry.load(agent).command(launch)
    return command.argv, command.env


def test_a_launch_says_when_to_compact() -> None:
    """Claude Code gets the level as a percentage of its usable window, Codex as a number of tokens.
    Without a level both keep their defaults."""
    level = CompactAt(tokens=160_000, window=200_000, percent=80)
    name = "CLAUDE_AUTOCOMPACT_PCT_OVERRIDE"
    assert launched("claude", level)[1][name] == "88"
    assert launched("claude", CompactAt(percent=80))[1][name] == "80"
    assert (
        launched("claude", CompactAt(tokens=199_999, window=200_000, percent=80))[1][name] == "100"
    )
    assert name not in launched("claude", None)[1]
    assert "CLAUDE_CODE_AUTO_COMPACT_WINDOW" not in launched("claude", level)[1]
    given = CompactAt(tokens=160_000, window=200_000, percent=80, given=True)
    assert launched("claude", given)[1]["CLAUDE_CODE_AUTO_COMPACT_WINDOW"] == "200000"
    flag = "model_auto_compact_token_limit"
    argv = launched("codex", level)[0]
    assert argv[argv.index("resume") - 1] == f"{flag}=160000"
    assert not [word for word in launched("codex", None)[0] if flag in word]
    assert not [word for word in launched("codex", CompactAt(percent=80))[0] if flag in word]
    own = launched("codex", level, "-c", f"{flag}=7")[0]
    assert [word for word in own if flag in word] == [f"{flag}=7"]
