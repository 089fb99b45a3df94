"""Imports msgspec without typing_extensions, for the command only.

msgspec takes three names from typing_extensions if that is installed, and from `typing` if it is
not. On Python 3.11 and later both are the same for perdure's types. But typing_extensions loads
`inspect`, `ast`, `dis` and `tokenize`, which takes a tenth of the CPU of a start. Some
extras of perdure install it.

`perdure.cli.compose` imports this module before anything else of it imports msgspec. Programs that
use perdure as a library are not affected: there another thread may be importing typing_extensions.
"""

from __future__ import annotations

import sys

_NAME = "typing_extensions"

if _NAME not in sys.modules:
    # With None here, an import of the name raises ModuleNotFoundError.
    sys.modules[_NAME] = None  # type: ignore[assignment]
    try:
        import msgspec  # noqa: F401
    finally:
        del sys.modules[_NAME]
