"""Reads and writes the file of saved approval rules, `approvals.toml` in the state directory.
`perdure approve --always` and `perdure deny --always` write it, and it is read at the end of each
attempt. People may edit it.

The file is not in the repository, because the agent that asks for approval could change it there.
"""

from __future__ import annotations

import fcntl
import json
import re
from pathlib import Path

import msgspec

from perdure.errors import ConfigError, UsageError
from perdure.host.homes import durable
from perdure.model.codec import resolved
from perdure.patterns import late_pattern
from perdure.rules.approvals import ApprovalRule

HEAD = """\
# Calls of agents that are allowed or refused without asking again. Written by `perdure approve
# --always` and `perdure deny --always`; edit it as you like. A rule that denies wins.
"""
_HIDDEN = late_pattern(
    "[\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)
"""Pattern of characters that a reviewer would not see. They are written as TOML escape sequences.
"""


def path_of(state: Path) -> Path:
    """Return the path of the file of saved approval rules, whether or not the file exists."""
    return state / "approvals.toml"


def load(state: Path) -> tuple[ApprovalRule, ...]:
    """Return the saved rules. Raises ConfigError if the file cannot be read or is invalid."""
    path = path_of(state)
    try:
        text = path.read_text(encoding="utf-8")
        import tomllib  # imported late: most hosts have no such file

        rules = tomllib.loads(text).get("rule", [])
        return tuple(msgspec.convert(rules, resolved(list[ApprovalRule])))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path}: {error}"], "repair the file, or remove it") from None


def save(state: Path, rule: ApprovalRule) -> Path:
    """Add a rule to the file, and return the file's path. Raises ConfigError if the file is
    invalid, and UsageError if the rule cannot be written as TOML."""
    path = path_of(state)
    with (state / "approvals.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        load(state)
        if path.exists():
            before = path.read_text(encoding="utf-8")
        else:
            before = HEAD
        durable.write(path, f"{before}\n{rendered(rule)}")
    return path


def rendered(rule: ApprovalRule) -> str:
    """Return the rule as a TOML table. Raises UsageError if it has characters that are not
    Unicode."""
    values = msgspec.structs.asdict(rule)
    lines = [f"{key} = {_quoted(value)}" for key, value in values.items() if value]
    text = "\n".join(("[[rule]]", *lines, ""))
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(
            "No rule can be made: the call or your answer contains invalid Unicode",
            "answer without --always",
        ) from None
    return text


def _quoted(text: str) -> str:
    """Return the text as a TOML string on one line, with hidden characters escaped."""
    return _HIDDEN.sub(_escape, json.dumps(text, ensure_ascii=False))


def _escape(found: re.Match[str]) -> str:
    return f"\\U{ord(found[0]):08X}"
