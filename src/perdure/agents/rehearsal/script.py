"""The script language: what the rehearsed model says and does, with one action on each line, the
same for every dialect.

Read by `parse`; played by `cues` (which reply is next) and by the dialects (how it looks on the
wire). Pure.

A script is a list of replies separated by a line `---`. A reply is a list of actions:

    say TEXT           text of the model, streamed; `say` lines that follow each other make one text
    run COMMAND        calls the CLI's own shell tool
    call TOOL JSON     calls the tool of that name; its arguments are a JSON object
    nothing            an answer without any content
    slow SECONDS       what comes next is spread over that time; headers are sent before
    hold FILE          the stream stays open and silent until the file exists, then the rest
    hang [xK]          the stream stays open and silent until the client or the server stops
    cut [xK]           the connection is cut in mid-stream
    cut clean [xK]     the answer ends in good order on the wire, without the model's last word
    fail STATUS [xK]   an HTTP error with the provider's own error body, then the rest
    limit SECONDS [xK] a usage limit that ends that many seconds from now, then the rest
    full [xK]          the request is refused: the conversation is too long for the model
    stop REASON        the provider's own word for why the answer ends, in place of the usual one
    usage in=N out=N cached=N
                       the tokens reported, word for word (default in=100 out=7 cached=0)

`xK`: the number of times (default: 1), counted over all requests; after that the line is skipped.
So a `hang` in a reply that is given again (after a kill, `by history`) does not hang again. A reply
with nothing left to send is skipped. `fail`, `limit` and `full` must come before everything that
the reply sends. After the last reply the model says `Done.`.

A script may begin with `match TEXT` (it answers only if a prompt of the user contains TEXT), `by
history` (see `cues`), and `summary TEXT` (the answer when the CLI asks for a summary of a long
conversation). Scripts are separated by a line `===`; the first one that matches answers. Lines that
begin with `#` and blank lines are skipped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, TypeAlias

from msgspec import Struct

from perdure.errors import UsageError


class ScriptError(UsageError):
    """A script cannot be read; the sentence names the line."""


class Say(Struct, frozen=True):
    text: str

    def pieces(self, most: int = 12) -> list[str]:
        """Return the text in at most `most` parts, cut before words."""
        words = re.findall(r"\s*\S+\s*$|\s*\S+", self.text) or [self.text]
        step = -(-len(words) // most)
        return ["".join(words[at : at + step]) for at in range(0, len(words), step)]


class RunTool(Struct, frozen=True):
    command: str
    """The shell command; for another tool its name and its arguments as JSON, in the form of a
    history."""
    tool: str = ""
    """The name of the tool; empty for the CLI's own shell."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the arguments of a tool that is not the shell."""
        given: dict[str, Any] = json.loads(self.command.removeprefix(self.tool))
        return given


class Nothing(Struct, frozen=True):
    """An answer without any content."""


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
    """The service's error message; empty for the usual one of the status."""
    full: bool = False
    """The conversation is too long for the model."""


class Limit(Struct, frozen=True):
    seconds: float
    times: int = 1


class TokenCounts(Struct, frozen=True):
    """The usage that a reply reports. The numbers are sent unchanged, each in the provider's own
    field."""

    input: int = 100
    output: int = 7
    cached: int = 0


class Stop(Struct, frozen=True):
    reason: str


Action: TypeAlias = (
    Say | RunTool | Nothing | Slow | Hold | Hang | Cut | Fail | Limit | TokenCounts | Stop
)
Mark: TypeAlias = tuple[str, str]
"""The trace of a reply in a history: ("say", text) or ("run", command)."""


class ScriptedReply(Struct, frozen=True):
    actions: tuple[Action, ...]

    @property
    def marks(self) -> tuple[Mark, ...]:
        """Return the marks that the complete reply leaves in a history."""
        return marks(self.actions)


class Script(Struct, frozen=True):
    replies: tuple[ScriptedReply, ...]
    match: str = ""
    by_history: bool = False
    summary: str = ""
    """The answer when the CLI asks for a summary."""


def content(actions: tuple[Action, ...]) -> list[Say | RunTool]:
    """Return the texts (with the lines of one text joined) and calls of these actions, in order."""
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
    """Return the marks that these actions leave in a history, in order."""
    return tuple(
        ("say", action.text) if isinstance(action, Say) else ("run", action.command)
        for action in content(actions)
    )


def parse(text: str) -> tuple[Script, ...]:
    """Return all scripts of a file, at least one. Raise ScriptError with the number of the first
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
    """One script while it is parsed."""

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
        if isinstance(action, (Fail, Limit)) and any(
            isinstance(before, (Say, RunTool, Nothing, Hold, Hang, Cut)) for before in self.actions
        ):
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
    seconds, _, times = rest.partition(" ")
    return Limit(_seconds(seconds), _times(times.strip()))


def _tokens(rest: str) -> TokenCounts:
    given = {"in": 100, "out": 7, "cached": 0}
    for pair in _text(rest).split():
        name, _, number = pair.partition("=")
        if name not in given or not number.isdecimal():
            raise ValueError(f"expected in=N, out=N or cached=N, not {pair!r}")
        given[name] = int(number)
    return TokenCounts(given["in"], given["out"], given["cached"])


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
