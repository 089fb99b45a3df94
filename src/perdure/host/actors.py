"""The author of an action: the actor that the journal and the audit trail name.

An actor is a text: `token:NAME` for a client of `perdure serve`, `forge:SOURCE/LOGIN` for the
person behind a delivery, `local:USER@HOST` for a user of the command line or the library,
`operator:...` for Kubernetes, and `perdure` for what perdure does by itself. Each entry point names
its actor with `acting`; the store asks for `current` in each transaction. A thread that perdure
starts itself begins without an actor, so it acts as perdure.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

from perdure.rules.text import one_line

PERDURE = "perdure"
"""The actor of everything that perdure does on its own."""
LONGEST = 200
_acting: ContextVar[str] = ContextVar("acting", default="")


def actor(kind: str, name: str) -> str:
    """Return the actor with this name, which may come from outside: cleaned, on one line, short."""
    return one_line(f"{kind}:{name}", LONGEST)


def current(default: str = PERDURE) -> str:
    """Return the actor of the running call, or the default if none was named."""
    return _acting.get() or default


@contextmanager
def acting(name: str) -> Iterator[None]:
    """Attribute everything that is done in the block to this actor."""
    token = _acting.set(name)
    try:
        yield
    finally:
        _acting.reset(token)


@cache
def local_person() -> str:
    """Return the user of this process, by its real id; environment variables could name anybody.
    The result of the first call is kept, so that call must come before the process switches to
    another account (`run_as`)."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    return actor("local", f"{name}@{os.uname().nodename}")
