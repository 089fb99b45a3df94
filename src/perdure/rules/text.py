"""Text for a person, on a terminal or a page. What agents, repositories and networks wrote is
hostile: it is cleaned before it is shown.

Every surface calls it; it costs `perdure ls` nothing that it does not use. `tell` alone writes: a
line for the log, which every room may.
"""

from __future__ import annotations

import os
import re
import sys
import time

TYPE_CHECKING = False  # typing is too dear for `perdure ls`
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_][^\x1b]*(?:\x1b\\)?|[ "
    r"-/]*[0-~])"
)
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)
"""Controls but newline and tab, marks of direction, and what has no width: a text hidden in it
would be there and not be seen."""


def clean(text: str) -> str:
    """The text without escape sequences, control characters (but newline and tab) and direction
    overrides."""
    return _HIDDEN.sub("", _ESCAPES.sub("", text)).encode("utf-8", "replace").decode()


def visible(text: str) -> str:
    """The text with every such character to be seen and without effect: `^[` for escape, `<U+202E>`
    for a direction override."""
    return _HIDDEN.sub(_named, text).encode("utf-8", "replace").decode()


def _named(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"^{chr(code ^ 64)}" if code < 32 or code == 127 else f"<U+{code:04X}>"


def one_line(text: str, width: int = 100) -> str:
    """Clean, on one line, cut with a mark."""
    line = " ".join(clean(text).split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


def at_home(path: str) -> str:
    """The path for a person, with `~` for the home directory."""
    home = os.environ.get("HOME", "")
    return clean(
        f"~{path[len(home) :]}" if home and (path == home or path.startswith(f"{home}/")) else path
    )


def tell(line: str) -> None:
    """A line on standard error. A log that takes none (its disk is full, its reader is gone) ends
    no thread and fails no attempt."""
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):  # ValueError: it is closed
        return


def age(then_ms: int, now_ms: int) -> str:
    """`12s`, `5m`, `3h`, `2d`: how long ago."""
    seconds = max(0, (now_ms - then_ms) // 1000)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def span(seconds: int) -> str:
    """`45s`, `2m14s`, `1h02m`: how long something took."""
    if seconds < 60:
        return f"{max(0, seconds)}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02}m"


def soon(then_ms: int, now_ms: int) -> str:
    """`in 14m (08:01 +0200)`: a moment to come, as how long from now and when."""
    moment = time.localtime(then_ms / 1000)
    day = "%Y-%m-%d " if then_ms - now_ms > 86_400_000 else ""
    when = time.strftime(f"{day}%H:%M %z", moment)
    return f"in {age(now_ms, then_ms)} ({when})"


def clock(ms: int) -> str:
    """A moment in local time, for a person."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ms / 1000))


def filled(fill: dict[str, Any]) -> str:
    """`163k tokens of 200k (81 %), claude-opus-5-5`."""
    held, window = fill["tokens"], fill["window"]
    of = f" of {tokens(window)} ({held * 100 // window} %)" if window else ", of an unknown window"
    whose = f", {one_line(fill['model'], 60)}" if fill["model"] else ""
    return f"{tokens(held)} tokens{of}{whose}"


def dollars(usd: float, *, estimated: bool = False) -> str:
    """`$0.42`; `≈$0.42` for an estimate."""
    about = "≈" if estimated else ""
    return f"{about}${usd:.2f}"


def consumption(used: Mapping[str, Any]) -> str:
    """What was used, as one part of a line: `≈12.3k tokens in, 950 out, ≈$0.42`. `used`: as JSON
    has it."""
    mark = "≈" if used["estimated"] else ""
    spent = dollars(used["cost_usd"], estimated=used["estimated"])
    return f"{mark}{tokens(used['input'])} tokens in, {mark}{tokens(used['output'])} out, {spent}"


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
"""What a receipt's verdict means for a person, beside its name."""


def receipt_words(verdict: str) -> str:
    """Return `receipt native (continued)`: the verdict's name, and what it means."""
    words = VERDICTS.get(verdict, verdict)
    return f"receipt {verdict}" if words == verdict else f"receipt {verdict} ({words})"


def tokens(count: int) -> str:
    """`950`, `12.3k`, `1.2M`."""
    if count < 1000:
        return str(count)
    return f"{count / 1000:.1f}k" if count < 999_950 else f"{count / 1_000_000:.1f}M"
