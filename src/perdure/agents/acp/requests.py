"""Finds the tool calls for which an agent requested a permission over ACP and did not get it.
Pure."""

from __future__ import annotations

import json

from perdure.agents.shared import json_lines
from perdure.agents.shared.json_lines import OutputLine
from perdure.model import Permissions
from perdure.model.requests import OpenCall

SUMMARY = 500


def may_ask(level: Permissions, allow: str) -> bool:
    """Return whether a person can allow calls that the bridge would deny. True only at the level
    `edit`, unless the bridge grants every call anyway."""
    return level is Permissions.EDIT and allow != "anything"


def open_calls(output: bytes) -> list[OpenCall]:
    """Return the tool calls in the bridge's output for which a permission was requested and not
    granted."""
    lines = (json_lines.read(line) for line in output.split(b"\n") if b'"asked"' in line)
    asked = [each for each in lines if each and each.get("type") == "asked"]
    return [_call(each) for each in asked if each.get("granted") is False]


def _call(asked: OutputLine) -> OpenCall:
    given = asked.get("input")
    command = json_lines.text(json_lines.part(given, "command"), SUMMARY)
    return OpenCall(
        call=json_lines.text(asked.get("tool"), SUMMARY),
        tool=json_lines.text(asked.get("name"), SUMMARY),
        input=json.dumps(given, ensure_ascii=False).encode("utf-8", "replace").decode(),
        summary=command or json_lines.text(asked.get("title"), SUMMARY),
    )
