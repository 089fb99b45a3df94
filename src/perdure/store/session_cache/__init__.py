"""A cache of live sessions in front of the store, for callers that only show the answer and never
act on it. `wiring` opens it.

The store's table is authoritative. Code that is about to work on a conversation (an attempt, a verb
that changes a record) reads the store itself. So no error in the cache can revive a retired
conversation or begin a second one, and a lost cache only costs a lookup. The modules: `lookups`
(memory, then Redis, then the store), `redis` (the shared part: scripts, time limits, a circuit
breaker), `records` (the cached records, signed with the store's own secret, because other programs
can write to Redis too).

An answer may be outdated: by moments while all processes reach Redis, by at most `records.SURE_S`
if a writer could not reach it.
"""

from __future__ import annotations

# `open` is used as session_cache.open.
from perdure.store.session_cache.lookups import CachedLookups, open  # noqa: A004

__all__ = ["CachedLookups", "open"]
