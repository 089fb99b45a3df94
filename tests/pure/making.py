"""Strategies for the pure tests, which draw any outcome, tally, session, snapshot and evidence."""

from __future__ import annotations

from hypothesis import strategies as st

from perdure.model import (
    Context,
    Continuation,
    ContinuityPolicy,
    Evidence,
    Outcome,
    OutcomeKind,
    Rung,
    Session,
    SessionKey,
    SessionState,
    Snapshot,
    Start,
)

KEY = SessionKey("claude", "run:1")

times = st.integers(0, 2**42)
ids = st.sampled_from(["aaaa-1", "bbbb-2", "cccc-3"])
words = st.text(st.characters(codec="utf-8"), max_size=20)
policies = st.sampled_from(ContinuityPolicy)
kinds = st.sampled_from(OutcomeKind)
outcomes = st.builds(Outcome, kind=kinds, detail=words, until=st.none() | times)
snapshots = st.builds(
    Snapshot,
    path=st.just("/t.jsonl"),
    size=st.integers(0, 999),
    sha256=st.just("0" * 64),
    turns=st.integers(0, 3),
)


def sessions(*states: SessionState) -> st.SearchStrategy[Session]:
    """Return a strategy for sessions in one of these states, with or without a finished turn and
    all other facts."""
    return st.builds(
        Session,
        key=st.just(KEY),
        id=ids,
        state=st.sampled_from(states),
        created=times,
        updated=times,
        parent=st.just("") | st.just("parent-0"),
        cause=st.just("") | words,
        attempts=st.integers(0, 3),
        snapshot=st.none() | snapshots,
    )


contexts = st.lists(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=30), min_size=1, max_size=4
).map(lambda texts: tuple(Context(number, text, 0) for number, text in enumerate(texts, 1)))

evidences = st.builds(
    Evidence,
    asked=ids,
    returned=st.just("") | ids,
    before=st.none() | snapshots,
    after=st.none() | snapshots,
    last_known=st.none() | snapshots,
    prefix_kept=st.none() | st.booleans(),
    parent_kept=st.none() | st.booleans(),
    known_kept=st.none() | st.booleans(),
    prompt_found=st.none() | st.booleans(),
    foreign_turns=st.integers(0, 2),
    turns_between=st.integers(0, 2),
    other_writers=st.just(()) | st.just((7,)),
    writes_lost=st.just("") | st.just("disk full"),
    answered=st.booleans(),
    refused=st.booleans(),
    cached_tokens=st.integers(0, 9),
)

continuations = st.builds(
    Continuation,
    kind=st.sampled_from(Start),
    session_id=ids,
    rung=st.sampled_from(Rung),
    reason=words,
    lost_session_id=st.just("") | ids,
    fork_id=st.just("") | ids,
)
