"""Gives a secret to one git call, and to no other process.

git runs the program in GIT_ASKPASS, with the prompt as the only argument. perdure's program
(`_ASK`, run by the same Python without site-packages) asks a Unix socket, which a thread of the
supervisor serves during the call. The prompt names the host and path that git is about to contact.
After a redirect or a `url.insteadOf` the prompt names another host or path, and is not answered.
The secret crosses the socket and a pipe; it is never in an argument, an environment variable, a
URL, a file or a log. The program's memory cannot be read (`perdure.host.secrecy`), and only
processes that git started get an answer. Processes of the same user can read git's own memory
during the call.

Facts: git 2.39 prompts "Username for 'https://host/owner/repo': " and "Password for
'https://user@host/owner/repo': " when credential.useHttpPath is on; newer versions percent-encode
the user.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

from perdure.host import system
from perdure.host.system.sockets import peer, short_path

Credentials = Callable[[str], tuple[str, str] | None]
"""Function that returns the (user, secret) for a repository's URL, or None. It is called before
each git call to that URL."""

ANCESTORS_MOST = 8
"""Maximum number of ancestors searched: git, its transport and a shell come between perdure and the
program that asks."""
_LINUX = """\
import ctypes, os, socket, sys
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
fd = os.open({place!r}, os.O_RDONLY | os.O_DIRECTORY)
address = f"/proc/self/fd/{{fd}}/socket"
"""
_PORTABLE = """\
import os, socket, sys
address = {place!r} + "/socket"
"""
_ASK = """\
with socket.socket(socket.AF_UNIX) as client:
    client.settimeout(60)
    client.connect(address)
    client.sendall(b"{token}\\n" + os.fsencode(sys.argv[1]) + b"\\0")
    answer = b""
    while chunk := client.recv(4096):
        answer += chunk
if not answer:
    sys.exit(1)
os.write(1, answer)
"""


@contextlib.contextmanager
def broker(url: str, login: tuple[str, str], scratch: Path) -> Iterator[dict[str, str]]:
    """Answer the prompts of one git call on `url` with `login` (user, secret). Yields the
    environment variables for that call.

    Each of the two prompts is answered once. The scratch path may be longer than a socket address
    allows, so the socket gets a shortened path.
    """
    place = Path(tempfile.mkdtemp(prefix="ask-", dir=scratch))
    token = secrets.token_hex(16)
    server = socket.socket(socket.AF_UNIX)
    thread = threading.Thread(
        target=_serve, args=(server, token, expected(url, *login)), daemon=True
    )
    stack = contextlib.ExitStack()
    try:
        short = stack.enter_context(short_path(place))
        server.bind(f"{short}/socket")
        server.listen(4)
        thread.start()
        program, script = place / "ask", place / "ask.py"
        head = _PORTABLE if system.IS_PORTABLE else _LINUX
        known = short if system.IS_PORTABLE else str(place)
        text = (head + _ASK).format(place=known, token=token)
        script.write_text(text, encoding="utf-8")
        program.write_text(
            f'#!/bin/sh\nexec {shlex.join([sys.executable, "-I", "-S", str(script)])} "$1"\n',
            encoding="utf-8",
        )
        program.chmod(0o700)
        yield {"GIT_ASKPASS": str(program)}
    finally:
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        if thread.ident is not None:
            thread.join()
        server.close()
        stack.close()
        shutil.rmtree(place, ignore_errors=True)


def expected(url: str, user: str, secret: str) -> dict[str, str]:
    """Return the prompts that are answered, each with its answer. Any other prompt gets no
    answer."""
    scheme, _, rest = url.partition("://")
    passwords = {}
    for name in (user, quote(user, safe="")):
        passwords[f"Password for '{scheme}://{name}@{rest}': "] = secret
    return {f"Username for '{url}': ": user, **passwords}


def _serve(server: socket.socket, token: str, answers: dict[str, str]) -> None:
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        with client, contextlib.suppress(OSError):
            client.settimeout(10)
            pid, uid = peer(client)
            given, _, prompt = _request(client).partition("\n")
            known = secrets.compare_digest(given.encode("utf-8", "replace"), token.encode())
            if known and uid == os.getuid() and _is_started_by_git(pid):
                client.sendall(answers.pop(prompt, "").encode())


def _is_started_by_git(pid: int) -> bool:
    """Return whether git or one of its helpers started a process, in a call by this process. The
    token alone proves nothing, because an agent of the same user can read it.

    The ancestors of the process are followed up to this process. None of them may run under this
    Python executable, because then it is a shim or a keeper of an agent.
    """
    python = Path(sys.executable).stat().st_ino
    for depth in range(ANCESTORS_MOST):
        try:
            if depth and system.program(pid)[1] == python:
                return False
        except OSError:
            return False
        known = system.stat(pid)
        if known is None:
            return False
        pid = known[1]
        if pid == os.getpid():
            return True
    return False


def _request(client: socket.socket) -> str:
    raw = b""
    while not raw.endswith(b"\0") and len(raw) < 1 << 16:
        chunk = client.recv(4096)
        if not chunk:
            return ""
        raw += chunk
    return raw[:-1].decode("utf-8", "replace")
