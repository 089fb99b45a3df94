"""Starts a real agent that speaks ACP and changes one thing in what it sends: `acp_proxy.py SCENE
COMMAND...`. It runs as a program.

`honest`: nothing is changed. `resumes`: the agent does not offer to load a conversation. `unable`:
it offers neither to load nor to resume. `lies`: it replays another conversation. `refuses`: it
answers each request to load with an error that names no cause.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import Any

OTHER = {
    "sessionUpdate": "user_message_chunk",
    "content": {"type": "text", "text": "A prompt of somebody else."},
}


class Proxy:
    def __init__(self, scene: str, command: list[str]) -> None:
        self.scene = scene
        self.loading = False
        self.agent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self) -> int:
        threading.Thread(target=self.forward, daemon=True).start()
        assert self.agent.stdout is not None
        for line in self.agent.stdout:
            sys.stdout.buffer.write(self.changed(json.loads(line)))
            sys.stdout.buffer.flush()
        return self.agent.wait()

    def forward(self) -> None:
        assert self.agent.stdin is not None
        for line in sys.stdin.buffer:
            self.loading = json.loads(line).get("method") == "session/load"
            self.agent.stdin.write(line)
            self.agent.stdin.flush()
        self.agent.stdin.close()

    def changed(self, message: dict[str, Any]) -> bytes:
        result = message.get("result")
        can = result.get("agentCapabilities") if isinstance(result, dict) else None
        if can and self.scene in ("resumes", "unable"):
            can["loadSession"] = False
        if can and self.scene == "unable":
            can["sessionCapabilities"] = {}
        if self.scene == "lies" and self.loading and message.get("method") == "session/update":
            message["params"]["update"] = OTHER
        if self.scene == "refuses" and self.loading and "result" in message:
            del message["result"]
            message["error"] = {"code": -32603, "message": "The shelf is out of order."}
        return json.dumps(message).encode() + b"\n"


if __name__ == "__main__":
    sys.exit(Proxy(sys.argv[1], sys.argv[2:]).run())
