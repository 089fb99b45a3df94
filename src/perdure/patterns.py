"""Regular expressions that are compiled on first use.

Every command that starts an agent imports about 120 patterns and uses a quarter of them. Compiling
a pattern takes 0.2 ms. A late pattern has the methods of a compiled pattern, and type checkers
treat it as one. But a late pattern cannot be passed to the functions of `re`: call its own methods
instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import re

    late_pattern = re.compile
else:

    def late_pattern(pattern, flags=0):
        """Return a pattern that is compiled on first use. An invalid pattern raises only then."""
        return _LatePattern(pattern, flags)


_METHODS = ("match", "fullmatch", "search", "sub", "subn", "split", "findall", "finditer")


class _LatePattern:
    """A pattern that is not compiled yet. The first use of a method or attribute compiles the
    pattern and stores its methods in this object. Further calls therefore cost nothing extra."""

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
