"""A small agent that speaks ACP, for behavior that real agents do not show on request. It is
started as a program; its first argument names the scene, which is the behavior to show."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

HISTORY = Path(os.environ.get("HOME", "/")) / "acp-history.json"
"""This agent's record of its conversation: for each message, its role and its text or the id of a
tool call."""
KEEPING = ("keeps", "resumes", "lies", "forgets the end", "late", "empty", "other")
ABILITIES: dict[str, dict[str, Any]] = {
    "forgets": {"loadSession": False},
    "resumes": {"loadSession": False, "sessionCapabilities": {"resume": {}}},
}


def send(**message: Any) -> None:
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def tell(**update: Any) -> None:
    send(method="session/update", params={"sessionId": "one", "update": update})


def chunk(words: str) -> None:
    tell(sessionUpdate="agent_message_chunk", content={"type": "text", "text": words})


def replay(scene: str) -> None:
    """Send the stored history as a replay. In some scenes another history, none or only a part of
    it is sent."""
    if scene in ("lies", "empty"):
        if scene == "lies":
            tell(
                sessionUpdate="user_message_chunk",
                content={"type": "text", "text": "A prompt of somebody else."},
            )
            chunk("Another answer.")
        return
    history = json.loads(HISTORY.read_text()) if HISTORY.exists() else []
    for role, text in history[:-1] if scene == "forgets the end" else history:
        if role == "tool":
            tell(sessionUpdate="tool_call", toolCallId=text, title="look", status="completed")
        else:
            kind = "user_message_chunk" if role == "user" else "agent_message_chunk"
            tell(sessionUpdate=kind, content={"type": "text", "text": text})


def keep(prompt: str) -> None:
    """Send an answer in pieces, with a tool call in between, and store prompt, call and answer in
    the history."""
    history = json.loads(HISTORY.read_text()) if HISTORY.exists() else []
    call, last = f"call-{len(history)}", f"answer {len(history)}"
    HISTORY.write_text(json.dumps([*history, ["user", prompt]]))
    for piece in ("I ", "look."):
        chunk(piece)
    tell(
        sessionUpdate="tool_call", toolCallId=call, title="look", kind="read", status="in_progress"
    )
    tell(sessionUpdate="tool_call_update", toolCallId=call, status="completed")
    hold = Path(os.environ.get("HOME", "/")) / "hold"
    while hold.exists():
        time.sleep(0.05)
    chunk(last)
    whole = [*history, ["user", prompt], ["agent", "I look."], ["tool", call], ["agent", last]]
    HISTORY.write_text(json.dumps(whole))


def turn(scene: str) -> None:
    """Send the events between a prompt and the end of its turn."""
    if scene == "dies":
        chunk("half")
        os._exit(7)
    if scene == "asks":
        call = {
            "toolCallId": "t",
            "title": "write",
            "kind": "edit",
            "locations": [{"path": sys.argv[2]}],
        }
        options = [
            {"optionId": "yes", "name": "Yes", "kind": "allow_once"},
            {"optionId": "no", "name": "No", "kind": "reject_once"},
        ]
        send(
            id=99,
            method="session/request_permission",
            params={"sessionId": "one", "toolCall": call, "options": options},
        )
        chunk(json.loads(sys.stdin.readline())["result"]["outcome"]["optionId"])
        return
    tell(sessionUpdate="something_new", unheard="of")
    chunk("x" * 200_000 if scene == "long" else "The answer.")


def main(scene: str) -> None:
    for line in sys.stdin:
        message = json.loads(line)
        answer: dict[str, Any] = {}
        match message["method"]:
            case "initialize":
                able = ABILITIES.get(scene, {"loadSession": True})
                answer = {
                    "protocolVersion": 2 if scene == "newer" else 1,
                    "agentCapabilities": able,
                }
            case "session/new":
                answer = {"sessionId": "one"}
            case "session/load" if scene in KEEPING:
                if scene == "late":
                    send(id=message["id"], result={})
                    time.sleep(1.5)
                replay(scene)
                if scene == "late":
                    continue
            case "session/load":
                chunk("An old answer.")
                send(id=message["id"], result={})
                time.sleep(0.2)
                chunk("An old answer, told late.")
                continue
            case "session/prompt" if scene in KEEPING:
                keep(message["params"]["prompt"][0]["text"])
                answer = {"stopReason": "end_turn"}
            case "session/prompt":
                turn(scene)
                answer = {"stopReason": "max_turn_requests" if scene == "tires" else "end_turn"}
        if "id" in message:
            send(id=message["id"], result=answer)
    while scene == "stays":
        time.sleep(1)


if __name__ == "__main__":
    main(sys.argv[1])
