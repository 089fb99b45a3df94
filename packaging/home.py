"""Names the project's pages in the metadata of a distribution. Called by hatchling, at each build.

A fork that is released must not send its users to another project's issues, so the address is that
of the repository in which the release is made. It is read from GITHUB_SERVER_URL and
GITHUB_REPOSITORY, which GitHub Actions sets, or from PERDURE_HOME_URL. A build of a plain checkout
names none. The relative links of the README, which is the long description, are made to lead to
that repository as well, because a package index has no files beside the README.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PAGES = {
    "Homepage": "",
    "Documentation": "/tree/main/docs",
    "Source": "",
    "Issues": "/issues",
    "Changelog": "/blob/main/CHANGELOG.md",
    "Security": "/security/policy",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")


def home_of(environ: Mapping[str, str]) -> str:
    """Return the address of the repository, without a slash at its end, or an empty string if none
    is named."""
    home = environ.get("PERDURE_HOME_URL", "")
    server, repository = environ.get("GITHUB_SERVER_URL", ""), environ.get("GITHUB_REPOSITORY", "")
    if not home and server and repository:
        home = f"{server}/{repository}"
    return home.rstrip("/") if home.startswith("https://") else ""


def with_links(text: str, home: str) -> str:
    """Return the Markdown with its relative links changed to links below the repository's
    address."""

    def absolute(match: re.Match[str]) -> str:
        kind = "raw" if match[1] else "blob"
        return f"{match[1]}[{match[2]}]({home}/{kind}/main/{match[3]})"

    return LINK.sub(absolute, text) if home else text


class HomeHook(MetadataHookInterface):
    """Sets `urls` and `readme` in the metadata."""

    def update(self, metadata: dict[str, Any]) -> None:
        home = home_of(os.environ)
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["urls"] = {name: home + path for name, path in PAGES.items()} if home else {}
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": with_links(text, home),
        }
