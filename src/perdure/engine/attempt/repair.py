"""The rung `repaired`: the best transcript that is left of a conversation is mended on a copy, and
proven, before an attempt uses it.

Called by `start_facts` only when no rung above it is left, because a proof starts the agent once.
The agent's own files come first, then perdure's copies; of those that can be mended, the one with
the most prompts is tried first. Nothing in the agent's home is touched here: `opening_steps` puts
the mended copy in place, and moves aside what lies there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from perdure.agents.transcripts.copy_file import versions
from perdure.engine.attempt.engine import Engine
from perdure.lateclass import dataclass
from perdure.model import Attempt, Claim
from perdure.protocols import AgentDriver
from perdure.rules.transcript_repair import Mended

MENDED = "conversation-mended.jsonl"
"""The proven copy, in the attempt's directory until it is put in place. It may hold secrets, as the
agent's own file does."""
PROOF_S = 300.0
"""How long the lease holds while a copy is tried: at most twice the patience of `proof`, and some
more."""
UNPROVEN = 3
"""So many copies are tried in one attempt."""


@dataclass(frozen=True, slots=True)
class RepairCandidate:
    """A transcript that may be mended."""

    path: Path
    content: bytes


def mend(
    engine: Engine,
    claim: Claim,
    driver: AgentDriver,
    home: Path,
    session_id: str,
    *,
    own: bool = True,
) -> Mended | None:
    """How the best transcript was mended, whose proven copy lies in the attempt's directory; None
    where nothing could be mended and proven. `own`: False where another conversation lies in the
    place of the agent's transcript."""
    if engine.prove is None:
        return None
    complaint = _complaint(engine.store.attempts(claim.run.id), session_id)
    found: list[tuple[int, Path, Mended]] = []
    for each in _candidates(engine, driver, home, session_id, own=own):
        mended = driver.mend(each.content, session_id, each.path.name, complaint)
        if mended.content is not None and (turns := len(driver.prompts(mended.content))):
            found.append((turns, each.path, mended))
    for _, path, mended in sorted(found, key=lambda one: -one[0])[:UNPROVEN]:
        assert mended.content is not None
        # Nobody renews the lease while the agent is tried.
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
    engine: Engine, driver: AgentDriver, home: Path, session_id: str, *, own: bool
) -> Iterator[RepairCandidate]:
    """What lies in the agent's home; then perdure's newest copy and those that were moved aside. A
    conversation that an archive still holds cannot be replaced in it."""
    if driver.archive is not None and driver.archive.read(home, session_id) is not None:
        return
    remains = driver.remains(home, session_id) if own else ()
    for path in [*remains, *versions(engine.copies.of(driver.name, session_id))]:
        try:
            yield RepairCandidate(path, path.read_bytes())
        except OSError:
            continue


def _complaint(attempts: Sequence[Attempt], session_id: str) -> str:
    """What the agent said when it last refused the conversation."""
    said = (
        attempt.outcome.detail
        for attempt in reversed(attempts)
        if attempt.outcome is not None
        and attempt.continuation is not None
        and attempt.continuation.session_id == session_id
    )
    return next(said, "")
