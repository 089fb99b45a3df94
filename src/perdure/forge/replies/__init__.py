"""Back to the forge: what became of a run stands under its issue, and its branch where others can
review it.

A thread of `perdure serve`, beside the webhooks and the pool (`poster`). For each run that a
delivery began, what is to stand on the forge is worked out from the run as it is, and compared with
what was told (`perdure.model.forge.postings.Posting`): one comment, edited and never added to
(`sentences`, `escapes`), reactions, a commit's status (`answers`); the branch pushed and a pull
request opened (`publication`). Nothing is done because of an event, so nothing that was missed is
lost; each step is stored when it is done, and can be done again: killed anywhere, a forge that was
down or would not listen, it is gone on with, and stands there once.
"""

from __future__ import annotations

from perdure.forge.replies.answers import Answering
from perdure.forge.replies.poster import Poster

__all__ = ["Answering", "Poster"]
