"""Describes a repository's server, and runs the git commands that talk to it. Every fetch, push and
query goes through `RemoteSource.call`.

ssh uses the user's keys. For https, the login comes from perdure's settings. If they have none and
the server wants a login, the user's own credential helpers are asked. `askpass` passes the secret
to git.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from perdure.errors import GitFailed, NotFound, WorkspaceError
from perdure.host.git import Git, GitResult
from perdure.host.git.output import wants_login
from perdure.host.git.servers import ANYWHERE, Hosts
from perdure.host.git.ssh import OWN, Ssh
from perdure.workspace.askpass import Credentials, broker
from perdure.workspace.identity import identify

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
