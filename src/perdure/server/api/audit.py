"""Verbs for the audit trail, which records actions on runs and tokens with their actors."""

from __future__ import annotations

from msgspec.structs import asdict

from perdure.server.api import forms
from perdure.server.api.shapes import Audit, LineOfAudit
from perdure.server.api.verbs import ApiCall, Verb, page_of
from perdure.server.context import Parts, run_id_of
from perdure.server.limits import Reach


def lines(parts: Parts, asked: ApiCall) -> Audit:
    wanted = asked.query
    found = parts.store.audit(
        since=wanted.since,
        actor=wanted.actor,
        run=run_id_of(parts.store, wanted.run),
        after=wanted.after,
        limit=wanted.limit + 1,
    )
    shown, last = page_of(found, wanted.limit)
    return Audit(
        schema_version=1,
        lines=[LineOfAudit(**asdict(each)) for each in shown],
        next=last.number if last is not None else None,
    )


VERBS = (
    Verb(
        method="GET",
        path="/audit",
        says="The audit trail, oldest line first: who did what.",
        does=lines,
        answer="Audit",
        query=forms.AuditQuery,
        reach=Reach.LIST,
    ),
)
