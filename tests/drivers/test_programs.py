"""The native programs behind the npm wrappers, in trees as npm installs them on each system."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.agents.claude import driver as claude
from perdure.agents.codex import driver as codex
from perdure.agents.opencode import driver as opencode
from perdure.agents.shared.programs import Package, native

# Packages from `optionalDependencies` of the pinned versions, with the program's path in each
# package.
TREES = [
    (claude.PACKAGE, "@anthropic-ai/claude-code/cli.js", "@anthropic-ai/claude-code-{}/claude"),
    (codex.PACKAGE, "@openai/codex/bin/codex.js", "@openai/codex-{}/vendor/any-triple/bin/codex"),
    (opencode.PACKAGE, "opencode-ai/bin/opencode", "opencode-{}/bin/opencode"),
]


@pytest.mark.parametrize("target", ["linux-x64", "linux-arm64", "darwin-x64", "darwin-arm64"])
@pytest.mark.parametrize(
    ("package", "wrapper", "program"), TREES, ids=[tree[0].command for tree in TREES]
)
@pytest.mark.parametrize("inside", [False, True], ids=["beside", "inside"])
def test_a_wrapper_is_resolved_on_linux_and_on_macos(
    tmp_path: Path, package: Package, wrapper: str, program: str, target: str, inside: bool
) -> None:
    """The program for this system is found in a package beside the wrapper's package or inside of
    it, also through a link on PATH. A program for another system is never used."""
    modules = tmp_path / "lib/node_modules"
    start = _file(modules / wrapper)
    home = modules
    if inside:
        home = modules / (package.scope if "@" in package.scope else "") / package.name
        home /= "node_modules"
    for each in ("linux-x64", "linux-arm64", "darwin-x64", "darwin-arm64"):
        _file(home / program.format(each))
    link = tmp_path / "bin" / package.command
    link.parent.mkdir()
    link.symlink_to(start)
    assert native(package, link, target) == home / program.format(target)


def _file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path
