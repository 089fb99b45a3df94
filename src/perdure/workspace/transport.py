"""Describes a repository's server, and runs the git commands that talk to it. Every fetch, push and
query goes through `RemoteSource.call`.

ssh uses the user's keys. For https, the login comes from perdure's settings. If the settings have
none and the server wants a login, the user's own credential helpers are asked.

`broker` gives a secret to one git call, and to no other process.

git runs the program in GIT_ASKPASS, with the prompt as the only argument. perdure's program
(`_ASK`, run by the same Python without site-packages) asks a Unix socket, which a thread of the
supervisor serves during the call. The prompt names the host and path that git is about to contact.
After a redirect or a `url.insteadOf` the prompt names another host or path, and is not answered.
The secret crosses the socket and a pipe; it is never in an argument, an environment variable, a
URL, a file or a log. The program's memory cannot be read (`perdure.host.redaction`), and only
processes that git started get an answer. Processes of the same user can read git's own memory
during the call.

Facts: git 2.39 prompts "Username for 'https://host/owner/repo': " and "Password for
'https://user@host/owner/repo': " when credential.useHttpPath is on; newer versions percent-encode
the user.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from msgspec import Struct

from perdure.errors import GitFailed, NotFound, WorkspaceError
from perdure.host import system
from perdure.host.git import Git, GitResult
from perdure.host.git.environment import OWN, Ssh
from perdure.host.git.output import wants_login
from perdure.host.git.servers import ANYWHERE, Hosts
from perdure.host.process.orphans import is_shim
from perdure.host.system.sockets import peer, short_path
from perdure.workspace.identity import identify

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
    environment variables with which that call finds the answers.

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

    The ancestors of the process are followed up to this process. None of them may be a shim or a
    keeper of an agent, or run under this Python executable. The command line is read first: an
    agent can kill its own shim at any moment, and the executable of a dead process cannot be read.
    """
    python = Path(sys.executable).stat().st_ino
    for depth in range(ANCESTORS_MOST):
        try:
            if depth and (is_shim(pid) or system.program(pid)[1] == python):
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


_REASON = re.compile(r"^remote: perdure: (.+)$", re.MULTILINE)
"""Pattern of the line in git's output that contains a reason from the relay."""
_REACH_S = 60.0
"""Timeout for a server's first answer, in seconds. A person waits for that answer."""


def repository_is_missing(error: GitFailed) -> bool:
    """Return whether the server reported that the repository does not exist."""
    return (
        re.search(
            "does not appear to be a git repository|repository .*not found",
            error.stderr,
            re.IGNORECASE,
        )
        is not None
    )


class RemoteSource(Struct, frozen=True, kw_only=True):
    """The repository that a cache is fetched from: its address (or a local directory), the
    transport, the credentials, and the servers that may be contacted. `helpers` is called only if
    the server demands a login and `credentials` has returned none.

    `relay`: the address, on this machine, of a process that has the credentials
    (`perdure.host.relay`). If it is set, git contacts the relay instead of the server. Messages
    name the repository by `url` even then.
    """

    key: str
    url: str
    scheme: str
    credentials: Credentials | None = None
    helpers: Credentials | None = None
    ca_file: Path | None = None
    hosts: Hosts = ANYWHERE
    ssh: Ssh = OWN
    relay: str = ""

    @property
    def address(self) -> str:
        """Return the address that git gets on its command line."""
        return self.relay or self.url

    @property
    def id(self) -> str:
        return identify("cache", self.key)

    def call(
        self,
        git: Git,
        scratch: Path,
        *words: str,
        settings: tuple[tuple[str, str], ...] = (),
        timeout_s: float,
    ) -> GitResult:
        """Run one git command that talks to the server. Raises GitFailed, or UsageError for a
        server that may not be contacted."""
        told = (*settings, *self.settings(git.environ))
        login = None
        if self.credentials is not None and self.scheme != "ssh" and not self.relay:
            login = self.credentials(self.url)
        try:
            return self._run_once(git, scratch, words, told, login, timeout_s)
        except GitFailed as error:
            if login is not None or self.helpers is None or not wants_login(error):
                raise
            login = self.helpers(self.url)
            if login is None:
                raise
        return self._run_once(git, scratch, words, told, login, timeout_s)

    def reach(self, git: Git, scratch: Path) -> None:
        """Ask the server whether the repository exists. Raises NotFound if it does not, and
        WorkspaceError with the reason and a remedy for any other failure."""
        try:
            self.call(
                git,
                scratch,
                "ls-remote",
                "--quiet",
                "--upload-pack=git-upload-pack",
                "--",
                self.address,
                "HEAD",
                timeout_s=_REACH_S,
            )
        except GitFailed as error:
            if repository_is_missing(error):
                raise self.not_found() from error
            cause = str(error).partition(" failed in ")[2].partition(": ")[2] or str(error)
            raise WorkspaceError(f"{self.url} cannot be reached: {cause}", error.hint) from error

    def not_found(self) -> NotFound:
        return NotFound(
            f"There is no repository at {self.url}, or you may not read it.",
            "Check the address, and your token or key.",
        )

    def settings(self, environ: Mapping[str, str]) -> list[tuple[str, str]]:
        """Return the git settings for one call to the server. Raises UsageError, GitFailed."""
        if self.scheme == "file":
            return []
        if self.relay:
            # The relay itself checks which servers may be contacted. The environment may name a
            # proxy. The empty proxy setting keeps git from sending a request for this machine to
            # that proxy.
            told = {"followRedirects": "false", "proxy": "", "curloptResolve": ""}
            return [(f"http.{self.relay}.{name}", value) for name, value in told.items()]
        if self.scheme == "ssh":
            self.hosts.check(self.url)
            self.ssh.check(environ)
            return [("core.sshCommand", self.ssh.command())]
        if self.ca_file is not None:
            certificates = [("http.sslCAInfo", str(self.ca_file))]
        else:
            certificates = []
        return [*certificates, *self.hosts.settings(self.url, environ)]

    def _run_once(
        self,
        git: Git,
        scratch: Path,
        words: tuple[str, ...],
        told: tuple[tuple[str, str], ...],
        login: tuple[str, str] | None,
        timeout_s: float,
    ) -> GitResult:
        with contextlib.ExitStack() as stack:
            if login:
                asking = stack.enter_context(broker(self.url, login, scratch))
            else:
                asking = {}
            if self.relay:
                return self._run_through_relay(git, words, told, timeout_s)
            return git.run(
                *words, allow=(self.scheme,), settings=told, env=asking, timeout_s=timeout_s
            )

    def _run_through_relay(
        self,
        git: Git,
        words: tuple[str, ...],
        told: tuple[tuple[str, str], ...],
        timeout_s: float,
    ) -> GitResult:
        """Run git on the relay's address. If it fails, the error names the repository's address
        instead of the relay's, and contains the relay's reason if there is one."""
        try:
            return git.run(*words, allow=("http",), settings=told, timeout_s=timeout_s)
        except GitFailed as error:
            stderr = error.stderr.replace(self.relay, self.url)
            reason = _REASON.search(stderr)
            message = str(error).replace(self.relay, self.url)
            if reason is not None:
                message = f"git {words[0]} failed: {reason[1].rstrip('.')}."
            raise GitFailed(
                message, argv=error.argv, code=error.code, stderr=stderr, hint=error.hint
            ) from error
