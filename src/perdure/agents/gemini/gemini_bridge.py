"""Runs one turn of `gemini --acp` and prints the turn in the format of `gemini --output-format
stream-json`.

`GeminiDriver` starts this program by its path with `python -I -S`, for an attempt that is given
people's answers to requests. Without a terminal, Gemini CLI denies every call that needs a
permission. Over the Agent Client Protocol, the CLI asks its client, which is this program. The
program uses only the standard library and `agents.shared.bridges`. Its only argument is the order:
a JSON object written by `GeminiDriver.command`. The prompt is read from stdin. The CLI inherits
this process's environment, and also loads `gemini_calls.mjs`, which prints the arguments of the
calls. Written against 0.61.0.

Guarantees:

- A prompt is only sent to the requested conversation. The conversation's replay is never printed.
- A call that needs a permission runs if a person has allowed exactly this call. The approval is
  then used up.
- Every other call that needs a permission is refused, and the turn continues, as without a
  terminal.
- The CLI is killed when this process ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping

CHUNK = 1 << 18
QUIET_S = 0.5
"""Duration of silence after which a replay counts as complete, in seconds. The CLI sends a part of
the replay after its response to `session/load`."""
END_S = 2.0
"""Time limit for the CLI to exit, in seconds. It applies twice: after the CLI's input was closed,
and again after SIGTERM."""
AUTH_REQUIRED = -32000
EXIT_AUTH = 41
EXIT_INPUT = 42
"""Exit code of the CLI if it cannot resume a conversation. EXIT_AUTH is its code for a missing
login."""
UNNAMED = re.compile(r"(.+)__(?:\1|synth_.+)_\d+_(\d+)")
"""Pattern of the id that the CLI gives to a call if the model's service gave the call no id. The id
consists of the tool's name, the time, and the number of the call in the model's answer."""
REFUSED = "This call needs a permission that nobody has given."
STOPS = {
    "max_turn_requests": "the maximum number of session turns was reached",
    "max_tokens": "the next request exceeds the context of the model",
}

Message: TypeAlias = dict[str, Any]
"""One message of JSON-RPC from the CLI, or one line of `gemini_calls.mjs`."""
Update: TypeAlias = dict[str, Any]
"""A piece of the agent's answer, or a tool call with its state. The CLI sends it in a
`session/update` and in a permission request."""


class GeminiOrder(TypedDict):
    """The order: what this program has to do. Written by `GeminiDriver.command`."""

    cwd: str
    session: str
    """Id of the conversation to continue; empty for a new one."""
    home: str
    hold: str
    """Pattern of chat files. The bridge does not load the conversation while a matching file
    exists, see `gemini.transcript.chat_of_this_minute`."""
    model: str
    requests: str
    """The run's directory of requests."""
    portable: bool
    command: list[str]


class ReportedCall(TypedDict):
    """One call in the model's answer, as `gemini_calls.mjs` reports it."""

    id: str
    name: str
    args: dict[str, object]


