"""A shared git directory: an agent can do exactly the documented damage to other agents there. In
the isolated backend it can do none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.safety.damage import ATTACKS, Attack, scene
from tests.safety.trust import documented, rows
from tests.safety.vectors import VECTORS
from tests.workspace.yard import Yard, make_yard

by_name = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return make_yard(tmp_path)


@by_name
@pytest.mark.parametrize("backend", ["worktree", "isolated"])
def test_an_attack_on_a_neighbour_succeeds_only_where_it_is_documented(
    yard: Yard, backend: str, attack: Attack
) -> None:
    """For attacks on branches, stash, worktrees, replaced objects, settings and gc, the table says
    correctly which succeed and which do not."""
    place = scene(yard, backend)
    attack.do(place)
    assert attack.succeeded(place) == (attack.name in documented(backend))


@by_name
def test_an_attack_is_not_over_before_it_began(yard: Yard, attack: Attack) -> None:
    """Before an attack its sign is absent. Otherwise a verdict would mean nothing."""
    if attack.name != "gc-by-perdure":
        assert not attack.succeeded(scene(yard, "worktree"))


def test_a_worktree_is_locked_against_one_force(yard: Yard) -> None:
    """`git worktree remove --force` of another agent's workdir is refused, and its files stay. git
    requires --force twice."""
    place = scene(yard, "worktree")
    assert "locked" in yard.complaint(
        "worktree", "remove", "--force", place.his.path, cwd=place.hers.path
    )
    assert (Path(place.his.path) / "README").exists()


def test_the_table_and_the_tests_name_the_same_things() -> None:
    """Every vector and attack has its row, every row has its test, and every test that a row names
    exists."""
    table = rows()
    here = Path(__file__).parents[1]
    functions = {
        name
        for file in here.rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    assert {name for row in table.values() for name in row.tests} <= functions
    assert not [row.name for row in table.values() if not row.tests]
    by_list = {
        row.name
        for row in table.values()
        if "test_nothing_fires_in_the_isolated_backend" in row.tests
    }
    assert by_list == {vector.name for vector in VECTORS}
    by_attack = {
        row.name
        for row in table.values()
        if "test_an_attack_on_a_neighbour_succeeds_only_where_it_is_documented" in row.tests
    }
    assert by_attack == {attack.name for attack in ATTACKS}


def test_nothing_is_documented_to_succeed_in_the_isolated_backend_but_what_git_cannot_see() -> None:
    """No attack succeeds in the isolated backend. A .gitignore can hide files, which is documented
    as a limit and runs nothing."""
    assert documented("isolated") <= {"hide-by-gitignore"}
