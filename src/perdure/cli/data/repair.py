"""`sessions check` and `sessions repair`: report what is wrong with transcripts, and make repaired
copies. `repair` changes nothing without --write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import asdict

from perdure.cli.compose import open_engine
from perdure.cli.text import at_home, clean, one_line
from perdure.model.codec import printed

if TYPE_CHECKING:
    from perdure.config import Settings
    from perdure.engine.conversations import ConversationIndex
    from perdure.engine.conversations.repair import Diagnosis

LISTED = 40
"""Maximum number of findings, and of edits, shown for one conversation."""
CHANGED = 12
"""Maximum number of removed lines, and of added lines, shown for one repair."""


def check(
    index: ConversationIndex, ids: Sequence[str], limit: int, below: Path | None, *, as_json: bool
) -> int:
    """Check the conversations `ids`, or if `ids` is empty, the conversations that `sessions ls`
    shows. Return 1 if a conversation is damaged: the agent would refuse it, or a part of it is
    lost."""
    from perdure.engine.conversations.repair import diagnose, diagnosis
    from perdure.rules.transcript_repair import Harm

    if ids:
        looked = [diagnose(index, each) for each in ids]
    else:
        looked = [diagnosis(index, entry) for entry in index.entries(limit, below)]
    bad = [each for each in looked if each.mended.harm is not Harm.NONE]
    if as_json:
        sessions = [each.report() for each in looked]
        print(printed({"schema_version": 1, "checked": len(looked), "sessions": sessions}))
        if bad:
            return 1
        return 0
    for each in looked:
        if each.mended.findings:
            print_findings(each)
    print(
        f"{len(looked)} conversation(s) checked, {len(bad)} damaged"
        + (": perdure sessions repair ID" if bad else "")
    )
    if bad:
        return 1
    return 0


def print_findings(found: Diagnosis) -> None:
    print(f"{clean(found.id)}  {found.agent}  {at_home(str(found.path or ''))}".rstrip())
    for each in found.mended.findings[:LISTED]:
        where = f"line {each.line}: " if each.line else ""
        print(f"  {each.harm:8}{each.trouble}: {where}{one_line(each.what, 300)}")
    if len(found.mended.findings) > LISTED:
        print(
            f"  and {len(found.mended.findings) - LISTED} more finding(s): perdure sessions check "
            f"{clean(found.id)} --json"
        )


def repair(
    chosen: Settings, index: ConversationIndex, ref: str, *, write: bool, as_json: bool
) -> int:
    """Print the findings, the edit log and the changed lines of one conversation. With `write`, put
    the repaired copy in place. Return 1 if it cannot be repaired."""
    from perdure.engine.conversations.repair import diagnose, replace_transcript

    found = diagnose(index, ref)
    moved: list[str] = []
    if write and found.changes:
        moved = replace_transcript(open_engine(chosen), index, found)
    code = 1 if found.mended.refusal else 0
    if as_json:
        about = asdict(found.report())
        print(printed({"schema_version": 1, **about, "written": bool(moved), "moved": moved}))
        return code
    print_findings(found)
    if found.mended.refusal:
        print(f"cannot be repaired: {clean(found.mended.refusal)}")
    elif not found.changes:
        if any(each.harm == "loss" for each in found.mended.findings):
            print(
                "the agent continues without what is lost; the next attempt of a run restores "
                "perdure's own copy"
            )
        print("nothing to repair")
    else:
        _print_changes(found)
        if moved:
            print(
                "replaced the transcript, after the agent had continued from the repaired copy "
                "with perdure's scripted model; the original is kept as"
            )
        for path in moved:
            print(f"  {at_home(path)}")
        if not moved:
            print(f"nothing was written: perdure sessions repair {clean(found.id)} --write")
    return code


def _print_changes(found: Diagnosis) -> None:
    for edit in found.mended.edits[:LISTED]:
        print(f"  {one_line(str(edit), 300)}")
    if len(found.mended.edits) > LISTED:
        print(f"  and {len(found.mended.edits) - LISTED} more change(s), all with --json")
    for path in found.duplicates:
        print(f"  {at_home(str(path))}: moved aside (the newer file begins with it)")
    if found.mended.content is None:
        return
    old, new = found.before.split(b"\n"), found.mended.content.split(b"\n")
    print(
        f"  {len(found.before)} bytes in {len(old) - 1} lines become {len(found.mended.content)} "
        f"bytes in {len(new) - 1} lines"
    )
    same = _common(old, new)
    end = _common(old[same:][::-1], new[same:][::-1])
    for mark, lines in (("-", old[same : len(old) - end]), ("+", new[same : len(new) - end])):
        for line in lines[:CHANGED]:
            print(f"  {mark} {one_line(line.decode('utf-8', 'replace'), 160)}")
        if len(lines) > CHANGED:
            print(f"  {mark} and {len(lines) - CHANGED} more line(s)")


def _common(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    """Return the number of lines at the beginning that are the same in both sequences."""
    at = 0
    while at < min(len(one), len(other)) and one[at] == other[at]:
        at += 1
    return at
