"""How an attempt starts in every situation, and the prompt of the agent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from perdure.model import (
    Context,
    Continuation,
    ContinuityPolicy,
    OnExpiry,
    Outcome,
    OutcomeKind,
    Rung,
    Session,
    SessionKey,
    SessionState,
    Snapshot,
    Start,
)
from perdure.model.events import VerifyEnded
from perdure.rules.continuation import WRITER_WAIT_MS, Situation, choose
from perdure.rules.continuation.prompt import OWN_FILES, Story, prompt
from tests.pure.making import contexts, outcomes, policies, sessions, snapshots, times, words

RESUMES = (Start.RESUME, Start.FORK)
NEW = (Start.FRESH, Start.REBUILD)
LADDER = [Rung.NATIVE, Rung.PATH, Rung.COPY, Rung.REPAIRED, Rung.CHECKPOINT]
EDITS = ("line 1: a line left out (it was torn)",)
LIVE = sessions(SessionState.PINNED, SessionState.CONFIRMED)

situations = st.builds(
    Situation,
    policy=policies,
    now=times,
    session=st.none() | LIVE,
    lost=st.none() | sessions(SessionState.RETIRED),
    transcript=st.none() | snapshots,
    copy=st.none() | snapshots,
    edits=st.just(()) | st.just(EDITS),
    tried=st.frozensets(st.sampled_from(Rung)),
    writers=st.just(()) | st.just((4711, 4712)),
    checkpoint=st.integers(0, 2),
    resume_by_path=st.booleans(),
    new_id=st.just("") | st.just("new-9"),
    forks=st.just("") | st.just("parent-0"),
    fork_id=st.just("") | st.just("fork-9"),
    fork_at=st.integers(0, 3),
    parent=st.none() | snapshots,
    parent_copy=st.none() | snapshots,
    parent_refused=st.booleans(),
    handed_over=st.just("") | st.just("codex"),
).map(lambda at: replace(at, lost=None) if at.session is not None else at)
"""Strategy for every situation. A retired conversation is in it only if there is no live one."""

TRANSCRIPT = Snapshot("/t.jsonl", 9, "0" * 64, 1)
SESSION = Session(
    key=SessionKey("claude", "run:1"),
    id="aaaa-1",
    state=SessionState.CONFIRMED,
    created=0,
    updated=0,
    attempts=1,
)


def usable(snapshot: Snapshot | None) -> bool:
    return snapshot is not None and snapshot.turns > 0


def rungs_left(at: Situation) -> list[Rung]:
    """Return the rungs of the ladder on which the live conversation could still continue, best
    first."""
    left = []
    if usable(at.transcript):
        left.append(Rung.NATIVE)
        left += [Rung.PATH] if at.resume_by_path else []
    if usable(at.copy):
        left.append(Rung.COPY)
    left += [Rung.REPAIRED] if at.edits else []
    left += [Rung.CHECKPOINT] if at.checkpoint else []
    return [rung for rung in left if rung not in at.tried]


def to_fork(at: Situation) -> bool:
    """Return whether the run has to begin as a fork, because it has no conversation of its own
    yet."""
    if not at.forks:
        return False
    if at.session is None:
        return at.lost is None
    return at.session.state is SessionState.PINNED and at.session.attempts == 0


def can_fork(at: Situation) -> bool:
    return (usable(at.parent) or usable(at.parent_copy)) and not at.parent_refused


def known_lost(at: Situation) -> str:
    """Return the id of the conversation that this attempt would have to continue and cannot, or an
    empty string if there is none."""
    if to_fork(at):
        return "" if can_fork(at) else at.forks
    if at.session is None:
        return at.lost.id if at.lost else ""
    if rungs_left(at):
        return ""
    never_began = (
        at.session.state is SessionState.PINNED
        and at.session.attempts == 0
        and not usable(at.transcript)
        and not usable(at.copy)
    )
    return at.session.parent if never_began else at.session.id


# --- choose
# --------------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(situations)
def test_what_holds_in_every_situation(at: Situation) -> None:
    """A conversation that can be continued is continued, on the best rung that was not tried yet. A
    lost conversation is always mentioned."""
    chosen = choose(at)
    event(chosen.kind)
    assert chosen.reason
    if at.session is not None and at.writers:
        assert (chosen.kind, chosen.until) == (Start.WAIT, at.now + WRITER_WAIT_MS)
        assert all(str(pid) in chosen.reason for pid in at.writers)
        return
    if to_fork(at) and can_fork(at):
        assert (chosen.kind, chosen.session_id, chosen.fork_at) == (
            Start.FORK,
            at.forks,
            at.fork_at,
        )
        assert chosen.rung is (Rung.NATIVE if usable(at.parent) else Rung.COPY)
        assert chosen.fork_id in ("", "fork-9", at.session.id if at.session else "")
        return
    assert chosen.kind is not Start.WAIT
    if not to_fork(at) and at.session is not None and (left := rungs_left(at)):
        assert (chosen.kind, chosen.rung, chosen.session_id) == (
            Start.RESUME,
            left[0],
            at.session.id,
        )
        return
    assert chosen.kind not in RESUMES
    assert chosen.lost_session_id == known_lost(at)
    if chosen.lost_session_id:
        expected = {"strict": Start.REFUSE, "disclose": Start.REBUILD, "fresh-ok": Start.FRESH}[
            at.policy
        ]
        assert chosen.kind is expected
        assert chosen.lost_session_id in chosen.reason


@given(situations)
def test_a_tried_rung_is_not_chosen_again(at: Situation) -> None:
    """A rung that failed is not tried again before the conversation has continued on another
    one."""
    chosen = choose(at)
    if chosen.kind is Start.RESUME:
        assert chosen.rung not in at.tried
        assert chosen.session_id


@given(situations)
def test_strict_starts_nothing_new_after_a_loss(at: Situation) -> None:
    """A strict run whose conversation is lost is refused, and the reason names the conversation."""
    at = replace(at, policy=ContinuityPolicy.STRICT)
    chosen = choose(at)
    if known_lost(at):
        assert chosen.kind in (Start.REFUSE, Start.WAIT)
    if chosen.kind is Start.REFUSE:
        assert chosen.session_id == chosen.lost_session_id != ""


@given(situations)
def test_a_new_conversation_never_takes_an_id_that_was_used(at: Situation) -> None:
    """A new conversation gets the new id, or the id that was announced for a conversation that
    never began."""
    chosen = choose(at)
    if chosen.kind in NEW:
        again = at.session is not None and chosen.session_id == at.session.id
        assert chosen.session_id == at.new_id or (
            again and at.session is not None and at.session.attempts == 0 and at.transcript is None
        )
        assert chosen.session_id != chosen.lost_session_id or not chosen.session_id


def test_the_ladder_is_walked_from_the_top_and_once() -> None:
    """A conversation is resumed by id, by path, from perdure's own copy, from a repaired copy, and
    from the copy of an older checkpoint, in this order and each once. Then the policy decides."""
    there = Situation(
        policy=ContinuityPolicy.DISCLOSE,
        now=0,
        session=SESSION,
        transcript=TRANSCRIPT,
        copy=TRANSCRIPT,
    )
    at = replace(there, resume_by_path=True, edits=EDITS, checkpoint=4)
    walked = []
    while (chosen := choose(at)).kind is Start.RESUME:
        walked.append(chosen.rung)
        at = replace(at, tried=at.tried | {chosen.rung})
    assert walked == LADDER
    assert (chosen.kind, chosen.rung, chosen.lost_session_id) == (
        Start.REBUILD,
        Rung.REBUILT,
        SESSION.id,
    )


@given(situations, LIVE, st.sampled_from(OnExpiry), st.integers(1, 2**42))
def test_the_end_of_a_lifetime_changes_nothing_in_silence(
    at: Situation, live: Session, then: OnExpiry, expires: int
) -> None:
    """An expired session continues like any other, and the prompt says so. If the settings ask for
    it and the policy is not strict, a new conversation with a brief replaces it. For a session that
    has not expired, or that never expires, the prompt says nothing."""
    at = replace(at, session=live, lost=None, writers=(), forks="")
    expired = choose(
        replace(at, session=replace(live, expires=expires), on_expiry=then, now=expires)
    )
    usual = choose(at)
    if then is OnExpiry.REBUILD and at.policy is not ContinuityPolicy.STRICT and live.attempts:
        assert (expired.kind, expired.rung, expired.lost_session_id) == (
            Start.REBUILD,
            Rung.REBUILT,
            live.id,
        )
    else:
        assert replace(expired, reason="", expired=0) == replace(
            usual, reason=""
        ) and expired.reason.startswith(usual.reason)
    assert expired.expired == expires and "it had expired" in expired.reason
    later = replace(at, session=replace(live, expires=expires + 1), on_expiry=then, now=expires)
    assert choose(later) == choose(replace(at, now=expires)) and not usual.expired


def test_the_first_attempt_of_a_scope_is_fresh_under_every_policy() -> None:
    """With every policy the first attempt of a scope is fresh, because nothing was lost. The
    conversation gets the id that the caller chose."""
    for policy in ContinuityPolicy:
        chosen = choose(Situation(policy=policy, now=0, new_id="new-9"))
        assert (chosen.kind, chosen.session_id, chosen.lost_session_id) == (
            Start.FRESH,
            "new-9",
            "",
        )


def test_an_id_that_was_announced_and_never_began_is_used_again() -> None:
    """A failure at the start says nothing about the conversation. The id that perdure announced is
    used again, unless a fresh start with that id has failed."""
    pinned = replace(SESSION, state=SessionState.PINNED, attempts=0)
    at = Situation(policy=ContinuityPolicy.STRICT, now=0, session=pinned, new_id="new-9")
    assert (choose(at).kind, choose(at).session_id) == (Start.FRESH, pinned.id)
    assert choose(replace(at, tried=frozenset({Rung.FRESH}))).session_id == "new-9"
    assert choose(replace(at, new_id="")).session_id == ""


@pytest.mark.parametrize(
    ("policy", "kind"),
    [("disclose", Start.REBUILD), ("fresh-ok", Start.FRESH), ("strict", Start.REFUSE)],
)
def test_a_stand_in_that_never_began_is_still_a_stand_in(policy: str, kind: Start) -> None:
    """A conversation that replaced a lost one fails at its start. The next one is not treated as
    the first: its prompt mentions the loss again."""
    stand_in = replace(SESSION, id="bbbb-2", state=SessionState.PINNED, attempts=0, parent="aaaa-1")
    chosen = choose(
        Situation(policy=ContinuityPolicy(policy), now=0, session=stand_in, new_id="new-9")
    )
    assert (chosen.kind, chosen.lost_session_id) == (kind, "aaaa-1")


def test_a_turn_on_disk_is_a_beginning() -> None:
    """If a turn of a conversation is on disk, the conversation has begun, even without any output.
    If no rung is left to continue it, it is lost."""
    pinned = replace(SESSION, state=SessionState.PINNED, attempts=0)
    for there in ({"transcript": TRANSCRIPT}, {"copy": TRANSCRIPT}):
        at = Situation(
            policy=ContinuityPolicy.STRICT, now=0, session=pinned, tried=frozenset(LADDER), **there
        )  # type: ignore[arg-type]
        assert (choose(at).kind, choose(at).lost_session_id) == (Start.REFUSE, pinned.id)


def test_a_fork_that_never_began_is_forked_again() -> None:
    """A fork that was killed before it began is forked again. Its remains are not continued, not
    even if they have a part of the parent's history."""
    pinned = replace(SESSION, id="fork-1", state=SessionState.PINNED, attempts=0, parent="parent-0")
    at = Situation(
        policy=ContinuityPolicy.STRICT,
        now=0,
        session=pinned,
        forks="parent-0",
        fork_id="fork-9",
        parent=TRANSCRIPT,
    )
    assert (choose(at).kind, choose(at).session_id, choose(at).fork_id) == (
        Start.FORK,
        "parent-0",
        "fork-1",
    )
    begun = replace(at, transcript=TRANSCRIPT)
    assert (choose(begun).kind, choose(begun).fork_id) == (Start.FORK, "fork-9")
    confirmed = replace(begun, session=replace(pinned, state=SessionState.CONFIRMED))
    assert (choose(confirmed).kind, choose(confirmed).session_id) == (Start.RESUME, "fork-1")


