"""The liveness of a run that is stored as running."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from perdure import store as stores
from perdure.cli.runs.look import UnclaimedCheck
from perdure.config.files import load
from perdure.engine import worker
from perdure.engine.attempt.accounts import TURN
from perdure.host.process.identity import worker_identity
from perdure.host.wakeup import Bell
from perdure.model import Liveness
from perdure.rules.liveness import Signs, advice, liveness
from perdure.testing.stores.samples import SUCCESS, claimed, submit

seen = st.sampled_from([True, False, None])
signs = st.builds(
    lambda supervisor, agent, over: Signs(supervisor=supervisor, agent=agent, lease_over=over),
    seen,
    seen,
    st.booleans(),
)


@pytest.mark.parametrize(
    ("supervisor", "agent", "lease_over", "expected"),
    [
        (True, True, True, "attended"),  # stopped or slow, so its lease has expired
        (True, False, False, "attended"),  # before the agent starts, or during the check
        (False, True, False, "unattended"),  # killed a moment ago, so the lease is still valid
        (
            False,
            False,
            False,
            "interrupted",
        ),  # everything was killed, or the machine was started again
        (None, None, False, "attended"),  # another host
        (None, None, True, "interrupted"),  # another host that is gone
        (None, True, False, "attended"),  # another container
        (None, True, True, "unattended"),
    ],
)
def test_what_lives(
    supervisor: bool | None, agent: bool | None, lease_over: bool, expected: str
) -> None:
    """The named situations."""
    assert liveness(Signs(supervisor=supervisor, agent=agent, lease_over=lease_over)) == expected


@given(signs)
def test_whoever_is_seen_to_live_is_believed(found: Signs) -> None:
    """A run whose supervisor or agent is alive is never reported as dead. A supervisor that cannot
    be seen from here counts as alive while its lease is valid."""
    result = liveness(found)
    assert result is Liveness.ATTENDED or found.supervisor is not True
    assert result is not Liveness.INTERRUPTED or not found.agent
    assert result is Liveness.ATTENDED or found.supervisor is False or found.lease_over
    assert bool(advice("task", result)) == (result is not Liveness.ATTENDED)


def test_a_run_that_waits_for_its_turn_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that waits for a running one is not given up while that one has its supervisor, nor at
    the moment when it ends. A pool counts only for runs that it can take."""
    chosen = load({"HOME": str(tmp_path), "PERDURE_STATE": str(tmp_path)}, Path("/"))
    with closing(stores.open(tmp_path / "perdure.db")) as store:
        first, second = submit(store), submit(store)
        claim = claimed(store, first, worker=worker_identity())
        due = replace(second, run_after=0, updated=0)
        turn = replace(due, reason=f"{TURN}: 1 of 1 runs")
        check = UnclaimedCheck(chosen, store)
        assert check(due) and not check(turn)
        with closing(Bell(tmp_path)):
            assert not check(due)
            assert check(replace(due, host="another"))
        with monkeypatch.context() as changed:
            changed.setattr(worker, "LEFT_ALONE_MS", -1)
            assert not check(turn)
        store.finish(claim, SUCCESS)
        assert not check(turn)
        monkeypatch.setattr(worker, "LEFT_ALONE_MS", -1)
        assert check(turn)
