"""Imports without trust: what changes in a spec, and what is said about it."""

from __future__ import annotations

from perdure.capsule.verification import limit_spec
from perdure.model import ContinuityPolicy, Permissions, TaskSpec
from perdure.model.forge.postings import Origin, labels_of


def test_a_change_of_continuity_or_of_a_time_limit_is_named() -> None:
    """`fresh-ok` becomes `disclose`, and time limits are brought within bounds; each is named with
    both values. Values within the bounds, and a limit that is not set, stay and are not named."""
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


def test_a_stranger_names_no_rule_and_no_issue() -> None:
    """The name of a rule would give the run that rule's git identity, and the labels of a delivery
    would make it a run about an issue. Labels of a person's own stay."""
    origin = Origin(source="shop", rule="release", repository="shop/web", number=7, pull=True)
    theirs = TaskSpec(prompt="Go.", rule="release", labels={**labels_of(1, origin), "team": "web"})
    spec, dropped = limit_spec(theirs, "name", Permissions.EDIT, trusted=False)
    assert (spec.rule, spec.labels) == ("", {"team": "web"})
    assert dropped == (
        "the rule of a forge: release",
        "labels of a forge's issue: agent, delivery, issue, pull, source",
    )
    spec, dropped = limit_spec(theirs, "name", Permissions.EDIT, trusted=True)
    assert (spec.rule, spec.labels, dropped) == (theirs.rule, theirs.labels, ())


def test_the_importer_gives_its_own_check() -> None:
    """A check command of the importer replaces the one in the capsule, with and without trust. An
    empty one means no check. Only without one, the capsule's check is kept or named as dropped."""
    theirs = TaskSpec(prompt="Go.", verify="steal")
    for trusted in (False, True):
        for own in ("make test", ""):
            spec, dropped = limit_spec(
                theirs, "name", Permissions.EDIT, trusted=trusted, verify=own
            )
            assert (spec.verify, dropped) == (own, ())
    spec, dropped = limit_spec(theirs, "name", Permissions.EDIT, trusted=False)
    assert (spec.verify, dropped) == ("", ("the check command: steal",))
    assert limit_spec(theirs, "name", Permissions.EDIT, trusted=True)[0].verify == "steal"
