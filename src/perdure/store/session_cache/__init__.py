"""A cache of live sessions in front of the store, for callers that only display the session and
never act on it. `wiring` opens it.

The store's table is authoritative. Code that changes a conversation or its record, such as an
attempt, reads the store itself. So an error in the cache cannot revive a retired conversation or
begin a second one, and a lost cache only makes lookups slower. The modules: `lookups` (memory, then
Redis, then the store), `redis` (the shared part: scripts, time limits, a circuit breaker),
`records` (the cached records, signed with the store's own secret, because other programs can write
to Redis too).

A cached session may be outdated. While all processes reach Redis, an outdated session is replaced
within moments. If a process stored a session but could not reach Redis, the outdated one is used
for at most `records.SURE_S` seconds.
"""

from __future__ import annotations

# The name hides the builtin `open`, because callers write `session_cache.open`.
from perdure.store.session_cache.lookups import CachedLookups, open  # noqa: A004

__all__ = ["CachedLookups", "open"]
