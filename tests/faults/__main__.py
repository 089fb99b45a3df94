"""`python -m tests.faults full|calls|cut|all N` runs N trials of a kind, two at a time. The exit
code is 1 if a promise did not hold.

`all N` runs N trials with full disks of different sizes, N/2 with calls that fail, and N/4 with
power cuts.
"""

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
        codes = [main(["full", str(count)]), main(["calls", str(max(count // 2, 1))])]
        if os.geteuid() == 0:
            codes.append(main(["cut", str(max(count // 4, 1))]))
        else:
            print("power cuts need root for loop mounts: not tried")
        return max(codes)
    if full.INSIDE not in os.environ:
        return full.in_a_namespace(words, as_root=kind == "cut")
    one = {"full": full.trial, "calls": full.by_call, "cut": cut.trial}[kind]
    with ThreadPoolExecutor(WORKERS) as pool:
        return summary(list(pool.map(lambda number: one(number, count), range(count))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
