"""Dataclasses whose methods are made late behave exactly like those of the standard library."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import typing
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass as ordinary
from dataclasses import field
from typing import Any

import msgspec
import pytest

from perdure.lateclass import FEW
from perdure.lateclass import dataclass as late

Decorator = Callable[..., Any]


def family(dataclass: Decorator) -> dict[str, Any]:
    """Return the same classes made by either decorator: positional, by name, inherited, mutable,
    with every kind of default."""

    @dataclass(frozen=True, slots=True)
    class Point:
        x: int
        y: int = 2
        marks: list[str] = field(default_factory=list)

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Named:
        """A class with a docstring."""

        name: str
        size: int = field(default=0, compare=False)
        key: str = field(default="", repr=False)

    @dataclass(frozen=True, slots=True)
    class Child(Point):
        z: int = field(kw_only=True)
        w: int = 4

    @dataclass(slots=True)
    class Mutable:
        given: int
        made: list[int] = field(default_factory=lambda: [1], init=False)
        fixed: int = field(default=7, init=False)
        total: int = 0

        def __post_init__(self) -> None:
            self.total += self.given

    @dataclass(eq=False)
    class Same:
        a: int = 1

    @dataclass(frozen=True, slots=True)
    class Own:
        a: int

        def __repr__(self) -> str:
            return "own"

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 1

    @dataclass(slots=True)
    class Empty:
        pass

    return {each.__name__: each for each in (Point, Named, Child, Mutable, Same, Own, Empty)}


CALLS = (
    *(
        ("Point", (1,), {}),
        ("Point", (1, 3, ["m"]), {}),
        ("Point", (), {"x": 1}),
        ("Point", (), {}),
        ("Point", (1, 2, [], 4), {}),
    ),
    *(
        ("Named", (), {"name": "n"}),
        ("Named", (), {"name": "n", "size": 1}),
        ("Named", ("n",), {}),
        ("Named", (), {"nome": "n"}),
    ),
    *(
        ("Child", (1, 2, [], 9), {"z": 3}),
        ("Child", (1,), {}),
        ("Mutable", (1,), {}),
        ("Mutable", (1, 5), {}),
        ("Mutable", (1,), {"made": []}),
    ),
    *(
        ("Same", (), {}),
        ("Same", (2,), {}),
        ("Own", (3,), {}),
        ("Own", (4,), {}),
        ("Empty", (), {}),
        ("Empty", (1,), {}),
    ),
)
FAMILIES = (family(ordinary), family(late), family(late))
for each in FAMILIES[2].values():
    assert callable(each.__init__)  # compiled before the first instance


def seen(do: Callable[[], Any]) -> Any:
    """Return the result, or the error and its message."""
    try:
        return do()
    except (TypeError, AttributeError) as error:
        return type(error), str(error)


def told(classes: dict[str, Any], name: str, values: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Return everything that can be observed of one instance."""
    made = seen(lambda: classes[name](*values, **named))
    if isinstance(made, tuple):
        return made
    one = made
    first = next((each.name for each in dataclasses.fields(one)), "nothing")
    return {
        "repr": repr(one),
        "values": dataclasses.asdict(one),
        "json": seen(lambda: msgspec.json.encode(one)),
        "hash": seen(
            lambda: (
                hash(one) == hash(one)
                if type(one).__hash__ is not object.__hash__
                else "by identity"
            )
        ),
        "set": seen(lambda: setattr(copy.copy(one), first, 9)),
        "unknown": seen(lambda: setattr(copy.copy(one), "unknown", 9)) is None,
        "delete": seen(lambda: delattr(copy.copy(one), first)),
        "copy": dataclasses.asdict(copy.deepcopy(one)),
        "replaced": seen(lambda: repr(dataclasses.replace(one, **{first: 5}))),
        "match": type(one).__match_args__,
        "slots": getattr(type(one), "__slots__", None),
    }


@pytest.mark.parametrize(("name", "values", "named"), CALLS)
def test_an_instance_is_what_it_would_be(
    name: str, values: tuple[Any, ...], named: dict[str, Any]
) -> None:
    """An instance is made by position or by name, or refused with the same message. Its repr,
    comparison, copy, replacement and JSON are the same."""
    one, few, many = (told(classes, name, values, named) for classes in FAMILIES)
    assert one == few == many


@pytest.mark.parametrize(("name", "values", "named"), CALLS)
def test_two_are_equal_where_they_would_be(
    name: str, values: tuple[Any, ...], named: dict[str, Any]
) -> None:
    """Each instance is compared with all others of the family."""

    def row(classes: dict[str, Any]) -> Any:
        one = seen(lambda: classes[name](*values, **named))
        return [one == seen(lambda: classes[other](*words, **more)) for other, words, more in CALLS]  # noqa: B023

    assert row(FAMILIES[0]) == row(FAMILIES[1]) == row(FAMILIES[2])


def test_a_class_of_the_standard_library_may_inherit() -> None:
    """A frozen child made by the standard decorator has the parent's fields and is frozen too."""

    @ordinary(frozen=True, slots=True)
    class Grandchild(FAMILIES[1]["Child"]):  # type: ignore[misc]
        v: int = 6

    made = Grandchild(1, z=2)
    assert (made.x, made.y, made.marks, made.w, made.z, made.v) == (1, 2, [], 4, 2, 6)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.x = 2


def test_a_plain_child_is_made_by_its_parent() -> None:
    """A child without a decorator is complete, even if the first instance is the child's and the
    parent's comes later."""
    classes = family(late)

    class Plain(classes["Point"]):  # type: ignore[misc]
        pass

    assert (
        Plain(1).x == 1 and type(Plain(1)) is Plain and Plain(1) == Plain(1) != classes["Point"](1)
    )
    assert classes["Point"](3).x == 3


@late(frozen=True, slots=True)
class Kept:
    """A class for pickle, which finds a class by its name."""

    a: int
    b: tuple[int, ...] = ()


def test_it_is_read_back() -> None:
    """An instance is read back from a pickle and from JSON."""
    assert pickle.loads(pickle.dumps(Kept(1, (2,)))) == Kept(1, (2,))
    assert msgspec.json.decode(b'{"a":1,"b":[2]}', type=Kept) == Kept(1, (2,))


def test_nothing_is_compiled_for_few_instances() -> None:
    """A class of which few instances were made has no `__init__` of its own yet; many leave it one
    that knows its fields, and so does a call that is refused."""
    for wrong in (False, True):
        point = family(late)["Point"]
        made = [point(number) for number in range(FEW)]
        assert [each.x for each in made] == list(range(FEW))
        assert not callable(vars(point)["__init__"])
        with pytest.raises(TypeError) if wrong else nullcontext():
            point(*range(9 if wrong else 1))
        assert vars(point)["__init__"].__code__.co_varnames == ("self", "x", "y", "marks")


@pytest.mark.parametrize("name", FAMILIES[0])
def test_the_signature_is_what_it_would_be(name: str) -> None:
    """The names, kinds, defaults and types are known without an instance."""

    def parameters(classes: dict[str, Any]) -> list[tuple[Any, ...]]:
        found = inspect.signature(classes[name]).parameters.values()
        return [(each.name, each.kind, repr(each.default), each.annotation) for each in found]

    assert parameters(family(ordinary)) == parameters(family(late))
    hints = [
        typing.get_type_hints(family(decorator)[name].__init__) for decorator in (ordinary, late)
    ]
    assert hints[0] == hints[1]
