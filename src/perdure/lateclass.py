"""Dataclasses whose methods are made when they are first called: `from perdure.lateclass import
dataclass`.

Every verb imports about 140 dataclasses and uses a third of them. The standard library compiles
five or six methods for each while it is imported, which was 105 of the 245 ms of CPU that `perdure
retry` took to say that there is no such run; made late it is 17.

What comes out is a dataclass of the standard library, made by it, with the same fields: `fields`,
`replace` and `asdict` take it, msgspec reads and writes it, and type checkers see nothing else.
`__init__` alone is compiled, at the first instance; the others are closures. Of the decorator's
arguments there are those that perdure uses.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

MISSING = dataclasses.MISSING

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(cls=None, *, frozen=False, slots=False, kw_only=False, eq=True):
        """As `dataclasses.dataclass`."""
        return (
            _late(cls, frozen, slots, kw_only, eq)
            if cls
            else lambda given: _late(given, frozen, slots, kw_only, eq)
        )


def _late(cls: Any, frozen: bool, slots: bool, kw_only: bool, eq: bool) -> Any:
    cls.__doc__ = (
        cls.__doc__ or cls.__name__
    )  # else the standard library asks for a signature, and imports inspect for it
    own = set(cls.__dict__)
    # The standard library compares parent and child in this; where there is no parent, `frozen`
    # would make it compile two methods.
    inherits = any(dataclasses.is_dataclass(parent) for parent in cls.__bases__)
    made: Any = dataclasses.dataclass(
        init=False, repr=False, eq=False, slots=slots, kw_only=kw_only, frozen=frozen and inherits
    )(cls)
    made.__dataclass_params__.frozen = frozen
    fields = dataclasses.fields(made)
    methods: dict[str, Any] = {
        "__init__": _First(made, frozen),
        "__repr__": _repr([field.name for field in fields if field.repr]),
    }
    if eq:
        values = _values([field.name for field in fields if field.compare])
        methods["__eq__"] = lambda self, other: (
            values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented
        )
        methods["__hash__"] = (lambda self: hash(values(self))) if frozen else None
        if "__eq__" in own and cls.__dict__.get("__hash__") is None:
            own.discard("__hash__")  # Python's own None, beside an __eq__ that was written
    if frozen:
        methods |= {"__setattr__": _no_set, "__delattr__": _no_delete}
        if slots:
            methods |= {"__getstate__": _state, "__setstate__": _set_state}
    for name, method in methods.items():
        if name not in own:
            setattr(made, name, method)
    return made


class _Factory:
    """The default that a signature shows where a factory makes the value."""

    def __repr__(self) -> str:
        return "<factory>"


FACTORY = _Factory()


class _First:
    """Stands where `__init__` will be, and puts it there as soon as anybody asks: who makes an
    instance, or looks at the signature."""

    def __init__(self, made: Any, frozen: bool) -> None:
        self.made, self.frozen = made, frozen

    def __get__(self, instance: Any, owner: Any) -> Any:
        self.made.__init__ = real = _init(self.made, self.frozen)
        return real.__get__(instance, owner)


def _init(made: Any, frozen: bool) -> Any:
    """The `__init__` that the standard library would have made."""
    known: dict[str, Any] = {"FACTORY": FACTORY, "put": object.__setattr__}
    parameters: list[str] = []
    lines: list[str] = []
    fields = sorted(
        dataclasses.fields(made), key=lambda field: field.kw_only is True
    )  # stable: as they were written
    for field in fields:
        name, default, factory = field.name, field.default, field.default_factory
        known |= {f"default_{name}": default, f"make_{name}": factory}
        value = name if field.init else f"default_{name}"
        if factory is not MISSING:
            value = (
                f"make_{name}() if {name} is FACTORY else {name}"
                if field.init
                else f"make_{name}()"
            )
        elif default is MISSING and not field.init:
            continue  # whoever wrote the class sets it
        if field.init:
            if field.kw_only and "*" not in parameters:
                parameters.append("*")
            if default is factory is MISSING:
                parameters.append(name)
            elif default is MISSING:
                parameters.append(f"{name}=FACTORY")
            else:
                parameters.append(f"{name}=default_{name}")
        lines.append(f"put(self, {name!r}, {value})" if frozen else f"self.{name} = {value}")
    if hasattr(made, "__post_init__"):
        lines.append("self.__post_init__()")
    body = "\n        ".join(lines or ["pass"])
    source = (
        f"def make({', '.join(known)}):\n    def __init__(self, {', '.join(parameters)}):\n        "
        f"{body}\n    return __init__"
    )
    found: dict[str, Any] = {}
    exec(
        source, vars(sys.modules[made.__module__]), found
    )  # the module's names, for whoever resolves the annotations
    real = found["make"](**known)
    real.__annotations__ = {field.name: field.type for field in fields if field.init} | {
        "return": None
    }
    real.__qualname__ = f"{made.__qualname__}.__init__"
    return real


def _repr(names: list[str]) -> Callable[[Any], str]:
    def represent(self: Any) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{self.__class__.__qualname__}({fields})"

    return represent


def _values(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    return lambda self: tuple([getattr(self, name) for name in names])


def _no_set(self: Any, name: str, value: Any) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _no_delete(self: Any, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


def _state(self: Any) -> list[Any]:
    return [getattr(self, field.name) for field in dataclasses.fields(self)]


def _set_state(self: Any, state: list[Any]) -> None:
    for field, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, field.name, value)