def test_a_hand_over_is_told_and_is_no_loss() -> None:
    """After a hand-over the other agent starts with a brief, even with a strict policy, because a
    person asked for it."""
    chosen = choose(
        Situation(policy=ContinuityPolicy.STRICT, now=0, handed_over="codex", new_id="new-9")
    )
    assert (chosen.kind, chosen.session_id, chosen.lost_session_id) == (Start.REBUILD, "new-9", "")
    assert "codex" in chosen.reason


def test_a_hand_over_that_never_began_is_told_again() -> None:
    """If the first attempt of the new agent dies before its conversation begins, the next attempt
    gets the brief as well."""
    session = Session(key=SESSION.key, id="aaaa-1", state=SessionState.PINNED, created=0, updated=0)
    chosen = choose(
        Situation(
            policy=ContinuityPolicy.STRICT,
            now=0,
            session=session,
            handed_over="codex",
            new_id="new-9",
        )
    )
    assert (chosen.kind, chosen.session_id) == (Start.REBUILD, "aaaa-1")


# --- prompt
# --------------------------------------------------------------------------------------------------------

FRESH = Continuation(kind=Start.FRESH, rung=Rung.FRESH)
RESUME = Continuation(kind=Start.RESUME, session_id="aaaa-1")
REBUILD = Continuation(kind=Start.REBUILD, rung=Rung.REBUILT, lost_session_id="aaaa-1")
FORK = Continuation(kind=Start.FORK, session_id="parent-0")
FIRST = Context(1, "Fix the failing test.", 0)


