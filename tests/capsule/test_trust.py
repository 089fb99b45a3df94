"""Imports without trust: what changes in a spec, and what is said about it."""

from __future__ import annotations

from perdure.capsule.trust import limit_spec
from perdure.model import ContinuityPolicy, Permissions, TaskSpec


def test_a_change_of_continuity_or_of_a_time_limit_is_named() -> None:
    """`fresh-ok` becomes `disclose`, and time limits are brought within bounds; each is named with
    both values. Values within the bounds, and no limit, stay without a word."""
    wide = TaskSpec(
        prompt="Go.", continuity=ContinuityPolicy.FRESH_OK, timeout_s=172_800.0, stall_s=0.5
    )
    spec, dropped = limit_spec(wide, "name", Permissions.EDIT, trusted=False)
    assert (spec.continuity, spec.timeout_s, spec.stall_s) == ("disclose", 86_400.0, 1.0)
    assert dropped == (
        "continuity `fresh-ok`: set to `disclose`",
        "timeout of 172800 seconds: set to 86400",
        "stall limit of 0.5 seconds: set to 1",
    )
    spec, dropped = limit_spec(wide, "name", Permissions.EDIT, trusted=True)
    assert (spec.continuity, spec.timeout_s, spec.stall_s, dropped) == (
        "fresh-ok",
        172_800.0,
        0.5,
        (),
    )
    plain = TaskSpec(prompt="Go.", continuity=ContinuityPolicy.STRICT, timeout_s=0.0)
    spec, dropped = limit_spec(plain, "name", Permissions.EDIT, trusted=False)
    assert (spec.continuity, spec.timeout_s, spec.stall_s, dropped) == ("strict", 0.0, 600.0, ())
