"""What the tests on a real Gitea start beside it."""

from __future__ import annotations

from tests.web.conftest import serves

__all__ = ["serves"]
