"""The script language: what the rehearsed model says and does. Each line has one action, and the
language is the same for every dialect.

`parse` reads a script, `conversation.ReplyPlanner` chooses the next reply, and the dialects convert
the reply into their wire format. Pure.

A script is a list of replies separated by a line `---`. A reply is a list of actions:

    say TEXT           text of the model, streamed; consecutive `say` lines form one text
    run COMMAND        calls the CLI's own shell tool
    call TOOL JSON     calls the tool of that name; its arguments are a JSON object
    nothing            an answer without any content
    slow SECONDS       spreads the following text over that time; the headers are sent at once
    hold FILE          keeps the stream open and silent until the file exists, then continues
    hang [xK]          keeps the stream open and silent until the client or the server stops
    cut [xK]           cuts the connection in mid-stream
    cut clean [xK]     ends the stream properly, but without the model's last event
    fail STATUS [xK]   an HTTP error with the provider's own error body; a later request gets the
                       rest of the reply
    limit SECONDS [MODEL] [xK]
                       like `fail`, but the error reports a usage limit that ends that many seconds
                       from now; with MODEL (for Claude Code: opus or sonnet), the limit applies
                       only to that model
    full [xK]          refuses the request: the conversation is too long for the model
    stop REASON        the provider's reason for why the answer ends, in place of the usual one
    usage in=N out=N cached=N thoughts=N
                       the reported tokens, sent unchanged (default in=100 out=7 cached=0
                       thoughts=0); only Gemini's service reports thoughts, and not as output

`xK` is the number of times that the line takes effect (default: 1), counted over all requests;
after that the line is skipped. So a `hang` in a reply that is given again (after a kill, `by
history`) does not hang again. A reply with nothing left to send is skipped. `fail`, `limit` and
`full` must come before everything that the reply sends. After the last reply the model says
`Done.`.

A script may begin with these lines:

- `match TEXT`: the script answers only if a prompt of the user contains TEXT.
- `by history`: the next reply depends on the history; see the module `conversation`.
- `summary TEXT`: the answer when the CLI asks for a summary of a long conversation.

Scripts are separated by a line `===`; the first script that matches answers. Lines that begin with
`#` and blank lines are skipped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TypeAlias

from msgspec import Struct

from perdure.errors import UsageError


class ScriptError(UsageError):
    """Raised if a script cannot be parsed. The message names the line."""


class Say(Struct, frozen=True):
    text: str

    def pieces(self, most: int = 12) -> list[str]:
        """Split the text between words into at most `most` parts, and return the parts."""
        words = re.findall(r"\s*\S+\s*$|\s*\S+", self.text) or [self.text]
        step = -(-len(words) // most)
        return ["".join(words[at : at + step]) for at in range(0, len(words), step)]


class RunTool(Struct, frozen=True):
    command: str
    """The shell command. For a call of another tool, the tool's name and its arguments as JSON, as
    in `ChatMessage.text`."""
    tool: str = ""
    """Name of the tool to call; empty for the CLI's own shell tool."""

    @property
    def arguments(self) -> dict[str, object]:
        """Return the arguments of a call of another tool than the shell tool."""
        given: dict[str, object] = json.loads(self.command.removeprefix(self.tool))
        return given


class Nothing(Struct, frozen=True):
    """Action: send an answer without any content."""


class Slow(Struct, frozen=True):
    seconds: float


class Hold(Struct, frozen=True):
    file: str


class Hang(Struct, frozen=True):
    times: int = 1


class Cut(Struct, frozen=True):
    times: int = 1
    clean: bool = False


class Fail(Struct, frozen=True):
    status: int
    times: int = 1
    words: str = ""
    """Error message that the service sends; empty for the message that it usually sends with this
    status."""
    full: bool = False
    """Whether the error says that the conversation is too long for the model."""


class Limit(Struct, frozen=True):
    seconds: float
    times: int = 1
    model: str = ""


class TokenCounts(Struct, frozen=True):
    """The usage that a reply reports. The numbers are sent unchanged, each in the field that the
    provider has for it."""

    input: int = 100
    output: int = 7
    cached: int = 0
    thoughts: int = 0


class Stop(Struct, frozen=True):
    reason: str


Action: TypeAlias = (
    Say | RunTool | Nothing | Slow | Hold | Hang | Cut | Fail | Limit | TokenCounts | Stop
)
Mark: TypeAlias = tuple[str, str]
"""Entry of a history: one text or command of the model, as ("say", text) or ("run", command). Used
to compare a scripted reply with the history that reached the model."""


class ScriptedReply(Struct, frozen=True):
    actions: tuple[Action, ...]

    @property
    def marks(self) -> tuple[Mark, ...]:
        """Return the marks that the complete reply adds to a history."""
        return marks(self.actions)


class Script(Struct, frozen=True):
    replies: tuple[ScriptedReply, ...]
    match: str = ""
    by_history: bool = False
    summary: str = ""
    """Text to send when the CLI requests a summary; empty for the default text."""


def content(actions: tuple[Action, ...]) -> list[Say | RunTool]:
    """Return the texts and calls of these actions, in order. Consecutive `say` lines are joined
    into one text."""
    found: list[Say | RunTool] = []
    for action in actions:
        last = found[-1] if found else None
        if isinstance(action, RunTool):
            found.append(action)
        elif isinstance(action, Say) and isinstance(last, Say):
            found[-1] = Say(f"{last.text}\n{action.text}")
        elif isinstance(action, Say):
            found.append(action)
    return found


