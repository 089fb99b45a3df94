"""The corpus of broken transcripts: recordings of the real CLIs (with the rehearsal, without the
CLIs' own prompts, with invented paths), and the damage of each. docs/reference/mending.md promises
the answer to each.

`answer`: `taken` (the agent accepts it, nothing is changed), `repaired`, `told` (something is lost
and cannot be restored: the loss is reported, nothing is changed), `refused` (nothing can be
repaired, with the reason). `real`: the case is also tested on the installed CLI, before and after
the repair. `missing`: items that the model does not get after the repair, because they are gone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.rules.transcript_repair import Trouble

RECORDINGS = Path(__file__).with_name("recordings")
TOLD = (
    "tell me a word",
    "The word is plum.",
    "run the tool",
    "echo tool-one",
    "tool-one",
    "Ran it.",
    "third prompt",
    "Four.",
)
"""The items that every recording has, in the order in which the model gets them."""
IDS = {
    "claude": "1fd20e2d-c225-46dd-a6c1-c09824bbdaa7",
    "codex": "01a1fda2-0049-78c1-af2c-2b1e633082a3",
    "gemini": "6a66d2bf-cfc8-4952-baed-5d157acaec15",
    "opencode": "ses_e025dd328ffe31SWNC4oNxhicH",
}
NAMES = {
    "claude": f"{IDS['claude']}.jsonl",
    "codex": f"rollout-2026-11-21T10-23-34-{IDS['codex']}.jsonl",
    "gemini": "session-2026-11-21T10-23-6a66d2bf.jsonl",
    "opencode": "main",
}
MARKS = {
    "claude": {
        "answer": b'"The word is plum."',
        "call": b'"tool_use","id"',
        "result": b'"tool_result"',
        "prompt": b'"content":"run the tool"},"uuid',
    },
    "codex": {
        "answer": b'"output_text","text":"The word',
        "call": b'"function_call"',
        "result": b'"function_call_output"',
        "prompt": b'"run the tool"}],"i',
    },
    "gemini": {
        "answer": b'"The word is plum."',
        "call": b'"toolCalls"',
        "result": b'"user","content":[{"functionResponse"',
        "prompt": b'"run the tool"',
    },
    "opencode": {
        "answer": b'"The word is plum."',
        "call": b'"callID"',
        "result": b'"callID"',
        "prompt": b'"run the tool"',
    },
}
Lines = list[bytes]


@dataclass(frozen=True, slots=True)
class Case:
    """One broken transcript."""

    agent: str
    name: str
    breaks: Callable[[Recording], bytes]
    answer: str
    trouble: Trouble | None
    real: bool = False
    missing: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.agent}: {self.name}"

    def content(self) -> bytes:
        return self.breaks(Recording(self.agent))


class Recording:
    """The lines of a recording, and the indexes of its records."""

    def __init__(self, agent: str, name: str = "") -> None:
        self.agent = agent
        self.content = (RECORDINGS / f"{name or agent}.jsonl").read_bytes()
        self.lines: Lines = self.content.split(b"\n")[:-1]

    def at(self, what: str) -> int:
        return next(n for n, line in enumerate(self.lines) if MARKS[self.agent][what] in line)

    def record(self, what: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.lines[self.at(what)])
        return found

    def without(self, what: str) -> bytes:
        at = self.at(what)
        return whole([*self.lines[:at], *self.lines[at + 1 :]])

    def until(self, what: str) -> bytes:
        """Return all lines before the record of this name."""
        return whole(self.lines[: self.at(what)])

    def instead(self, what: str | int, *lines: bytes) -> bytes:
        at = what if isinstance(what, int) else self.at(what)
        return whole([*self.lines[:at], *lines, *self.lines[at + 1 :]])

    def edited(self, what: str | int, change: Callable[[dict[str, Any]], object]) -> bytes:
        at = what if isinstance(what, int) else self.at(what)
        record = json.loads(self.lines[at])
        change(record)
        return self.instead(at, json.dumps(record, separators=(",", ":")).encode())


def whole(lines: Lines) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _glued(r: Recording) -> bytes:
    at = r.at("answer")
    return whole([*r.lines[: at - 1], r.lines[at - 1] + r.lines[at], *r.lines[at + 1 :]])


def _behind_a_fragment(r: Recording) -> bytes:
    """Append the agent's next record directly to an incomplete one."""
    at = r.at("answer")
    return whole([*r.lines[:at], b'{"torn":"rec' + r.lines[at], *r.lines[at + 1 :]])


