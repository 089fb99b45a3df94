"""Describes what an agent could read and change on this machine. Used by `perdure serve` at its
start and by `perdure doctor`."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from perdure.config import Settings
from perdure.host import system
from perdure.host.privileges import is_separate
from perdure.host.secrecy import holders

CAP_SYS_PTRACE = 19
"""Number of the Linux capability to read the memory of any process (capabilities(7))."""
HOW = "docs: how-to/separate-user"
NAMED_MOST = 3


def exposure_sentences(chosen: Settings, held: Sequence[str] = ()) -> Iterator[str]:
    """Yield sentences about what agents can read and change. If the environment of another process
    contains one of the secrets in `held`, one more sentence names that process."""
    yield reach(chosen)
    found = [f"{pid} ({command})" for pid, command in holders(held)]
    if found:
        if len(found) > NAMED_MOST:
            more = f" and {len(found) - NAMED_MOST} more"
        else:
            more = ""
        yield (
            "a secret of the service is also in the environment of process "
            f"{', '.join(found[:NAMED_MOST])}{more}, where agents can read it: name it by "
            "secret_file or secret_credential, or start perdure from systemd"
        )


def reach(chosen: Settings) -> str:
    """Return one or two sentences about what an agent could read and change on this machine."""
    # os.access uses the real user and group ids. With `run_as` these are the ids that the agents
    # have.
    open_files = [place for place in secret_files(chosen) if os.access(place, os.R_OK)]
    if is_separate():
        return _separate_user_sentences(chosen, open_files)
    files = len(open_files)
    secrets = f", {files} file(s) with secrets" if files else ""
    if chosen.database:
        database = "the database"
    else:
        database = f"the database in {chosen.state} (tokens' hashes, all runs)"
    if os.geteuid() == 0 and _may_trace():
        return (
            f"agents run as root: they can read and change everything here, {database}{secrets} "
            f"and the memory of perdure serve included. Run it as an ordinary user ({HOW})"
        )
    return (
        f"agents run as the user {_user()}, as perdure does: they can read and change "
        f"{database}{secrets} and this user's other files, and read the environment of this user's "
        f"other processes. {_own_memory()} ({HOW})"
    )


def _own_memory() -> str:
    """Return a sentence, without its final period, about whether agents can read the memory and the
    environment of this process."""
    if system.IS_PORTABLE:
        return "On this system they may also read memory and environment of perdure itself"
    return "They cannot read memory and environment of perdure itself"


def _separate_user_sentences(chosen: Settings, open_files: Sequence[Path]) -> str:
    """Return sentences about what agents can read and change if they run as a separate user
    (`run_as`). `open_files` lists files with secrets that these agents can read."""
    holes = ""
    if open_files:
        holes = f". But {', '.join(map(str, sorted(open_files)))} can be read by them: chmod o-r"
    return (
        f"agents run as the user {_user()} without the group {os.getegid()} of perdure (run_as): "
        f"they can read neither {chosen.state}, nor the files with secrets, nor memory and "
        f"environment of perdure{holes}. They can read and change each other's workdirs and "
        f"conversations, and send signals to perdure, such as one that ends it ({HOW})"
    )


def secret_files(chosen: Settings) -> set[Path]:
    """Return the files that hold secrets of the service."""
    named = set(chain.from_iterable(source.files for source in chosen.webhooks))
    tokens = {
        *(source.token_file for source in chosen.webhooks),
        *(rule.token_file for rule in chosen.agents),
    }
    return {Path(path) for path in (named | tokens) - {""}}


def _may_trace() -> bool:
    if system.IS_PORTABLE:
        return True
    found = re.search(
        r"^CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text(), re.MULTILINE
    )
    return found is not None and bool(int(found[1], 16) >> CAP_SYS_PTRACE & 1)


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
