"""Asks the user's own git credential helpers (`gh auth setup-git`, a keychain) for a login to one
https address.

`workspace` calls `login` when a server requires a login and perdure's settings contain none. `git
credential fill` reads the configuration of the system and the user. It runs outside of any
repository, so no repository's configuration is read. Nothing is stored or erased, and no helper may
prompt the user.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from perdure.errors import GitFailed
from perdure.host.git import run_as_user

_TIME_S = 60.0


def login(url: str, environ: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the user name and the secret that the user's credential helpers have for an address.
    Return None if there is no helper, or if no helper has a login for the address."""
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http"):
        return None
    asked = (
        f"protocol={parts.scheme}\nhost={parts.netloc}\npath={unquote(parts.path).lstrip('/')}\n\n"
    )
    try:
        answer = run_as_user(
            "credential", "fill", stdin=asked.encode(), environ=environ, timeout_s=_TIME_S
        )
    except GitFailed:
        return None
    said = dict(line.partition("=")[::2] for line in answer.text.split("\n"))
    if (said.get("protocol"), said.get("host")) != (parts.scheme, parts.netloc) or not said.get(
        "password"
    ):
        return None
    return said.get("username", ""), said["password"]
