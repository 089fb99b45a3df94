"""Task files: what a person gives with `--file` and `--context`, kept by content, and put into the
workdir when an attempt starts.

`service` calls `take` when instructions come with files; `engine.attempt.preparation` calls `place`
before it writes the prompt. An update may bring a new version of a file that the agent has edited:
the strategy says whose stays (`keep`, `replace`, `merge`), and no version is overwritten that does
not stand in a backup. What is to be done is written into the journal first, with every content
known by its digest; after a kill the next attempt completes it and decides nothing again. The
workdir is the agent's: no link in it is followed.

`contents` keeps bytes, `intake` reads the person's files, `merge` asks git for a three-way merge,
`workdir` looks and writes, `placement` plans and completes, `prompt_note` has the words for the
agent. Which rule applies to which file is `perdure.rules.placement`'s to say.
"""

from __future__ import annotations

from perdure.workspace.task_files.contents import Contents
from perdure.workspace.task_files.intake import LARGEST, FileRequest, check_name, take
from perdure.workspace.task_files.placement import FilePlace, place
from perdure.workspace.task_files.prompt_note import told

__all__ = ["LARGEST", "Contents", "FilePlace", "FileRequest", "check_name", "place", "take", "told"]
