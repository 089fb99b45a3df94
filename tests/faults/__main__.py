"""`python -m tests.faults full|cut|all N`: so many trials of each kind, on all cores but one; exit code 1 if a promise did not hold."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.faults import cut, full
from tests.faults.scene import summary

WORKERS = 2


def main(words: list[str]) -> int:
    kind, count = words[0], int(words[1])
    if kind == "all":
        codes = [main(["full", str(count)])]
        if os.geteuid() == 0:
            codes.append(main(["cut", str(max(count // 4, 1))]))
        else:
            print("power cuts need root for loop mounts: not tried")
        return max(codes)
    if full.INSIDE not in os.environ:
        if kind == "full":
            return full.in_a_namespace(words)
        return full.in_a_namespace(words, as_root=True)
    one = full.trial if kind == "full" else cut.trial
    with ThreadPoolExecutor(WORKERS) as pool:
        return summary(list(pool.map(lambda number: one(number, count), range(count))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
