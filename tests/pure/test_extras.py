"""The extras of the package."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

OURS = {"all", "test", "test-kubernetes", "check", "bench"}
"""Extras that collect others, and those for who works on perdure."""


def test_all_is_every_extra_that_a_user_can_want() -> None:
    """`perdure[all]`, which the container image installs, names each of the others once."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    (collected,) = extras["all"]
    named = re.fullmatch(r"perdure\[(.*)\]", collected)
    assert named is not None
    assert sorted(named[1].split(",")) == sorted(set(extras) - OURS)
