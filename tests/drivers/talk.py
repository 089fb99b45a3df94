"""Compares the items that, according to a driver, a resume would load with those that the next
request sent to the model."""

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
    """Return the driver's items as pairs of a kind, and the call's id or the beginning of the text.
    A summary has the kind `prompt`, because the model gets it as one. Gemini CLI records a call's
    id after the tool's name, and sends only the id."""
    return [
        (_kind(each), each.key.rpartition("__")[2] or each.said[:LENGTH]) for each in found.items
    ]


def _kind(each: Item) -> str:
    return "prompt" if each.kind is ItemKind.SUMMARY else each.kind.value


def shown(messages: Sequence[ChatMessage]) -> list[tuple[str, str]]:
    """Return the messages that the model server got, as the same kind of pairs. A result that
    Gemini repeats is returned once."""
    found: list[tuple[str, str]] = []
    for message in messages:
        each = (KINDS[message.role], message.call or " ".join(message.text.split())[:LENGTH])
        if not message.call or each not in found:
            found.append(each)
    return found


def loads_now(stage: Bench, session_id: str) -> Loaded:
    """Return what the driver reports as the items that a resume would load from the conversation as
    it is on disk."""
    found = loaded(stage.driver, stage.home, stage.content(session_id))
    assert found is not None
    return found


def goes_on(stage: Bench, session_id: str, prompt: str, **spec: Any) -> tuple[Loaded, BenchRun]:
    """Resume with a prompt, and check that the first request has the items that the driver
    reported. Return the driver's report and the run."""
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
