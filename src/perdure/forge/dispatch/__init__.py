"""Deliveries become work: a task for the agent that wants it, or new instructions for the one that
is at it already; and what is over is cleaned up.

`perdure serve` is the caller. The rooms: `dispatcher` (the thread, and what becomes of each
delivery), `selection` (whose it is), `prompts` (what the agent is told, from templates that a team
can change) with `outside` (what others wrote in it), `current` and `order` (how it stands now),
`cleanup` (what is over), `reconciler` (what no delivery told).

Each delivery is settled in the very transaction that makes its run or adds its instructions, so a
kill at any point does it once or not yet. What cannot be done now (the agent is at work, a full
disk, a conversation that a person has open) stays `received`, says why, and is tried again; what
never can is `failed`, with why.
"""

from perdure.forge.dispatch.dispatcher import Dispatcher
from perdure.forge.dispatch.reconciler import Reconciler

__all__ = ["Dispatcher", "Reconciler"]
