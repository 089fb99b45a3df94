"""Regular expressions that are compiled on first use.

Every command that starts an agent imports about 120 patterns and uses a quarter of them. Compiling
one takes 0.2 ms. A late pattern behaves like a compiled one, and type checkers see a compiled one.
Only the functions of `re` refuse a late pattern as their first argument: call its own methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import re

    late_pattern = re.compile
else:

    def late_pattern(pattern, flags=0):
        """Same as `re.compile`; an invalid pattern raises on first use."""
        return _LatePattern(pattern, flags)


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
