"""perdure is killed while it reports to a forge; the report still appears once. A sample: `make
posting-kills` does this at every request."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.posting.kills import story


@pytest.mark.parametrize("at", [3, 16])
def test_killed_at_a_request(tmp_path: Path, at: int) -> None:
    """A kill right after the forge did what it was asked leaves one comment, one branch and one
    pull request."""
    assert story(tmp_path, at)
