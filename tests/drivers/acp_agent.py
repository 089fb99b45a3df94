"""A small agent that speaks ACP, for what no real one does on request. Its first argument is the scene; it is a process of its own."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def send(**message: Any) -> None:
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def tell(**update: Any) -> None:
    send(method="session/update", params={"sessionId": "one", "update": update})


def chunk(words: str) -> None:
    tell(sessionUpdate="agent_message_chunk", content={"type": "text", "text": words})


def turn(scene: str) -> None:
    """What happens between a prompt and its answer."""
    if scene == "dies":
        chunk("half")
        os._exit(7)
    if scene == "asks":
        call = {"toolCallId": "t", "title": "write", "kind": "edit", "locations": [{"path": sys.argv[2]}]}
        options = [{"optionId": "yes", "name": "Yes", "kind": "allow_once"}, {"optionId": "no", "name": "No", "kind": "reject_once"}]
        send(id=99, method="session/request_permission", params={"sessionId": "one", "toolCall": call, "options": options})
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
                answer = {"protocolVersion": 2 if scene == "newer" else 1, "agentCapabilities": {"loadSession": scene != "forgets"}}
            case "session/new":
                answer = {"sessionId": "one"}
            case "session/load":
                chunk("An old answer.")
                send(id=message["id"], result={})
                time.sleep(0.2)
                chunk("An old answer, told late.")
                continue
            case "session/prompt":
                turn(scene)
                answer = {"stopReason": "max_turn_requests" if scene == "tires" else "end_turn"}
        if "id" in message:
            send(id=message["id"], result=answer)
    while scene == "stays":
        time.sleep(1)


if __name__ == "__main__":
    main(sys.argv[1])
