"""Reports runs to the forge: writes a comment on the run's issue, and pushes the run's branch so
that others can review it.

Runs as a thread of `perdure serve` (`background`). For each run that a delivery began, the wanted
state of the forge is computed from the run's present state, and compared with what was already
posted (`perdure.model.forge.postings.Posting`). The wanted state consists of one comment, which is
edited and never repeated (`sentences` writes its text), reactions and a commit status (`comments`),
and the pushed branch and a pull request (`publication`).

No step depends on a single event, so a missed event does no harm. Each step is stored when it is
done, and can be repeated. After a kill, or when the forge was down or refused a request, the work
continues and nothing is posted twice.
"""

from __future__ import annotations

from perdure.forge.replies.background import Poster
from perdure.forge.replies.comments import PostingUpdater

__all__ = ["Poster", "PostingUpdater"]