class AcpFailed(Exception):
    """Raised if the CLI refused a request. `code`: the exit code with which this program ends."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class CliEnded(Exception):
    """Raised if the CLI ended before it had answered a request."""


def say(kind: str, **fields: Any) -> None:
    """Print one line in the format of the CLI and flush it."""
    sys.stdout.write(json.dumps({"type": kind, **fields}) + "\n")
    sys.stdout.flush()


class AcpProcess:
    """The process of `gemini --acp`, and its messages."""

    def __init__(self, order: GeminiOrder) -> None:
        from perdure.agents.shared.bridges import ServerGuard, die_with

        self.guard = ServerGuard() if order["portable"] else None
        following = self.guard.adopt if self.guard else partial(die_with, os.getpid())
        try:
            self.process = subprocess.Popen(
                order["command"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=order["cwd"],
                preexec_fn=following,
            )
        except OSError:
            if self.guard is not None:
                self.guard.release()
            raise
        assert self.process.stdout is not None
        self.out = self.process.stdout.fileno()
        self.rest = b""
        self.sent = 0

    def send(self, **message: Any) -> None:
        assert self.process.stdin is not None
        line = json.dumps({"jsonrpc": "2.0", **message}) + "\n"
        try:
            self.process.stdin.write(line.encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            raise CliEnded from None

    def ask(self, method: str, params: Mapping[str, object]) -> int:
        """Send a request. Return its id."""
        self.sent += 1
        self.send(id=self.sent, method=method, params=params)
        return self.sent

    def read(self, wait_s: float | None = None) -> Message | None:
        """Return the next message of the CLI, or the next line of `gemini_calls.mjs`. Return None
        if nothing arrives for `wait_s` seconds. Raise CliEnded if the CLI has ended."""
        while True:
            line, found, self.rest = self.rest.partition(b"\n")
            if found:
                with contextlib.suppress(ValueError):
                    message = json.loads(line)
                    if isinstance(message, dict):
                        return message
                continue
            self.rest = line
            if not select.select([self.out], [], [], wait_s)[0]:
                return None
            piece = os.read(self.out, CHUNK)
            if not piece:
                raise CliEnded
            self.rest += piece

    def response(self, request: int) -> dict[str, object]:
        """Return the result of the request with this id, which was already sent. Messages that
        arrive before the response are dropped. Raise AcpFailed if the CLI refused the request."""
        while True:
            message = self.read()
            if message and message.get("id") == request and "method" not in message:
                return result(message)

    def end(self) -> int:
        """End the CLI, and return its exit code."""
        if self.guard is not None:
            self.guard.release()
            self.guard = None
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        for last_word in (self.process.terminate, self.process.kill):
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(END_S)
            last_word()
        return self.process.wait()


def result(message: Message) -> dict[str, object]:
    """Return the result in a response. Raise AcpFailed if the response is an error."""
    error = message.get("error")
    if error is None:
        return message.get("result") or {}
    data = error.get("data")
    details = data.get("details") or data.get("message") if isinstance(data, dict) else data
    words = ": ".join(str(each) for each in (error.get("message"), details) if each)
    raise AcpFailed(words, EXIT_AUTH if error.get("code") == AUTH_REQUIRED else 1)


class ReportedCalls:
    """The calls in the model's answers that the CLI has not begun yet."""

    def __init__(self) -> None:
        self.waiting: list[tuple[str, ReportedCall]] = []
        """Key and call, as `gemini_calls.mjs` reported it. The key is the call's id. If the service
        gave no id, the key is the tool's name and the number of the call in the model's answer."""
        self.unnamed = 0

    def add(self, answer: Message) -> None:
        """Store the calls that a piece of the model's answer contains."""
        calls: list[ReportedCall] = answer["calls"]
        for call in calls:
            key = f"{call['name']}__{call['id']}"
            if call["id"].startswith(f"{call['name']}__"):
                key = call["id"]
            elif not call["id"]:
                key = f"{call['name']} {self.unnamed}"
                self.unnamed += 1
            self.waiting.append((key, call))
        if answer["reason"]:
            self.unnamed = 0

    def take(self, call_id: str) -> ReportedCall | None:
        """Return the call with this id and remove it from `waiting`. Return None if no call with
        this id was reported. Also return None if several calls with different arguments match the
        id. This may happen because a subagent's calls are numbered in the same way."""
        unnamed = UNNAMED.fullmatch(call_id)
        keys = {call_id, f"{unnamed[1]} {unnamed[2]}"} if unnamed else {call_id}
        found = [each for each in self.waiting if each[0] in keys]
        if not found:
            return None
        self.waiting.remove(found[0])
        if any(call["args"] != found[0][1]["args"] for _, call in found):
            return None
        return found[0][1]


def option_of(options: list[dict[str, str]]) -> str:
    """Return the id of the option that allows a call once. Raise AcpFailed if there is none."""
    for option in options:
        if option["kind"] == "allow_once":
            return option["optionId"]
    raise AcpFailed("the CLI does not let its client allow a call once", 1)


def agrees(call: ReportedCall, told: Update) -> bool:
    """Return whether the CLI's permission request may be about this call. For a command, the title
    of the request is compared with the command. For the change of a file, the file's name is
    compared, and also the new text if the call contains it as a whole."""
    given = call["args"]
    if told.get("kind") == "execute":
        return bool(told.get("title") == given.get("command"))
    for change in told.get("content") or []:
        if change.get("type") == "diff":
            same = Path(change["path"]).name == Path(str(given.get("file_path"))).name
            return same and given.get("content", change["newText"]) == change["newText"]
    return True


