"""A cache of live sessions in front of the store: for those who look, never for those who act.
`wiring` is who opens one.

The store's table is the truth. Whoever is about to work on a conversation (an attempt, a verb that
changes a record) reads the store itself, so nothing that happens to the cache can bring back a
retired conversation or begin a second one; a lost cache costs a lookup. Three rooms: `lookups`
(memory, then Redis, then the store), `redis` (the shared part: scripts, time limits, a breaker),
`records` (what is kept in it, signed with the store's own secret, because other programs can write
there too).

A lookup may be late: by moments, while everybody is reachable; by at most `records.SURE_S` where a
writer could not reach Redis.
"""

from __future__ import annotations

# `open` is read as session_cache.open.
from perdure.store.session_cache.lookups import Lookups, open  # noqa: A004

__all__ = ["Lookups", "open"]
