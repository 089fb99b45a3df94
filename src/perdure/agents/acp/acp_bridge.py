"""Runs one turn of an agent that speaks ACP (agentclientprotocol.com, version 1) and prints the
turn as JSON lines on stdout.

`AcpDriver` starts this program by its path with `python -P`, so that nothing is imported from the
workdir. The only argument is the order: a JSON object in the format of `AcpOrder`. The prompt is
read from stdin, and the agent inherits this process's environment. The program needs the library
`agent-client-protocol` (written against 0.12.1). Of perdure, it imports only
`agents.shared.bridges`, and only if the order names a directory of requests.

Guarantees:

- A prompt is only sent to the requested conversation.
- The conversation's id is printed before the prompt is sent.
- The replay of an old conversation is never printed as an answer.
- The agent's process has ended when this program ends.

If perdure cannot read the agent's transcripts, the order has `known`: hashes of the items that
perdure has recorded. If possible, a conversation is then loaded rather than resumed. Its replay
must contain all of these items before the prompt is sent. With `known`, the printed id is empty if
the agent can neither resume nor load a conversation.

Types of lines:

- `session`: the conversation's id.
- `marks`: hashes of the prompt, the answers and the tool calls.
- `prompted`: the prompt is being sent.
- `tool`: a call that has begun.
- `update`: a message as the agent sent it.
- `notice`: text that does not come from the model.
- `again`: a new answer replaces one that broke off.
- `asked`: a permission request and the answer to it.
- `end`: stop reason and usage.
- `error`: the stage that failed, with code and message.

Exit codes: 0 if the turn was completed, 1 if it was not, 3 if the library is not installed, 143 if
the program was stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sys
import time
from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypeAlias, TypedDict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from acp.client.connection import ClientSideConnection

PROTOCOL = 1
LINE_LIMIT = 1 << 30
"""Maximum length of one message of the agent, in bytes. asyncio's default is 64 KiB."""
PIECES = 200
"""Number of pieces of a text up to which every sequence of adjacent pieces is hashed. In a text
with more pieces, only the sequences that extend to its end are hashed."""
QUIET_S = 0.5
"""Duration of silence after which a replay counts as complete, in seconds. Gemini CLI 0.61.0 sends
a part of the replay after its response to `session/load`."""
LATE_S = 10.0
"""Maximum wait for the items of `known` that are still missing when the agent falls silent during a
replay, in seconds. Counted from the agent's response to `session/load`."""
ANNOUNCED_S = 2.0
"""Maximum wait for the announcement of a tool call whose permission request has already arrived, in
seconds."""
CANCEL_S = 1.0
END_S = (3.0, 3.0)
"""Time limits for the agent to exit, in seconds: after its input was closed, and after SIGTERM."""
OVER_S = (2.0, 1.0)
"""Time limits for an agent that has completed its turn, in seconds and in the same order as in
END_S. They are shorter, so that a run ends soon after the agent's result."""
NOT_INSTALLED = 3
STOPPED = 143
REJECTED = "This call needs a permission that nobody has given."
"""Option id that refuses a call if the agent would forget a rejected call. The agent knows no such
option, so the permission request fails and the call stays in the conversation."""
LOOKING = ("read", "search", "think")

Update: TypeAlias = dict[str, Any]
"""Content of one `session/update` of the agent: for example, a piece of an answer, or a tool call
with its state. A permission request describes its tool call with the same fields."""


class AcpOrder(TypedDict):
    """The order: what this program has to do. Written by `AcpDriver.command` and by the driver for
    any other agent (`any_agent`)."""

    command: list[str]
    cwd: str
    directories: list[str]
    """Further directories that the agent may use."""
    start: str
    """`new`, `resume` or `fork`."""
    session: str
    """Id of the conversation to resume or to fork; empty for a new one."""
    known: NotRequired[list[str]]
    """Hashes of the items that the replay of the conversation must contain. Missing if perdure can
    read the agent's transcripts."""
    mode: str
    allow: str
    """Which tool calls are granted, see `AcpClient.permits`."""
    model: str
    notices: bool
    """Whether a piece of an answer that has no message id is a notice, not text of the model."""
    keeps_rejected: NotRequired[bool]
    """Whether the agent keeps a rejected call in the conversation. Default: True."""
    again: bool
    """Whether a new message id within an answer means that the agent retries the answer."""
    home: str
    hold: str
    """Glob pattern with `strftime` fields for files below `home`. The bridge does not load a
    conversation while a matching file exists. Empty if there is nothing to wait for."""
    requests: str
    """The run's directory of requests; empty if no person can be asked."""


