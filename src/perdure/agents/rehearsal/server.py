"""The rehearsal: a model server on 127.0.0.1 that answers from a script and records every request.

Used by tests, by the demo, by `perdure prove` and by `agents.proof`. The real agent CLIs use the
rehearsal like their own service, without a key or another network. One process and one port serve
every dialect.

Guarantees: a request is recorded before the first byte of its answer is sent; a client that
disconnects ends only its own answer; `stop` ends every answer, also hanging ones, and returns
within seconds.

If the server is `strict`, `refusal` checks whether the real service would refuse the history.
Without this check, a resume against the rehearsal would prove nothing. The error messages are those
of the services, because the CLIs and perdure's classifiers read them. Anthropic's and OpenAI's
rules are taken from their documentation and from reported errors (claude-code#9346, #21726, #63147;
codex "No tool output found"). Gemini has no rules, because Gemini CLI 0.61.0 sends every tool
result twice after a resume (gemini-cli#29365).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TextIO

from msgspec import Struct

from perdure.agents.rehearsal import agents
from perdure.agents.rehearsal.anthropic import Anthropic
from perdure.agents.rehearsal.chat import Chat
from perdure.agents.rehearsal.conversation import (
    ChatMessage,
    Dialect,
    PlannedReply,
    ReplyPlanner,
    ReplySource,
    RequestBody,
    ScriptedConversation,
    items,
)
from perdure.agents.rehearsal.gemini import Gemini
from perdure.agents.rehearsal.http_server import AnswerRecord, RehearsalHttpServer
from perdure.agents.rehearsal.openai import OpenAI
from perdure.agents.rehearsal.script import Fail, Say, Script, TokenCounts, parse

IMAGE_LIMIT = 5 * 1024 * 1024
"""Maximum length of one image that Anthropic accepts, in base64 characters."""


def refusal(dialect: str, body: RequestBody) -> str:
    """Return the message with which the service would refuse the request (status 400). Empty if the
    service would accept it. Pure."""
    match dialect:
        case "anthropic":
            return _anthropic(body)
        case "openai":
            return _openai(items(body, "input"))
        case "chat":
            return _chat(items(body, "messages"))
        case _:
            return ""


def _anthropic(body: RequestBody) -> str:
    messages = []
    for message in items(body, "messages"):
        if message.get("role") in ("user", "assistant"):
            messages.append(message)
    calls: list[str] = []
    for at, message in enumerate(messages):
        blocks = items(message, "content")
        answered = []
        for block in blocks:
            if block.get("type") == "tool_result":
                answered.append(str(block.get("tool_use_id")))
        for each in answered:
            if each not in calls or answered.count(each) > 1:
                return (
                    f"messages.{at}: unexpected `tool_use_id` found in `tool_result` blocks: {each}"
                )
        if left := [call for call in calls if call not in answered]:
            return (
                f"messages.{at - 1}: `tool_use` ids were found without `tool_result` blocks "
                f"immediately after: {', '.join(left)}."
            )
        for number, block in enumerate(blocks):
            if wrong := _block(block):
                return f"messages.{at}.content.{number}{wrong}"
        calls = []
        for block in blocks:
            if block.get("type") == "tool_use":
                calls.append(str(block.get("id")))
    if calls:
        return (
            f"messages.{len(messages) - 1}: `tool_use` ids were found without `tool_result` blocks "
            "immediately after."
        )
    return ""


def _block(block: Mapping[str, object]) -> str:
    kind, source = block.get("type"), block.get("source")
    if kind == "text" and not str(block.get("text") or "").strip():
        return ": text content blocks must be non-empty"
    if kind == "tool_use" and not isinstance(block.get("input"), dict):
        return ".tool_use.input: Field required"
    if kind == "thinking" and not (block.get("signature") and block.get("thinking")):
        return ": Invalid `signature` in `thinking` block"
    if kind == "image" and isinstance(source, dict) and source.get("type") == "base64":
        size = len(str(source.get("data") or ""))
        if not size:
            return ".image.source.base64.data: image cannot be empty"
        if size > IMAGE_LIMIT:
            return (
                f".image.source.base64: image exceeds 5 MB maximum: {size} bytes > {IMAGE_LIMIT} "
                "bytes"
            )
    if kind == "tool_result":
        for each in items(block, "content"):
            if wrong := _block(each):
                return wrong
    return ""


def _openai(given: Iterable[Mapping[str, object]]) -> str:
    calls: set[str] = set()
    answered: set[str] = set()
    for item in given:
        call, kind = str(item.get("call_id")), str(item.get("type"))
        if kind.endswith("_call_output"):
            if call not in calls:
                return f"No tool call found for function call output with call_id {call}."
            if call in answered:
                return f"Duplicate item found: function call output with call_id {call}."
            answered.add(call)
        elif kind in ("function_call", "custom_tool_call"):
            calls.add(call)
    left = sorted(calls - answered)
    if left:
        return f"No tool output found for function call {left[0]}."
    return ""


def _chat(messages: Iterable[Mapping[str, object]]) -> str:
    open_calls: list[str] = []
    for message in messages:
        if message.get("role") == "tool":
            call = str(message.get("tool_call_id"))
            if call not in open_calls:
                return (
                    "messages with role 'tool' must be a response to a preceding message with "
                    "'tool_calls'"
                )
            open_calls.remove(call)
        elif open_calls:
            return (
                "An assistant message with 'tool_calls' must be followed by tool messages for "
                f"each 'tool_call_id': {open_calls[0]}"
            )
        else:
            open_calls = [str(call.get("id")) for call in items(message, "tool_calls")]
    return ""


DIALECTS: dict[str, Dialect] = {
    "/v1/messages": Anthropic(),
    "/v1/responses": OpenAI(),
    "/responses": OpenAI(),
    "/v1/chat/completions": Chat(),
}
VERBS: dict[str, Dialect] = {
    "streamGenerateContent": Gemini(),
    "generateContent": Gemini(streamed=False),
}
"""Gemini's dialect for each method of its API. The method is the end of a request's path
(`/models/MODEL:METHOD`)."""

SIDE = PlannedReply((Say("A rehearsal."),))


class Request(Struct, frozen=True, kw_only=True):
    """One recorded HTTP request."""

    number: int
    """Number of the request in order of arrival, from 1. Every recorded request is counted, also if
    it is not for the model."""
    time: int
    """Time of arrival, in milliseconds since 1970 (UTC)."""
    dialect: str
    """`anthropic`, `openai`, `chat` or `gemini`; empty if the request is not for the model."""
    path: str
    """Method and path, for example `POST /v1/messages?beta=true`."""
    session: str
    messages: tuple[ChatMessage, ...]
    answer: str
    """Kind of the answer: `reply`, `fail`, `limit`, `wait` (a call that waits for a running
    command), `side`, `unmatched` or `other`."""
    script: int | None = None
    reply: int | None = None
    """Index of the scripted reply that was sent, counted from 0 in its script. None if no script
    answered, and for the `Done.` that follows the last reply."""
    model: str = ""
    """Name of the requested model."""
    added: tuple[str, ...] = ()
    """Texts that the CLI itself added to the messages."""

    @property
    def side(self) -> bool:
        """Return whether the request is not part of the conversation itself, for example because it
        asks for a title. Such a request does not advance a script."""
        return self.answer in ("side", "wait", "other")

    @property
    def prompts(self) -> list[str]:
        return [message.text for message in self.messages if message.role == "user"]

    def line(self) -> str:
        """Return the request as a line of JSON for the record file."""
        said = [{"role": message.role, "text": message.text} for message in self.messages]
        head = {
            "number": self.number,
            "time": self.time,
            "dialect": self.dialect,
            "path": self.path,
            "session": self.session,
        }
        return json.dumps(
            {
                **head,
                "messages": said,
                "answer": self.answer,
                "script": self.script,
                "reply": self.reply,
                "side": self.side,
            }
        )


class Rehearsal:
    """A scripted model server. Use it as a context manager, or call `start` and `stop`.

    - `script`: the text of a script, parsed scripts, or a `ReplySource` that computes its answers.
    - `port`: 0 lets the system choose one.
    - `record`: a file to which every request is appended as a line of JSON, flushed before the
      answer.
    - `strict`: refuse a history that the real service would refuse.
    """

    def __init__(
        self,
        script: str | Script | Sequence[Script] | ReplySource = "",
        *,
        port: int = 0,
        record: Path | None = None,
        strict: bool = False,
    ) -> None:
        scripts: Sequence[Script] | ReplySource
        if isinstance(script, str):
            scripts = parse(script)
        elif isinstance(script, Script):
            scripts = (script,)
        else:
            scripts = script
        self._cues: ReplySource = (
            ReplyPlanner(scripts) if isinstance(scripts, Sequence) else scripts
        )
        self._wanted_port = port
        self._record = record
        self._strict = strict
        self._file: TextIO | None = None
        self._all: list[Request] = []
        self._reported: dict[int, TokenCounts] = {}
        self._begun: dict[int, TokenCounts] = {}
        self._arrived = threading.Condition()
        self._desk: RehearsalHttpServer | None = None

    def start(self) -> Rehearsal:
        """Start to listen and return the server. Raise OSError if the port is in use or the record
        file cannot be opened."""
        if self._record:
            self._file = self._record.open("a", encoding="utf-8")
        else:
            self._file = None
        try:
            self._desk = RehearsalHttpServer(self._wanted_port, self._answer, self._other)
        except OSError:
            self._close_file()
            raise
        return self

    def stop(self) -> None:
        """End every answer and close every connection. A second call does nothing."""
        if self._desk is not None:
            self._desk.stop()
        self._close_file()

    def __enter__(self) -> Rehearsal:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        if self._desk is None:
            raise RuntimeError("the rehearsal has not been started")
        return self._desk.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[Request]:
        """Return the recorded requests without side requests, in order of arrival."""
        return [request for request in self.everything if not request.side]

    @property
    def everything(self) -> list[Request]:
        """Return all recorded requests, including side requests."""
        with self._arrived:
            return list(self._all)

    @property
    def reported(self) -> dict[int, TokenCounts]:
        """Return the usage that has been sent to clients so far, by number of the request. If an
        answer was cut off, the client has received a part of its usage or none, depending on the
        dialect."""
        with self._arrived:
            return dict(self._reported)

    @property
    def begun(self) -> dict[int, TokenCounts]:
        """Return the full usage of each answer that has begun, by number of the request. An answer
        that was cut off later counts fully."""
        with self._arrived:
            return dict(self._begun)

    @property
    def last(self) -> Request:
        """Return the last request that is not a side request. Raise LookupError if there is no such
        request."""
        requests = self.requests
        if not requests:
            raise LookupError("no request has reached the rehearsal")
        return requests[-1]

    def prompts(self) -> list[str]:
        """Return the user's prompts in the last request."""
        return self.last.prompts

    def wait_for(self, requests: int, timeout: float = 300.0) -> Request:
        """Wait until this number of requests (without side requests) has arrived. Return the
        request with that number. Raise TimeoutError after `timeout` seconds."""
        with self._arrived:
            met = self._arrived.wait_for(
                lambda: sum(not request.side for request in self._all) >= requests, timeout
            )
            if not met:
                seen = sum(not request.side for request in self._all)
                raise TimeoutError(
                    f"{seen} of {requests} requests reached the rehearsal within {timeout:g} s"
                )
        return self.requests[requests - 1]

    def environ(
        self, agent: str, home: Path | None = None, retries: int = 1, subscription: bool = False
    ) -> dict[str, str]:
        """Return the variables that make an agent use this server; see `agents.environ`."""
        return agents.environ(self.url, agent, home, retries, subscription)

    def codex_args(self, retries: int = 1) -> list[str]:
        """Return the arguments that make Codex use this server; see `agents.codex_args`."""
        return agents.codex_args(self.url, retries)

    def write_codex_home(self, home: Path, retries: int = 1) -> None:
        """Write Codex settings that use this server; see `agents.write_codex_home`."""
        agents.write_codex_home(self.url, home, retries)

    def _answer(
        self, path: str, headers: dict[str, str], body: RequestBody
    ) -> tuple[Dialect, PlannedReply, ScriptedConversation, AnswerRecord] | None:
        """Record a POST with a JSON body and return its answer. None if it is not a request to the
        model. Called by `RehearsalHttpServer`."""
        place = path.partition("?")[0]
        dialect = DIALECTS.get(place) or (
            VERBS.get(place.rpartition(":")[2]) if "/models/" in place else None
        )
        if dialect is None:
            return None
        conversation = dialect.conversation(headers, body)
        with self._arrived:
            if self._strict:
                wrong = refusal(dialect.name, body)
            else:
                wrong = ""
            if wrong:
                cue, answer = (PlannedReply(failure=Fail(400, words=wrong)), "fail")
            else:
                cue, answer = self._cue(conversation)
            number = self._keep(f"POST {path}", answer, dialect.name, conversation, cue)
        return (
            dialect,
            cue,
            conversation,
            AnswerRecord(
                begun=partial(self._keep_count, self._begun, number),
                reported=partial(self._keep_count, self._reported, number),
            ),
        )

    def _keep_count(self, counts: dict[int, TokenCounts], number: int, tokens: TokenCounts) -> None:
        with self._arrived:
            counts[number] = tokens

    def _cue(self, conversation: ScriptedConversation) -> tuple[PlannedReply, str]:
        if conversation.side:
            return (
                PlannedReply((Say(self._summary(conversation)),)) if conversation.summary else SIDE
            ), "side"
        if conversation.waiting:
            return PlannedReply(waits=conversation.waiting), "wait"
        cue = self._cues.next(conversation)
        if cue.script is None:
            return cue, "unmatched"
        return cue, type(cue.failure).__name__.lower() if cue.failure else "reply"

    def _summary(self, conversation: ScriptedConversation) -> str:
        return conversation.summary.replace(
            "{}", self._cues.summary(conversation) or "A rehearsal."
        )

    def _other(self, method: str, path: str) -> None:
        with self._arrived:
            self._keep(f"{method} {path}", "other")

    def _keep(
        self,
        path: str,
        answer: str,
        dialect: str = "",
        said: ScriptedConversation | None = None,
        cue: PlannedReply | None = None,
    ) -> int:
        """Record a request and return its number. The caller must hold the lock of `_arrived`."""
        said, cue = said or ScriptedConversation(()), cue or PlannedReply()
        request = Request(
            number=len(self._all) + 1,
            time=int(time.time() * 1000),
            dialect=dialect,
            path=path,
            session=said.session,
            messages=said.messages,
            answer=answer,
            script=cue.script,
            reply=cue.reply,
            model=said.model,
            added=said.added,
        )
        self._all.append(request)
        if self._file is not None:
            self._file.write(request.line() + "\n")
            self._file.flush()
        self._arrived.notify_all()
        return request.number

    def _close_file(self) -> None:
        with self._arrived:
            if self._file is not None:
                self._file.close()
                self._file = None