def _swapped(r: Recording) -> bytes:
    call, result = r.at("call"), r.at("result")
    rest = [line for n, line in enumerate(r.lines) if n not in (call, result)]
    return whole([*rest[:call], r.lines[result], r.lines[call], *rest[call:]])


def _doubled(r: Recording) -> bytes:
    at = r.at("result")
    return r.instead(at, r.lines[at], r.lines[at])


def _image(size: int) -> Callable[[Recording], bytes]:
    source = {"type": "base64", "media_type": "image/png", "data": "A" * size}
    return lambda r: r.edited(
        "result",
        lambda e: e["message"]["content"][0].update(
            content=[{"type": "text", "text": "tool-one"}, {"type": "image", "source": source}]
        ),
    )


def _thought(signature: str) -> Callable[[Recording], bytes]:
    block = {"type": "thinking", "thinking": "hm", "signature": signature}
    return lambda r: r.edited("answer", lambda e: e["message"]["content"].insert(0, block))


def _alone(r: Recording) -> bytes:
    """Put a thought without a signature on a line of its own, as the CLI writes it, and the answer
    after it."""
    at, answer = r.at("answer"), r.record("answer")
    key = "00000000-0000-4000-8000-00000000000a"
    thought = {
        **answer,
        "uuid": key,
        "message": {
            **answer["message"],
            "content": [{"type": "thinking", "thinking": "hm", "signature": ""}],
        },
    }
    after = {**answer, "parentUuid": key}
    return r.instead(
        at,
        json.dumps(thought, separators=(",", ":")).encode(),
        json.dumps(after, separators=(",", ":")).encode(),
    )


def _at_home(r: Recording) -> bytes:
    """Make the same damage in a transcript of the CLI's own program, in which a person may have
    gone back to the beginning."""
    return r.edited("prompt", lambda e: e.update(parentUuid=None, entrypoint="cli"))


def _unreadable(what: str, kind: str) -> Callable[[Recording], bytes]:
    return lambda r: (
        r.edited(what, lambda e: e.update(data={"unreadable": "{broken"}))
        if kind == "part"
        else _message_broken(r)
    )


def _message_broken(r: Recording) -> bytes:
    owner = r.record("answer")["message"].encode()
    at = next(n for n, line in enumerate(r.lines) if b'"id":"' + owner in line)
    return r.edited(at, lambda e: e.update(data={"unreadable": "{broken"}))


def _large(r: Recording) -> bytes:
    at = r.at("prompt")
    many = [r.lines[at].replace(b"run the tool", b"x" * 1_000_000) for _ in range(33)]
    return r.instead(at, *many)


_T = Trouble

