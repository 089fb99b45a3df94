"""Interleaved rounds, medians and ratios: the one method by which everything here is measured."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One line of the table. `ratio` is perdure's value divided by the other one; `goal` is its
    maximum (with `least`, its minimum). `limit` is the ratio that the least possible work would
    have, measured in the same run; 0.0 if it was not measured. `note` says what the limit is, or
    why a goal is missed."""

    what: str
    ours: str
    beside: str
    other: str
    ratio: float
    goal: float
    least: bool = False
    note: str = ""
    limit: float = 0.0

    @property
    def met(self) -> bool:
        return self.ratio >= self.goal if self.least else self.ratio <= self.goal


def interleaved(rounds: int, *works: Callable[[], object]) -> list[float]:
    """Return the median time of each work, in seconds. They run in turn, so that a slow moment of
    the machine affects all of them."""
    seconds: list[list[float]] = [[] for _ in works]
    for work in works:
        work()
    for _ in range(rounds):
        for place, work in enumerate(works):
            begun = time.perf_counter()
            work()
            seconds[place].append(time.perf_counter() - begun)
    return [statistics.median(each) for each in seconds]


def command(words: Sequence[str], cwd: Path, environ: dict[str, str]) -> Callable[[], object]:
    """Return a work that runs a command as a process, which must succeed."""
    return lambda: subprocess.run(
        words, cwd=cwd, env=environ, stdin=subprocess.DEVNULL, capture_output=True, check=True
    )


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 10 else f"{seconds:.1f} s"


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| what | perdure | beside it | | ratio | goal | |",
        "| --- | ---: | --- | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        sign = ">=" if row.least else "<="
        verdict = "met" if row.met else "missed"
        if row.limit:
            verdict += f"; limit {row.limit:.2f}"
        if row.note:
            verdict += f": {row.note}"
        lines.append(
            f"| {row.what} | {row.ours} | {row.beside} | {row.other} | {row.ratio:.2f} | {sign} "
            f"{row.goal:g} | {verdict} |"
        )
    return "\n".join(lines)
