"""Asks the user's own credential helpers (`gh auth setup-git`, a keychain) for a login to one https
address.

`workspace` calls it when a server wants a login and the settings have none. `git credential fill`
reads the system's and the user's configuration here, and no repository's: it runs where there is
none. Nothing is stored or erased, and nothing may ask a person.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from perdure.errors import GitFailed
from perdure.host.git import run_as_user

_TIME_S = 60.0


def login(url: str, environ: Mapping[str, str]) -> tuple[str, str] | None:
    """The (user, secret) that the user's helpers give for an address; None where there is no
    helper, or it knows nothing."""
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
