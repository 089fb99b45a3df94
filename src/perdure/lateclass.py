"""Dataclasses whose methods are generated on first use: `from perdure.lateclass import dataclass`.

Every command imports about 140 dataclasses and uses a third of them. The standard library compiles
five or six methods for each at import. That was 105 of the 245 ms of CPU that `perdure retry` took
to say that a run does not exist; with late generation it is 17 ms.

The result is a dataclass made by the standard library, with the same fields: `fields`, `replace`
and `asdict` accept it, msgspec reads and writes it, and type checkers see an ordinary dataclass.
Only `__init__` is compiled, at the first instance; the other methods are closures. The decorator
supports only the arguments that perdure uses.
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
        """Same as `dataclasses.dataclass`."""
        return (
            _late(cls, frozen, slots, kw_only, eq)
            if cls
            else lambda given: _late(given, frozen, slots, kw_only, eq)
        )


def _late(cls: Any, frozen: bool, slots: bool, kw_only: bool, eq: bool) -> Any:
    cls.__doc__ = (
        cls.__doc__ or cls.__name__
    )  # without one the standard library imports inspect for a signature
    own = set(cls.__dict__)
    # With `frozen`, the standard library compares parent and child. Without a parent, `frozen`
    # would only make it compile two methods.
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
            own.discard("__hash__")  # Python sets it to None when a class defines __eq__
    if frozen:
        methods |= {"__setattr__": _no_set, "__delattr__": _no_delete}
        if slots:
            methods |= {"__getstate__": _state, "__setstate__": _set_state}
    for name, method in methods.items():
        if name not in own:
            setattr(made, name, method)
    return made


class _Factory:
    """The default that a signature shows for a field with a default factory."""

    def __repr__(self) -> str:
        return "<factory>"


FACTORY = _Factory()


class _First:
    """A placeholder for `__init__`. It replaces itself with the real one on first access, such as
    the first instance or a look at the signature."""

    def __init__(self, made: Any, frozen: bool) -> None:
        self.made, self.frozen = made, frozen

    def __get__(self, instance: Any, owner: Any) -> Any:
        self.made.__init__ = real = _init(self.made, self.frozen)
        return real.__get__(instance, owner)


def _init(made: Any, frozen: bool) -> Any:
    """Return the `__init__` that the standard library would have made."""
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
            continue  # the class itself sets it
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
    )  # the module's names, so that annotations can be resolved
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