def test_a_conversation_that_moved_is_told_where_it_is() -> None:
    """The prompt says that the conversation moved to another directory until the conversation
    contains that. The paths in its history lead to a directory in which other runs may work."""
    story = Story(contexts=(FIRST,), left="/old/place", cwd="/new/place")
    for asked in (FORK, RESUME):
        text = prompt(asked, story)
        assert text.endswith(FIRST.text)
        assert "you work in /new/place" in text and "not change anything in /old/place" in text
    assert "as you left them" in prompt(RESUME, replace(story, given=1))
    assert "place" not in prompt(RESUME, replace(story, given=1, left=""))
    assert prompt(FORK, replace(story, left="")) == FIRST.text


SECOND = Context(2, "Use tabs, not spaces.", 0)
KILLED = Outcome(kind=OutcomeKind.LOST, detail="the machine went away")
CLEAN = Outcome(kind=OutcomeKind.SUCCEEDED)

stories = st.builds(
    Story,
    contexts=contexts,
    given=st.integers(0, 5),
    previous=st.none() | outcomes,
    open_tools=st.lists(words).map(tuple),
    workdir=words,
    done=st.lists(words).map(tuple),
    turns_between=st.integers(0, 2),
    effects=st.lists(words).map(tuple),
)
asked = st.builds(
    Continuation,
    kind=st.sampled_from([*RESUMES, *NEW]),
    session_id=st.just("aaaa-1"),
    lost_session_id=st.just("") | st.just("b"),
)


