"""Runs one turn of `opencode serve` and prints the turn in the format of `opencode run --format
json`.

`OpenCodeDriver` starts this program by its path with `python -I -S`, for an attempt that is given
people's answers to requests. `opencode run` cannot run such an attempt, because it rejects every
call that needs a permission. The program uses only the standard library and
`agents.shared.bridges`. Its only argument is the order: a JSON object written by
`OpenCodeDriver.command`. The prompt is read from stdin. The server inherits this process's
environment. Written against 1.18.33.

Guarantees:

- A prompt is only sent to the requested conversation.
- A call that needs a permission runs if a person has allowed exactly this call. The approval is
  then used up.
- A call that a person has refused is rejected with the person's words, and the turn continues. If
  the model repeats the call, the turn ends.
- Every other call that needs a permission is rejected as `run` rejects it, which ends the turn.
- The server listens on 127.0.0.1 with a new password, and is killed when this process ends.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, TypeAlias, TypedDict
from urllib.parse import quote, urlencode

LISTENS = "opencode server listening on http://127.0.0.1:"
END_S = 3.0
"""Time limit for the server to exit after it was sent SIGTERM, in seconds."""
INPUT_S = 5.0
"""Maximum wait for the arguments of a call, in seconds. The server may ask for a permission before
it has stored the arguments of the call."""
RULES = [
    {"permission": name, "action": "deny", "pattern": "*"}
    for name in ("question", "plan_enter", "plan_exit")
]
"""Permission rules that a new session gets. `opencode run` sets the same rules."""

Properties: TypeAlias = dict[str, Any]
"""The field `properties` of an event of the server. For the event of a permission request, it
describes the requested permission."""
Part: TypeAlias = dict[str, Any]
"""One part of a message: a text, a tool call, or the start or end of a step."""


class OpenCodeOrder(TypedDict):
    """The order: what this program has to do. Written by `OpenCodeDriver.command`."""

    command: list[str]
    cwd: str
    session: str
    """Id of the session to continue or to fork; empty for a new one."""
    fork: bool
    title: str
    """Title of a new session."""
    model: str
    requests: str
    """The run's directory of requests."""
    portable: bool


class ServeFailed(Exception):
    """Raised if the server refused a request or ended. If the session does not exist, the message
    is the one that `opencode run` prints."""


