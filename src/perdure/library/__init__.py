"""perdure for Python programs: the commands as typed methods. A program gets them from
`perdure.open` or `perdure.connect`.

    with perdure.open() as runner:                       # for ordinary programs
        run = runner.run("Fix the failing test", agent="claude", repo="path/to/repository")

    async with perdure.connect() as runner:              # for programs on an event loop
        run = await runner.submit("Fix the failing test")
        following = asyncio.create_task(runner.follow(run.name))
        async for record in runner.events(run.name):
            print(record.event)

`open` returns a `Runner` (module `runner`), and `connect` an `AsyncRunner` (module `awaited`). Both
classes use the same engine. A failure of perdure itself raises PerdureError; a failure of the agent
is in the run's state and outcome. Signal handling is left to the program.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.config.files import load
from perdure.library.runner import Runner
from perdure.protocols import Observer

if TYPE_CHECKING:
    from perdure.library.awaited import AsyncRunner

__all__ = ["Runner", "connect", "open"]


def open(
    cwd: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    observers: Sequence[Observer] = (),
) -> Runner:
    """Return a Runner with the settings that the command `perdure` would use in `cwd`.

    `cwd`: the directory whose settings and repository are used (default: the current one).
    `environ`: environment variables to use instead of the process's. `observers`: called with each
    Record as soon as it is stored. Raises ConfigError, StoreError.
    """
    own = os.environ if environ is None else environ
    here = Path.cwd() if cwd is None else Path(cwd)
    return Runner(load(own, here), here, own, observers)


def connect(
    cwd: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    observers: Sequence[Observer] = (),
) -> AsyncRunner:
    """Return an AsyncRunner, for an asyncio program. The arguments are those of `open`."""
    from perdure.library.awaited import AsyncRunner

    return AsyncRunner(open(cwd, environ, observers))
