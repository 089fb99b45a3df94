"""The environment of the suite of another user: with the switch on, it is closed as described."""

from __future__ import annotations

import os
from pathlib import Path

from tests.conftest import TOP
from tests.user import USER, is_on


def test_the_ground_is_enclosed(tmp_path: Path) -> None:
    """With the switch the user is not root, has no capability and cannot gain one, sees no
    processes of others, and cannot write to the root file system. Without it the tests run as the
    user who started them."""
    status = Path("/proc/self/status").read_text().split()
    alone = Path("/proc/1/cmdline").read_bytes().split(b"\0")[2:3] == [b"tests.suite"]
    closed = os.statvfs("/").f_flag & os.ST_RDONLY != 0
    assert (alone, closed) == (is_on(), is_on())
    if is_on():
        assert os.geteuid() == os.getegid() == USER
        given = {name: status[status.index(f"{name}:") + 1] for name in ("CapEff", "CapBnd")}
        assert set(given.values()) == {"0" * 16}
        assert status[status.index("NoNewPrivs:") + 1] == "1"
        assert not os.access(TOP, os.W_OK)
    (tmp_path / "file").write_text("can be written")
