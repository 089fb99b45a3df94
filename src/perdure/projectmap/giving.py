"""Which prompts get the project map. Pure; asked by `attempt.mapping`."""

from __future__ import annotations

from perdure.model import Continuation, MapWhen, Start


def is_due(when: MapWhen, asked: Continuation, *, sessions: bool) -> bool:
    """`sessions`: the agent can go on with a conversation. A prompt that goes on with one has no use for the map, unless `always`."""
    if when is MapWhen.OFF or asked.kind in (Start.WAIT, Start.REFUSE):
        return False
    anew = asked.kind in (Start.FRESH, Start.REBUILD)
    lost = anew and (asked.kind is Start.REBUILD or bool(asked.lost_session_id))
    return when is MapWhen.ALWAYS or lost or (anew and (when is MapWhen.FIRST or not sessions))
