"""A task's specification from a caller: the type of every field is checked at once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import UsageError
from perdure.model import ContinuityPolicy, Permissions, TaskSpec
from perdure.rules.specification import check

KINDS = TaskSpec.__annotations__
WRONG: dict[str, Any] = {
    **{name: 3 for name, kind in KINDS.items() if kind == "str"},
    **{name: "five" for name, kind in KINDS.items() if kind in ("int", "float")},
    **{
        name: "everything"
        for name, kind in KINDS.items()
        if kind in ("Permissions", "ContinuityPolicy")
    },
    **{name: (1, 2) for name, kind in KINDS.items() if kind == "tuple[str, ...]"},
    **{name: {"A": 1} for name, kind in KINDS.items() if kind == "dict[str, str]"},
}


def test_every_field_is_covered() -> None:
    """The tables of this file cover every field. A new field of another type needs a wrong value
    here."""
    assert WRONG.keys() == set(TaskSpec.__struct_fields__)


@pytest.mark.parametrize("name", WRONG)
def test_a_value_of_another_type_is_refused_by_name(name: str) -> None:
    """A value of a wrong type is refused with the field's name, and the hint says which values the
    field takes."""
    for value in (WRONG[name], None, object(), [[]]):
        with pytest.raises(UsageError, match=rf"field {name} ") as caught:
            check(TaskSpec(**({"prompt": "p"} | {name: value})))
        assert caught.value.hint.startswith("expected ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attempts", 0), ("attempts", -1), ("attempts", 1001), ("attempts", 2.5), ("attempts", True), ("timeout_s", -1.0),
        ("timeout_s", math.nan), ("stall_s", math.inf), ("budget_usd", -0.01), ("budget_usd", math.nan), ("verify_rounds", -1),
        ("fork_at", -1), ("map", "sometimes"), ("when_full", "explode"), ("branch", "a\0b"), ("repo", "/srv/\udcff"),
        ("env", {"A": "\0"}), ("files", ("a\0",)),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    """Infinite numbers, unknown choices, and texts that no program can be given are refused with
    the field's name."""
    with pytest.raises(UsageError, match=f"field {name} "):
        check(TaskSpec(**({"prompt": "p"} | {name: value})))


def test_a_secret_is_not_shown() -> None:
    """The sentence that refuses a variable does not contain its value."""
    with pytest.raises(UsageError) as caught:
        check(TaskSpec(prompt="p", env={"KEY": b"s3cret"}))  # type: ignore[dict-item]
    assert "s3cret" not in f"{caught.value} {caught.value.hint}"


def test_what_is_meant_is_taken() -> None:
    """A path, a list, a text and a whole number are converted to the field's type if the meaning is
    clear. A valid task does not change."""
    loose: dict[str, Any] = {
        "repo": Path("/srv/a"),
        "files": ["a", "b"],
        "permissions": "read",
        "continuity": "strict",
        "timeout_s": 30,
    }
    meant = check(TaskSpec(prompt="p", **loose))
    assert (meant.repo, meant.files, meant.timeout_s) == ("/srv/a", ("a", "b"), 30.0)
    assert meant.permissions is Permissions.READ and meant.continuity is ContinuityPolicy.STRICT
    assert check(meant) == meant
