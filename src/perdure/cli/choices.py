"""Values of flags as plain text, because a verb's arguments are parsed before any model class is
loaded.

Each list holds the values of one enumeration of `perdure.model`, in its order.
"""

PERMISSIONS = ("read", "edit", "full")
MAP_WHEN = ("off", "fallback", "first", "always")
CONTINUITY = ("strict", "disclose", "fresh-ok")
WHEN_FULL = ("cli", "compact", "roll-over", "stop")
ON_DENIED = ("ask", "fail", "report")
ON_EDIT = ("keep", "replace", "merge")
ON_LEFTOVER = ("end", "keep", "wait")
