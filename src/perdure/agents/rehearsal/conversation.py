"""A request of any dialect, brought to one form: who said what, without what the CLI adds by
itself.

Made by the dialects (`anthropic.conversation`, `openai.conversation`), read by `cues` and by every
test that asks what history reached the model. Pure.
"""

from __future__ import annotations

import re

from perdure.agents.rehearsal.script import Mark
from perdure.lateclass import dataclass


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One thing said or done. `role` is user, assistant, tool_call or tool_result."""

    role: str
    text: str
    """Of a shell tool's call the command; for another tool its name and its arguments as JSON."""
    call: str = ""
    """The id that joins a tool_call with its tool_result."""


@dataclass(frozen=True, slots=True)
class ScriptedConversation:
    """What reached the model in one request."""

    messages: tuple[ChatMessage, ...]
    session: str = ""
    """The CLI's own id of the conversation, from headers or body; empty where it sent none."""
    side: bool = False
    """A call beside the conversation: a title, a summary, a sub-agent."""
    summary: str = ""
    """Of a side call that asks for a summary, with which the conversation then goes on: the form
    that the CLI wants, `{}` the text."""
    streamed: bool = True
    model: str = ""
    shell: str = ""
    """The name of the shell tool that the request offers."""
    waiting: str = ""
    """The last tool result says that its command still runs, under this number (Codex)."""
    unfinished: frozenset[str] = frozenset()
    """Calls whose result says that they are still running."""

    @property
    def prompts(self) -> list[str]:
        """What the user said, in order."""
        return [message.text for message in self.messages if message.role == "user"]

    def marks(self) -> list[tuple[Mark, bool]]:
        """What the model said and did, in order, each with: it is complete. A text always is; a
        tool call is when it has a result, and the result does not say that the call was interrupted
        or its command killed. Between them stands a mark ("user", "") for each prompt: no reply
        reaches over it."""
        results = {
            message.call: message.text for message in self.messages if message.role == "tool_result"
        }
        found: list[tuple[Mark, bool]] = []
        for message in self.messages:
            if message.role == "assistant":
                found.append((("say", message.text), True))
            elif message.role == "user":
                found.append((("user", ""), False))
            elif message.role == "tool_call":
                result = results.get(message.call)
                complete = (
                    result is not None
                    and not _INTERRUPTED.search(result)
                    and message.call not in self.unfinished
                )
                found.append((("run", message.text), complete))
        return found


_INTERRUPTED = re.compile(
    r"\A\[Tool call interrupted"  # Claude Code 2.1.329, after a kill
    r"|\A\[Request interrupted"  # Claude Code, after SIGINT
    r"|\A\[Tool execution was interrupted\]"  # OpenCode 1.18.33, after a kill
    r"|\AExit code (137|143)\b"  # Claude Code: the command was killed with the CLI
    # Codex 0.169.0, after a kill; its app server, after it was asked to end
    r"|\A(Wall time: .*\n)?aborted( by user\b.*)?\Z"
    # Codex: the command was killed
    r"|\AChunk ID: .*\nWall time: .*\nProcess exited with code (137|143)\b"
)
