"""Builds the ssh command with which git reaches a repository: the user's own ssh, without prompts,
forwarding and shared connections.

`workspace` requests the command before each git call. The user's `~/.ssh/config`, keys and agent
are used. A repository cannot change the command: perdure passes it to git in environment variables,
which override `core.sshCommand` and `ssh.variant` of the repository.

ssh takes the home directory from the system's accounts, not from HOME (ssh(1), FILES).
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from perdure.errors import UsageError

_OPTIONS = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "VerifyHostKeyDNS=no",
    "UpdateHostKeys=no",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "PermitLocalCommand=no",
    "Tunnel=no",
    # Use no shared connection (ControlMaster). An existing one may have been opened with another
    # key. A new one would leave a master process running after the call.
    "ControlMaster=no",
    "ControlPath=none",
    "ConnectTimeout=30",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=2",
)


class Ssh(Struct, frozen=True, kw_only=True):
    """Settings for ssh. The default is the user's own ssh, exactly as the user configured it.

    `key` is used instead of the keys that ssh would try by itself. `known_hosts` replaces the
    user's and the system's list of servers. `config` replaces the user's and the system's
    configuration.
    """

    key: Path | None = None
    known_hosts: Path | None = None
    config: Path | None = None

    def command(self) -> str:
        """Return the ssh command as one line for git, which passes it to a shell."""
        return shlex.join(self.words())

    def words(self) -> list[str]:
        """Return the ssh command as a list of arguments, without a destination."""
        words = [
            "ssh",
            *(["-F", str(self.config)] if self.config else []),
            *(f"-o{option}" for option in _OPTIONS),
        ]
        if self.key is not None:
            words += ["-oIdentitiesOnly=yes", "-i", str(self.key)]
        if self.known_hosts is not None:
            # The option takes a list of files separated by spaces, so the name is quoted.
            words += [f'-oUserKnownHostsFile="{self.known_hosts}"', "-oGlobalKnownHostsFile=none"]
        return words

    def check(self, environ: Mapping[str, str]) -> None:
        """Raise UsageError if ssh is missing, or if a file that the settings name cannot be read.
        ssh itself silently ignores a missing file."""
        if shutil.which("ssh", path=environ.get("PATH", os.defpath)) is None:
            raise UsageError(
                "ssh is not installed.", "Install the OpenSSH client, or use an https address."
            )
        for name, file in (
            ("git_ssh_key", self.key),
            ("git_ssh_known_hosts", self.known_hosts),
            ("git_ssh_config", self.config),
        ):
            if file is not None and not os.access(file, os.R_OK, effective_ids=True):
                raise UsageError(
                    f"The setting {name} names {file}, which cannot be read.",
                    "Correct the setting, or the file's rights.",
                )


OWN = Ssh()
"""Settings for the user's ssh, exactly as the user configured it."""
