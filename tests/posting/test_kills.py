"""perdure is killed while it reports to a forge. The report still appears once. This is a sample:
`make posting-kills` kills at every request."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.posting.kills import story


@pytest.mark.parametrize("at", [3, 16])
def test_killed_at_a_request(tmp_path: Path, at: int) -> None:
    """After a kill right after the forge has carried out a request, there is one comment, one
    branch and one pull request."""
    assert story(tmp_path, at)
