"""The session service for asyncio programs: each method runs in a worker thread. Called by the
library."""

from __future__ import annotations

import asyncio
from typing import Any

from msgspec import Struct

from perdure.engine.sessions.service import Rebuilt, Sessions
from perdure.engine.sessions.statistics import Statistics
from perdure.model import Session


class AsyncSessions(Struct, frozen=True):
    """The methods of `Sessions` as coroutines."""

    sessions: Sessions

    async def create(
        self, agent: str, scope: str, *, cwd: str = "", lifetime_s: float | None = None
    ) -> Session:
        """Create a session. See `Sessions.create`."""
        return await asyncio.to_thread(
            self.sessions.create, agent, scope, cwd=cwd, lifetime_s=lifetime_s
        )

    async def get(self, agent: str, scope: str) -> Session | None:
        """Return the live session of a scope, or None. See `Sessions.get`."""
        return await asyncio.to_thread(self.sessions.get, agent, scope)

    async def lineage(self, agent: str, scope: str) -> tuple[Session, ...]:
        """Return all sessions that a scope had. See `Sessions.lineage`."""
        return await asyncio.to_thread(self.sessions.lineage, agent, scope)

    async def update(self, agent: str, scope: str, native_id: str) -> Session:
        """Replace the session's id. See `Sessions.update`."""
        return await asyncio.to_thread(self.sessions.update, agent, scope, native_id)

    async def count_task(self, agent: str, scope: str) -> Session:
        """Count one more task. See `Sessions.count_task`."""
        return await asyncio.to_thread(self.sessions.count_task, agent, scope)

    async def extend(self, agent: str, scope: str, lifetime_s: float | None = None) -> Session:
        """Restart the session's lifetime. See `Sessions.extend`."""
        return await asyncio.to_thread(self.sessions.extend, agent, scope, lifetime_s)

    async def close(self, agent: str, scope: str, cause: str = "closed") -> Session:
        """Retire the session. See `Sessions.close`."""
        return await asyncio.to_thread(self.sessions.close, agent, scope, cause)

    async def statistics(self, **span: Any) -> Statistics:
        """Return statistics of the attempts that ended in a period. See `Sessions.statistics`."""
        return await asyncio.to_thread(lambda: self.sessions.statistics(**span))

    async def rebuild(self) -> tuple[Rebuilt, ...]:
        """Rebuild lost session records. See `Sessions.rebuild`."""
        return await asyncio.to_thread(self.sessions.rebuild)
