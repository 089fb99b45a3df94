"""Functions that the bridges between perdure and an agent share. This module imports only the
standard library, because the bridges run with `python -I -S`.

- `die_with` (Linux, by prctl(2)) and `ServerGuard` (other systems) end an agent's server when the
  bridge that started the server is gone. `codex_bridge` has its own `die_with`, because it does not
  import this module on Linux.
- `digest`, `use` and `refusal` find people's answers to an agent's tool calls. Their parameter
  `directory` is the run's directory of requests. `agents.claude.hook` describes its files.
- `take_new` takes people's messages for a running turn. Its parameter `directory` is the attempt's
  directory of messages. `perdure.engine.attempt.messages` describes its files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Let the kernel kill the calling process as soon as its parent ends. Called in the new process
    that becomes the server. `parent` is the bridge's process id. If the bridge has already ended,
    exit at once."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class ServerGuard:
    """A child process that waits until its parent, the bridge, is gone and then kills a server with
    SIGKILL.

    If the guard is created with the process id of the server, the child process also holds the
    pipes to the server open. Otherwise the server would notice the loss of its client before the
    child process kills it. If the guard is created before the server, the server's process must
    call `adopt` before it runs the server's program. Then no server is left running, no matter when
    the bridge is killed.
    """

    def __init__(self, server: int = 0) -> None:
        waiting, self._releasing = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(self._releasing)
            told = b"%d " % server if server else b""
            while piece := os.read(waiting, 64):
                told += piece
            if told and not told.endswith(b"."):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(told), signal.SIGKILL)
            os._exit(0)
        os.close(waiting)

    def adopt(self) -> None:
        """Tell the child process to guard the calling process. The server's process calls this as
        its `preexec_fn`."""
        os.write(self._releasing, b"%d " % os.getpid())

    def release(self) -> None:
        """End the child process, but not the server. Call it once, before the server ends."""
        with contextlib.suppress(OSError):
            os.write(self._releasing, b".")
        os.close(self._releasing)
        os.waitpid(self._child, 0)


def digest(tool: str, given: object) -> str:
    """Return the SHA-256 of a call's name and arguments. It is the same digest that
    `perdure.rules.requests.digest` computes."""
    text = json.dumps([tool, given], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def use(directory: str, *keys: str) -> bool:
    """Return whether a person allowed the call that has one of these digests. An approval is then
    marked as used, and does not allow the same call again. A refusal takes precedence over an
    approval."""
    decisions = _decisions(directory, keys)
    if any(each["answer"] == "deny" for each in decisions):
        return False
    for each in decisions:
        if each["answer"] == "allow" and _create(f"{directory}/used-{each['number']}"):
            return True
    return False


def refusal(directory: str, *keys: str) -> str | None:
    """Return the words with which a person refused the call that has one of these digests. None if
    no person refused it."""
    for each in _decisions(directory, keys):
        if each["answer"] == "deny":
            return str(each["words"])
    return None


def _decisions(directory: str, keys: tuple[str, ...]) -> list[dict[str, object]]:
    """Return the answers to calls with one of these digests. Empty if `decisions.json` cannot be
    read."""
    try:
        known = json.loads(Path(directory, "decisions.json").read_text("utf-8"))
    except (OSError, ValueError):
        return []
    return [each for each in known if each["sha256"] in keys]


def take_new(directory: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of the messages that no process has taken yet, in order. A message is
    marked as taken before it is yielded, so it is yielded at most once."""
    numbers = []
    for path in Path(directory).iterdir():
        if path.suffix == ".json":
            numbers.append(path.stem)
    for number in sorted(int(each) for each in numbers if each.isdecimal()):
        if _create(f"{directory}/taken-{number}", b"turn"):
            yield number, json.loads(Path(directory, f"{number}.json").read_text("utf-8"))


def _create(path: str, content: bytes = b"") -> bool:
    """Create the file that marks an answer as used, or a message as given to the turn. Return
    False if the file already existed."""
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return False
    os.write(file, content)
    os.close(file)
    return True