class BridgeRefused(Exception):
    """Raised if the agent cannot do what the order (the argument of this program) asks for."""


def say(kind: str, **fields: Any) -> None:
    """Write one line for the driver to stdout and flush it."""
    sys.stdout.write(json.dumps({"type": kind, **fields}) + "\n")
    sys.stdout.flush()


class ReplayIncomplete(Exception):
    """Raised if the replay of a conversation lacks items that perdure has recorded."""


class Items:
    """Collects the prompts, answers and tool calls of a conversation, in order. A text that arrives
    in pieces is stored as a list of these pieces."""

    def __init__(self) -> None:
        self.all: list[tuple[str, list[tuple[str, str]]]] = []
        self.done: set[str] = set()

    def collect(self, update: Update) -> None:
        kind = str(update.get("sessionUpdate"))
        if kind in ("tool_call", "tool_call_update"):
            key = str(update.get("toolCallId"))
            if ("tool", [("", key)]) not in self.all:
                self.all.append(("tool", [("", key)]))
            if update.get("status") == "completed":
                self.done.add(key)
            return
        role = {"user_message_chunk": "prompt", "agent_message_chunk": "said"}.get(kind)
        words = (update.get("content") or {}).get("text")
        if role and isinstance(words, str):
            if not self.all or self.all[-1][0] != role:
                self.all.append((role, []))
            self.all[-1][1].append((str(update.get("messageId") or ""), words))

    def hashes(self) -> list[str]:
        """Return a hash for each answer and each completed tool call of this turn."""
        # codex-acp 2.6.0 sends warnings as pieces of an answer. Warnings have no message id, but
        # real answers have one. So pieces without an id are left out if any piece has an id.
        said = chain.from_iterable(pieces for role, pieces in self.all if role == "said")
        named = any(name for name, _ in said)
        found = []
        for role, pieces in self.all:
            text = "".join(words for name, words in pieces if name or not named or role == "tool")
            if (role == "said" and text.strip()) or (role == "tool" and text in self.done):
                found.append(hash_item(role, text))
        return found

    def possible(self) -> set[str]:
        """Return the hashes of all items that the collected replay may contain. An agent may merge
        or split messages in its replay, so every sequence of adjacent pieces is hashed. For a text
        of more than `PIECES` pieces, only the sequences that extend to the end of the text are
        hashed."""
        found: set[str] = set()
        for role, pieces in self.all:
            words = [text for _, text in pieces]
            for first in range(len(words)):
                # Hashing every sequence would be too slow for thousands of pieces, so only those
                # that extend to the end of the text are hashed.
                ends = range(first + 1, len(words) + 1) if len(words) <= PIECES else (len(words),)
                found.update(hash_item(role, "".join(words[first:end])) for end in ends)
        return found


def hash_item(role: str, text: str) -> str:
    """Return the role and a hash of the text, as `role:hash`. Differences in white space do not
    change the hash."""
    plain = " ".join(text.split()).encode("utf-8", "surrogatepass")
    return f"{role}:{hashlib.sha256(plain).hexdigest()[:16]}"


