"""Some packages import a public name only when it is first used."""

from __future__ import annotations

import pytest

import perdure
from perdure import workspace
from perdure.host import process

NAMES = [
    *((perdure, name) for name in perdure.__all__),
    *((workspace, name) for name in workspace._SUBMODULES),
    *((process, name) for name in process._LATE),
]


@pytest.mark.parametrize(
    ("package", "name"), NAMES, ids=lambda each: getattr(each, "__name__", each)
)
def test_a_name_that_is_imported_late_exists(package: object, name: str) -> None:
    """Each such name is in the module that the package's table names."""
    assert getattr(package, name) is not None
