"""Reports to the forge: writes a comment on the run's issue, and pushes the run's branch so that
others can review it.

A thread of `perdure serve`, beside the webhooks and the pool (`background`). For each run that a
delivery began, the wanted state of the forge is computed from the run as it is, and compared with
what was already posted (`perdure.model.forge.postings.Posting`). The wanted state consists of one
comment, which is edited and never repeated (`sentences`, `escapes`), reactions and a commit's
status (`comments`), and the pushed branch and a pull request (`publication`).

No step depends on a single event, so nothing is lost if an event is missed. Each step is stored
when it is done, and can be repeated: after a kill, or when the forge was down or refused, the work
continues and is posted once.
"""

from __future__ import annotations

from perdure.forge.replies.background import Poster
from perdure.forge.replies.comments import PostingUpdater

__all__ = ["Poster", "PostingUpdater"]
