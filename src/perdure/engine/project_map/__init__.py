"""The project map: the files of a workdir, what they export and import, and which task made them,
as text for an agent.

For an agent that has no conversation to know them from: one without sessions, one whose
conversation was lost, or, where that is asked for, the first prompt of any.
`engine.attempt.project_map` gives it, `perdure map` shows it, and programs may draw one:

    project = read(directory, names, parse, cache)       # files and their outlines; the only part
    that looks at the disk ranked = rank(project, "Add a total to the report")  # most relevant
    first drawn = draw(ranked, tokens=2000)                    # within the bound

What it guarantees: it stays within its tokens (see `estimate`), it reads no file outside of the
directory, and nothing that a file or a name says leaves its place in the map: no newline, no quote,
no text of a string or a comment.
"""

from perdure.engine.project_map.outline import Project
from perdure.engine.project_map.parser import ANSWER, Apart
from perdure.engine.project_map.project import read
from perdure.engine.project_map.relevance import Ranked, rank
from perdure.engine.project_map.text import Drawn, draw, estimate

__all__ = ["ANSWER", "Apart", "Drawn", "Project", "Ranked", "draw", "estimate", "rank", "read"]
