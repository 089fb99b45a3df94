"""Limits of tokens to repositories and labels. Only this module applies them:
`principal.authenticated` checks the `Reach` of a route, and the API and the pages read through
`LimitedStore`.

Limited tokens may use a route only if the route's path names a run, or if the route itself says how
it keeps to the limits. A run outside of the limits is reported as not found, as if it did not
exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from perdure.errors import NotFound
from perdure.model import RunState, TaskRun
from perdure.rules.access import AccessLimits
from perdure.server.problems import Problem

if TYPE_CHECKING:
    from perdure.engine.attempt.engine import EngineStore
    from perdure.model.events import Record
    from perdure.model.requests import AgentRequest
    from perdure.protocols import BoardRow, RunProperties, RunRow
    from perdure.rules.audit_chain import AuditLine

PAGE = 200
ALL = 2**62
OF_A_RUN = frozenset(
    {
        "attempt_history",
        "attempts",
        "checkpoints",
        "contexts",
        "history",
        "latest",
        "latest_word",
        "posting",
        "requests",
        "run_events",
    }
)
"""Methods of the store that take the id of a run as their first argument. `LimitedStore` refuses
the call if the run is outside of the limits."""
OF_NO_RUN = frozenset({"now", "session", "newest_record"})


class Reach(StrEnum):
    """How a route enforces the repository and label limits of a token."""

    RUN = "run"
    """The address names the one run that the route shows or changes."""
    LIST = "list"
    """The route shows only what `LimitedStore` returns."""
    TASK = "task"
    """The route creates a task. It refuses a task whose repository or labels are outside of the
    limits."""
    NOTHING = "nothing"
    """The route shows nothing about runs."""
    WHOLE = "whole"
    """The route is about the whole server. Tokens with limits may not use it."""

    @staticmethod
    def of(path: str) -> Reach:
        """Return the default reach for a path: RUN if the path names a run, or else WHOLE."""
        if path.startswith(("/runs/{run}", "/runs/{name}")):
            return Reach.RUN
        return Reach.WHOLE


class LimitedStore:
    """The store as a token with limits may see it, for one request. Three groups of methods can be
    called: those of this class, those in `OF_A_RUN` and those in `OF_NO_RUN`. Any other method of
    the store raises a Problem with 403."""

    def __init__(self, store: EngineStore, limits: AccessLimits) -> None:
        self._store, self._limits = store, limits

    def __getattr__(self, name: str) -> Any:
        if name in OF_NO_RUN:
            return getattr(self._store, name)
        if name not in OF_A_RUN:
            raise whole_server(self._limits)

        def checked(run: str, *more: Any, **named: Any) -> Any:
            self.get(run)
            return getattr(self._store, name)(run, *more, **named)

        return checked

    @cached_property
    def _marks(self) -> Mapping[str, RunProperties]:
        """Return the repository, labels, agent and role of each run inside of the limits, by the
        run's id."""
        found = {}
        for each in self._store.run_properties():
            if self._limits.see(each.repo, each.labels):
                found[each.id] = each
        return found

    def sees(self, run: str) -> bool:
        """Return whether the run with this id is inside of the limits."""
        return run in self._marks

    def get(self, ref: str) -> TaskRun:
        try:
            run = self._store.get(ref)
        except NotFound:
            # The store's own error names similar runs, which may be outside of the limits.
            raise no_run(ref) from None
        place = run.workspace.repo if run.workspace is not None else ""
        if not self._limits.see(run.spec.repo or place, run.spec.labels):
            raise no_run(ref)
        return run

    def find(
        self,
        states: Sequence[RunState] = (),
        limit: int = 50,
        *,
        before: int = 0,
        agent: str = "",
        scope: str = "",
    ) -> Sequence[RunRow]:
        found: list[RunRow] = []
        while len(found) < limit:
            rows = self._store.find(states, PAGE, before=before, agent=agent, scope=scope)
            found += [each for each in rows if self.sees(each.id)]
            if len(rows) < PAGE:
                break
            before = rows[-1].ordinal
        return found[:limit]

    def journal(self, after: int = 0, limit: int = 1000) -> Sequence[Record]:
        return [each for each in self._store.journal(after, limit) if self.sees(each.run)]

    def open_requests(self, limit: int = 1000) -> Sequence[AgentRequest]:
        found = self._store.open_requests(ALL)
        return [each for each in found if self.sees(each.run)][:limit]

    def parked(self) -> Sequence[object]:
        """Return an empty list. Parked accounts concern the whole server, so a limited token sees
        none of them."""
        return ()

    def ended(self, since: int, until: int, agent: str = "", scope: str = "") -> Sequence[Any]:
        found = self._store.ended(since, until, agent, scope)
        return [each for each in found if self.sees(each[1].run)]

    def audit(
        self, *, since: int = 0, actor: str = "", run: str = "", after: int = 0, limit: int = 1000
    ) -> Sequence[AuditLine]:
        """Return the lines of the audit trail that are about runs within the token's limits."""
        found: list[AuditLine] = []
        while len(found) < limit:
            lines = self._store.audit(since=since, actor=actor, run=run, after=after, limit=PAGE)
            found += [each for each in lines if each.run and self.sees(each.run)]
            if len(lines) < PAGE:
                break
            after = lines[-1].number
        return found[:limit]

    def placed(self) -> Sequence[Any]:
        return [each for each in self._store.placed() if self.sees(each.id)]

    # --- Methods for the board

    def board(
        self,
        group: str,
        *,
        agent: str = "",
        words: str = "",
        before: tuple[int, int] = (ALL, ALL),
        limit: int = 50,
    ) -> Sequence[BoardRow]:
        found: list[BoardRow] = []
        while len(found) < limit:
            rows = self._store.board(group, agent=agent, words=words, before=before, limit=PAGE)
            found += [each for each in rows if self.sees(each.id)]
            if len(rows) < PAGE:
                break
            before = rows[-1].place
        return found[:limit]

    def board_counts(self, *, agent: str = "", words: str = "") -> Mapping[str, int]:
        found = dict.fromkeys(("asking", *map(str, RunState)), 0)
        for run, group in self._store.board_found(agent=agent, words=words):
            if self.sees(run):
                found[group] += 1
        return found

    def board_asking(self) -> int:
        return self.board_counts()["asking"]

    def board_agents(self) -> Sequence[str]:
        return sorted({each.agent for each in self._marks.values()})

    def board_roles(self) -> Sequence[str]:
        return sorted({each.role for each in self._marks.values() if each.role})