CASES = (
    # Claude Code
    Case("claude", "torn tail", lambda r: r.content[:-40], "taken", _T.TORN, real=True),
    Case("claude", "zero bytes at the end", lambda r: r.content + b"\0" * 4096, "taken", _T.TORN),
    Case("claude", "no line end at the end", lambda r: r.content[:-1], "taken", None),
    Case(
        "claude",
        "garbage in place of an answer",
        lambda r: r.instead("answer", b"{{garbage"),
        "told",
        _T.UNREADABLE,
    ),
    Case(
        "claude",
        "zero bytes before an answer",
        lambda r: r.instead("answer", b"\0" * 512 + r.lines[r.at("answer")]),
        "repaired",
        _T.GLUED,
        real=True,
    ),
    Case("claude", "two records on one line", _glued, "repaired", _T.GLUED, real=True),
    Case("claude", "a record behind a torn one", _behind_a_fragment, "repaired", _T.GLUED),
    Case("claude", "line ends lost", lambda r: b" ".join(r.lines), "repaired", _T.GLUED),
    Case(
        "claude",
        "line ends of another kind",
        lambda r: r.content.replace(b"\n", b"\r"),
        "repaired",
        _T.GLUED,
        real=True,
    ),
    Case(
        "claude",
        "stored as UTF-16",
        lambda r: r.content.decode().encode("utf-16"),
        "repaired",
        _T.ENCODING,
    ),
    Case("claude", "byte order mark", lambda r: b"\xef\xbb\xbf" + r.content, "taken", _T.ENCODING),
    Case(
        "claude",
        "tool call at the end without a result",
        lambda r: r.until("result"),
        "taken",
        _T.DANGLING,
    ),
    Case(
        "claude",
        "tool call in the middle without a result",
        lambda r: r.without("result"),
        "repaired",
        _T.DANGLING,
        real=True,
        missing=("tool-one",),
    ),
    Case("claude", "tool result without its call", lambda r: r.without("call"), "told", _T.ORPHAN),
    Case("claude", "doubled tool result", _doubled, "taken", _T.DOUBLED, real=True),
    Case(
        "claude",
        "tool call without its input",
        lambda r: r.edited("call", lambda e: e["message"]["content"][0].pop("input")),
        "repaired",
        _T.CONTENT,
        real=True,
        missing=("echo tool-one",),
    ),
    Case("claude", "thought without a signature", _thought(""), "taken", _T.CONTENT, real=True),
    Case("claude", "such a thought on a line of its own", _alone, "taken", _T.CONTENT),
    Case("claude", "image over the limit", _image(6_000_000), "repaired", _T.CONTENT, real=True),
    Case("claude", "image without a byte", _image(0), "repaired", _T.CONTENT),
    Case(
        "claude",
        "prompt that follows nothing",
        lambda r: r.edited("prompt", lambda e: e.update(parentUuid=None)),
        "repaired",
        _T.CHAIN,
        real=True,
    ),
    Case("claude", "the same, in the program of a person", _at_home, "told", _T.CHAIN),
    Case(
        "claude",
        "parent that is not there",
        lambda r: r.edited(
            "answer", lambda e: e.update(parentUuid="99999999-9999-4999-8999-999999999999")
        ),
        "taken",
        None,
        real=True,
    ),
    Case("claude", "exceeds the limit of a request", _large, "refused", _T.OVERSIZE),
    Case("claude", "empty", lambda r: b"", "refused", _T.EMPTY, real=True),
    Case(
        "claude",
        "only what is no conversation",
        lambda r: whole([line for line in r.lines if b'"parentUuid"' not in line]),
        "refused",
        _T.EMPTY,
        real=True,
    ),
    Case("claude", "all garbage", lambda r: b"garbage\nmore of it\n", "refused", _T.EMPTY),
    # Codex
    Case("codex", "torn tail", lambda r: r.content[:-40], "taken", _T.TORN, real=True),
    Case("codex", "zero bytes at the end", lambda r: r.content + b"\0" * 4096, "taken", _T.TORN),
    Case(
        "codex",
        "garbage in place of an answer",
        lambda r: r.instead("answer", b"{{garbage"),
        "told",
        _T.UNREADABLE,
    ),
    Case("codex", "two records on one line", _glued, "repaired", _T.GLUED, real=True),
    Case("codex", "a record behind a torn one", _behind_a_fragment, "repaired", _T.GLUED),
    Case(
        "codex",
        "broken character in an answer",
        lambda r: r.instead("answer", r.lines[r.at("answer")].replace(b"plum.", b"plum.\\ud83d")),
        "repaired",
        _T.UNREADABLE,
        real=True,
    ),
    Case(
        "codex",
        "first record torn",
        lambda r: r.instead(0, r.lines[0][:50]),
        "repaired",
        _T.HEAD,
        real=True,
    ),
    Case(
        "codex", "first record gone", lambda r: whole(r.lines[1:]), "repaired", _T.HEAD, real=True
    ),
    Case(
        "codex",
        "first record without its directory",
        lambda r: r.edited(0, lambda e: e["payload"].pop("cwd")),
        "repaired",
        _T.HEAD,
        real=True,
    ),
    Case(
        "codex",
        "byte order mark",
        lambda r: b"\xef\xbb\xbf" + r.content,
        "repaired",
        _T.ENCODING,
        real=True,
    ),
    Case(
        "codex",
        "stored as UTF-16",
        lambda r: r.content.decode().encode("utf-16"),
        "repaired",
        _T.ENCODING,
    ),
    Case(
        "codex",
        "tool call at the end without a result",
        lambda r: r.until("result"),
        "taken",
        _T.DANGLING,
    ),
    Case(
        "codex",
        "tool call in the middle without a result",
        lambda r: r.without("result"),
        "taken",
        _T.DANGLING,
    ),
    Case("codex", "tool result without its call", lambda r: r.without("call"), "told", _T.ORPHAN),
    Case("codex", "doubled tool result", _doubled, "repaired", _T.DOUBLED, real=True),
    Case("codex", "tool result before its call", _swapped, "repaired", _T.ORDER, real=True),
    Case("codex", "empty", lambda r: b"", "refused", _T.EMPTY, real=True),
    Case("codex", "only the first record", lambda r: whole(r.lines[:1]), "refused", _T.EMPTY),
    Case("codex", "all garbage", lambda r: b"garbage\nmore of it\n", "refused", _T.EMPTY),
    # Gemini CLI
    Case("gemini", "torn tail", lambda r: r.content[:-20], "repaired", _T.TORN),
    Case("gemini", "no line end at the end", lambda r: r.content[:-1], "repaired", _T.TORN),
    Case(
        "gemini",
        "garbage in place of an answer",
        lambda r: r.instead("answer", b"{{garbage"),
        "told",
        _T.UNREADABLE,
    ),
    Case("gemini", "two records on one line", _glued, "repaired", _T.GLUED, real=True),
    Case(
        "gemini",
        "first line torn",
        lambda r: r.instead(0, r.lines[0][:50]),
        "repaired",
        _T.HEAD,
        real=True,
    ),
    Case("gemini", "first line gone", lambda r: whole(r.lines[1:]), "repaired", _T.HEAD),
    Case(
        "gemini",
        "first line of another conversation",
        lambda r: r.edited(0, lambda e: e.update(sessionId="11111111-2222-4333-8444-555555555555")),
        "repaired",
        _T.HEAD,
        real=True,
    ),
    Case(
        "gemini", "byte order mark", lambda r: b"\xef\xbb\xbf" + r.content, "repaired", _T.ENCODING
    ),
    Case(
        "gemini",
        "emptied by the last record",
        lambda r: r.content + b'{"$set":{"messages":[]}}\n',
        "repaired",
        _T.WIPED,
        real=True,
    ),
    Case(
        "gemini",
        "taken back to nowhere",
        lambda r: r.content + b'{"$rewindTo":"nothing"}\n',
        "repaired",
        _T.WIPED,
    ),
    Case(
        "gemini",
        "answer of an unknown form",
        lambda r: r.edited("answer", lambda e: e.update(content=5)),
        "repaired",
        _T.CONTENT,
        real=True,
        missing=("The word is plum.",),
    ),
    Case("gemini", "tool result beside its call", lambda r: r.content, "taken", _T.DOUBLED),
    Case("gemini", "empty", lambda r: b"", "refused", _T.EMPTY, real=True),
    Case("gemini", "only the first line", lambda r: whole(r.lines[:2]), "refused", _T.EMPTY),
    # OpenCode: the lines of perdure's own copy
    Case("opencode", "torn tail", lambda r: r.content[:-20], "repaired", _T.TORN),
    Case(
        "opencode",
        "row of a part broken",
        _unreadable("answer", "part"),
        "repaired",
        _T.UNREADABLE,
        real=True,
        missing=("The word is plum.",),
    ),
    Case(
        "opencode",
        "row of a message broken",
        _unreadable("answer", "message"),
        "repaired",
        _T.UNREADABLE,
        real=True,
        missing=("The word is plum.",),
    ),
    Case(
        "opencode",
        "tool at work at the end",
        lambda r: r.edited("call", lambda e: e["data"]["state"].update(status="running")),
        "taken",
        _T.DANGLING,
    ),
    Case("opencode", "the session's row gone", lambda r: whole(r.lines[1:]), "refused", _T.HEAD),
    Case("opencode", "empty", lambda r: b"", "refused", _T.EMPTY),
)
