"""The one line with which `run`, `retry`, `update` and `attach` end."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from perdure.cli.style import STATES, SYMBOLS, fitted, paint, wrapped
from perdure.cli.text import columns, dollars
from perdure.errors import PerdureError
from perdure.model import Backend, Workspace
from perdure.rules.text import VERDICTS, span

if TYPE_CHECKING:
    from perdure.engine.attempt import Engine

_STAT = re.compile(
    rb"(\d+) files? changed(?:, (\d+) insertions?\(\+\))?(?:, (\d+) deletions?\(-\))?\s*\Z"
)

DOUBTS = ("incomplete", "blocked", "refused")
"""Verdicts on the work that are shown to a person even if the run succeeded."""


def changes_of(engine: Engine, ref: str) -> str:
    """Return what a run changed in its workdir, as `3 files +41 −7`; empty where git cannot tell,
    or nothing was changed."""
    from perdure.engine import service

    place = engine.store.get(ref).workspace
    if place is None or place.backend is Backend.HERE:
        return ""  # changes in the user's own directory may not be the agent's
    with suppress(PerdureError):
        if _is_as_it_began(engine, ref, place):
            return ""
        found = _STAT.search(service.diff(engine, ref, stat=80))
        if found:
            count, more, less = (int(each or 0) for each in found.groups())
            files = "file" if count == 1 else "files"
            return f"{count} {files} +{more} −{less}"
    return ""


def _is_as_it_began(engine: Engine, ref: str, place: Workspace) -> bool:
    """Return whether the checkpoint at the end of the last attempt shows no changes, so that git
    need not be asked."""
    run = engine.store.get(ref)
    last = max(engine.store.checkpoints(run.id), key=lambda each: each.number, default=None)
    if last is None or last.why != "end" or last.attempt != run.attempt:
        return False
    saved = last.workdir
    same = bool(saved.head) and saved.head == place.base
    return same and saved.whole and not (saved.changed or saved.untracked)


def summary(report: dict[str, Any], changes: str = "") -> str:
    """Return a run's state in one line, as `✓ greeting · 2m14s · $0.42 · 3 files +41 −7 · continued
    ✓`."""
    attempts, used, state = report["attempts"], report["usage"], report["state"]
    worked = sum((each["ended"] or each["started"]) - each["started"] for each in attempts)
    receipt = attempts[-1]["receipt"] if attempts else None
    words = ""
    if receipt:
        words = VERDICTS.get(receipt["verdict"], receipt["verdict"])
        words += " ✓" if receipt["verdict"] == "native" else ""
    doubted = state == "succeeded" and report.get("verdict") in DOUBTS
    parts = [
        report["name"],
        "" if state == "succeeded" else state,
        f"{len(attempts)} attempts" if len(attempts) > 1 else "",
        span(worked // 1000) if attempts else "",
        dollars(used["cost_usd"], estimated=used["estimated"]) if attempts else "",
        changes,
        words,
        f"work {report['verdict']}" if doubted else "",
    ]
    return f"{SYMBOLS.get(state, '')} {' · '.join(part for part in parts if part)}"


def say_summary(report: dict[str, Any], changes: str = "") -> None:
    """Print the summary on standard error, with the state in its color."""
    line = fitted(wrapped(summary(report, changes), columns(sys.stderr)), sys.stderr)
    with suppress(OSError):
        print(paint(line, STATES.get(report["state"], ""), sys.stderr), file=sys.stderr, flush=True)
