"""Computes from a chat file what Gemini CLI sends to the model after a resume. Pure; called by the
driver. Written against 0.61.0.

- If a message was recorded several times, the newest version counts, at the position of the first
  one. `$set` with `messages` replaces all messages. `$rewindTo` removes the named message and all
  that follow it, or all messages if there is no such message.
- Prompts that look like commands are skipped. A file that a prompt names with `@` is sent after the
  prompt, and is not an item.
- A compression replaces messages with a summary and a fixed answer to it.
- A result is recorded with its call, and again in a message of its own. Every resume duplicates
  these records (gemini-cli#29365). Each result is one item.
- A tool call that was running at a kill is not recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain

from perdure.agents.gemini import transcript
from perdure.agents.gemini.transcript import Message, parts_of, text_of
from perdure.agents.shared import json_lines
from perdure.agents.shared.json_lines import Record
from perdure.model import Item, ItemKind, Loaded
from perdure.model.loaded import call, item

_WORDS = frozenset(
    {
        *("type", "timestamp", "content", "user", "gemini", "text", "toolCalls", "name", "args"),
        *("result", "status", "tokens", "$set", "$rewindTo", "messages", "sessionId"),
        *("functionCall", "functionResponse", "displayContent"),
    }
)
"""Known keys and types of the records. They are used to find damage: a word in a record that
differs from a known word in exactly one bit counts as damaged."""


def loads(content: bytes) -> Loaded:
    """Return the items that a resume would send to the model, and those that it would leave out."""
    now: dict[str, Message] = {}
    known: dict[str, Message] = {}
    condensed: dict[str, Message] = {}
    summaries: set[str] = set()
    for line in content.split(b"\n"):
        record = json_lines.read(line) if line.strip() else None
        if record is None:
            continue
        given = json_lines.part(record, "$set", "messages")
        if isinstance(given, list):
            before, now = (
                now,
                {_key(message): message for message in json_lines.items(given) if _key(message)},
            )
            summary = transcript.summary_of(list(now.values()))
            if summary is not None:
                gone = {key: message for key, message in before.items() if key not in now}
                condensed |= gone if summary not in summaries else {}
                summaries.add(summary)
        elif isinstance(target := record.get("$rewindTo"), str):
            keys = list(now)
            for key in keys[keys.index(target) :] if target in now else keys:
                del now[key]
        elif key := _key(record):
            now[key] = record
        known |= now
    sent = {key: list(_items(message, key in summaries)) for key, message in now.items()}
    items = _once(chain.from_iterable(_acknowledged(now, sent, summaries)))
    shown = {each.key for each in items if each.key}
    hidden = []
    for key, message in known.items():
        if key not in now:
            hidden += [(key in condensed, each) for each in _items(message, False)]
    left = [(behind, each) for behind, each in hidden if not each.key or each.key not in shown]
    return Loaded(
        items=items,
        compactions=len(summaries & set(now)) and len(summaries),
        condensed=_once(each for behind, each in left if behind),
        dropped=_once(each for behind, each in left if not behind),
    )


def damaged(content: bytes) -> tuple[json_lines.Span, ...]:
    """Return the byte ranges of damaged lines: lines that the CLI cannot have written."""
    return json_lines.damaged(content, _is_record, _WORDS)


def _is_record(entry: Record) -> bool:
    if "sessionId" in entry or any(key.startswith("$") for key in entry):
        return True
    return isinstance(entry.get("id"), str) and isinstance(entry.get("type"), str)


def _key(message: Mapping[str, object]) -> str:
    """Return the id of a message, a call or a result."""
    key = message.get("id")
    if isinstance(key, str):
        return key
    return ""


def _acknowledged(
    now: dict[str, Message], sent: dict[str, list[Item]], summaries: set[str]
) -> Iterator[list[Item]]:
    """Yield the items of each message. The CLI follows a summary with a fixed answer that the model
    never gave, so this answer is marked as made up."""
    before = ""
    for key in now:
        made_up = before in summaries
        yield (
            [item(each.kind, each.said, made_up=True) for each in sent[key]]
            if made_up
            else sent[key]
        )
        before = key


def _items(message: Message, summary: bool) -> Iterator[Item]:
    if message.get("type") == "user":
        for part in parts_of(message.get("content")):
            if isinstance(result := part.get("functionResponse"), dict):
                yield _result(result)
        if summary:
            yield item(ItemKind.SUMMARY, text_of(parts_of(message.get("content"))))
        elif words := transcript.words_of(message):
            yield item(ItemKind.PROMPT, transcript.as_given(words))
    elif message.get("type") == "gemini":
        parts = parts_of(message.get("content"))
        said = text_of(part for part in parts if not part.get("thought"))
        if said.strip():
            yield item(ItemKind.ANSWER, said)
        told = json_lines.items(message.get("toolCalls"))
        calls = json_lines.items([part.get("functionCall") for part in parts]) or told
        for each in calls:
            given = each.get("args")
            yield call(
                _key(each),
                json_lines.text(each.get("name")),
                given,
                json_lines.text(json_lines.part(given, "command")),
            )
        for each in told:
            yield from _results(each)


def _results(told: Mapping[str, object]) -> Iterator[Item]:
    """Yield the tool results that are recorded together with a call. Such a result is either a text
    or a list of parts, as in a message."""
    result = told.get("result")
    if isinstance(result, str):
        yield item(ItemKind.RESULT, result, _key(told))
    for part in json_lines.items(result if isinstance(result, list) else [result]):
        if isinstance(given := part.get("functionResponse"), dict):
            yield _result(given)


def _result(given: Mapping[str, object]) -> Item:
    response = given.get("response")
    words = json_lines.part(response, "output") or json_lines.part(response, "error") or response
    return item(ItemKind.RESULT, words if isinstance(words, str) else repr(words), _key(given))


def _once(items: Iterator[Item]) -> tuple[Item, ...]:
    """Return the items without duplicates: each call and each result occurs once."""
    seen: set[tuple[str, str]] = set()
    found: list[Item] = []
    for each in items:
        mark = (each.kind.value, each.key)
        if each.key and mark in seen:
            continue
        seen.add(mark)
        found.append(each)
    return tuple(found)
