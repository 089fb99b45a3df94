"""The file of saved approval rules: `approvals.toml` in the state directory. Written by `perdure
approve --always`, read at the end of each attempt, and meant to be read and edited by people.

It is not in the repository, where the agent that asks could write it.
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
"""Characters that a reviewer would not see; TOML has escapes for them."""


def path_of(state: Path) -> Path:
    """Return the path of the file, whether or not it exists."""
    return state / "approvals.toml"


def load(state: Path) -> tuple[ApprovalRule, ...]:
    """Return the saved rules. Raises ConfigError if the file cannot be understood."""
    path = path_of(state)
    try:
        text = path.read_text(encoding="utf-8")
        import tomllib  # most hosts have no such file, and every run asks

        rules = tomllib.loads(text).get("rule", [])
        return tuple(msgspec.convert(rules, resolved(list[ApprovalRule])))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path}: {error}"], "repair the file, or remove it") from None


def save(state: Path, rule: ApprovalRule) -> Path:
    """Add a rule to the file, and return its path. Raises ConfigError."""
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
    """Return the rule as the file has it. Raises UsageError if it has no such form."""
    values = msgspec.structs.asdict(rule)
    lines = [f"{key} = {_quoted(value)}" for key, value in values.items() if value]
    text = "\n".join(("[[rule]]", *lines, ""))
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(
            "No rule can be made: the call or your answer has a character that is not Unicode",
            "answer without --always",
        ) from None
    return text


def _quoted(text: str) -> str:
    """Return a TOML string on one line, with each hidden character as an escape."""
    return _HIDDEN.sub(_escape, json.dumps(text, ensure_ascii=False))


def _escape(found: re.Match[str]) -> str:
    return f"\\U{ord(found[0]):08X}"