@given(st.text(min_size=1), st.sampled_from([FRESH, RESUME]))
def test_a_first_prompt_goes_unchanged(text: str, how: Continuation) -> None:
    """The first prompt of a run reaches the agent byte for byte, in a new conversation and in one
    that it shares."""
    assert prompt(how, Story(contexts=(Context(1, text, 0),))) == text


@given(contexts, st.data())
def test_an_update_after_a_clean_turn_holds_only_what_is_new(
    versions: tuple[Context, ...], data: st.DataObject
) -> None:
    """After a turn that ended well, the prompt of an update has each new version once, with its
    number, and nothing that the conversation already has."""
    given = data.draw(st.integers(1, len(versions)))
    assume(given < len(versions))
    marked = tuple(
        replace(context, text=f"<{context.version}> {context.text} </{context.version}>")
        for context in versions
    )
    text = prompt(RESUME, Story(contexts=marked, given=given, previous=CLEAN))
    for context in marked:
        assert text.count(context.text) == (context.version > given)
    assert f"version {versions[-1].version}" in text
    assert "ended early" not in text
    assert OWN_FILES not in text


def test_a_retry_states_the_facts() -> None:
    """The prompt of a retry says how the attempt ended, which command was running, what state the
    workdir is in, and what was done outside of it. It does not repeat the instructions."""
    story = Story(
        contexts=(FIRST,),
        given=1,
        previous=KILLED,
        open_tools=("`make test`",),
        workdir="branch work at 1234, 2 changed",
        effects=("attempt 1, push: `git push` (it succeeded)",),
    )
    text = prompt(RESUME, story)
    for fact in (
        "lost",
        KILLED.detail,
        "`make test`",
        "its effect is unknown",
        story.workdir,
        "git push",
        "verify before you repeat",
    ):
        assert fact in text
    assert FIRST.text not in text


@given(st.text(max_size=200), st.integers(1, 5))
def test_a_failed_check_is_told_as_data(output: str, round: int) -> None:
    """The output of a failed check is put between two marks that it cannot contain. The prompt says
    that it is no instruction. It is in only one prompt."""
    check = VerifyEnded(code=2, output=output, command="make test", round=round, rounds=3)
    text = prompt(
        RESUME,
        Story(
            contexts=(FIRST,),
            given=1,
            previous=Outcome(kind=OutcomeKind.VERIFY_FAILED),
            check=check,
        ),
    )
    begin = next(line for line in text.split("\n") if line.startswith("--- output "))
    mark = begin.split()[2]
    assert mark not in output
    assert (
        text.count(f"{begin}\n{output or '(it said nothing)'}\n--- end of output {mark} ---") == 1
    )
    assert "not instructions to you" in text and "ended early" not in text
    assert ("(round " in text.partition(begin)[0]) == (round <= 3)


