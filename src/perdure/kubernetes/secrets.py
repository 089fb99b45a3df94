"""Reads the Secrets of an attempt's pod. Each Secret is mounted as a directory with one file for
each key:

    credentials/    each key is an environment variable for the agent
    repository/     for git: `token`, or `username` and `password`; for a repository by ssh:
                    `ssh-privatekey` and `known_hosts`
    checkpoints/    each key is an environment variable for the checkpoint store's client
                    (AWS_ACCESS_KEY_ID ...)

In a pod with a relay, the last two are mounted only in the relay's container, where the agent
cannot read them. In a pod without a relay, one container mounts all three. An agent in this
container can read them if it looks for them, because it runs as the same user as perdure
(docs/reference/pod.md).

Files are used because environment variables would appear in the pod's description. Values are never
stored. Only the names of the variables are stored with a run.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import Struct, field

from perdure.errors import UsageError
from perdure.host.redaction import TELLING, Redactor
from perdure.kubernetes.transports import transport_of

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
LONGEST = 1 << 20
"""Maximum size of a value in bytes; a Secret holds no more."""
WORDS = re.compile(r"[a-z]+(?:[-_.][a-z]+)+")
LIKELY = 20
"""Minimum length in characters of a value that counts as a secret key regardless of its name."""
OWN = "PERDURE_"
CLOUDS = ("AWS_", "AZURE_", "GOOGLE_")
"""Prefixes of the environment variables that clients of checkpoint stores read."""
REPOSITORY_KEYS = frozenset({"token", "username", "password"})
SSH_KEY, KNOWN_HOSTS = "ssh-privatekey", "known_hosts"
"""Keys of a Secret for ssh, the same as in a Secret of type kubernetes.io/ssh-auth."""


class Secrets(Struct, frozen=True):
    """The secrets that a pod was given. Its `repr` shows none of them."""

    agent: dict[str, str] = field(default_factory=dict)
    git: dict[str, str] = field(default_factory=dict)
    """Environment variables for the git commands that perdure runs: PERDURE_GIT_TOKEN, its host and
    its user."""
    store: dict[str, str] = field(default_factory=dict)
    ssh: dict[str, str] = field(default_factory=dict)
    """Contents of the files SSH_KEY and KNOWN_HOSTS; empty unless the repository is fetched by ssh.
    """

    def __repr__(self) -> str:
        return "Secrets()"

    def values(self) -> list[str]:
        """Return the values that must be redacted: values whose name indicates a secret, values
        that could be a secret key, and passwords in URLs.

        Regions, addresses and similar values are not redacted, so that the agent's output stays
        readable.
        """
        every = [*self.agent.items(), *self.store.items(), *self.git.items(), *self.ssh.items()]
        plain = []
        for name, value in every:
            if TELLING.search(name) or (len(value) >= LIKELY and not _is_readable(value)):
                plain.append(value)
        return plain + [word for _, value in every if (word := _password(value))]

    def redactor(self) -> Redactor:
        """Return a redactor that removes all `values` from texts."""
        return Redactor.of(
            {f"SECRET_{number}": value for number, value in enumerate(self.values())}
        )


def _password(value: str) -> str:
    """Return the password in a URL, for example in the URL of a database; empty if there is
    none."""
    found = re.search(r"://[^/\s:@]*:([^/\s@]+)@", value)
    if found:
        return found[1]
    return ""


def _is_readable(value: str) -> bool:
    """Return whether a value is readable text and not a key: a URL, a path, a sentence, or words
    joined by hyphens, dots or underscores, like the names of buckets and accounts."""
    return (
        "://" in value
        or value.startswith("/")
        or " " in value
        or WORDS.fullmatch(value) is not None
    )


def read(directory: Path, repository: str) -> Secrets:
    """Return the secrets below a directory, for a run with this repository. Raises UsageError if a
    Secret is not valid. The error message never contains a value."""
    agent, store = _variables(directory / "credentials"), _for_store(directory / "checkpoints")
    own = _files(directory / "repository")
    if transport_of(repository) == "ssh":
        return Secrets(agent, {}, store, _for_ssh(own))
    return Secrets(agent, _for_git(own, repository), store)


def _variables(directory: Path) -> dict[str, str]:
    found = _files(directory)
    for name in found:
        if not NAME.fullmatch(name) or name.startswith(OWN):
            raise UsageError(
                f"the Secret in {directory.name}/ has the key {name[:80]!r}, which cannot be the "
                "name of a variable",
                f"use letters, digits and underscores, and no name that begins with {OWN}",
            )
    return found


def _for_store(directory: Path) -> dict[str, str]:
    found = _variables(directory)
    if strange := [name for name in found if not name.startswith(CLOUDS)]:
        raise UsageError(
            f"the Secret for the checkpoint store must not have the key {strange[0][:80]!r}",
            f"perdure takes names that begin with {', '.join(CLOUDS)}",
        )
    return found


def _for_git(found: dict[str, str], repository: str) -> dict[str, str]:
    if not found:
        return {}
    token = found.get("token") or found.get("password", "")
    if not token or not found.keys() <= REPOSITORY_KEYS:
        raise UsageError(
            f"the Secret for the repository has the wrong keys: {', '.join(sorted(found))[:200]}",
            "perdure takes `token`, or `username` and `password`",
        )
    if "://" in repository:
        host = urlsplit(repository).hostname or ""
    else:
        host = ""
    if not host:
        raise UsageError(
            "there is a Secret for the repository, but the repository's address needs none",
            "leave the Secret out",
        )
    if found.get("username"):
        user = {"PERDURE_GIT_TOKEN_USER": found["username"]}
    else:
        user = {}
    return {"PERDURE_GIT_TOKEN": token, "PERDURE_GIT_TOKEN_HOST": host, **user}


def _for_ssh(found: dict[str, str]) -> dict[str, str]:
    if found and found.keys() != {SSH_KEY, KNOWN_HOSTS}:
        raise UsageError(
            f"the Secret for a repository by ssh needs the keys {SSH_KEY} and {KNOWN_HOSTS}, and "
            f"has {', '.join(sorted(found))[:200]}",
            f"put the lines of ssh-keyscan HOST into {KNOWN_HOSTS}, after comparing them with "
            "the server's own keys",
        )
    return found


def _files(directory: Path) -> dict[str, str]:
    """Return the value of each key, read from the file with the key's name; {} if there is no such
    directory. Final line breaks are removed, because editors add them. Names that begin with two
    dots are skipped: they are links that the kubelet creates."""
    found = {}
    try:
        entries = sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UsageError(
            f"the Secret in {directory} cannot be read: {error.strerror}",
            "check fsGroup and the mode of its files",
        ) from error
    for entry in entries:
        if entry.name.startswith("..") or not entry.is_file():
            continue
        try:
            with entry.open("rb") as file:
                value = file.read(LONGEST + 1).decode().rstrip("\r\n")
        except OSError as error:
            raise UsageError(
                f"the Secret {directory.name}/{entry.name} cannot be read: {error.strerror}",
                "check fsGroup",
            ) from error
        except UnicodeDecodeError:
            value = "\0"
        if len(value) > LONGEST or "\0" in value:
            raise UsageError(
                f"the Secret {directory.name}/{entry.name} is not text that can be a variable",
                "check that it is the right key",
            )
        found[entry.name] = value
    return found
