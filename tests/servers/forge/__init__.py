"""A small forge on loopback that speaks the API of GitHub, Gitea or GitLab as far as perdure uses
it. `make test-forge` has a real Gitea. The small forge stores people, repositories and what is said
in them, and can be told to fail."""

from __future__ import annotations

from tests.servers.forge.server import Request, SmallForge
from tests.servers.forge.state import Repository, State

__all__ = ["Repository", "Request", "SmallForge", "State"]