class OpenCodeServer:
    """The process of `opencode serve`, and its HTTP API."""

    def __init__(self, order: OpenCodeOrder) -> None:
        password = secrets.token_urlsafe(24)
        self.where = urlencode({"directory": order["cwd"]})
        word = base64.b64encode(f"opencode:{password}".encode()).decode()
        self.headers = {"Authorization": f"Basic {word}", "Content-Type": "application/json"}
        from perdure.agents.shared.bridges import ServerGuard, die_with

        self.guard = ServerGuard() if order["portable"] else None
        following = self.guard.adopt if self.guard else partial(die_with, os.getpid())
        try:
            self.process = subprocess.Popen(
                order["command"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                cwd=order["cwd"],
                env={**os.environ, "OPENCODE_SERVER_PASSWORD": password},
                preexec_fn=following,
            )
        except OSError:
            if self.guard is not None:
                self.guard.release()
            raise
        self.port = self.find_port()

    def find_port(self) -> int:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            text = line.decode("utf-8", "replace").strip()
            if text.startswith(LISTENS):
                return int(text.removeprefix(LISTENS))
        raise ServeFailed("the server ended before it listened")

    def open(self, method: str, path: str, content: Any = None) -> HTTPResponse:
        connection = HTTPConnection("127.0.0.1", self.port)
        body = None if content is None else json.dumps(content).encode()
        connection.request(method, f"{path}?{self.where}", body, self.headers)
        return connection.getresponse()

    def call(self, method: str, path: str, content: Any = None) -> Any:
        """Send one HTTP request and return the JSON of the response. Raise ServeFailed if the
        status is an error."""
        response = self.open(method, path, content)
        text = response.read()
        if response.status >= 400:
            raise ServeFailed(f"{method} {path}: {response.status} {text[:500]!r}")
        return json.loads(text) if text else None

    def end(self) -> None:
        if self.guard is not None:
            self.guard.release()
        self.process.terminate()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class ServedTurn:
    """One turn of one session on the server."""

    def __init__(self, server: OpenCodeServer, order: OpenCodeOrder) -> None:
        self.server, self.order = server, order
        self.session = self.open_session()
        self.family = {self.session}
        """Ids of the session and of its subagents' sessions."""
        self.approved: set[str] = set()
        """Calls of this turn that a person has allowed, each as its id and its digest. They are
        stored because one call may need several permissions."""
        self.refused: set[str] = set()
        """Digests of the calls whose refusal has been passed on to the model. If the model repeats
        such a call, the turn ends. Otherwise the model might repeat the call forever."""
        self.failed = False

    def open_session(self) -> str:
        """Find, fork or create the session that the order asks for, and return its id. Raise
        ServeFailed if the session does not exist."""
        session = self.order["session"]
        if not session:
            given = {"title": self.order["title"], "permission": RULES}
            return str(self.server.call("POST", "/session", given)["id"])
        path = f"/session/{quote(session, safe='')}"
        try:
            found = self.server.call("GET", path)
        except ServeFailed:
            raise ServeFailed("Session not found") from None
        if self.order["fork"]:
            found = self.server.call("POST", f"{path}/fork", {})
        return str(found["id"])

    def say(self, kind: str, **more: Any) -> None:
        line = {"type": kind, "timestamp": int(time.time() * 1000), "sessionID": self.session}
        sys.stdout.write(json.dumps({**line, **more}) + "\n")
        sys.stdout.flush()

    def run(self, prompt: str) -> int:
        """Run the turn and return the exit code. Raise ServeFailed if the server ends during the
        turn."""
        events = self.server.open("GET", "/event")
        given: dict[str, object] = {"parts": [{"type": "text", "text": prompt}]}
        provider, _, model = self.order["model"].partition("/")
        if model:
            given["model"] = {"providerID": provider, "modelID": model}
        began = False
        for line in events:
            if not line.startswith(b"data:"):
                continue
            event = json.loads(line[5:])
            if not began:
                # Send the prompt only after the first event, so that no event of the turn is
                # missed.
                began = True
                self.server.call("POST", f"/session/{self.session}/prompt_async", given)
            if self.take(event["type"], event.get("properties") or {}):
                return int(self.failed)
        raise ServeFailed("the server ended in the middle of the turn")

    def take(self, kind: str, told: Properties) -> bool:
        """Process one event of the server. Return whether the turn is over."""
        own = told.get("sessionID") == self.session
        if kind == "session.created":
            if told["info"].get("parentID") in self.family:
                self.family.add(told["info"]["id"])
        elif kind == "message.part.updated":
            self.print_part(told["part"])
        elif kind == "permission.asked" and told["sessionID"] in self.family:
            self.answer(told)
        elif kind == "question.asked" and told["sessionID"] in self.family:
            self.server.call("POST", f"/question/{told['id']}/reject", {})
        elif kind == "session.error" and own and told.get("error"):
            self.failed = True
            self.say("error", error=told["error"])
        return kind == "session.status" and own and told["status"]["type"] == "idle"

    def print_part(self, part: Part) -> None:
        """Print the part in the format of `opencode run`. Parts that `run` does not print are
        skipped."""
        if part.get("sessionID") != self.session:
            return
        kind = part["type"]
        if kind == "tool" and part["state"]["status"] in ("completed", "error"):
            self.say("tool_use", part=part)
        elif kind in ("step-start", "step-finish"):
            self.say(kind.replace("-", "_"), part=part)
        elif kind == "text" and (part.get("time") or {}).get("end"):
            self.say("text", part=part)

    def answer(self, asked: Properties) -> None:
        """Answer a permission request of the server. Report a rejection on stderr, as `opencode
        run` does."""
        reply = self.reply(asked)
        if reply == {"reply": "reject"}:
            places = ", ".join(asked["patterns"])
            sys.stderr.write(f"! permission requested: {asked['permission']} ({places}); ")
            sys.stderr.write("auto-rejecting\n")
        self.server.call("POST", f"/permission/{asked['id']}/reply", reply)

    def reply(self, asked: Properties) -> dict[str, str]:
        from perdure.agents.shared.bridges import digest, refusal, use

        place = asked.get("tool") or {}
        found = self.call_of(asked["sessionID"], place.get("messageID"), place.get("callID"))
        if found is None:
            return {"reply": "reject"}
        key = digest(*found)
        mark = f"{place['callID']} {key}"
        if mark in self.approved or use(self.order["requests"], key):
            self.approved.add(mark)
            return {"reply": "once"}
        words = refusal(self.order["requests"], key)
        if words is None or key in self.refused:
            return {"reply": "reject"}
        self.refused.add(key)
        return {"reply": "reject", "message": f"A person refused this call: {words}"}

    def call_of(self, session: str, message: Any, call: Any) -> tuple[str, Any] | None:
        """Return name and arguments of a tool call. The server may ask for a permission before it
        has stored both, so wait for them for at most INPUT_S. None if they cannot be read."""
        end = time.monotonic() + INPUT_S
        while message and call and time.monotonic() < end:
            with contextlib.suppress(ServeFailed):
                found = self.server.call("GET", f"/session/{session}/message/{message}")
                for part in found["parts"]:
                    is_it = part["type"] == "tool" and part.get("callID") == call
                    if is_it and part["state"]["status"] == "running":
                        return part["tool"], part["state"]["input"]
            time.sleep(0.05)
        return None


def main(order: OpenCodeOrder) -> int:
    sys.path.append(str(Path(__file__).parents[3]))
    prompt = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
    try:
        server = OpenCodeServer(order)
    except OSError as error:
        sys.stderr.write(f"{order['command'][0]} cannot be started: {error.strerror}\n")
        return 126
    except ServeFailed as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    try:
        return ServedTurn(server, order).run(prompt)
    except (ServeFailed, HTTPException, OSError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    finally:
        server.end()


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
