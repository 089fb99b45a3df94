"""Reads people's answers to an agent's tool calls. Used by the bridges between perdure and an
agent.

The bridges import this module before they let a call run. It needs no other module of perdure, and
only the standard library. The parameter `directory` is the run's directory of requests, with the
files that `agents.claude.hook` describes.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path


def digest(tool: str, given: object) -> str:
    """Return the SHA-256 of a call's name and arguments. It is the same digest that
    `perdure.rules.requests.digest` computes."""
    text = json.dumps([tool, given], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def use(directory: str, *keys: str) -> bool:
    """Return whether a person allowed the call that has one of these digests. An approval is then
    marked as used, and does not allow the same call again. A refusal takes precedence over an
    approval."""
    decisions = _decisions(directory, keys)
    if any(each["answer"] == "deny" for each in decisions):
        return False
    for each in decisions:
        if each["answer"] == "allow" and _take(f"{directory}/used-{each['number']}"):
            return True
    return False


def refusal(directory: str, *keys: str) -> str | None:
    """Return the words with which a person refused the call that has one of these digests. None if
    no person refused it."""
    for each in _decisions(directory, keys):
        if each["answer"] == "deny":
            return str(each["words"])
    return None


def _decisions(directory: str, keys: tuple[str, ...]) -> list[dict[str, object]]:
    """Return the answers to calls with one of these digests. Empty if the file cannot be read."""
    try:
        known = json.loads(Path(directory, "decisions.json").read_text("utf-8"))
    except (OSError, ValueError):
        return []
    return [each for each in known if each["sha256"] in keys]


def _take(path: str) -> bool:
    """Create the file that marks an answer as used. Return True if the answer had not been used
    before."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return False
    return True
