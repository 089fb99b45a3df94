"""Formats text for a person, on a terminal or a page. Text from agents, repositories and networks
is untrusted, so it is cleaned before it is shown.

Every command and page uses this module. It imports little, so that `perdure ls` stays fast. Only
`write_stderr` writes anything: a log line. That function is here so that every package may use it.
"""

from __future__ import annotations

import os
import re
import sys
import time

TYPE_CHECKING = False  # importing typing is too slow for `perdure ls`
if TYPE_CHECKING:
    from perdure.model import Fill, Usage

LISTED_PROMPT = 200
"""Maximum length of a prompt in a list of runs, in characters."""
_ESCAPES = (
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_][^\x1b]*(?:\x1b\\)?|[ "
    r"-/]*[0-~])"
)
_HIDDEN = (
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)
"""Pattern of hidden characters: control characters except newline and tab, direction marks, and
characters without width. It is compiled when it is first needed, because most text is plain."""


def clean(text: str) -> str:
    """Return the text without escape sequences, control characters (except newline and tab) and
    direction overrides."""
    if text.replace("\n", " ").replace("\t", " ").isprintable():
        return text
    plain = re.sub(_HIDDEN, "", re.sub(_ESCAPES, "", text))
    return plain.encode("utf-8", "replace").decode()


def visible(text: str) -> str:
    """Return the text with each hidden character made visible and harmless: `^[` for escape,
    `<U+202E>` for a direction override."""
    return re.sub(_HIDDEN, _named, text).encode("utf-8", "replace").decode()


def _named(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 32 or code == 127:
        return f"^{chr(code ^ 64)}"
    return f"<U+{code:04X}>"


def one_line(text: str, width: int = 100) -> str:
    """Return the cleaned text on one line. A text longer than `width` characters is cut and ends in
    an ellipsis."""
    line = " ".join(clean(text).split())
    if len(line) <= width:
        return line
    return f"{line[: width - 1]}…"


def at_home(path: str) -> str:
    """Return the path for a person, with `~` for the home directory."""
    home = os.environ.get("HOME", "")
    return clean(
        f"~{path[len(home) :]}" if home and (path == home or path.startswith(f"{home}/")) else path
    )


def write_stderr(line: str) -> None:
    """Write a line to standard error. Raises nothing if that fails (disk full, reader gone), so no
    thread or attempt fails because of its log."""
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):  # ValueError: standard error is closed
        return


def age(then_ms: int, now_ms: int) -> str:
    """Return how long ago a time was: `12s`, `5m`, `3h`, `2d`."""
    seconds = max(0, (now_ms - then_ms) // 1000)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def span(seconds: int) -> str:
    """Return a duration: `45s`, `2m14s`, `1h02m`."""
    if seconds < 60:
        return f"{max(0, seconds)}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02}m"


def soon(then_ms: int, now_ms: int) -> str:
    """Return a future time as a delay and a time of day: `in 14m (08:01 +0200)`."""
    moment = time.localtime(then_ms / 1000)
    day = "%Y-%m-%d " if then_ms - now_ms > 86_400_000 else ""
    when = time.strftime(f"{day}%H:%M %z", moment)
    return f"in {age(now_ms, then_ms)} ({when})"


def clock(ms: int) -> str:
    """Return a time as local time for a person."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ms / 1000))


def filled(fill: Fill) -> str:
    """Return a conversation's fill in words: `163k tokens of 200k (81 %), claude-opus-5-5`."""
    held, window = fill.tokens, fill.window
    if window:
        of = f" of {tokens(window)} ({held * 100 // window} %)"
    else:
        of = ", of an unknown window"
    whose = f", {one_line(fill.model, 60)}" if fill.model else ""
    return f"{tokens(held)} tokens{of}{whose}"


def dollars(usd: float, *, estimated: bool = False) -> str:
    """Return an amount: `$0.42`, or `≈$0.42` for an estimate."""
    about = "≈" if estimated else ""
    return f"{about}${usd:.2f}"


def consumption(used: Usage) -> str:
    """Return a usage in words, as in `≈12.3k tokens in, 950 out, ≈$0.42`."""
    mark = "≈" if used.estimated else ""
    spent = dollars(used.cost_usd, estimated=used.estimated)
    return f"{mark}{tokens(used.input)} tokens in, {mark}{tokens(used.output)} out, {spent}"


VERDICTS = {
    "native": "continued",
    "forked": "forked from another conversation",
    "repaired": "continued, repaired",
    "compacted": "continued, compacted",
    "shortened": "continued, without its last part",
    "replayed": "continued, by its replay",
    "claimed": "continued, says the agent",
    "rebuilt": "new conversation, rebuilt from a brief",
    "fresh": "new conversation",
    "broken": "broken",
}
"""Meaning of each verdict of a receipt, shown beside its name."""


def receipt_words(verdict: str) -> str:
    """Return a receipt's verdict with its meaning: `receipt native (continued)`."""
    words = VERDICTS.get(verdict, verdict)
    if words == verdict:
        return f"receipt {verdict}"
    return f"receipt {verdict} ({words})"


def tokens(count: int) -> str:
    """Return a number of tokens in short form: `950`, `12.3k`, `1.2M`."""
    if count < 1000:
        return str(count)
    if count < 999_950:
        return f"{count / 1000:.1f}k"
    return f"{count / 1_000_000:.1f}M"
