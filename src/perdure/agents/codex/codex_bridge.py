"""Drives one thread of `codex app-server`: runs one turn for each input line and prints the turn in
the format of `codex exec --json`.

`CodexWarm` starts this program by its path with `python -I -S`, so it uses only the standard
library. It imports `agents.codex.requests` and `agents.shared.bridges` only when it needs them: for
people's answers and messages, and for `ServerGuard` on systems other than Linux. Its only argument
is the order: a JSON object written by `CodexWarm.bridged`. An input line is
`{"prompt": ..., "messages": ...}`; `messages` is the attempt's directory for messages to the
running turn (`perdure.engine.attempt.messages`). The server inherits this process's environment and
directory. Written against 0.169.0, whose `exec` is itself a client of an app server in the same
process.

Guarantees:

- The thread's id is printed before a prompt is sent, and a prompt is only sent to the requested
  thread.
- A turn begins only if the server's sandbox is not wider than the order names, and if the server
  has the requested approval policy.
- Every request of the server is refused, as `exec` refuses it. Exception: with a directory of
  requests, the server asks before it runs a command without the sandbox. A command that a person
  has allowed then runs once.
- A message is passed to the running turn at most once, because it is marked as taken before it is
  passed.
- If the server accepted a message and the turn ended without it, the program ends, so that the
  message cannot appear in a later turn.
- When the end of a turn is printed, no terminal of the turn is running in the background.
- If the server refuses a request, the program prints the same message as `exec` on stderr and exits
  with code 1.
- If the server ends, the program ends with the same exit code or signal.
- When its input is closed, the program finishes its turn and ends. It also ends when the server
  begins a turn that was not requested. The exit code is 0 if the last turn was completed.

In addition to the fields of `exec`, `turn.completed` has `turn_id`, which identifies the end of the
turn in the rollout.
"""

# ruff: noqa: PTH109 (pathlib would double the start-up time)
from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

if TYPE_CHECKING:
    from perdure.agents.shared.bridges import ServerGuard

PR_SET_PDEATHSIG = 1
CHUNK = 1 << 18
END_S = 3.0
"""Time limit for the server to exit, in seconds. It applies twice: after the server's input was
closed, and again after SIGTERM."""
SERVERS_S = 10.0
"""Maximum wait for the user's MCP servers before the first turn, in seconds. An MCP server that
starts during a turn would look like a leftover process of the turn."""
TICKS_S = 0.03
"""Pause between the start of the MCP servers and the first output line of the bridge, in seconds.
The pause is longer than the resolution of process start times. So a comparison of times proves that
a server started before that line."""
LOOK_S = 0.2
"""Interval between two checks for messages to the running turn, in seconds."""
WIDTH = {"readOnly": 0, "workspaceWrite": 1, "dangerFullAccess": 2}
MODES = {
    "read-only": "readOnly",
    "workspace-write": "workspaceWrite",
    "danger-full-access": "dangerFullAccess",
}
TOLD = frozenset(
    "agentMessage reasoning commandExecution fileChange mcpToolCall dynamicToolCall "
    "collabAgentToolCall webSearch imageView".split()
)
"""Types of the items that are printed: only those that come from the agent itself."""


APPROVALS = ("item/commandExecution/requestApproval", "item/fileChange/requestApproval")
"""Methods with which the server requests an approval. Without a directory of requests, every such
request is refused."""

Message: TypeAlias = dict[str, Any]
"""One message of JSON-RPC: a request, a response or a notification."""
Params: TypeAlias = dict[str, Any]
"""Parameters of a request or a notification of the server."""
Result: TypeAlias = dict[str, Any]
"""Result in a response of the server."""


class CodexOrder(TypedDict):
    """The order: what this program has to do. Written by `CodexWarm.bridged`."""

    command: list[str]
    thread: str
    """Id of the thread to resume; empty for a new one."""
    sandbox: str
    model: str
    portable: bool
    version: str
    requests: str
    """The run's directory of requests; empty if no person can be asked."""
    schema: object
    """JSON schema of the last word; None if the agent is not asked for one."""


class ServerRefused(Exception):
    """Raised if the server refused a request, or did not do what the order asks for. The message is
    the one that `exec` would print."""


class ServerEnded(Exception):
    """Raised if the app server has ended."""


def say(kind: str, **fields: Any) -> None:
    """Write one output line to stdout, as JSON with this type and these fields, and flush it."""
    sys.stdout.write(json.dumps({"type": kind, **fields}) + "\n")
    sys.stdout.flush()


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def find_perdure() -> None:
    """Make perdure's modules importable: add their root directory to `sys.path`."""
    root = str(Path(__file__).parents[3])
    if root not in sys.path:
        sys.path.append(root)


