"""The liveness of a run that is stored as running."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.model import Liveness
from perdure.rules.liveness import Signs, advice, liveness

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
        (True, True, True, "attended"),  # stopped, or slow: its lease is late
        (True, False, False, "attended"),  # before its agent starts, or while it checks
        (False, True, False, "unattended"),  # killed a moment ago: its lease says nothing
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
    """A live supervisor or agent is never reported as dead. One that cannot be seen from here
    counts as alive while its lease lasts."""
    result = liveness(found)
    assert result is Liveness.ATTENDED or found.supervisor is not True
    assert result is not Liveness.INTERRUPTED or not found.agent
    assert result is Liveness.ATTENDED or found.supervisor is False or found.lease_over
    assert bool(advice("task", result)) == (result is not Liveness.ATTENDED)
