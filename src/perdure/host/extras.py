"""Builds the command that installs an optional dependency (an extra) of perdure, with the tool that
installed perdure itself.

Used in the hints of errors about a missing library. A fixed hint such as `pip install
'perdure[plans]'` would be wrong in two cases. If pipx or uv installed perdure, this command would
install into another environment. If perdure runs from a checkout, pip would find no package of that
name.
"""

from __future__ import annotations

import json
import shlex
import sys
from itertools import chain
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def install_command(extra: str) -> str:
    """Return the command that adds the extra to this installation of perdure."""
    place = Path(sys.prefix)
    if (place / "pipx_metadata.json").exists():
        return f"pipx inject perdure {shlex.quote(_requirement([extra])[1])}"
    if (place / "uv-receipt.toml").exists():
        editable, wanted = _requirement(sorted({extra, *_of_receipt(place)}))
        flag = "--editable " if editable else ""
        return f"uv tool install {flag}{shlex.quote(wanted)}"
    editable, wanted = _requirement([extra])
    flag = "-e " if editable else ""
    words = f"{flag}{shlex.quote(wanted)}"
    if _installer() == "uv":
        return f"uv pip install --python {shlex.quote(sys.executable)} {words}"
    if sys.prefix != sys.base_prefix:
        return f"{shlex.quote(sys.executable)} -m pip install {words}"
    return f"pip install {words}"


def _requirement(extras: list[str]) -> tuple[bool, str]:
    """Return whether perdure is an editable installation, and the requirement to install. The
    requirement is the checkout from which perdure was installed, if it still exists, and otherwise
    the package's name."""
    from urllib.parse import unquote, urlparse

    source = _source()
    names = f"[{','.join(extras)}]"
    path = Path(unquote(urlparse(str(source.get("url", ""))).path))
    if source.get("dir_info") is None or not (path / "pyproject.toml").exists():
        return False, f"perdure{names}"
    return bool(source["dir_info"].get("editable")), f"{path}{names}"


def _source() -> dict[str, Any]:
    """Return the content of `direct_url.json` (PEP 610), which says where perdure was installed
    from. Return {} if it came from a package index."""
    try:
        found = json.loads(_record("direct_url.json") or "{}")
    except ValueError:
        return {}
    if isinstance(found, dict):
        return found
    return {}


def _installer() -> str:
    return _record("INSTALLER").strip()


def _record(name: str) -> str:
    """Return the text of a file in the installed package's metadata, or "" if there is none."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        return distribution("perdure").read_text(name) or ""
    except PackageNotFoundError:
        return ""


def _of_receipt(place: Path) -> list[str]:
    """Return the extras of perdure that uv has already installed; [] if uv's receipt cannot be
    read. A new `uv tool install` replaces the old installation, so its command has to name these
    extras again."""
    import tomllib

    try:
        receipt = tomllib.loads((place / "uv-receipt.toml").read_text(encoding="utf-8"))
        requirements = receipt["tool"]["requirements"]
        own = [each for each in requirements if each.get("name") == "perdure"]
        return list(map(str, chain.from_iterable(each.get("extras", []) for each in own)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
