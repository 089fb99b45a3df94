"""perdure for Python programs: the same verbs as the command, typed. Opened by `perdure.open` and
`perdure.connect`.

    with perdure.open() as runner:                       # for ordinary programs
        run = runner.run("Fix the failing test", agent="claude", repo="path/to/repository")

    async with perdure.connect() as runner:              # for programs on an event loop
        run = await runner.submit("Fix the failing test")
        following = asyncio.create_task(runner.follow(run.name))
        async for record in runner.events(run.name):
            print(record.event)

Both doors lead to one engine: `runner` is the first one, `awaited` the second. What goes wrong with
perdure itself is a PerdureError; how the agent did is in the run. Signals are the program's own
business.
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
    """Return the verbs for ordinary programs, with the settings that the command would have here.

    `cwd`: the directory whose settings and repository are meant (default: the current one).
    `environ`: instead of the process's own environment. `observers` are called with each Record as
    soon as it is stored. Raises ConfigError, StoreError.
    """
    own = os.environ if environ is None else environ
    here = Path.cwd() if cwd is None else Path(cwd)
    return Runner(load(own, here), here, own, observers)


def connect(
    cwd: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    observers: Sequence[Observer] = (),
) -> AsyncRunner:
    """Return the same verbs for a program on an event loop; the arguments are those of `open`."""
    from perdure.library.awaited import AsyncRunner

    return AsyncRunner(open(cwd, environ, observers))
