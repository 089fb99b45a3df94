"""Fixtures of other tests that the tests on a real Gitea use."""

from __future__ import annotations

from tests.web.conftest import serves

__all__ = ["serves"]
