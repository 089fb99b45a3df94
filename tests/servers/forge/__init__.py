"""A small forge on loopback with the part of GitHub's, Gitea's or GitLab's API that perdure uses.
`make test-forge` uses a real Gitea. The small forge stores people, repositories and what people
write there, and fails on request."""

from __future__ import annotations

from tests.servers.forge.server import Request, SmallForge
from tests.servers.forge.state import Repository, State

__all__ = ["Repository", "Request", "SmallForge", "State"]
