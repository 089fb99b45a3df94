"""The audit trail: who did what. Only for admins, because it names people and tokens."""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.model import TokenScope
from perdure.model.codec import encode
from perdure.server.api import forms
from perdure.server.api.verbs import ApiCall, Raw, Verb, page_of
from perdure.server.audit import run_id_of
from perdure.server.context import Parts

EXPORT_MOST = 10_000
"""Maximum number of lines of one export. The number of its last line is the next `after`."""


def lines(parts: Parts, asked: ApiCall) -> dict[str, Any]:
    wanted = asked.query
    found = parts.store.audit(
        since=wanted.since,
        actor=wanted.actor,
        run=run_id_of(parts.store, wanted.run),
        after=wanted.after,
        limit=wanted.limit + 1,
    )
    shown, last = page_of(found, wanted.limit)
    return {
        "lines": [msgspec.structs.asdict(each) for each in shown],
        "next": last.number if last is not None else None,
    }


def export(parts: Parts, asked: ApiCall) -> Raw:
    wanted = asked.query
    found = parts.store.audit(
        since=wanted.since,
        actor=wanted.actor,
        run=run_id_of(parts.store, wanted.run),
        after=wanted.after,
        limit=EXPORT_MOST,
    )
    content = "".join(f"{encode(each)}\n" for each in found).encode()
    return Raw(content=content, name="audit.jsonl")


VERBS = (
    Verb(
        method="GET",
        path="/audit",
        says="The audit trail, oldest line first: who did what.",
        does=lines,
        answer="Audit",
        scope=TokenScope.ADMIN,
        query=forms.AuditQuery,
    ),
    Verb(
        method="GET",
        path="/audit/export",
        says=(
            "The audit trail as JSON lines, 10,000 at a time: the number of the last line is the "
            "next `after`."
        ),
        does=export,
        answer="text",
        scope=TokenScope.ADMIN,
        query=forms.AuditExportQuery,
    ),
)
