"""A model request of any dialect in a common form: the messages with their roles, without those
that the CLI itself adds.

Created by the dialects (`Dialect.conversation`). Read by `planner`, and by every test that checks
which history reached the model. Pure.
"""

from __future__ import annotations

import re

from msgspec import Struct

from perdure.agents.rehearsal.script import Mark


class ChatMessage(Struct, frozen=True):
    """One message or tool call. `role` is `user`, `assistant`, `tool_call` or `tool_result`."""

    role: str
    text: str
    """Text of a message. For a call of the shell tool, the command. For a call of another tool, the
    tool's name and its arguments as JSON."""
    call: str = ""
    """Id that connects a `tool_call` with its `tool_result`; empty for other messages."""


class ScriptedConversation(Struct, frozen=True):
    """The content of one request to the model."""

    messages: tuple[ChatMessage, ...]
    session: str = ""
    """The CLI's own id of the conversation, from headers or body; empty if the CLI sent none."""
    side: bool = False
    """Whether the request is not part of the conversation itself. Such a request asks for a title
    or a summary, or comes from a subagent."""
    summary: str = ""
    """Format of the reply that the CLI expects, with `{}` in place of the summary. Set only for a
    request that asks for a summary to continue the conversation with. Such a request is a side
    request."""
    streamed: bool = True
    model: str = ""
    shell: str = ""
    """Name of the shell tool that the CLI offers in the request."""
    waiting: str = ""
    """Number of a command that is still running, according to the last tool result. Empty if no
    command is running. Only Codex numbers its commands."""
    added: tuple[str, ...] = ()
    """Texts that the CLI itself added between the messages, such as reminders and the output of
    hooks. Only filled for Claude Code."""
    unfinished: frozenset[str] = frozenset()
    """Ids of the tool calls whose result says that the command is still running."""

    @property
    def prompts(self) -> list[str]:
        """Return the user's prompts, in order."""
        return [message.text for message in self.messages if message.role == "user"]

    def marks(self) -> list[tuple[Mark, bool]]:
        """Return the model's texts and tool calls in order. The second value of each pair tells
        whether the text or call is complete.

        A text is always complete. A tool call is complete if it has a result, unless the result
        says that the call was interrupted or its command was killed. A prompt becomes the
        incomplete mark ("user", ""), so that no scripted reply matches texts on both sides of it.
        """
        results = {}
        for message in self.messages:
            if message.role == "tool_result":
                results[message.call] = message.text
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
    r"\A\[Tool call interrupted"  # Claude Code 2.1.329, if the CLI was killed
    r"|\A\[Request interrupted"  # Claude Code, if the CLI was interrupted by SIGINT
    r"|\A\[Tool execution was interrupted\]"  # OpenCode 1.18.33, if the CLI was killed
    r"|\AExit code (137|143)\b"  # Claude Code, if the command was killed together with the CLI
    # Codex 0.169.0, if the CLI was killed or its app server was asked to end
    r"|\A(Wall time: .*\n)?aborted( by user\b.*)?\Z"
    # Codex, if the command was killed
    r"|\AChunk ID: .*\nWall time: .*\nProcess exited with code (137|143)\b"
)