def is_allowed(directory: str, told: Params) -> bool:
    """Return whether a person allowed the command of this approval request, and mark the approval
    as used."""
    find_perdure()
    from perdure.agents.codex.requests import asked_by_server
    from perdure.agents.shared.bridges import digest, use

    keys = [digest(*each) for each in asked_by_server(told)]
    return bool(keys) and use(directory, *keys)


class BridgeLines:
    """Reads lines from a file descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd, self.open = fd, True
        self._rest: list[bytes] = []

    def read(self) -> list[bytes]:
        """Wait for input. Return the lines that are complete now, possibly none."""
        piece = os.read(self.fd, CHUNK)
        self.open = piece != b""
        *whole, rest = piece.split(b"\n")
        if not whole:
            self._rest.append(rest)
            return []
        whole[0] = b"".join((*self._rest, whole[0]))
        self._rest = [rest]
        return whole


def die_with(parent: int) -> None:
    """Let the kernel kill this new process (the server) as soon as its parent, the bridge, ends. A
    server that is not killed would notice that its client is gone, and record in the thread that
    the user interrupted the turn. A killed server records nothing, like a killed `exec`. `parent`:
    the bridge's process id."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def guard(server: int) -> ServerGuard:
    """Start and return a child process that kills the server when the bridge is gone. Used instead
    of `die_with` on systems other than Linux."""
    find_perdure()
    from perdure.agents.shared.bridges import ServerGuard

    return ServerGuard(server)


class Server:
    """The app server's process. Stores the responses and notifications that were received but not
    processed yet."""

    def __init__(self, command: list[str], portable: bool, requests: str = "") -> None:
        pipe = subprocess.PIPE
        following = None if portable else partial(die_with, os.getpid())
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, preexec_fn=following)
        self.guard = guard(self.process.pid) if portable else None
        assert self.process.stdout is not None
        self.lines = BridgeLines(self.process.stdout.fileno())
        self.news: list[Message] = []
        self.answers: dict[int, Message] = {}
        self.asked = 0
        self.requests = requests
        """The run's directory of requests; empty if no person can be asked."""

    def write(self, message: Message) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise ServerEnded from None

    def read(self) -> None:
        """Wait for the next messages and store them. Raise ServerEnded if the server has ended."""
        for line in self.lines.read():
            message = json.loads(line)
            if "method" not in message:
                self.answers[message.get("id")] = message
            elif "id" in message:
                self.write({"id": message["id"], **self.reply(message)})
            else:
                self.news.append(message)
        if not self.lines.open:
            raise ServerEnded

    def reply(self, message: Message) -> dict[str, object]:
        """Return the response to send for a request that came from the server."""
        method = message["method"]
        if self.requests and method in APPROVALS:
            told = message.get("params") or {}
            allowed = method == APPROVALS[0] and is_allowed(self.requests, told)
            return {"result": {"decision": "accept" if allowed else "decline"}}
        words = f"{method}: no person is there to answer"
        return {"error": {"code": -32601, "message": words}}

    def call(self, method: str, **params: Any) -> Result:
        """Send one request to the server and return its result. Raise ServerRefused if the server
        answers with an error, ServerEnded if it has ended."""
        self.asked += 1
        self.write({"id": self.asked, "method": method, "params": params})
        while self.asked not in self.answers:
            self.read()
        answer = self.answers.pop(self.asked)
        if error := answer.get("error"):
            raise ServerRefused(
                f"{method}: {method} failed: {error.get('message')} (code {error.get('code')})"
            )
        result: Result = answer.get("result") or {}
        return result

    def end(self) -> int:
        """End the server: close its input, then send SIGTERM, then SIGKILL. Return the exit code,
        negative for a signal as in `Popen.returncode`."""
        assert self.process.stdin is not None
        if self.guard is not None:
            self.guard.release()
            self.guard = None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        for last_word in (self.process.terminate, self.process.kill):
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(END_S)
            last_word()
        return self.process.wait()


