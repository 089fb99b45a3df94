"""The verb with which a client asks for its own identity, scope and limits."""

from __future__ import annotations

from perdure.server.api.shapes import Caller
from perdure.server.api.verbs import ApiCall, Verb
from perdure.server.context import Parts
from perdure.server.limits import Reach


def whoami(parts: Parts, asked: ApiCall) -> Caller:
    """Return the client's actor, scope and limits."""
    who = asked.who
    return Caller(
        schema_version=1,
        actor=who.actor,
        name=who.name,
        scope=who.scope,
        repositories=list(who.limits.repositories),
        labels=[f"{name}={pattern}" for name, pattern in who.limits.labels],
        expires=who.expires,
    )


VERBS = (
    Verb(
        method="GET",
        path="/whoami",
        says="Who the client is to this server: actor, scope, limits, and when it expires.",
        does=whoami,
        answer="Caller",
        reach=Reach.NOTHING,
    ),
)
