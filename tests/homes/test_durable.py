"""Small files that are written completely or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from perdure.host.homes import durable


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may write fewer bytes than it was given. The rest is written too."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, content: write(fd, content[:3]))
    durable.write(tmp_path / "record", "0123456789")
    assert (tmp_path / "record").read_text() == "0123456789"
