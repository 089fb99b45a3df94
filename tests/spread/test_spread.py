"""The environment of the spread suite: with the switch on, the directories are on different file
systems."""

from __future__ import annotations

from pathlib import Path

from perdure.agents.rehearsal import Rehearsal
from tests.journeys.stage import Stage
from tests.spread import is_on
from tests.sweeper.ground import make_ground


def test_the_ground_is_apart(tmp_path: Path) -> None:
    """With the switch, repository, root, state and home are on four file systems. Without it they
    are on one."""
    ground = make_ground(tmp_path / "ground")
    places = [ground.yard.repo, ground.yard.root, ground.state]
    assert len({path.stat().st_dev for path in places if path.exists()}) == (3 if is_on() else 1)
    with Rehearsal("say x") as rehearsal:
        stage = Stage(tmp_path / "stage", "claude", rehearsal)
        spread = [stage.repo, stage.home, stage.home / ".local/share", stage.home / ".local/state"]
        assert len({path.stat().st_dev for path in spread if path.exists()}) == (
            4 if is_on() else 1
        )
