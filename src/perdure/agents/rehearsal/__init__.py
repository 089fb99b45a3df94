"""Scripted model servers on 127.0.0.1, against which the real agent CLIs run without a key, a
network or a token.

    with Rehearsal("run echo hello\\n---\\nsay It said hello.") as rehearsal:
        env = rehearsal.environ("claude", home=scratch)      # start the real CLI with it
        rehearsal.last.messages                              # what reached the model

The language of the scripts is described in `script`, the choice of the reply in `conversation`, the
record of requests in `server`.
"""

from __future__ import annotations

from perdure.agents.rehearsal.conversation import ChatMessage, PlannedReply, ReplySource
from perdure.agents.rehearsal.script import Script, ScriptError, parse
from perdure.agents.rehearsal.server import Rehearsal, Request

__all__ = [
    "ChatMessage",
    "PlannedReply",
    "Rehearsal",
    "ReplySource",
    "Request",
    "Script",
    "ScriptError",
    "parse",
]
