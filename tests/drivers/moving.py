"""An agent's home that was moved, copied or linked, and a conversation in it that continues. The
tests of fast and of slow CLIs share this."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from perdure.testing.drivers import Bench
from perdure.testing.drivers.bench import resume
from tests.drivers.talk import goes_on

VARIABLES = {
    "claude": "CLAUDE_CONFIG_DIR",
    "codex": "CODEX_HOME",
    "gemini": "GEMINI_CLI_HOME",
    "opencode": "XDG_DATA_HOME",
}
WAYS = ("moved", "copied", "linked")


def goes_on_elsewhere(stage: Bench, way: str) -> None:
    """Play two turns, move the home, and play two more turns. Check that the whole conversation
    still reaches the model, read from the new place."""
    session = stage.run("hello one").session_id
    stage.run("hello two", resume(session))
    old = Path(stage.environ[VARIABLES[stage.driver.name]])
    new = old.with_name("elsewhere")
    if way == "copied":
        shutil.copytree(old, new, symlinks=True)
    else:
        old.rename(new)
    if way == "linked":
        old.symlink_to(new)
    at_old = _content(old, stage, session) if way == "copied" else b""
    moved = replace(stage, environ=_with_home(stage, new))
    for prompt in ("hello three", "hello four"):
        _, ran = goes_on(moved, session, prompt)
        assert ran.outcome.ok, ran.outcome
        assert ran.session_id == session
    assert moved.prompts(session) == ["hello one", "hello two", "hello three", "hello four"]
    if way == "copied":
        assert _content(old, stage, session) == at_old


def _with_home(stage: Bench, home: Path) -> Mapping[str, str]:
    return {**stage.environ, VARIABLES[stage.driver.name]: str(home)}


def _content(home: Path, stage: Bench, session: str) -> bytes:
    return replace(stage, environ=_with_home(stage, home)).content(session)