class Thread:
    """One conversation on the server, opened when the first prompt arrives."""

    def __init__(self, server: Server, order: CodexOrder) -> None:
        self.server, self.order = server, order
        self.id = ""
        self.effort: str | None = None
        self.usage: dict[str, int] = {}
        self.error = ""
        self.turn_id = ""
        self.ended: dict[str, Any] = {}
        """The turn, as the server reported it when it ended. Empty while the turn is running."""
        self.policy = "on-request" if server.requests else "never"
        self.is_strange = False
        """Whether the server must not get another turn. This is the case if it has begun a turn on
        its own, or if it still holds a message for a turn that is over."""
        self.messages = ""
        """Directory with people's messages to the running turn. Empty if no more messages are
        passed to the turn."""
        self.steered: set[str] = set()
        """Ids of the messages that were passed to the server, and that it has neither refused nor
        added to the turn yet."""

    def open(self) -> None:
        """Resume or begin the thread and wait for the user's MCP servers. The request names no
        directory, because the server would record the directory as trusted by the user. Raise
        ServerRefused or ServerEnded."""
        order, call = self.order, self.server.call
        about = {"name": "perdure", "title": "perdure", "version": order["version"]}
        call(
            "initialize",
            clientInfo=about,
            capabilities={"experimentalApi": True, "requestAttestation": False},
        )
        self.server.write({"method": "initialized"})
        config = call("config/read", cwd=os.getcwd()).get("config") or {}
        self.effort = config.get("model_reasoning_effort")
        asked = {
            "sandbox": order["sandbox"],
            "approvalPolicy": self.policy,
            "approvalsReviewer": "user" if self.server.requests else None,
            "model": order["model"] or config.get("model"),
        }
        asked["modelProvider"] = config.get("model_provider")
        asked = {name: value for name, value in asked.items() if value}
        if order["thread"]:
            found = call("thread/resume", threadId=order["thread"], excludeTurns=True, **asked)
        else:
            found = call("thread/start", threadSource="user", **asked)
        self.id = found["thread"]["id"]
        if order["thread"] not in ("", self.id):
            raise ServerRefused(
                f"thread/resume: thread {order['thread']} was asked for, and {self.id} was opened"
            )
        self.check(found)
        self.wait_for(config.get("mcp_servers") or {})

    def check(self, found: Result) -> None:
        """Raise ServerRefused if the server's response has a wider sandbox than the order names, or
        another approval policy or reviewer than `open` requested."""
        given, policy = (found.get("sandbox") or {}).get("type"), found.get("approvalPolicy")
        reviewer = found.get("approvalsReviewer")
        if self.server.requests and reviewer != "user":
            raise ServerRefused(f"thread/start: invalid value: {reviewer} answers approvals")
        if policy != self.policy or WIDTH.get(str(given), 9) > WIDTH[MODES[self.order["sandbox"]]]:
            raise ServerRefused(
                f"thread/start: invalid value: sandbox {given} and approvals {policy} instead of "
                f"{self.order['sandbox']} and {self.policy}"
            )

    def wait_for(self, servers: dict[str, object]) -> None:
        """Wait until the user's MCP servers have started or failed, for at most SERVERS_S. Nothing
        is printed before that, because the first output line means that all long-lived processes
        are running."""
        names = set()
        for name, each in servers.items():
            if isinstance(each, dict) and each.get("enabled") is not False:
                names.add(name)
        late = time.monotonic() + SERVERS_S
        while names - self.started() and (left := late - time.monotonic()) > 0:
            if select.select([self.server.lines.fd], [], [], left)[0]:
                self.server.read()
        time.sleep(TICKS_S if names else 0)

    def started(self) -> set[str]:
        """Return the names of the MCP servers that have started or failed."""
        told = []
        for message in self.server.news:
            if message["method"] == "mcpServer/startupStatus/updated":
                told.append(message.get("params") or {})
        found = set()
        for each in told:
            if each.get("status") != "starting":
                found.add(str(each.get("name")))
        return found

    def turn(self, prompt: str, messages: str = "") -> bool:
        """Run one turn. `messages`: the directory with people's messages to this turn; empty if the
        turn takes no messages. Return whether the turn was completed. Raise ServerRefused or
        ServerEnded."""
        if not self.id:
            self.open()
        self.error, self.ended, self.messages = "", {}, messages
        say("thread.started", thread_id=self.id)
        given = {"type": "text", "text": prompt, "text_elements": []}
        began = self.server.call(
            "turn/start",
            threadId=self.id,
            input=[given],
            **({"effort": self.effort} if self.effort else {}),
            **({"outputSchema": self.order["schema"]} if self.order.get("schema") else {}),
        )
        self.turn_id = began["turn"]["id"]
        while not self.ended:
            if not self.server.news and self.is_told():
                self.server.read()
            self.process_notifications()
            if not self.ended:
                self.pass_messages()
        self.server.call("thread/backgroundTerminals/clean", threadId=self.id)
        self.process_notifications()
        self.is_strange = self.is_strange or bool(self.steered)
        if self.ended.get("status") == "completed":
            used = {}
            for name, count in self.usage.items():
                if name != "totalTokens":
                    used[snake(name)] = count
            say("turn.completed", usage=used, turn_id=self.turn_id)
            return True
        words = (
            (self.ended.get("error") or {}).get("message")
            or self.error
            or "the turn was interrupted"
        )
        say("turn.failed", error={"message": words})
        return False

    def is_told(self) -> bool:
        """Wait until the server sends something, and return True. If the turn takes messages and
        the server sends nothing within `LOOK_S`, return False: it is time to look for new messages.
        """
        wait_s = LOOK_S if self.messages else None
        return bool(select.select([self.server.lines.fd], [], [], wait_s)[0])

    def pass_messages(self) -> None:
        """Pass new messages to the running turn, in order. If the server refuses a message, for
        example because the turn has just ended, perdure sends this message and all later ones with
        the next prompt."""
        if not self.messages or not Path(self.messages, "armed").exists():
            return
        find_perdure()
        from perdure.agents.shared.bridges import take_new

        for number, text in take_new(self.messages):
            key = f"perdure-message-{number}"
            self.steered.add(key)
            try:
                self.server.call(
                    "turn/steer",
                    threadId=self.id,
                    expectedTurnId=self.turn_id,
                    clientUserMessageId=key,
                    input=[{"type": "text", "text": text, "text_elements": []}],
                )
            except ServerRefused:
                self.steered.discard(key)
                self.messages = ""
                return

    def process_notifications(self) -> None:
        """Process the stored notifications, and clear the store. Notifications about other threads
        are ignored."""
        news, self.server.news = self.server.news, []
        for message in news:
            told = message.get("params") or {}
            if told.get("threadId") in (None, self.id):
                self.handle(message["method"], told)

    def handle(self, method: str, told: Params) -> None:
        match method:
            case "turn/started" if (told.get("turn") or {}).get("id") == self.turn_id:
                say("turn.started")
            case "turn/started":
                self.is_strange = True
            case "item/completed" if (item := told.get("item") or {}).get("type") == "userMessage":
                self.steered.discard(str(item.get("clientId")))
            case "item/started" | "item/completed" if (item := told.get("item") or {}).get(
                "type"
            ) in TOLD:
                known = {snake(name): value for name, value in item.items()}
                say(
                    method.replace("/", "."),
                    item={
                        **known,
                        "type": snake(item["type"]),
                        "status": snake(str(known.get("status", "completed"))),
                    },
                )
            case "thread/tokenUsage/updated":
                self.usage = (told.get("tokenUsage") or {}).get("total") or {}
            case "warning":
                say("item.completed", item={"type": "error", "message": told.get("message")})
            case "error":
                error = told.get("error") or {}
                more = error.get("additionalDetails")
                if more:
                    self.error = f"{error.get('message')} ({more})"
                else:
                    self.error = str(error.get("message"))
                say("error", message=self.error)
            case "turn/completed" if (told.get("turn") or {}).get("id") == self.turn_id:
                self.ended = told["turn"]


