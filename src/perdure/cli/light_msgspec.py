"""Imports msgspec without typing_extensions. Used only by the command `perdure`.

msgspec takes three names from typing_extensions if that is installed, and from `typing` if it is
not. On Python 3.11 and later both are the same for perdure's types. But typing_extensions loads
`inspect`, `ast`, `dis` and `tokenize`, which takes a tenth of the CPU time of a start. Some extras
of perdure install typing_extensions.

`perdure.cli.compose` imports this module before it imports msgspec. Programs that use perdure as a
library do not import it, because another thread may be importing typing_extensions.
"""

from __future__ import annotations

import sys

_NAME = "typing_extensions"

if _NAME not in sys.modules:
    # The value None makes an import of the name raise ModuleNotFoundError.
    sys.modules[_NAME] = None  # type: ignore[assignment]
    try:
        import msgspec  # noqa: F401
    finally:
        del sys.modules[_NAME]
