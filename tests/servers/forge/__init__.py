"""A small forge on loopback that speaks the API of GitHub, Gitea or GitLab as far as perdure asks
for it. Not a real one: the real Gitea of `make test-forge` is. It keeps people, repositories and
what is said in them, and can be told to fail.
"""

from __future__ import annotations

from tests.servers.forge.server import Request, SmallForge
from tests.servers.forge.state import Repository, State

__all__ = ["Repository", "Request", "SmallForge", "State"]
