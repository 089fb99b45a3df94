"""The project map: a text for an agent that lists the files of a workdir, what they export and
import, and which task made them.

It is for an agent whose conversation does not contain the files: an agent without sessions, or one
whose conversation was lost. If requested, the first prompt of any agent gets it too.
`engine.attempt.project_map` adds it to prompts, `perdure map` shows it, and programs may create a
map:

    project = read(directory, names, parse, cache)  # the only step that reads the disk
    ranked = rank(project, "Add a total to the report")  # most relevant first
    drawn = draw(ranked, tokens=2000)  # within the limit

Guarantees: the map stays within its limit of tokens (see `estimate`). No file outside the directory
is read. No name or content of a file can add a line to the map or end the map. For this, newlines
and the map's own tags are replaced, and comments and strings that are longer than a name are left
out.
"""

from perdure.engine.project_map.outline import Project
from perdure.engine.project_map.project import ANSWER, ParserProcess, read
from perdure.engine.project_map.relevance import Ranked, rank
from perdure.engine.project_map.text import Drawn, draw, estimate

__all__ = [
    "ANSWER",
    "Drawn",
    "ParserProcess",
    "Project",
    "Ranked",
    "draw",
    "estimate",
    "rank",
    "read",
]
