"""Turns deliveries into work. A delivery becomes a task for the agent that a rule selects, or new
instructions for an existing run. Also cleans up when the work is over.

Called by `perdure serve`. The modules:

- `dispatcher`: the thread, and the decision on each delivery. `selection`: which rule handles it.
- `current`: the present state of the forge. `coalesce`: edits of a text, merged into one event.
- `checks`: failed checks. `comments`: answers to requests, and comments on closed issues.
- `prompts`: the text for the agent, from templates that a team can change.
- `withdrawal`: work that is taken back, and the clean-up of work that is over.
- `reconciler`: changes that no delivery reported.

A delivery is settled in the same transaction that creates its run or adds its instructions. So
after a kill it is either handled once, or still waiting. If a delivery cannot be handled now (the
agent is running, the disk is full, a person has the conversation open), it stays `received` with
the reason, and is tried again. If it can never be handled, it becomes `failed`, with the reason.
"""

from perdure.forge.dispatch.dispatcher import Dispatcher
from perdure.forge.dispatch.reconciler import Reconciler

__all__ = ["Dispatcher", "Reconciler"]
