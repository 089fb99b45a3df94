"""`prove`: runs the installed agents with perdure's own scripted model server, and prints a table
of the promises that hold."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import asdict

from perdure.cli.text import clean, one_line
from perdure.errors import UsageError, WorkspaceError
from perdure.host import system

if TYPE_CHECKING:
    from perdure.agents.prove import ProveCandidate, ProveResult, RowCheck

NARROWEST = 40


def prove_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "agents",
        nargs="*",
        metavar="AGENT",
        help="only these agents (default: all that are installed)",
    )
    parser.add_argument(
        "--program",
        action="append",
        default=[],
        metavar="AGENT=PATH",
        help="test this program; repeatable",
    )
    parser.add_argument("--quick", action="store_true", help="run only the most important checks")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="CHECK",
        help="run only this check and the checks that need the same run of the agent; repeatable",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=0,
        help="number of groups of checks that run at once (default: one per processor)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def prove_verb(arguments: argparse.Namespace) -> int:
    from perdure.agents.prove import Interrupted, candidates, prove
    from perdure.cli.compose import Stopper

    if problem := system.problem():
        raise WorkspaceError(*problem)
    programs = list(map(_program, arguments.program))
    with Stopper() as stopper:
        wanted, passed = candidates(arguments.agents, programs, os.environ)
        for sentence in passed:
            print(clean(sentence), file=sys.stderr)
        proofs: list[ProveResult] = []
        progress, stopping = _progress(), lambda: stopper.asked
        options = {"quick": arguments.quick, "only": arguments.only, "jobs": max(0, arguments.jobs)}
        try:
            for proof in prove(wanted, progress=progress, stopping=stopping, **options):
                proofs.append(proof)
                _clear()
                if not arguments.json:
                    print(table(proof, _width()), flush=True)
        except Interrupted:
            _clear()
            return 130
    broken = sum(len(proof.broken) for proof in proofs)
    if arguments.json:
        report = {
            "schema_version": 1,
            "ok": not broken,
            "verdict": verdict(proofs),
            "agents": list(map(_shown, proofs)),
        }
        print(json.dumps(report, indent=2))
    else:
        print(verdict(proofs))
    if broken:
        return 1
    return 0


def _program(given: str) -> tuple[str, str]:
    name, _, path = given.partition("=")
    if not name or not path:
        raise UsageError(
            f"--program: expected AGENT=PATH, got {given!r}",
            "perdure prove --program claude=/opt/claude/claude",
        )
    # Make the path absolute without resolving symbolic links, as a shell does.
    return name, os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111


def table(proof: ProveResult, width: int) -> str:
    """Return the results of one program as a table. `width` is in columns; 0 means no limit."""
    head = f"{proof.agent} {proof.version}  {proof.program}"
    if proof.checks:
        left = max(len(check.id) for check in proof.checks)
    else:
        left = 0
    lines = [clean(head), f"  {'CHECK'.ljust(left)}  RESULT   RELIED  SEEN"]
    for check in proof.checks:
        relied = "yes" if check.relied else "no"
        before = f"  {check.id.ljust(left)}  {check.result:7}  {relied:6}  "
        lines += _wrapped(before, clean(check.seen), width)
    for check in proof.broken:
        lines += _broken(check, width)
    for check in proof.changed:
        lines += _changed(proof, check, width)
    return "\n".join(lines) + "\n"


def _broken(check: RowCheck, width: int) -> list[str]:
    why = f"{check.asks} Seen: {check.seen}." + (
        f" ({one_line(check.detail, 300)})" if check.detail else ""
    )
    return _wrapped(f"  BROKEN {check.id}: ", clean(why), width)


def _changed(proof: ProveResult, check: RowCheck, width: int) -> list[str]:
    before = check.known or ("", "")
    why = (
        f"differs from what is known of {proof.agent} {proof.known}: {before[0]} ({before[1]}), "
        f"now {check.result} ({check.seen})"
    )
    return _wrapped(f"  {check.id} ", clean(why), width)


def _wrapped(before: str, text: str, width: int) -> list[str]:
    if not width:
        return [before + text]
    indent = len(before) if width - len(before) >= NARROWEST // 2 else 4
    return textwrap.wrap(
        text, max(width, NARROWEST), initial_indent=before, subsequent_indent=" " * indent
    ) or [before.rstrip()]


def verdict(proofs: Sequence[ProveResult]) -> str:
    """Return the last line of the output. It says whether all checks that perdure relies on have
    passed."""
    names, broken = [], []
    asked = changed = 0
    for proof in proofs:
        name = f"{proof.agent} {proof.version}"
        names.append(name)
        asked += sum(check.relied for check in proof.checks)
        changed += len(proof.changed)
        if proof.broken:
            broken.append(f"{name}: {', '.join(check.id for check in proof.broken)}")
    if changed:
        differ = "answer differs" if changed == 1 else "answers differ"
        tail = f" {changed} {differ} from what is known."
    else:
        tail = ""
    if broken:
        return f"perdure cannot rely on {'; '.join(broken)}.{tail}"
    return f"All {asked} checks that perdure relies on hold for {', '.join(names)}.{tail}"


def _shown(proof: ProveResult) -> dict[str, object]:
    checks = []
    for check in proof.checks:
        if check.known:
            before = {"version": proof.known, "result": check.known[0], "seen": check.known[1]}
        else:
            before = None
        checks.append({**asdict(check), "known": before, "changed": before is not None})
    return {
        "agent": proof.agent,
        "version": proof.version,
        "program": proof.program,
        "compared_with": proof.known,
        "checks": checks,
    }


def _progress() -> Callable[[ProveCandidate, int, int], None]:
    def show(candidate: ProveCandidate, done: int, of: int) -> None:
        if sys.stderr.isatty():
            line = f"{candidate.driver.name} {candidate.program.version}: {done} of {of} scenes"
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    return show


def _clear() -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _width() -> int:
    if sys.stdout.isatty():
        return shutil.get_terminal_size().columns
    return 0
