"""The rung `repaired`: the best remaining transcript of a conversation is repaired as a copy, and
the copy is tested with the agent before an attempt uses it.

Called by `start_facts` only when no better rung is left, because each test starts the agent.
Candidates are the agent's own files, then perdure's copies; those with the most prompts are tried
first. Nothing in the agent's home is touched here: `opening_steps` puts the repaired copy in place
and moves the file there aside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from perdure.agents.transcripts import Copies
from perdure.agents.transcripts.copy_file import versions
from perdure.engine.attempt.engine import Engine
from perdure.model import Attempt, Claim
from perdure.protocols import AgentDriver
from perdure.rules.transcript_repair import Mended

MENDED = "conversation-mended.jsonl"
"""Name of the tested copy, in the attempt's directory until it is put in place. It may hold
secrets, as the agent's own file does."""
PROOF_S = 300.0
"""Length of the lease while a copy is tested, in seconds: slightly more than twice the timeout of
`proof`."""
UNPROVEN = 3
"""Maximum number of copies that are tested in one attempt."""


class RepairCandidate(Struct, frozen=True):
    """A transcript that may be repairable."""

    path: Path
    content: bytes


def repair_transcript(
    engine: Engine,
    claim: Claim,
    driver: AgentDriver,
    home: Path,
    session_id: str,
    *,
    own: bool = True,
) -> Mended | None:
    """Repair a copy of the best transcript, in the attempt's directory, and test it. Return the
    changes; None if no repaired copy passed its test. `own`: False if another conversation was
    found in place of the agent's transcript."""
    if engine.prove is None:
        return None
    complaint = _refusal_message(engine.store.attempts(claim.run.id), session_id)
    found: list[tuple[int, Path, Mended]] = []
    for each in _candidates(engine.copies, driver, home, session_id, own=own):
        mended = driver.mend(each.content, session_id, each.path.name, complaint)
        if mended.content is not None and (turns := len(driver.prompts(mended.content))):
            found.append((turns, each.path, mended))
    for _, path, mended in sorted(found, key=lambda one: -one[0])[:UNPROVEN]:
        assert mended.content is not None
        # Nothing renews the lease while the agent is tested.
        engine.store.renew(claim, max(engine.lease_s, PROOF_S))
        why_not = engine.prove(driver, session_id, mended.content, path.name, home)
        engine.store.renew(claim, engine.lease_s)
        if not why_not:
            directory = engine.attempt_directory(claim)
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            kept = directory / MENDED
            kept.write_bytes(mended.content)
            kept.chmod(0o600)
            return mended
    return None


def _candidates(
    copies: Copies, driver: AgentDriver, home: Path, session_id: str, *, own: bool
) -> Iterator[RepairCandidate]:
    """Yield the files in the agent's home, then perdure's newest copy and the copies that were
    moved aside. For an agent with an archive, its rows are the first."""
    rows = driver.archive.read(home, session_id) if driver.archive is not None and own else None
    if rows is not None:
        yield RepairCandidate(Path(session_id), rows)
    remains = driver.remains(home, session_id) if own else ()
    for path in [*remains, *versions(copies.of(driver.name, session_id))]:
        try:
            yield RepairCandidate(path, path.read_bytes())
        except OSError:
            continue


def _refusal_message(attempts: Sequence[Attempt], session_id: str) -> str:
    """Return the agent's message from when it last refused the conversation."""
    said = (
        attempt.outcome.detail
        for attempt in reversed(attempts)
        if attempt.outcome is not None
        and attempt.continuation is not None
        and attempt.continuation.session_id == session_id
    )
    return next(said, "")
