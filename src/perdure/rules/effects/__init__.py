"""The effect ledger: what an agent did outside its workdir, read from its tool calls.

A workdir can be restored and a conversation resumed, but a push or a published package cannot be
undone. The ledger lists such effects by attempt, and the next attempt's prompt says: already done,
verify before you repeat. `report` and the prompt read it from the journal; nothing else is stored.

A tool call is recorded when it begins: that record is the intent. The record of its end has the
outcome. Without an end the outcome is unknown. Shell commands are parsed (`shell`) and looked up in
a table (`catalog`). Anything that the table does not know to be local is listed as possible. The
effects of a script of the agent's own are not seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from perdure.model.events import AttemptEnded, Record, ToolDenied, ToolEnded, ToolStarted

if TYPE_CHECKING:
    from perdure.rules.effects.catalog import EffectFinding

RUNNING, DONE, FAILED, OUTCOME_UNKNOWN = "running", "done", "failed", "unknown"
DENIED = "denied"
_BACKGROUND = "Command running in background"
"""Beginning of Claude Code's answer (2.1.329) to a call whose command continues in the background.
The end of that command will not be seen."""


class Effect(msgspec.Struct, frozen=True):
    """One effect of a tool call outside the workdir."""

    attempt: int
    kind: str
    command: str
    ok: bool | None
    """Whether it succeeded; None if unknown."""
    outcome: str = OUTCOME_UNKNOWN
    """`running`, `done`, `failed`, `denied` (the call did not run), or `unknown` (begun, but its
    end was not seen)."""
    possible: bool = False
    """Whether the effect is only possible, because the command is not known to be local."""
    reversible: bool | None = None
    """Whether the effect can be undone; None if unknown."""
    at: int = 0
    """Time at which the call began, in ms since 1970."""


def ledger(records: Iterable[Record]) -> list[Effect]:
    """Return the effects of a run, in the order in which their calls began."""
    found: list[Effect] = []
    calls: dict[tuple[int, str], list[tuple[int, EffectFinding]]] = {}
    for record in records:
        match record.event:
            case ToolStarted(tool_id=tool_id):
                calls.pop((record.attempt, tool_id), None)
                for each in _findings_of(record.event):
                    call = calls.setdefault((record.attempt, tool_id), [])
                    call.append((len(found), each))
                    found.append(_begun(each, record))
            case ToolEnded(ok=True, summary=summary) if summary.startswith(_BACKGROUND):
                pass
            case ToolEnded(tool_id=tool_id, ok=ok):
                for place, each in calls.get((record.attempt, tool_id), []):
                    found[place] = _ended(found[place], each, ok)
            # A call that a sandbox stopped had begun, so its end says more than the denial.
            case ToolDenied(tool_id=tool_id, by=by) if by != "sandbox":
                for place, _ in calls.get((record.attempt, tool_id), []):
                    found[place] = replace(found[place], ok=False, outcome=DENIED)
            case AttemptEnded():
                for place, effect in enumerate(found):
                    if effect.attempt == record.attempt and effect.outcome == RUNNING:
                        found[place] = replace(effect, outcome=OUTCOME_UNKNOWN)
            case _:
                pass
    return found


def effects_of(command: str) -> tuple[EffectFinding, ...]:
    """Return the effects that a shell command has, or may have, outside the workdir; never
    raises."""
    from perdure.rules.effects.catalog import of_command

    return of_command(command)


def _findings_of(call: ToolStarted) -> tuple[EffectFinding, ...]:
    from perdure.rules.effects.catalog import of_tool

    return of_tool(call.name, call.summary, call.hint)


def _begun(each: EffectFinding, record: Record) -> Effect:
    return Effect(
        attempt=record.attempt,
        kind=each.kind,
        command=each.command,
        ok=None,
        outcome=RUNNING,
        possible=each.possible,
        reversible=each.reversible,
        at=record.at,
    )


def _ended(effect: Effect, each: EffectFinding, ok: bool) -> Effect:
    """Return the effect with its outcome. The result of a call of several programs may not show the
    result of each."""
    if effect.outcome == DENIED:
        return effect
    if ok and each.proves:
        return replace(effect, ok=True, outcome=DONE)
    if not ok and each.disproves:
        return replace(effect, ok=False, outcome=FAILED)
    return replace(effect, outcome=OUTCOME_UNKNOWN)
