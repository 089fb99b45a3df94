"""A small server that speaks as `codex app-server` does, for behavior that the real one does not
show on request. Its first argument names the scene, which is the behavior to show."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

POLICY = {"sandbox": {"type": "readOnly"}, "approvalPolicy": "never"}
WIDER = {
    "wider": {**POLICY, "sandbox": {"type": "dangerFullAccess"}},
    "asking": {**POLICY, "approvalPolicy": "on-request"},
    "strange": {**POLICY, "sandbox": {"type": "something new"}},
}


def send(**message: Any) -> None:
    print(json.dumps(message), flush=True)


def tell(method: str, thread: str = "one", **params: Any) -> None:
    send(method=method, params={"threadId": thread, **params})


def say(words: str, thread: str = "one") -> None:
    tell("item/completed", thread, item={"type": "agentMessage", "id": "m", "text": words})


def turn(scene: str) -> None:
    """Send the events that follow after a prompt was accepted."""
    tell("turn/started", turn={"id": "t"})
    if scene == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if scene == "asks":
        send(
            id=7,
            method="item/commandExecution/requestApproval",
            params={"threadId": "one", "command": "rm -rf /"},
        )
        say("refused" if "error" in json.loads(sys.stdin.readline()) else "granted")
    if scene in ("keeps", "refuses"):
        steer = json.loads(sys.stdin.readline())
        error = {"code": -32600, "message": "no active turn to steer"}
        send(id=steer["id"], **({"error": error} if scene == "refuses" else {"result": {}}))
        say(steer["params"]["input"][0]["text"])
    if scene == "crowd":
        say("A word of another thread.", "two")
        tell("turn/completed", "two", turn={"id": "other", "status": "completed"})
        tell("turn/completed", turn={"id": "before", "status": "completed"})
        tell("something/new", thread="one")
    say("x" * 3_000_000 if scene == "long" else "The answer.")
    error = {"message": "the model is gone"} if scene == "fails" else None
    tell(
        "turn/completed",
        turn={"id": "t", "status": "failed" if error else "completed", "error": error},
    )


def main(scene: str) -> None:
    for line in sys.stdin:
        message = json.loads(line)
        answer: dict[str, Any] = {}
        match message["method"]:
            case "thread/start" | "thread/resume":
                answer = {
                    "thread": {"id": "two" if scene == "another" else "one"},
                    **WIDER.get(scene, POLICY),
                }
            case "turn/start":
                send(id=message["id"], result={"turn": {"id": "t"}})
                turn(scene)
                if scene == "by itself":
                    tell("turn/started", turn={"id": "its own"})
                if scene == "leaves":
                    sys.exit(3)
                continue
            case "thread/backgroundTerminals/clean":
                tell(
                    "item/completed",
                    item={
                        "type": "commandExecution",
                        "id": "c",
                        "status": "completed",
                        "exitCode": 0,
                    },
                )
        if "id" in message:
            send(id=message["id"], result=answer)


if __name__ == "__main__":
    main(sys.argv[1])
