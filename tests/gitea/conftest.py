"""Servers that the tests on a real Gitea need besides it."""

from __future__ import annotations

from tests.web.conftest import serves

__all__ = ["serves"]
