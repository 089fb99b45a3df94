"""Identifies the author of each action in the journal and the audit trail: the actor.

An actor is a text: `token:NAME` for a client of `perdure serve`, `forge:SOURCE/LOGIN` for the
person who caused a delivery, `local:USER@HOST` for a user of the command line or the library,
`operator:...` for Kubernetes, and `perdure` for actions that perdure takes by itself. Each entry
point sets its actor with `acting`, and the store asks for `current` in each transaction. A thread
that perdure starts begins without an actor, so its actions are attributed to `perdure`.
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
"""Actor of the actions that perdure takes by itself."""
LONGEST = 200
_acting: ContextVar[str] = ContextVar("acting", default="")


def actor(kind: str, name: str) -> str:
    """Return the actor as `kind:name`. The name may come from outside, so control characters and
    line breaks are removed, and the actor is cut to `LONGEST` characters."""
    return one_line(f"{kind}:{name}", LONGEST)


def current(default: str = PERDURE) -> str:
    """Return the actor that the enclosing `acting` block has set, or `default` outside of such a
    block."""
    return _acting.get() or default


@contextmanager
def acting(name: str) -> Iterator[None]:
    """Attribute all actions in the block to the actor `name`."""
    token = _acting.set(name)
    try:
        yield
    finally:
        _acting.reset(token)


@cache
def local_person() -> str:
    """Return the actor for the user who started this process. The real user id decides, because
    environment variables can be set to any name. The first result is cached for this process. So
    the first call must be made before the process switches to another account (`run_as`)."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    return actor("local", f"{name}@{os.uname().nodename}")
