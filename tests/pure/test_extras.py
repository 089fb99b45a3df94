"""The dependencies that the package and its extras install."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

OURS = {"all", "test", "test-kubernetes", "check", "bench"}
"""Extras that combine others, and extras for the developers of perdure."""


def test_all_is_every_extra_that_a_user_can_want() -> None:
    """`perdure[all]`, which the container image installs, names each of the users' extras once."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    (collected,) = extras["all"]
    named = re.fullmatch(r"perdure\[(.*)\]", collected)
    assert named is not None
    assert sorted(named[1].split(",")) == sorted(set(extras) - OURS)


def test_the_agents_are_locked_at_their_pins() -> None:
    """The lock file from which the tests and the image install the agents matches
    agents/package.json, and names no registry."""
    agents = Path(__file__).parents[2] / "agents"
    manifest = json.loads((agents / "package.json").read_text())
    locked = json.loads((agents / "package-lock.json").read_text())["packages"]
    for kind in ("dependencies", "devDependencies"):
        assert locked[""].get(kind) == manifest.get(kind), "npm install --package-lock-only"
    pins = manifest["dependencies"]
    assert {name: locked[f"node_modules/{name}"]["version"] for name in pins} == pins
    assert not any("resolved" in package for package in locked.values())