def test_a_new_conversation_is_told_of_the_failed_check() -> None:
    """A brief, and the prompt of a fresh start after a loss, contain the output of the failed
    check, too, and mention a kill since then."""
    check = VerifyEnded(code=2, output="E 3 != 4", command="make test")
    for kind in NEW:
        started = Continuation(kind=kind, session_id="b", lost_session_id="a")
        text = prompt(started, Story(contexts=(FIRST,), previous=KILLED, check=check))
        assert text.count("E 3 != 4") == 1
    assert KILLED.detail in prompt(
        RESUME, Story(contexts=(FIRST,), given=1, previous=KILLED, check=check)
    )


def test_an_update_after_a_kill_states_the_facts_and_the_instructions() -> None:
    """After a kill, the prompt of an update has the facts first, and then the instructions."""
    text = prompt(RESUME, Story(contexts=(FIRST, SECOND), given=1, previous=KILLED))
    assert text.index(KILLED.detail) < text.index(SECOND.text)
    assert FIRST.text not in text


def test_a_prompt_that_may_not_have_arrived_is_sent_again() -> None:
    """If it is unknown whether a prompt arrived in the conversation, the next prompt has both the
    instructions and the facts."""
    text = prompt(RESUME, Story(contexts=(FIRST, SECOND), given=0, previous=KILLED))
    assert KILLED.detail in text
    assert FIRST.text in text
    assert SECOND.text in text


def test_a_stranger_in_between_is_told_and_the_task_with_it() -> None:
    """If another program continued the conversation, the prompt says so. It contains the
    instructions as well, because a note alone is not a task."""
    text = prompt(RESUME, Story(contexts=(FIRST,), given=1, previous=CLEAN, turns_between=2))
    assert "2 prompt(s) above are not from the runner" in text
    assert "finish what is missing" in text


@given(asked, stories)
def test_no_prompt_is_bare(how: Continuation, story: Story) -> None:
    """The prompt is never empty, and never just a word that agents answer without doing
    anything."""
    text = prompt(how, story)
    only = text.strip().lower().rstrip(".!")
    given = {context.text.strip().lower().rstrip(".!") for context in story.contexts}
    assert only or "" in given
    assert only in given or only not in ("continue", "go on", "proceed", "resume")


@given(asked, stories)
def test_every_loss_is_told(how: Continuation, story: Story) -> None:
    """A conversation that replaces another one, or that was handed over, begins with all
    instructions and with the line that names the loss."""
    text = prompt(how, story)
    loud = how.kind in NEW and bool(how.lost_session_id or how.kind is Start.REBUILD)
    assume(not any(OWN_FILES in context.text for context in story.contexts))
    assert (OWN_FILES in text) == loud
    if how.kind in NEW:
        assert text.startswith(story.contexts[0].text)
        assert all(context.text in text for context in story.contexts)


def test_a_brief_tells_what_is_known() -> None:
    """The brief says what was done, how it ended and what state the workdir is in. If nothing is
    recorded, it says so."""
    story = Story(
        contexts=(FIRST,),
        done=("you ran `ls`", "you ended your turn"),
        previous=KILLED,
        workdir="2 changed",
        effects=("a push",),
    )
    text = prompt(REBUILD, story)
    for fact in (
        "IMPORTANT",
        "- you ran `ls`",
        "- you ended your turn",
        KILLED.detail,
        "2 changed",
        "a push",
    ):
        assert fact in text
    assert "nothing was recorded" in prompt(REBUILD, Story(contexts=(FIRST,)))
    assert "2 changed" in prompt(REBUILD, replace(story, previous=CLEAN))


def test_an_older_checkpoint_is_named() -> None:
    """If the conversation of an older checkpoint is restored, the prompt and the reason name that
    checkpoint's number."""
    at = Situation(policy=ContinuityPolicy.STRICT, now=0, session=SESSION, checkpoint=4)
    chosen = choose(at)
    assert (chosen.kind, chosen.rung, chosen.checkpoint) == (Start.RESUME, Rung.CHECKPOINT, 4)
    assert "checkpoint 4" in chosen.reason