class TurnPrinter:
    """Converts the agent's messages of the turn into output lines, in order."""

    def __init__(self, order: AcpOrder) -> None:
        self.notices: bool = order["notices"]
        self.again: bool = order["again"]
        self.calls: dict[str, Update] = {}
        self.begun: set[str] = set()
        self.answer = ""
        self.notice = ""
        self.failed = False

    def print_update(self, update: Update) -> None:
        kind = update.get("sessionUpdate")
        if kind in ("tool_call", "tool_call_update"):
            self._tool(update)
        elif kind == "agent_message_chunk":
            self._said(update)
        elif kind == "session_info_update":
            # codex-acp 2.6.0 ends a failed turn with the stop reason `end_turn`, as if it had
            # succeeded. Only the thread status `systemError` shows that the turn failed.
            status = ((update.get("_meta") or {}).get("codex") or {}).get("threadStatus") or {}
            self.failed = self.failed or status.get("type") == "systemError"

    def _tool(self, update: Update) -> None:
        """Print a tool call once, as soon as its status is not `pending`: OpenCode announces a call
        as `pending` before the command is known. Also print the update that ends the call."""
        self.answer = ""
        key = str(update.get("toolCallId"))
        self.calls[key] = {
            **self.calls.get(key, {}),
            **{name: value for name, value in update.items() if value is not None},
        }
        if key not in self.begun and self.calls[key].get("status", "pending") != "pending":
            self.begun.add(key)
            say("tool", call=self.calls[key])
        if update.get("status") in ("completed", "failed"):
            say("update", update=update)

    def _said(self, update: Update) -> None:
        key, words = update.get("messageId") or "", (update.get("content") or {}).get("text") or ""
        if self.notices and not key:
            self.notice = words.strip()
            say("notice", text=words)
            return
        if self.again and self.answer not in ("", key):
            say("again")
        self.answer = key
        say("update", update=update)


def asked_call(begun: Update, asked: Update) -> tuple[str, dict[str, object]]:
    """Return name and arguments of a tool call for which the agent requests a permission. Both are
    taken from the announcement of the call (`begun`) if the announcement has arguments. Otherwise
    both are taken from the request (`asked`). OpenCode's request has only the arguments of the
    permission."""
    told = begun if begun.get("rawInput") else asked
    given = told.get("rawInput")
    if not isinstance(given, dict) or not given:
        given = {name: told[name] for name in ("title", "locations", "rawInput") if name in told}
    changes = []
    for each in asked.get("content") or []:
        if isinstance(each, dict) and "newText" in each:
            changes.append(each)
    kind = told.get("kind")
    name = kind if kind not in (None, "other") else told.get("title")
    return str(name or "tool"), {**given, **({"changes": changes} if changes else {})}


