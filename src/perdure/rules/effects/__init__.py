"""The effect ledger: what an agent did outside its workdir, read from its tool calls.

A workdir can be restored and a conversation resumed, but a push or a published package cannot be
undone. The ledger lists such effects by attempt. The next attempt's prompt lists them as already
done, and asks the agent to verify before it repeats one. `report` and the prompt read it from the
journal; nothing else is stored.

A tool call is recorded when it begins, and again with its outcome when it ends. Without a record of
its end, the outcome is unknown. Shell commands are parsed (`shell`) and looked up in a table
(`catalog`). A program that the table does not list as local counts as a possible effect. The
effects of the agent's own scripts are not detected.
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
"""Beginning of the result with which Claude Code (2.1.329) answers a call whose command continues
in the background. The end of that command will not be reported."""


class Effect(msgspec.Struct, frozen=True):
    """One effect of a tool call outside the workdir."""

    attempt: int
    kind: str
    command: str
    ok: bool | None
    """Whether the effect succeeded; None if unknown."""
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
            # A sandbox stops a call after it has begun. So the record of the call's end, and not
            # the record of the denial, shows the outcome.
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
    """Return the effects outside the workdir that a shell command has or may have. Never raises."""
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
    """Return the effect with its outcome. `ok` is the result of the call. If one call runs
    several programs, its result may not show the result of each program."""
    if effect.outcome == DENIED:
        return effect
    if ok and each.proves:
        return replace(effect, ok=True, outcome=DONE)
    if not ok and each.disproves:
        return replace(effect, ok=False, outcome=FAILED)
    return replace(effect, outcome=OUTCOME_UNKNOWN)
