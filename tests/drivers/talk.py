"""Compares the items that a driver says a resume would load with those that the next request
brought to the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from perdure.agents.rehearsal import ChatMessage
from perdure.agents.transcripts import loaded
from perdure.model import Item, ItemKind, Loaded
from perdure.testing.drivers import Bench
from perdure.testing.drivers.bench import BenchRun, resume

KINDS = {"user": "prompt", "assistant": "answer", "tool_call": "call", "tool_result": "result"}
LENGTH = 40


def told(found: Loaded) -> list[tuple[str, str]]:
    """Return the driver's items: the kind, and the call's id or the beginning of the words. A
    summary reaches the model as a prompt. Gemini CLI records a call's id with the tool's name
    before it, and sends it without."""
    return [
        (_kind(each), each.key.rpartition("__")[2] or each.said[:LENGTH]) for each in found.items
    ]


def _kind(each: Item) -> str:
    return "prompt" if each.kind is ItemKind.SUMMARY else each.kind.value


def shown(messages: Sequence[ChatMessage]) -> list[tuple[str, str]]:
    """Return the model server's record in the same form. A result that Gemini repeats appears once."""
    found: list[tuple[str, str]] = []
    for message in messages:
        each = (KINDS[message.role], message.call or " ".join(message.text.split())[:LENGTH])
        if not message.call or each not in found:
            found.append(each)
    return found


def loads_now(stage: Bench, session_id: str) -> Loaded:
    """Return the items that a resume would load from the conversation as it is on disk."""
    found = loaded(stage.driver, stage.home, stage.content(session_id))
    assert found is not None
    return found


def goes_on(stage: Bench, session_id: str, prompt: str, **spec: Any) -> tuple[Loaded, BenchRun]:
    """Resume with a prompt, and compare the driver's items with the first request. Return both."""
    found = loads_now(stage, session_id)
    before = len(stage.rehearsal.requests)
    ran = stage.run(prompt, resume(session_id), **spec)
    asked = [
        request
        for request in stage.rehearsal.requests[before:]
        if request.messages and not request.side
    ]
    assert shown(asked[0].messages)[:-1] == told(found)
    assert asked[0].messages[-1].text.strip() == prompt
    return found, ran