class AcpClient(TurnPrinter):
    """Receives the agent's messages and answers its permission requests. The client does not offer
    to read files or to run terminals for the agent, because the agent does both itself."""

    def __init__(self, order: AcpOrder) -> None:
        super().__init__(order)
        self.cwd = Path(order["cwd"]).resolve()
        self.allow: str = order["allow"]
        self.requests: str = order.get("requests", "")
        self.keeps_rejected: bool = order.get("keeps_rejected", True)
        self.approved: set[str] = set()
        """Calls of this turn that a person has allowed, each as its id and its digest."""
        self.refused = False
        self.told = asyncio.Event()
        self.prompted = False
        self.heard = time.monotonic()
        self.items = Items()

    def observe(self, event: Any) -> None:
        """Process an incoming message, including messages that the library's schema does not know.
        A message that arrives before the prompt is sent belongs to a replay. Such a message is
        collected but not printed."""
        message = event.message
        self.heard = time.monotonic()
        if message.get("method") == "session/update":
            update = (message.get("params") or {}).get("update")
        else:
            update = None
        if isinstance(update, dict):
            self.items.collect(update)
            if self.prompted:
                self.print_update(update)
                self.told.set()

    async def session_update(self, session_id: str, update: Any, **_: Any) -> None:
        """Do nothing, because `observe` has already processed the message."""

    async def request_permission(
        self, session_id: str, tool_call: Any, options: list[Any], **_: Any
    ) -> Any:
        from acp.schema import AllowedOutcome, DeniedOutcome, RequestPermissionResponse

        told = tool_call.model_dump(by_alias=True, exclude_none=True)
        granted = self.permits(
            tool_call.kind or "other", [place.path for place in tool_call.locations or []]
        )
        begun = {} if granted else await self.announced(tool_call.tool_call_id)
        name, given = asked_call(begun, told)
        if granted:
            wanted = ("allow_once", "allow_always")
        elif self.is_approved(tool_call.tool_call_id, name, given):
            # The person allowed only this call, so never choose `allow_always`.
            granted, wanted = True, ("allow_once", "allow_once")
        else:
            wanted = ("reject_once", "reject_always")
        pairs = product(wanted, options)
        chosen = next((option for kind, option in pairs if option.kind == kind), None)
        self.refused = self.refused or not granted
        say(
            "asked",
            tool=tool_call.tool_call_id,
            title=tool_call.title or "",
            name=name,
            input=given,
            granted=bool(granted and chosen),
        )
        if not granted and not self.keeps_rejected:
            # Gemini CLI 0.61.0 forgets a rejected call, but not its result. An option that the CLI
            # does not know makes the permission request fail. The call then stays in the
            # conversation, and the model reads the name of that option.
            return RequestPermissionResponse(
                outcome=AllowedOutcome(outcome="selected", option_id=REJECTED)
            )
        if chosen is None:
            return RequestPermissionResponse(outcome=DeniedOutcome(outcome="cancelled"))
        return RequestPermissionResponse(
            outcome=AllowedOutcome(outcome="selected", option_id=chosen.option_id)
        )

    def permits(self, kind: str, places: list[str]) -> bool:
        """Return whether `allow` (from the order) grants a tool call of this kind on these paths.

        - `nothing`: grants no call, because the agent's own mode is the limit.
        - `look`: grants calls that only read.
        - `work`: grants calls without a path outside of the workdir.
        - `anything`: grants every call.
        """
        inside = all((self.cwd / place).resolve().is_relative_to(self.cwd) for place in places)
        return (
            self.allow == "anything"
            or (self.allow == "look" and kind in LOOKING)
            or (self.allow == "work" and inside)
        )

    async def announced(self, call: str) -> Update:
        """Return the announcement of the tool call. OpenCode 1.18.33 sends the announcement before
        or after the permission request, so wait up to ANNOUNCED_S. Return an empty dict if no
        announcement arrives."""
        end = time.monotonic() + ANNOUNCED_S
        while not (found := self.calls.get(call) or {}).get("rawInput"):
            self.told.clear()
            try:
                await asyncio.wait_for(self.told.wait(), end - time.monotonic())
            except TimeoutError:
                return {}
        return found

    def is_approved(self, call: str, name: str, given: Mapping[str, object]) -> bool:
        """Return whether a person allowed this tool call, and mark the approval as used. An agent
        may request several permissions for one call, so a used approval stays valid for the same
        call until the turn ends."""
        if not self.requests:
            return False
        from perdure.agents.shared.bridges import digest, use

        key = digest(name, given)
        mark = f"{call} {key}"
        if mark not in self.approved and use(self.requests, key):
            self.approved.add(mark)
        return mark in self.approved

    async def quiet(self) -> None:
        """Wait until the agent has sent nothing for QUIET_S."""
        while (left := self.heard + QUIET_S - time.monotonic()) > 0:
            await asyncio.sleep(left)


async def converse(
    agent: ClientSideConnection, client: AcpClient, order: AcpOrder, prompt: str
) -> int:
    """Run one turn. Return 0 if the turn was completed, else 1. A failure of the agent is printed
    as one `error` line."""
    from acp import RequestError, text_block

    stage = "initialize"
    try:
        known = await agent.initialize(protocol_version=PROTOCOL)
        if known.protocol_version != PROTOCOL:
            raise BridgeRefused(
                f"the agent speaks version {known.protocol_version} of the protocol, not {PROTOCOL}"
            )
        stage = order["start"]
        by_word = "known" in order
        word: dict[str, object] = {"opened": "new"} if by_word else {}
        if by_word and order["start"] == "resume":
            opened, word = await load_or_resume(agent, client, order, known.agent_capabilities)
            session = order["session"]
        else:
            session, opened = await open_session(agent, client, order, known.agent_capabilities)
        about = known.agent_info
        if not by_word or can_continue(known.agent_capabilities):
            told = session
        else:
            told = ""
        say(
            "session",
            session=told,
            agent=about.name if about else "",
            version=about.version if about else "",
            **word,
        )
        stage = "settings"
        await settle(agent, session, opened, order)
        stage = "prompt"
        client.prompted, client.items = True, Items()
        say("prompted")
        asked = [hash_item("prompt", prompt)]
        if by_word and told:
            say("marks", session=told, marks=asked, ended=False)
        answer = await agent.prompt(session_id=session, prompt=[text_block(prompt)])
    except RequestError as error:
        missing = stage in ("resume", "fork") and await is_missing(
            agent, known.agent_capabilities, order["session"]
        )
        say(
            "error",
            stage=stage,
            code=error.code,
            message=str(error),
            data=error.data,
            missing=missing,
        )
    except ConnectionError:
        say("error", stage=stage, code=0, message="the agent ended before it had answered")
    except ReplayIncomplete as error:
        say("error", stage=stage, code=0, message=str(error), lacking=True)
    except (BridgeRefused, ValueError) as error:
        missing = "known" in order and stage == "resume"
        say("error", stage=stage, code=0, message=str(error), missing=missing)
    else:
        if by_word and told and answer.stop_reason == "end_turn":
            say("marks", session=told, marks=[*asked, *client.items.hashes()], ended=True)
        if client.failed:
            say(
                "error", stage=stage, code=0, message=client.notice or "the agent reported an error"
            )
            return 1
        # With codex-acp 2.6.0, every denied call ends the turn as `cancelled`. A turn that was
        # cancelled after a denial therefore counts as completed.
        over = answer.stop_reason == "end_turn" or (
            answer.stop_reason == "cancelled" and client.refused
        )
        say(
            "end",
            stop=answer.stop_reason,
            over=over,
            usage=answer.usage.model_dump(by_alias=True, exclude_none=True)
            if answer.usage
            else None,
        )
        if over:
            return 0
        return 1
    return 1


