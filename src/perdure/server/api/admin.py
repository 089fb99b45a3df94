"""Verbs for disk usage, clean-up and the trash. A sweep moves what it removes to the trash, and so
does a reset. Neither changes anything unless the request says `dry_run: false`."""

from __future__ import annotations

from pathlib import Path

from perdure.engine import sweeper
from perdure.engine.sweeper import Target
from perdure.errors import NotFound, UsageError
from perdure.model import TokenScope
from perdure.model.disk_reports import DiskReport, ResetReport, SweepReport, TrashList
from perdure.server.api import forms
from perdure.server.api.shapes import Purged, Returned
from perdure.server.api.verbs import ApiCall, Verb
from perdure.server.context import Parts


def disk(parts: Parts, asked: ApiCall) -> DiskReport:
    return sweeper.usage(parts.engine.store, parts.engine.workspaces, parts.engine.state).report()


def would_go(parts: Parts, asked: ApiCall) -> SweepReport:
    found = sweeper.sweep(
        parts.engine.store,
        parts.engine.workspaces,
        parts.engine.state,
        sweeper.rules_of(parts.settings),
        dry=True,
    ).report()
    if not asked.query.all:
        found.rows = [row for row in found.rows if row.verdict != "keep"]
    return found


def swept(parts: Parts, asked: ApiCall) -> SweepReport:
    return sweeper.sweep(
        parts.engine.store,
        parts.engine.workspaces,
        parts.engine.state,
        sweeper.rules_of(parts.settings, many=asked.body.many),
        dry=asked.body.dry_run,
    ).report()


def reset(parts: Parts, asked: ApiCall) -> ResetReport:
    said = asked.body
    if said.run and (
        said.agent or said.repository or said.issue or said.branch or said.service or said.task
    ):
        raise UsageError("a run's name excludes the other fields")
    target = Target(
        run=said.run,
        agent=said.agent,
        repo=said.repository,
        issue=str(said.issue),
        branch=said.branch,
        service=said.service,
        task=said.task,
    )
    return sweeper.reset(
        parts.engine.store,
        parts.engine.workspaces,
        parts.engine.host,
        target,
        Path("/"),
        dry=said.dry_run,
    ).report(dry=said.dry_run)


def trash(parts: Parts, asked: ApiCall) -> TrashList:
    found = sweeper.listed(parts.engine.workspaces, parts.engine.state)
    return TrashList(schema_version=1, entries=[entry.report() for entry in found])


def brought_back(parts: Parts, asked: ApiCall) -> Returned:
    back = sweeper.restore(
        parts.engine.store, parts.engine.workspaces, parts.engine.state, asked.at["entry"]
    )
    return Returned(
        schema_version=1,
        places=list(map(str, back.places)),
        sessions=list(back.sessions),
        run=back.run,
    )


def purged(parts: Parts, asked: ApiCall) -> Purged:
    wanted = asked.at["entry"]
    listed = sweeper.listed(parts.engine.workspaces, parts.engine.state)
    if wanted not in {entry.id for entry in listed}:
        # Purging deletes data permanently, so the request must give the full id and not only its
        # beginning.
        raise NotFound(
            f"There is no entry {wanted!r} in the trash", "GET /api/v1/trash lists full ids"
        )
    gone = sweeper.purge(parts.engine.workspaces, parts.engine.state, wanted)
    return Purged(schema_version=1, id=gone.id)


ADMIN = TokenScope.ADMIN

VERBS = (
    Verb(
        method="GET",
        path="/disk",
        says="How much disk perdure takes, by class, agent and repository.",
        does=disk,
        answer="Disk",
        walks=True,
    ),
    Verb(
        method="GET",
        path="/disk/sweep",
        says="What the next sweep would remove, and what waits for a person.",
        does=would_go,
        answer="Swept",
        query=forms.SweepQuery,
        walks=True,
    ),
    Verb(
        method="POST",
        path="/admin/sweep",
        says="Removes unneeded data that is saved elsewhere.",
        does=swept,
        answer="Swept",
        scope=ADMIN,
        body=forms.SweepShape,
        walks=True,
    ),
    Verb(
        method="POST",
        path="/admin/reset",
        says="Saves, then clears the work of an agent on an issue or a branch of a repository.",
        does=reset,
        answer="Cleared",
        scope=ADMIN,
        body=forms.Reset,
    ),
    Verb(
        method="GET",
        path="/trash",
        says="What was removed and can be restored.",
        does=trash,
        answer="Trash",
    ),
    Verb(
        method="POST",
        path="/trash/{entry}/restore",
        says="Restores an entry of the trash.",
        does=brought_back,
        answer="Returned",
        scope=ADMIN,
        body=forms.Body,
    ),
    Verb(
        method="DELETE",
        path="/trash/{entry}",
        says="Deletes an entry of the trash for good.",
        does=purged,
        answer="Purged",
        scope=ADMIN,
    ),
)
