"""Task files: files that a person gives with `--file` and `--context`. They are stored by content,
and put into the workdir when an attempt starts.

`service` calls `take` when instructions come with files. `engine.attempt.preparation` calls `place`
before it writes the prompt. An update may contain a new version of a file that the agent has
edited. The strategy decides which version stays (`keep`, `replace`, `merge`), and no version is
overwritten without a backup. The plan is written to the journal first, with a digest of every
content. After a kill the next attempt completes that plan without deciding again. An agent controls
the workdir, so no link in it is followed.

`intake` reads and stores the person's files, `workdir` reads, merges and writes the files of a
workdir, `placement` makes and completes the plan, `prompt_note` has the text for the agent.
`perdure.rules.placement` decides what is done with each file.
"""

from __future__ import annotations

from perdure.workspace.task_files.intake import LARGEST, Contents, FileRequest, check_name, take
from perdure.workspace.task_files.placement import FilePlace, place
from perdure.workspace.task_files.prompt_note import files_note

__all__ = [
    "LARGEST",
    "Contents",
    "FilePlace",
    "FileRequest",
    "check_name",
    "files_note",
    "place",
    "take",
]