async def open_session(
    agent: ClientSideConnection, client: AcpClient, order: AcpOrder, can: Any
) -> tuple[str, Any]:
    """Open a new conversation, or fork or continue the requested one. Return the conversation's id
    and the agent's response.

    A conversation is continued with `session/resume`, which sends no replay. If the agent lacks
    this method, `session/load` is used. Raise BridgeRefused if the agent can neither resume nor
    load, or cannot fork.
    """
    where: dict[str, Any] = {"cwd": order["cwd"], "mcp_servers": []}
    sessions = getattr(can, "session_capabilities", None)
    if getattr(sessions, "additional_directories", None):
        where["additional_directories"] = order["directories"]
    session = order["session"]
    if order["start"] == "new":
        made = await agent.new_session(**where)
        return made.session_id, made
    if order["start"] == "fork":
        if not getattr(sessions, "fork", None):
            raise BridgeRefused("the agent cannot fork a conversation")
        forked = await agent.fork_session(session_id=session, **where)
        return forked.session_id, forked
    if getattr(sessions, "resume", None):
        return session, await agent.resume_session(session_id=session, **where)
    if not getattr(can, "load_session", False):
        raise BridgeRefused("the agent can neither resume nor load a conversation")
    while order["hold"] and any(
        Path(order["home"]).glob(time.strftime(order["hold"], time.gmtime()))
    ):
        await asyncio.sleep(0.2)
    loaded = await agent.load_session(session_id=session, **where)
    await client.quiet()
    return session, loaded


def can_continue(can: Any) -> bool:
    """Return whether the agent reports that it can load or resume a conversation."""
    return bool(
        getattr(can, "load_session", False)
        or getattr(getattr(can, "session_capabilities", None), "resume", None)
    )


async def load_or_resume(
    agent: ClientSideConnection, client: AcpClient, order: AcpOrder, can: Any
) -> tuple[Any, dict[str, object]]:
    """Load the conversation and check its replay. If the agent cannot load, resume the
    conversation. Return the agent's response, and fields that tell how the conversation was opened.
    Raise ReplayIncomplete if the replay is incomplete, BridgeRefused if the agent can neither load
    nor resume."""
    if not getattr(can, "load_session", False):
        if not can_continue(can):
            raise BridgeRefused("the agent can neither load nor resume a conversation")
        resumed = await agent.resume_session(
            session_id=order["session"], cwd=order["cwd"], mcp_servers=[]
        )
        return resumed, {"opened": "resumed"}
    loaded = await agent.load_session(session_id=order["session"], cwd=order["cwd"], mcp_servers=[])
    known = set(order["known"])
    end = time.monotonic() + LATE_S
    while True:
        await client.quiet()
        missing = known - client.items.possible()
        if not missing or time.monotonic() >= end:
            break
        await asyncio.sleep(QUIET_S)
    if missing:
        kinds = [each.partition(":")[0] for each in order["known"] if each in missing]
        names = {"prompt": "prompt(s)", "said": "answer(s)", "tool": "tool call(s)"}
        counts = []
        for kind, name in names.items():
            if kind in kinds:
                counts.append(f"{kinds.count(kind)} {name}")
        told = ", ".join(counts)
        raise ReplayIncomplete(
            f"the agent says that it loaded conversation {order['session']}, but its replay lacks "
            f"{told} of it"
        )
    return loaded, {"opened": "loaded", "replayed": len(order["known"])}


