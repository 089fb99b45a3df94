"""Opens a store in a process to which file modes apply, even if root runs it. test_store_faults.py
runs it.

argv: database, `read` or `write`. Prints `ok`, or the kind, sentence and hint of the error.
"""

from __future__ import annotations

import ctypes
import sys

from perdure import store as stores
from perdure.errors import PerdureError
from perdure.testing.stores.samples import submit

CAPABILITY_VERSION_3 = 0x20080522


def drop_capabilities() -> None:
    """Drop CAP_DAC_OVERRIDE, so that file modes apply to root too (capabilities(7))."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


def main(database: str, wish: str) -> None:
    drop_capabilities()
    try:
        store = stores.open(database, read_only=wish == "read")
        if wish == "read":
            print("ok", len(store.find()))
        else:
            submit(store)
            print("ok")
        store.close()
    except PerdureError as error:
        print(f"{type(error).__name__}: {error} [{error.hint}]")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
