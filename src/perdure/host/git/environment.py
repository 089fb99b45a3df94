"""Builds the environment in which git runs (`environment`), and the ssh command with which git
reaches a repository (`Ssh`).

`Git.run` calls `environment` once for each command. Few variables of the caller are passed to git,
and the configuration of the user and the system is not read. The settings are passed as environment
configuration, which takes precedence over anything that an agent wrote into a repository. Each
setting prevents either an attack that tests/safety demonstrates or an endless wait.

The ssh command runs the user's own ssh, without prompts, forwarding and shared connections.

`workspace` requests this command before each git call that uses ssh. The user's `~/.ssh/config`,
keys and ssh agent are used. A repository cannot change the command: perdure passes it to git in
environment variables, which override `core.sshCommand` and `ssh.variant` of the repository.

ssh takes the home directory from the system's accounts, not from HOME (ssh(1), FILES).
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from perdure.errors import UsageError
from perdure.patterns import late_pattern

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
    """Settings for ssh, in addition to `_OPTIONS`. By default, the user's own keys, list of servers
    and configuration are used.

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
"""Settings with which ssh uses the user's own keys, list of servers and configuration."""

_PASSED = late_pattern(r"PATH|TMPDIR|(?i:https?_proxy|all_proxy|no_proxy)")

_SETTINGS = (
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.attributesFile", "/dev/null"),
    ("core.excludesFile", "/dev/null"),
    ("core.alternateRefsCommand", "true"),
    ("core.gitProxy", ""),
    ("core.askPass", ""),
    ("core.sshCommand", OWN.command()),
    ("ssh.variant", "ssh"),
    ("core.fsync", "all"),
    ("core.protectHFS", "true"),
    ("core.protectNTFS", "true"),
    ("credential.helper", ""),
    ("credential.useHttpPath", "true"),
    ("diff.external", ""),
    ("commit.gpgSign", "false"),
    ("log.showSignature", "false"),
    ("submodule.recurse", "false"),
    ("fetch.recurseSubmodules", "false"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("transfer.fsckObjects", "true"),
    ("safe.bareRepository", "explicit"),
    ("http.followRedirects", "false"),
    ("http.sslVerify", "true"),
    ("http.lowSpeedLimit", "1000"),
    ("http.lowSpeedTime", "30"),
    ("protocol.allow", "never"),
)

_FIXED = {
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_GRAFT_FILE": "/nonexistent/grafts",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_EDITOR": ":",
    "GIT_PAGER": "cat",
    "GIT_TEMPLATE_DIR": "",
    "GIT_DEFAULT_REF_FORMAT": "files",
    "MALLOC_TRIM_THRESHOLD_": "67108864",
    "MALLOC_TOP_PAD_": "1048576",
}
"""Variables that every git call gets.

HOME names a directory that does not exist. With the user's home, libcurl would read ~/.netrc and
send the user's passwords, even in a call that uses a credential broker. The MALLOC_ variables keep
glibc from returning memory to the kernel after each object that git reads. Without them, packing
many loose objects takes 2.5 times as long.
"""


def environment(
    caller: Mapping[str, str],
    ceiling: Path | None,
    allow: Collection[str],
    settings: Sequence[tuple[str, str]],
) -> dict[str, str]:
    """Return the variables for one git call. PATH, TMPDIR and the proxies come from `caller`.
    `allow`: names of the allowed transports. `settings`: git settings as (key, value) pairs."""
    env = {name: value for name, value in caller.items() if _PASSED.fullmatch(name)}
    if "ssh" in allow and "SSH_AUTH_SOCK" in caller:
        env["SSH_AUTH_SOCK"] = caller["SSH_AUTH_SOCK"]
    env.update(_FIXED)
    env["GIT_ALLOW_PROTOCOL"] = ":".join(sorted(allow)) or "none"
    if ceiling is not None:
        env["GIT_CEILING_DIRECTORIES"] = str(ceiling)
    pairs = (
        *_SETTINGS,
        *((f"protocol.{name}.allow", "always") for name in sorted(allow)),
        *settings,
    )
    env["GIT_CONFIG_COUNT"] = str(len(pairs))
    for number, (key, value) in enumerate(pairs):
        env[f"GIT_CONFIG_KEY_{number}"], env[f"GIT_CONFIG_VALUE_{number}"] = key, value
    return env
