"""A server is killed while agents work on tasks from webhooks. This is a small sample of `make
webhook-kills`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.web.working import Found, play


@pytest.fixture
def directory() -> Iterator[Path]:
    """Make a directory with a short path, because the path of a socket has at most 108 bytes."""
    made = Path(tempfile.mkdtemp(prefix="pw"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def test_killed_while_agents_are_at_work(directory: Path) -> None:
    """The server is killed twice, at least once while an agent is running. Each acknowledged
    delivery reached its agent once, nothing was done twice, and each live agent was adopted or
    ended."""
    found: list[Found] = []
    play(directory, 2, 2, 7, found.append)
    assert (found[0].wrong, found[0].kills) == ([], 2), found
    assert found[0].at_work >= 1 and found[0].acknowledged >= 2, found
