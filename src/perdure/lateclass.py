"""Dataclasses and regular expressions that are completed on first use.

Every command imports about 140 dataclasses and uses a third of them. The standard library compiles
five or six methods for each at import. That was 105 of the 245 ms of CPU that `perdure retry` took
to report a run that does not exist. With late generation it is 17 ms.

The result is like a dataclass made by the standard library, with the same fields: `fields`,
`replace` and `asdict` accept it, msgspec reads and writes it, and type checkers see an ordinary
dataclass. Only `__init__` is compiled, after the first instances; the other methods are closures. A
class that inherits from a dataclass, or has special annotations, gets its fields from the standard
library. The decorator supports only the arguments that perdure uses.

A late pattern is a regular expression that is compiled on first use. Every command that starts an
agent imports about 120 and uses a quarter of them; compiling one takes 0.2 ms. It behaves like a
compiled pattern, and type checkers see one. Only the functions of `re` refuse it as their first
argument: call its own methods.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

MISSING = dataclasses.MISSING
FEW = 20
"""Number of instances of a class that are made without a compiled `__init__`. Compiling takes 0.2
ms, as much as it saves in 60 instances. Most commands make fewer instances of most classes."""

if TYPE_CHECKING:
    import re
    from dataclasses import dataclass as dataclass

    late_pattern = re.compile
else:

    def late_pattern(pattern, flags=0):
        """Same as `re.compile`; an invalid pattern raises on first use."""
        return _LatePattern(pattern, flags)

    def dataclass(cls=None, *, frozen=False, slots=False, kw_only=False, eq=True):
        """Same as `dataclasses.dataclass`."""
        if cls:
            return _late(cls, frozen, slots, kw_only, eq)
        return lambda given: _late(given, frozen, slots, kw_only, eq)


_METHODS = ("match", "fullmatch", "search", "sub", "subn", "split", "findall", "finditer")


class _LatePattern:
    """Stands for a pattern until one of its methods or attributes is used. Then it has the methods
    of the compiled pattern, so further calls cost nothing extra."""

    def __init__(self, pattern: str | bytes, flags: int) -> None:
        self._given = (pattern, flags)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        import re

        made: re.Pattern[Any] = re.compile(*self._given)
        for each in _METHODS:
            setattr(self, each, getattr(made, each))
        return getattr(made, name)


_SPECIAL = late_pattern("ClassVar|InitVar|KW_ONLY")
"""Annotations that may not stand for a field, or may stand for a special kind of field."""


def _samples() -> Any:
    """Return samples of the attributes that the standard library adds to a dataclass: the mark of a
    field, and the parameters of a class by `frozen`."""

    def sample(frozen: bool) -> Any:
        kind = type("Sample", (), {"__annotations__": {"a": "int"}, "__doc__": "A sample."})
        made: Any = dataclasses.dataclass(init=False, repr=False, eq=False)(kind)
        made.__dataclass_params__.frozen = frozen
        return made

    kinds = {frozen: sample(frozen) for frozen in (False, True)}
    mark = kinds[True].__dataclass_fields__["a"]._field_type
    return mark, {frozen: kind.__dataclass_params__ for frozen, kind in kinds.items()}


_FIELD, _PARAMS = _samples()


def _late(cls: Any, frozen: bool, slots: bool, kw_only: bool, eq: bool) -> Any:
    cls.__doc__ = (
        cls.__doc__ or cls.__name__
    )  # Without a docstring, the standard library imports inspect to find the signature.
    own = set(cls.__dict__)
    made: Any = _plain(cls, slots, kw_only) or _by_library(cls, slots, kw_only, frozen)
    made.__dataclass_params__ = _PARAMS[frozen]
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


def _by_library(cls: Any, slots: bool, kw_only: bool, frozen: bool) -> Any:
    """Return the class with fields, made by the standard library."""
    # With `frozen`, the standard library compares parent and child. Without a parent, `frozen`
    # would only make it compile two methods.
    inherits = any(dataclasses.is_dataclass(parent) for parent in cls.__bases__)
    return dataclasses.dataclass(
        init=False, repr=False, eq=False, slots=slots, kw_only=kw_only, frozen=frozen and inherits
    )(cls)


def _plain(cls: Any, slots: bool, kw_only: bool) -> Any:
    """Return the class with fields, in a fourth of the time that the standard library takes. Return
    None for a class that inherits from a dataclass or whose annotations may be special."""
    written = cls.__dict__.get("__annotations__", {})  # noqa: RUF063
    if any(dataclasses.is_dataclass(parent) for parent in cls.__mro__[1:]):
        return None
    if any(type(kind) is not str or _SPECIAL.search(kind) for kind in written.values()):
        return None
    # From Python 3.14 on, annotations that are not text are stored elsewhere.
    if not written and getattr(cls, "__annotate__", None) is not None:
        return None
    made = {name: _field(cls, name, kind, kw_only) for name, kind in written.items()}
    cls.__dataclass_fields__ = made
    if "__match_args__" not in cls.__dict__:
        named = [field.name for field in made.values() if field.init and not field.kw_only]
        setattr(cls, "__match_args__", tuple(named))  # noqa: B010
    if slots:
        return _slotted(cls, made)
    return cls


def _field(cls: Any, name: str, kind: str, kw_only: bool) -> Any:
    """Return the field of one annotation. The default remains an attribute of the class."""
    given = cls.__dict__.get(name, MISSING)
    made: Any = given if isinstance(given, dataclasses.Field) else dataclasses.field(default=given)
    made.name, made.type, made._field_type = name, kind, _FIELD
    if made.kw_only is MISSING:
        made.kw_only = kw_only
    if type(made.default).__hash__ is None:
        raise ValueError(
            f"mutable default {type(made.default)} for field {name} is not allowed: use "
            "default_factory"
        )
    if made is given and made.default is MISSING:
        delattr(cls, name)
    elif made is given:
        setattr(cls, name, made.default)
    return made


def _slotted(cls: Any, fields: dict[str, Any]) -> Any:
    """Return a copy of the class that has slots for its fields."""
    inherited: set[str] = set()
    for parent in cls.__mro__[1:-1]:
        slots = parent.__dict__.get("__slots__", ())
        inherited.update([slots] if isinstance(slots, str) else slots)
    content = {
        name: value
        for name, value in cls.__dict__.items()
        if name not in fields and name not in ("__dict__", "__weakref__")
    }
    content["__slots__"] = tuple(name for name in fields if name not in inherited)
    made = type(cls)(cls.__name__, cls.__bases__, content)
    made.__qualname__ = cls.__qualname__
    return made


class _Factory:
    """The default that a signature shows for a field with a default factory."""

    def __repr__(self) -> str:
        return "<factory>"


FACTORY = _Factory()


class _First:
    """A placeholder for `__init__`. It fills the first instances itself. It replaces itself with a
    compiled `__init__` after `FEW` instances, for a call with invalid arguments, and when somebody
    reads the class's `__init__`, for example for its signature."""

    def __init__(self, made: Any, frozen: bool) -> None:
        self.made, self.frozen = made, frozen
        self.filled = 0
        self.fields: list[tuple[str, bool, Any, Any]] = []
        self.positional: list[str] = []

    def __get__(self, instance: Any, owner: Any) -> Any:
        if instance is None or self.filled >= FEW:
            return self._real().__get__(instance, owner)
        if not self.filled:
            fields = dataclasses.fields(self.made)
            self.fields = [
                (each.name, each.init, each.default, each.default_factory) for each in fields
            ]
            self.positional = [each.name for each in fields if each.init and not each.kw_only]
        self.filled += 1
        return partial(self._fill, instance)

    def _real(self) -> Any:
        self.made.__init__ = real = _init(self.made, self.frozen)
        return real

    def _fill(self, instance: Any, /, *values: Any, **named: Any) -> None:
        """Set the fields of an instance, as the compiled `__init__` would."""
        put = object.__setattr__ if self.frozen else setattr
        given = dict(zip(self.positional, values, strict=False))
        known = len(given) == len(values) and given.keys().isdisjoint(named)
        given |= named
        for name, is_given, default, factory in self.fields:
            if is_given and name in given:
                put(instance, name, given.pop(name))
            elif factory is not MISSING:
                put(instance, name, factory())
            elif default is not MISSING:
                put(instance, name, default)
            else:
                known = known and not is_given
        if given or not known:
            self._real()(instance, *values, **named)
        elif hasattr(instance, "__post_init__"):
            instance.__post_init__()


def _init(made: Any, frozen: bool) -> Any:
    """Return the `__init__` that the standard library would have made."""
    known: dict[str, Any] = {"FACTORY": FACTORY, "put": object.__setattr__}
    parameters: list[str] = []
    lines: list[str] = []
    fields = sorted(
        dataclasses.fields(made), key=lambda field: field.kw_only is True
    )  # Sorting is stable, so both groups keep their order.
    for field in fields:
        name, default, factory = field.name, field.default, field.default_factory
        known |= {f"default_{name}": default, f"make_{name}": factory}
        value = name if field.init else f"default_{name}"
        if factory is not MISSING:
            if field.init:
                value = f"make_{name}() if {name} is FACTORY else {name}"
            else:
                value = f"make_{name}()"
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
    )  # The module's names are needed to resolve annotations.
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
