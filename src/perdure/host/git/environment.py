"""Builds the environment in which git runs. Few variables of the caller are passed to git, and the
configuration of the user and the system is not read.

`Git.run` calls this module once for each command. The settings are passed as environment
configuration, which takes precedence over anything that an agent wrote into a repository. Each
setting prevents either an attack that tests/safety demonstrates or an endless wait.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from perdure.host.git.ssh import OWN
from perdure.patterns import late_pattern

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

HOME names a directory that does not exist. Otherwise libcurl would read ~/.netrc and send the
user's passwords, even in a call that uses a credential broker. The MALLOC_ variables keep glibc
from returning memory to the kernel after each object that git reads. Without them, packing many
loose objects takes 2.5 times as long.
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
