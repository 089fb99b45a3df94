"""Addresses with passwords in them: which settings may hold one, and how they are shown without it.

Whoever prints, logs or reports a setting or an address asks here; `files` does where a setting
cannot be read.
"""

from __future__ import annotations

import re
from typing import Any

SECRET = frozenset({"database", "session_cache"})
"""Settings that may hold a password: where they cannot be read, their text is not repeated."""


def without_password(address: str) -> str:
    """An address as it may be shown: without user, password and parameters."""
    scheme, separator, rest = address.partition("://")
    return f"{scheme}{separator}{rest.partition('?')[0].rpartition('@')[2]}"


def shown(name: str, value: Any) -> Any:
    """A setting's value as it may be printed: of an address, without its password."""
    if name not in SECRET:
        return value
    return re.sub(
        r"(://[^/?#\s]*?:)[^/?#\s]*@",
        r"\1***@",
        re.sub(r"((?:ssl)?password=)[^&#\s]*", r"\1***", str(value)),
    )


def password(address: str) -> str:
    """The password in an address, or empty."""
    from urllib.parse import parse_qs, unquote

    found = re.match(r"[a-z]+://[^/?#\s]*?:([^/?#\s]*)@", address)
    return (
        unquote(found[1]) if found else parse_qs(address.partition("?")[2]).get("password", [""])[0]
    )
