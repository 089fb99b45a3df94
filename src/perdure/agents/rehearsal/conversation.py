"""A request of any dialect in a common form: the messages with their roles, without those that the
CLI itself adds.

Made by the dialects (`anthropic.conversation`, `openai.conversation`), read by `cues` and by every
test that checks which history reached the model. Pure.
"""

from __future__ import annotations

import re

from msgspec import Struct

from perdure.agents.rehearsal.script import Mark


class ChatMessage(Struct, frozen=True):
    """One message or tool call. `role` is user, assistant, tool_call or tool_result."""

    role: str
    text: str
    """The text. For a call of the shell tool the command; for another tool its name and its
    arguments as JSON."""
    call: str = ""
    """The id that connects a tool_call with its tool_result."""


class ScriptedConversation(Struct, frozen=True):
    """The content of one request to the model."""

    messages: tuple[ChatMessage, ...]
    session: str = ""
    """The CLI's own id of the conversation, from headers or body; empty if it sent none."""
    side: bool = False
    """Whether the request is outside of the conversation: a title, a summary, a subagent."""
    summary: str = ""
    """Format of a summary that the CLI expects, with `{}` in place of the text. Set only for a side
    request for a summary with which the conversation continues."""
    streamed: bool = True
    model: str = ""
    shell: str = ""
    """Name of the shell tool that the request offers."""
    waiting: str = ""
    """Number of the command that is still running according to the last tool result (Codex); else
    empty."""
    added: tuple[str, ...] = ()
    """Texts that the CLI itself added between the messages: reminders, the words of hooks (Claude
    Code)."""
    unfinished: frozenset[str] = frozenset()
    """Ids of the calls whose result says that their command is still running."""

    @property
    def prompts(self) -> list[str]:
        """Return the user's prompts, in order."""
        return [message.text for message in self.messages if message.role == "user"]

    def marks(self) -> list[tuple[Mark, bool]]:
        """Return the model's texts and calls in order, each with whether it is complete. A text
        always is. A tool call is complete if it has a result, and the result does not say that the
        call was interrupted or its command killed. Each prompt is a mark ("user", ""), so that no
        reply extends across it."""
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