@pytest.mark.parametrize("ended", [OutcomeKind.SUCCEEDED, OutcomeKind.LOST])
def test_drift_and_a_restore_are_told(ended: OutcomeKind) -> None:
    """Whether the last attempt was interrupted or not, the prompt first says what was restored, and
    then what others changed."""
    story = Story(
        contexts=(Context(1, "Do it.", 0),),
        given=1,
        previous=Outcome(kind=ended),
        restored="TAKEN BACK.",
        drift="OTHERS CAME.",
    )
    told = prompt(Continuation(kind=Start.RESUME, session_id="a"), story)
    assert told.index("TAKEN BACK.") < told.index("OTHERS CAME.")
    rebuilt = prompt(
        Continuation(kind=Start.REBUILD, lost_session_id="a"), replace(story, restored="")
    )
    assert "OTHERS CAME." in rebuilt


@pytest.mark.parametrize(
    ("heard", "policy", "kind"),
    [
        (False, ContinuityPolicy.STRICT, Start.FRESH),
        (False, ContinuityPolicy.DISCLOSE, Start.FRESH),
        (True, ContinuityPolicy.STRICT, Start.REFUSE),
        (True, ContinuityPolicy.DISCLOSE, Start.REBUILD),
        (True, ContinuityPolicy.FRESH_OK, Start.FRESH),
    ],
)
@pytest.mark.parametrize("session", [None, SESSION])
def test_an_agent_without_sessions_never_goes_on(
    heard: bool, policy: ContinuityPolicy, kind: Start, session: Session | None
) -> None:
    """With an agent that keeps no sessions each task begins a new conversation, even if its scope
    already had one. As after a loss, the policy decides whether the prompt contains what this run
    said before."""
    chosen = choose(
        Situation(
            policy=policy,
            now=1,
            session=session,
            transcript=TRANSCRIPT,
            sessions=False,
            heard=heard,
        )
    )
    assert (chosen.kind, bool(chosen.lost_session_id)) == (kind, heard and session is not None)
    assert "cannot continue a conversation" in chosen.reason


@given(situations, st.booleans())
def test_without_sessions_no_conversation_is_asked_for(at: Situation, heard: bool) -> None:
    """For an agent without sessions no conversation is resumed or forked, whatever files are on
    disk, and no other writer is waited for."""
    assert choose(replace(at, sessions=False, heard=heard)).kind in (*NEW, Start.REFUSE)


@pytest.mark.parametrize(
    ("session", "changed", "kind", "reason"),
    [
        (None, {}, Start.FRESH, "started a new conversation"),
        (
            None,
            {"heard": True},
            Start.REBUILD,
            "the earlier conversation cannot continue: the agent can neither load nor resume a "
            "conversation",
        ),
        (SESSION, {}, Start.RESUME, "offers to load or resume"),
        (replace(SESSION, attempts=0), {}, Start.FRESH, "never started"),
        (
            SESSION,
            {"tried": frozenset({Rung.NATIVE})},
            Start.REBUILD,
            "did not accept it as it was",
        ),
        (
            SESSION,
            {"tried": frozenset({Rung.NATIVE}), "policy": ContinuityPolicy.STRICT},
            Start.REFUSE,
            "the policy is strict",
        ),
        (SESSION, {"forks": "parent-1"}, Start.REBUILD, "cannot continue a conversation"),
    ],
)
def test_an_agent_whose_transcripts_cannot_be_read(
    session: Session | None, changed: dict[str, Any], kind: Start, reason: str
) -> None:
    """An agent whose transcripts cannot be read is asked to continue a conversation that it has
    named and answered in. If it does not continue that conversation, the conversation is lost."""
    at = Situation(policy=ContinuityPolicy.DISCLOSE, now=1, session=session, transcripts=False)
    chosen = choose(replace(at, **changed))
    assert (chosen.kind, reason in chosen.reason) == (kind, True), chosen
    assert bool(chosen.session_id) == (kind in (Start.RESUME, Start.REFUSE))


@pytest.mark.parametrize("kind", [*NEW, Start.RESUME])
def test_the_map_stands_last_in_the_prompt(kind: Start) -> None:
    """The project map comes after the instructions, the brief and the task files, in a new
    conversation and in a continued one."""
    story = Story(contexts=(Context(1, "Do it.", 0),), files="Files came.", map="<project-map>...")
    text = prompt(Continuation(kind=kind, session_id="a"), story)
    assert text.endswith("Files came.\n\n<project-map>...")