async def is_missing(agent: ClientSideConnection, can: Any, session: str) -> bool:
    """Return whether the agent's own list of conversations lacks this conversation. Only the list
    proves that a conversation is lost, because the agent's errors may name no cause. Return False
    if the agent offers no list, or if the request for the list fails."""
    if not getattr(getattr(can, "session_capabilities", None), "list", None):
        return False
    cursor: str | None = None
    with contextlib.suppress(Exception):
        while True:
            page = await agent.list_sessions(cursor=cursor)
            if any(each.session_id == session for each in page.sessions):
                return False
            cursor = page.next_cursor
            if not cursor:
                return True
    return False


async def settle(agent: ClientSideConnection, session: str, opened: Any, order: AcpOrder) -> None:
    """Set the mode and the model that the order names. Both must be set in every turn. Raise
    BridgeRefused if the agent does not offer the model, so that no turn runs with another model."""
    if order["mode"]:
        await agent.set_session_mode(session_id=session, mode_id=order["mode"])
    if order["model"]:
        choices = []
        for option in getattr(opened, "config_options", None) or []:
            if option.category == "model":
                choices.append(option)
        if not choices:
            raise BridgeRefused("the agent does not let its model be chosen")
        offered = list(values(choices[0].options))
        if order["model"] not in offered:
            raise BridgeRefused(
                f"the agent does not offer the model {order['model']!r}, but "
                f"{', '.join(offered[:20]) or 'none'}"
            )
        await agent.set_config_option(
            config_id=choices[0].id, session_id=session, value=order["model"]
        )


def values(options: list[Any]) -> Iterator[str]:
    """Yield the values of a list of options. Options inside groups are included."""
    for option in options:
        if hasattr(option, "options"):
            yield from values(option.options)
        else:
            yield option.value


async def carry_out(order: AcpOrder, prompt: str) -> int:
    """Start the agent, run the turn, end the agent, and return the exit code."""
    from acp.client.connection import ClientSideConnection

    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *order["command"], stdin=pipe, stdout=pipe, cwd=order["cwd"], limit=LINE_LIMIT
        )
    except OSError as error:
        say(
            "error",
            stage="start",
            code=0,
            message=f"{order['command'][0]} cannot be started: {error.strerror}",
        )
        return 1
    client = AcpClient(order)
    agent = ClientSideConnection(
        client,  # type: ignore[arg-type]
        process.stdin,
        process.stdout,
        use_unstable_protocol=True,
        observers=[client.observe],
    )
    turn = asyncio.ensure_future(converse(agent, client, order, prompt))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, turn.cancel)
    times = END_S
    try:
        code = await turn
        times = OVER_S
        return code
    except asyncio.CancelledError:
        if order["session"]:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(agent.cancel(session_id=order["session"]), CANCEL_S)
        return STOPPED
    finally:
        await end(process, times)
        await agent.close()


async def end(process: asyncio.subprocess.Process, times: tuple[float, float]) -> None:
    """End the agent: close its input, then send SIGTERM, then SIGKILL. Processes that the agent
    leaves behind are handled by the shim."""
    assert process.stdin is not None
    process.stdin.close()
    for last_word, time_s in zip((process.terminate, process.kill), times, strict=True):
        try:
            await asyncio.wait_for(process.wait(), time_s)
            return
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                last_word()
    await process.wait()


def main() -> int:
    try:
        import acp  # noqa: F401
    except ImportError:
        sys.stderr.write("agent-client-protocol is not installed: pip install 'perdure[acp]'\n")
        return NOT_INSTALLED
    import logging

    logging.disable(logging.CRITICAL)
    return asyncio.run(carry_out(json.loads(sys.argv[1]), sys.stdin.buffer.read().decode()))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
