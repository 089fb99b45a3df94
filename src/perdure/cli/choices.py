"""Allowed values of flags, as plain strings. A verb's arguments are parsed before any model class
is loaded, so the enumerations cannot be used.

Each tuple has the values of one enumeration of `perdure.model`, in its order.
"""

PERMISSIONS = ("read", "edit", "full")
MAP_WHEN = ("off", "fallback", "first", "always")
CONTINUITY = ("strict", "disclose", "fresh-ok")
WHEN_FULL = ("cli", "compact", "roll-over", "stop")
ON_DENIED = ("ask", "fail", "report")
ON_EDIT = ("keep", "replace", "merge")
ON_LEFTOVER = ("end", "keep", "wait")