def marks(actions: tuple[Action, ...]) -> tuple[Mark, ...]:
    """Return the marks that these actions add to a history, in order."""
    found = []
    for action in content(actions):
        found.append(("say", action.text) if isinstance(action, Say) else ("run", action.command))
    return tuple(found)


def parse(text: str) -> tuple[Script, ...]:
    """Return the scripts of a file, at least one. Raise ScriptError with the number of the first
    invalid line."""
    scripts: list[Script] = []
    draft = _Draft()
    number = 0
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if line == "===":
            scripts.append(draft.script(number))
            draft = _Draft()
        elif line == "---":
            draft.close(number)
        elif line and not line.startswith("#"):
            draft.take(number, line)
    scripts.append(draft.script(number))
    return tuple(scripts)


class _Draft:
    """Collects the lines of one script while it is parsed."""

    def __init__(self) -> None:
        self.replies: list[ScriptedReply] = []
        self.actions: list[Action] = []
        self.match = ""
        self.by_history = False
        self.summary = ""

    def take(self, number: int, line: str) -> None:
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if word in ("match", "by", "summary"):
            self._heading(number, word, rest)
            return
        if word not in _READERS:
            raise ScriptError(
                f"line {number}: unknown action {word!r}",
                f"One of: {', '.join(_READERS)}, match, by history, summary.",
            )
        try:
            action = _READERS[word](rest)
        except ValueError as error:
            raise ScriptError(f"line {number}: {word}: {error}") from None
        sent = (Say, RunTool, Nothing, Hold, Hang, Cut)
        if isinstance(action, (Fail, Limit)) and any(isinstance(one, sent) for one in self.actions):
            raise ScriptError(
                f"line {number}: {word} must stand before everything that the reply sends"
            )
        self.actions.append(action)

    def close(self, number: int) -> None:
        if not self.actions:
            raise ScriptError(f"line {number}: a reply without an action")
        self.replies.append(ScriptedReply(tuple(self.actions)))
        self.actions = []

    def script(self, number: int) -> Script:
        if self.actions or self.replies:
            self.close(number)
        return Script(tuple(self.replies), self.match, self.by_history, self.summary)

    def _heading(self, number: int, word: str, rest: str) -> None:
        if self.actions or self.replies:
            raise ScriptError(f"line {number}: {word} must stand at the top of a script")
        if word in ("match", "summary"):
            if not rest:
                raise ScriptError(f"line {number}: {word}: a text is missing")
            setattr(self, word, rest)
        elif rest in ("history", "request"):
            self.by_history = rest == "history"
        else:
            raise ScriptError(f"line {number}: by: expected 'history' or 'request', not {rest!r}")


def _text(rest: str) -> str:
    if not rest:
        raise ValueError("a text is missing")
    return rest


def _file(rest: str) -> str:
    if not rest:
        raise ValueError("a file is missing")
    return rest


def _call(rest: str) -> RunTool:
    tool, _, given = rest.partition(" ")
    try:
        arguments = json.loads(given)
    except ValueError:
        arguments = None
    if not tool or not isinstance(arguments, dict):
        raise ValueError("expected a tool and its arguments as a JSON object")
    return RunTool(f"{tool} {json.dumps(arguments)}", tool)


def _nothing(rest: str) -> Nothing:
    if rest:
        raise ValueError(f"expected no more words, not {rest!r}")
    return Nothing()


def _times(rest: str) -> int:
    if not rest:
        return 1
    found = re.fullmatch(r"x([1-9]\d*)", rest)
    if not found:
        raise ValueError(f"expected xK, for example x3, not {rest!r}")
    return int(found[1])


def _seconds(word: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", word):
        raise ValueError(f"expected seconds, not {word!r}")
    return float(word)


def _cut(rest: str) -> Cut:
    clean = rest.split()[:1] == ["clean"]
    return Cut(_times(rest.removeprefix("clean").strip() if clean else rest), clean)


def _fail(rest: str) -> Fail:
    status, _, times = rest.partition(" ")
    if not re.fullmatch(r"[45]\d\d", status):
        raise ValueError(f"expected an HTTP status from 400 to 599, not {status!r}")
    return Fail(int(status), _times(times.strip()))


def _limit(rest: str) -> Limit:
    seconds, _, more = rest.partition(" ")
    model, _, times = more.strip().rpartition(" ")
    if not model and times.isalpha():
        model, times = times, ""
    return Limit(_seconds(seconds), _times(times), model.strip())


def _tokens(rest: str) -> TokenCounts:
    given = {"in": 100, "out": 7, "cached": 0, "thoughts": 0}
    for pair in _text(rest).split():
        name, _, number = pair.partition("=")
        if name not in given or not number.isdecimal():
            raise ValueError(f"expected in=N, out=N, cached=N or thoughts=N, not {pair!r}")
        given[name] = int(number)
    return TokenCounts(given["in"], given["out"], given["cached"], given["thoughts"])


_READERS: dict[str, Callable[[str], Action]] = {
    "say": lambda rest: Say(_text(rest)),
    "run": lambda rest: RunTool(_text(rest)),
    "call": _call,
    "nothing": _nothing,
    "slow": lambda rest: Slow(_seconds(rest)),
    "hold": lambda rest: Hold(_file(rest)),
    "hang": lambda rest: Hang(_times(rest)),
    "cut": _cut,
    "fail": _fail,
    "limit": _limit,
    "full": lambda rest: Fail(400, _times(rest), full=True),
    "stop": lambda rest: Stop(_text(rest)),
    "usage": _tokens,
}
