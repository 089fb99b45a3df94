"""Hides passwords in addresses, and lists the settings that may contain one.

Called by all code that prints, logs or reports a setting or an address, and by `files` for an
invalid setting.
"""

from __future__ import annotations

import re
from typing import Any

SECRET = frozenset({"database", "session_cache"})
"""Settings that may contain a password. Errors about invalid values do not repeat the values of
these settings."""


def without_password(address: str) -> str:
    """Return an address without its user, password and parameters."""
    scheme, separator, rest = address.partition("://")
    return f"{scheme}{separator}{rest.partition('?')[0].rpartition('@')[2]}"


def shown(name: str, value: Any) -> Any:
    """Return a setting's value in a form that may be printed, with passwords replaced by `***`."""
    if name not in SECRET:
        return value
    return re.sub(
        r"(://[^/?#\s]*?:)[^/?#\s]*@",
        r"\1***@",
        re.sub(r"((?:ssl)?password=)[^&#\s]*", r"\1***", str(value)),
    )


def password(address: str) -> str:
    """Return the password in an address, or an empty string."""
    from urllib.parse import parse_qs, unquote

    found = re.match(r"[a-z]+://[^/?#\s]*?:([^/?#\s]*)@", address)
    if found:
        return unquote(found[1])
    return parse_qs(address.partition("?")[2]).get("password", [""])[0]
