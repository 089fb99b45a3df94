"""Finds calls and questions that are in Codex's rollout but not in its output, and returns them as
events. Pure; written against 0.169.0.

`exec --json` has no line for a rejected call or for a question to the user. Both are only in the
rollout, as the result of a `function_call`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from msgspec.structs import replace

from perdure.agents.codex.transcript import prompt_of
from perdure.agents.shared import json_lines
from perdure.agents.shared.calls import question, sandboxed
from perdure.model.events import AgentEvent, QuestionAsked, ToolDenied
from perdure.model.tasks import MESSAGE_START
from perdure.patterns import late_pattern

SUMMARY = 500
_ASKS = "request_user_input"
_REJECTED = late_pattern(
    r"approval policy is |exec_command failed.{0,80}rejected|patch rejected|rejected by |rejected: "
    r"|Command blocked by|Tool call blocked by",
    re.IGNORECASE,
)
"""Pattern of the first words in the result of a call that was not allowed to run."""
_FAILED = late_pattern(r"Process exited with code [1-9]")
_NO_NETWORK = late_pattern(
    r"Could not resolve|Couldn't connect to server|Network is unreachable|Name or service not known"
    r"|Temporary failure in name resolution|EAI_AGAIN|ENOTFOUND|ECONNREFUSED|NameResolutionError"
    r"|dial tcp|getaddrinfo|failed to lookup address",
    re.IGNORECASE,
)
"""Pattern of the error texts of a command that could not reach a host. Codex does not report that
its sandbox was the reason. So the turn's settings are used, which tell whether the sandbox had a
network. A sandbox without a network cannot reach 127.0.0.1 either."""
_LOOKING = frozenset({"list_mcp_resources", "read_mcp_resource", "update_plan", "view_image"})
_ARGUMENTS = ("cmd", "command", "input", "path", "query")


def unprinted(content: bytes) -> list[AgentEvent]:
    """Return events for the questions and the rejected calls since the newest prompt. A rejected
    call is left out if a later call that succeeded shows that the agent was not stopped (see
    `_after`)."""
    calls: dict[str, Mapping[str, object]] = {}
    found: list[AgentEvent] = []
    offline = False
    for line in content.split(b"\n"):
        settings = json_lines.read(line) if b'"turn_context"' in line else None
        if settings is not None and settings.get("type") == "turn_context":
            offline = _is_offline(settings)
        if b'"response_item"' in line:
            entry = json_lines.read(line)
        else:
            entry = None
        item = entry.get("payload") if entry is not None else None
        if not isinstance(item, dict):
            continue
        match item.get("type"):
            case "message" if item.get("role") == "user" and (words := prompt_of(item)):
                # A message to the running turn is no new prompt.
                if not words.startswith(MESSAGE_START):
                    found, calls = [], {}
            case "function_call" | "custom_tool_call":
                calls[json_lines.text(item.get("call_id"), SUMMARY)] = item
            case "function_call_output" | "custom_tool_call_output":
                key = json_lines.text(item.get("call_id"), SUMMARY)
                output = _words(item.get("output"))
                found = _after(found, key, calls.get(key, {}), output, offline=offline)
            case _:
                pass
    return found


def _is_offline(settings: Mapping[str, object]) -> bool:
    """Return whether the turn's sandbox has no network."""
    profile = json_lines.part(settings, "payload", "permission_profile", "network")
    policy = json_lines.part(settings, "payload", "sandbox_policy", "network_access")
    return profile == "restricted" or (profile is None and policy is False)


def _after(
    found: list[AgentEvent], key: str, call: Mapping[str, object], output: str, *, offline: bool
) -> list[AgentEvent]:
    """Return the events `found` so far, updated for one more call whose result is `output`. A
    rejected call and a question add an event. A successful call removes the denials that did not
    stop the agent, and marks all earlier questions as settled."""
    name, summary = json_lines.text(call.get("name"), SUMMARY), _argument(call)
    if name == _ASKS:
        return [*found, question(key, json_lines.read(str(call.get("arguments") or "").encode()))]
    if _REJECTED.match(output):
        denied = ToolDenied(key, name, summary, reason=json_lines.text(output, SUMMARY))
        return [*found, denied]
    failed = _FAILED.search(output[:SUMMARY]) is not None
    if failed and (sandboxed(output) or (offline and _NO_NETWORK.search(output))):
        if sandboxed(output):
            reason = output
        else:
            reason = f"the sandbox has no network: {output}"
        stopped = ToolDenied(
            key, name, summary, by="sandbox", reason=json_lines.text(reason, SUMMARY)
        )
        return [*found, stopped]
    if name in _LOOKING or output.startswith("unsupported call"):
        return found
    if failed:
        return found
    # This call succeeded. So earlier denials by the sandbox, and earlier denials of the same
    # command, did not stop the agent. Their events are removed.
    kept = []
    for each in found:
        if not (isinstance(each, ToolDenied) and (each.by == "sandbox" or each.summary == summary)):
            kept.append(each)
    result = []
    for each in kept:
        result.append(replace(each, settled=True) if isinstance(each, QuestionAsked) else each)
    return result


def _argument(call: Mapping[str, object]) -> str:
    """Return the main argument of a call: the first text that has one of `_ARGUMENTS` as its key.
    If there is none, return all arguments as text."""
    raw = call.get("arguments") or call.get("input")
    given = json_lines.read(str(raw or "").encode()) or {}
    named = (given.get(key) for key in _ARGUMENTS)
    first = next((value for value in named if isinstance(value, str) and value), raw)
    return json_lines.text(first, SUMMARY)


def _words(output: object) -> str:
    if isinstance(output, str):
        return output
    parts = (json_lines.text(item.get("text")) for item in json_lines.items(output))
    return "\n".join(parts) or json_lines.text(json_lines.part(output, "content"))
