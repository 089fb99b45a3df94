"""A run whose journal is longer than what perdure reads of it at once."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from perdure import store as stores
from perdure.engine.attempt.engine import HISTORY
from perdure.engine.checkpoints import chosen
from perdure.errors import NotFound
from perdure.model.events import CheckpointMissed, Said
from perdure.testing.stores.samples import SUCCESS, begun, claimed, submit


def test_the_end_of_a_very_long_journal_is_read(tmp_path: Path) -> None:
    """The newest records say what is true now. perdure reads them even if the journal is longer
    than what it reads at once."""
    with closing(stores.open(tmp_path / "perdure.db")) as store:
        run = submit(store)
        claim = claimed(store, run)
        store.begin(claim, begun(run))
        said = [Said(text="I go on.")] * 10_000
        for _ in range(HISTORY // len(said)):
            store.record(claim, said)
        store.record(claim, [CheckpointMissed(why="end", reason="the disk is full")])
        ended = store.finish(claim, SUCCESS)
        with pytest.raises(NotFound, match="because none could be taken: the disk is full"):
            chosen(store, ended)