def store_of(store: EngineStore, limits: AccessLimits) -> EngineStore:
    """Return the store that a token with these limits may use."""
    if not limits:
        return store
    return cast("EngineStore", LimitedStore(store, limits))


def no_run(ref: str) -> NotFound:
    """Return the error for a run that does not exist or is outside of the limits."""
    return NotFound(f"There is no run {ref!r}", "perdure ls")


def whole_server(limits: AccessLimits) -> Problem:
    """Return the error for a client with a limited token that requests a route about the whole
    server."""
    return Problem(
        403,
        f"This is about the whole server, and the token is limited to {limits}",
        "use a token without limits: perdure token new NAME",
    )


def refuse_outside(limits: AccessLimits, repo: str, labels: Mapping[str, str]) -> None:
    """Raise Problem with 403 if a new task is outside of the limits."""
    if not limits.has_repository(repo):
        raise Problem(
            403,
            f"The token is limited to {limits}, and the task is for another repository",
            f"name one of: {', '.join(limits.repositories)}",
        )
    if not limits.has_labels(labels):
        wanted = [f"{name}={pattern}" for name, pattern in limits.labels]
        raise Problem(
            403,
            f"The token is limited to {limits}, and the task has other labels",
            f"give the labels {', '.join(wanted)}",
        )


def refuse_shared(limits: AccessLimits, said: Mapping[str, Any]) -> None:
    """Raise Problem with 403 if a client with limits chooses the conversation or workdir of a new
    run. Otherwise the client could choose one that a run outside of the limits uses."""
    if not limits:
        return
    names = ("scope", "service", "task", *(("branch",) if limits.labels else ()))
    shared = [name for name in names if said.get(name)]
    if shared:
        raise Problem(
            403,
            f"The token is limited to {limits}, and other runs may use the same "
            f"{' and '.join(shared)}",
            f"leave out {', '.join(shared)}",
        )


def visible(records: Iterable[Record], limits: AccessLimits, store: EngineStore) -> list[Record]:
    """Return those records whose runs are inside of the limits. Blocks on the store."""
    if not limits:
        return list(records)
    seen: dict[str, bool] = {}
    for each in records:
        if each.run not in seen:
            seen[each.run] = _is_visible(each.run, limits, store)
    return [each for each in records if seen[each.run]]


def _is_visible(run: str, limits: AccessLimits, store: EngineStore) -> bool:
    try:
        LimitedStore(store, limits).get(run)
    except NotFound:
        return False
    return True
