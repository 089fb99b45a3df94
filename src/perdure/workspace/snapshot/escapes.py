"""Names that git does not keep, as they stand in a checkpoint's tree.

git keeps nothing that is called `.git`. Such a part of a name gets a `%` at its end, as does one
that looks like the result (`.git%` becomes `.git%%`), so names stay distinct and come back as they
were; so does a link called `.gitmodules`, which git refuses.
"""

from __future__ import annotations

import re

ODD = re.compile(r"\.git%*", re.IGNORECASE)
ODD_LINK = re.compile(r"\.gitmodules%*", re.IGNORECASE)


def escape(part: str, link: bool = False) -> str:
    """One part of a name, as it stands in a tree."""
    return part + "%" if ODD.fullmatch(part) or (link and ODD_LINK.fullmatch(part)) else part


def unescape(name: str, link: bool = False) -> str:
    """A whole name, as it is on disk."""
    *above, last = name.split("/")
    ends = link and ODD_LINK.fullmatch(last) and last.endswith("%")
    return "/".join([*map(_plain, above), last[:-1] if ends else _plain(last)])


def _plain(part: str) -> str:
    return part[:-1] if part.endswith("%") and ODD.fullmatch(part) else part