def serve(thread: Thread) -> int:
    """Run a turn for each input line, until the input ends. Also stop when the server must not get
    another turn (`Thread.is_strange`). Return the exit code: 0 if the last turn was completed, else
    1. Raise ServerRefused or ServerEnded."""
    prompts, server, good = BridgeLines(0), thread.server, True
    poll = select.poll()
    poll.register(prompts.fd, select.POLLIN)
    poll.register(server.lines.fd, select.POLLIN)
    waiting: list[bytes] = []
    while not thread.is_strange and (prompts.open or waiting):
        if waiting:
            given = json.loads(waiting.pop(0))
            good = thread.turn(given["prompt"], given.get("messages", ""))
            continue
        ready = {fd for fd, _ in poll.poll()}
        if server.lines.fd in ready:
            server.read()
            thread.process_notifications()
        if prompts.fd in ready:
            waiting += prompts.read()
    if good:
        return 0
    return 1


def main(order: CodexOrder) -> int:
    try:
        server = Server(order["command"], order.get("portable", False), order.get("requests", ""))
    except OSError as error:
        sys.stderr.write(f"{order['command'][0]} cannot be started: {error.strerror}\n")
        return 126
    try:
        code = serve(Thread(server, order))
    except ServerRefused as refused:
        sys.stderr.write(f"Error: {refused}\n")
        code = 1
    except BrokenPipeError:  # the process that reads stdout has ended or closed the pipe
        return 1
    except ServerEnded:
        ended = server.end()
        if ended < 0:
            os.kill(os.getpid(), -ended)
        return ended or 1
    server.end()
    return code


if __name__ == "__main__":
    code = main(json.loads(sys.argv[1]))
    sys.stdout.flush()
    os._exit(code)
