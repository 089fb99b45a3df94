"""Turns deliveries into work: a task for the agent that a rule selects, or new instructions for the
run that exists already. Cleans up when the work is over.

`perdure serve` is the caller. The modules: `dispatcher` (the thread, and the decision on each
delivery), `selection` (which rule handles it), `prompts` (the text for the agent, from templates
that a team can change) with `outside` (text from the forge in it), `current` and `order` (the
present state), `cleanup` (finished work), `reconciler` (changes that no delivery reported).

A delivery is settled in the same transaction that makes its run or adds its instructions, so a kill
at any point leaves it done once or not done yet. A delivery that cannot be handled now (the agent
is running, the disk is full, a person has the conversation open) stays `received`, says why, and is
tried again. One that can never be handled becomes `failed`, with the reason.
"""

from perdure.forge.dispatch.dispatcher import Dispatcher
from perdure.forge.dispatch.reconciler import Reconciler

__all__ = ["Dispatcher", "Reconciler"]