class AcpTurn:
    """One turn of one conversation."""

    def __init__(self, cli: AcpProcess, order: GeminiOrder) -> None:
        self.cli, self.order = cli, order
        self.calls = ReportedCalls()
        self.begun: set[str] = set()
        self.refused: set[str] = set()
        """Ids of the calls for which the CLI requested a permission and did not get it."""
        self.answers = 0
        self.said = self.called = False
        """`said`: whether the model's last answer has text or calls. `called`: whether it has
        calls."""
        self.reason = ""
        """Reason that the model's last answer gives for its end; empty if the answer broke off."""
        self.stats = {"input_tokens": 0, "output_tokens": 0, "cached": 0, "total_tokens": 0}

    def open_conversation(self) -> str:
        """Load the conversation that the order names, or create one. Return its id. Raise AcpFailed
        if the conversation cannot be loaded."""
        cli, session = self.cli, self.order["session"]
        cli.response(cli.ask("initialize", {"protocolVersion": 1, "clientCapabilities": {}}))
        where = {"cwd": self.order["cwd"], "mcpServers": []}
        if not session:
            return str(cli.response(cli.ask("session/new", where))["sessionId"])
        self.wait_for_next_minute()
        try:
            cli.response(cli.ask("session/load", {**where, "sessionId": session}))
        except AcpFailed as error:
            code = error.code if error.code != 1 else EXIT_INPUT
            raise AcpFailed(f"Error resuming session: {error}", code) from None
        while cli.read(QUIET_S) is not None:
            pass
        return str(session)

    def wait_for_next_minute(self) -> None:
        """Wait while the conversation has a chat file that began in the current minute. The CLI
        would empty that file if it loaded the conversation now."""
        home, hold = Path(self.order["home"]), self.order["hold"]
        while any(home.glob(time.strftime(hold, time.gmtime()))):
            time.sleep(0.2)

    def run(self, prompt: str) -> int:
        """Run the turn and return the exit code."""
        session = self.open_conversation()
        say("init", session_id=session, model=self.order["model"])
        content = [{"type": "text", "text": prompt}]
        request = self.cli.ask("session/prompt", {"sessionId": session, "prompt": content})
        say("message", role="user", content="")
        while True:
            message = self.cli.read() or {}
            if message.get("type") == "perdure_answer":
                self.note(message)
            elif message.get("method") == "session/request_permission":
                self.answer(message)
            elif message.get("method") == "session/update":
                self.print_update(message["params"]["update"])
            elif message.get("id") == request and "method" not in message:
                return self.print_end(message)

    def note(self, answer: Message) -> None:
        """Store what `gemini_calls.mjs` reports about a piece of the model's answer."""
        if self.reason or not self.answers:
            self.answers += 1
            self.said = self.called = False
        self.calls.add(answer)
        self.called = self.called or bool(answer["calls"])
        self.said = self.said or self.called or answer["said"]
        self.reason = answer["reason"]
        names = {
            "input_tokens": "promptTokenCount",
            "output_tokens": "candidatesTokenCount",
            "cached": "cachedContentTokenCount",
            "total_tokens": "totalTokenCount",
        }
        for own, name in names.items():
            self.stats[own] += answer["usage"].get(name) or 0

    def answer(self, message: Message) -> None:
        """Answer a permission request of the CLI. If its client rejects a call, the CLI forgets the
        call, but keeps the call's result. The CLI's service later refuses such a conversation. So a
        call that may not run is answered with an error instead. The CLI then keeps the call, and
        the model reads the text of the error. The error is a plain text and no JSON object, because
        the CLI converts it to text by `String`."""
        request, asked = message["id"], message["params"]
        told = asked["toolCall"]
        call = self.begin(told)
        words = self.refusal(call, told)
        if words is None:
            chosen = {"outcome": "selected", "optionId": option_of(asked["options"])}
            self.cli.send(id=request, result={"outcome": chosen})
        else:
            self.refused.add(told["toolCallId"])
            self.cli.send(id=request, error=words)

    def refusal(self, call: ReportedCall | None, told: Update) -> str | None:
        """Return the reason why the call may not run. Return None if a person has allowed the call;
        the approval is then used up."""
        from perdure.agents.shared.bridges import digest, refusal, use

        if call is None or not agrees(call, told):
            return REFUSED
        key = digest(call["name"], call["args"])
        if use(self.order["requests"], key):
            return None
        words = refusal(self.order["requests"], key)
        return REFUSED if words is None else f"A person refused this call: {words}"

    def begin(self, told: Update) -> ReportedCall | None:
        """Print the call that the CLI begins or requests a permission for. Return the call as the
        model made it. If the call was printed already, print nothing and return None. Also return
        None if the model's call is not known."""
        key = told["toolCallId"]
        if key in self.begun:
            return None
        self.begun.add(key)
        call = self.calls.take(key)
        if call is None:
            say("tool_use", tool_name=key.partition("__")[0], tool_id=key)
        else:
            say("tool_use", tool_name=call["name"], tool_id=key, parameters=call["args"])
        return call

    def print_update(self, update: Update) -> None:
        kind = update["sessionUpdate"]
        if kind == "agent_message_chunk":
            say("message", role="assistant", content=update["content"].get("text"), delta=True)
        elif kind in ("tool_call", "tool_call_update"):
            self.begin(update)
            words = [(each.get("content") or {}).get("text") for each in update.get("content", [])]
            text = "\n".join(each for each in words if each)
            if update.get("status") == "completed":
                self.print_result(update["toolCallId"], output=text)
            elif update.get("status") == "failed":
                self.print_result(update["toolCallId"], error=(self.kind_of(update, text), text))

    def kind_of(self, update: Update, text: str) -> str:
        """Return the type of the error that ended a call."""
        if update["toolCallId"] in self.refused:
            return "permission_denied"
        if text.endswith("denied by policy."):
            return "policy_violation"
        return "execution_failed"

    def print_result(
        self, key: str, *, output: str = "", error: tuple[str, str] = ("", "")
    ) -> None:
        kind, words = error
        if kind:
            told = {"type": kind, "message": words}
            say("tool_result", tool_id=key, status="error", output=words, error=told)
        else:
            say("tool_result", tool_id=key, status="success", output=output)

    def print_end(self, message: Message) -> int:
        """Print the result of the turn, and return the exit code."""
        try:
            failure = self.failure(result(message).get("stopReason"))
        except AcpFailed as error:
            failure = str(error)
        if self.reason:
            say("perdure_finish", reason=self.reason)
        if failure:
            told = {"type": "Error", "message": failure}
            say("result", status="error", error=told, stats=self.stats)
        else:
            say("result", status="success", stats=self.stats)
        return int(bool(failure))

    def failure(self, stop: Any) -> str:
        """Return why the turn failed; empty if it was completed. Over ACP, the CLI reports a turn
        as completed even if the model's answer was empty or broke off."""
        if stop != "end_turn":
            return STOPS.get(stop, f"the turn ended with the reason {stop!r}")
        if self.called or (self.answers and not self.reason):
            # The model has not answered after the calls, or its last answer broke off.
            return "Model stream ended without a finish reason."
        if self.answers and not self.said and self.reason == "STOP":
            return "The model returned an empty response."
        return ""


def main(order: GeminiOrder) -> int:
    sys.path.append(str(Path(__file__).parents[3]))
    prompt = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
    calls = Path(__file__).with_name("gemini_calls.mjs").as_uri()
    os.environ["NODE_OPTIONS"] = f"{os.environ.get('NODE_OPTIONS', '')} --import={calls}".strip()
    try:
        cli = AcpProcess(order)
    except OSError as error:
        sys.stderr.write(f"{order['command'][0]} cannot be started: {error.strerror}\n")
        return 126
    try:
        return AcpTurn(cli, order).run(prompt)
    except AcpFailed as error:
        sys.stderr.write(f"{error}\n")
        return error.code
    except CliEnded:
        return max(cli.end(), 1)
    finally:
        cli.end()


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
