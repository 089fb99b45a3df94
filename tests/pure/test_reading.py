"""Summaries of an agent's events."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from perdure.agents import registry
from perdure.engine.attempt.event_totals import KEPT, RETRIES_KEPT, CutReply, EventTotals, Joiner
from perdure.engine.attempt.evidence import unproven
from perdure.model import Continuation, Reply, Start, Usage
from perdure.model.events import (
    MAX_TEXT,
    AgentEvent,
    LimitSeen,
    ReplySeen,
    RequestSeen,
    RetrySeen,
    Said,
    SaidPart,
    SessionSeen,
    ToolEnded,
    ToolStarted,
    TurnEnded,
    TurnStarted,
    Unrecognised,
    UsageSeen,
    WritesLost,
)
from perdure.rules import pricing

counts = st.integers(0, 10_000)
usages = st.builds(Usage, counts, counts, counts, counts, counts.map(lambda cents: cents / 100))
events = st.one_of(
    st.builds(SessionSeen, st.sampled_from(["", "a", "b"]), st.sampled_from(["", "1.0"])),
    st.just(TurnStarted()),
    st.builds(Said, st.text(max_size=5)),
    st.builds(ToolStarted, st.sampled_from("12"), st.just("Bash"), st.sampled_from(["", "ls"])),
    st.builds(ToolEnded, st.sampled_from("12"), st.booleans()),
    st.builds(UsageSeen, usages, st.booleans()),
    st.builds(
        ReplySeen,
        st.builds(
            lambda key, usage: Reply(id=key, usage=usage), st.sampled_from(["", "a", "b"]), usages
        ),
    ),
    st.builds(RetrySeen, st.none() | st.just(529)),
    st.builds(LimitSeen, st.just("five_hour")),
    st.builds(WritesLost, st.just("disk full")),
    st.builds(TurnEnded, st.booleans()),
    st.builds(Unrecognised, st.text(max_size=5)),
)


def read(*seen: AgentEvent) -> EventTotals:
    reading = EventTotals()
    for event in seen:
        reading.absorb(event)
    return reading


@given(st.lists(events, max_size=40))
def test_any_events_in_any_order(seen: list[AgentEvent]) -> None:
    """After any events, the id is the last one that was named, the open tools are those that have
    not ended, and no answer and nothing important is dropped."""
    reading = read(*seen)
    assert reading.session_id == next(
        (e.session_id for e in reversed(seen) if isinstance(e, SessionSeen) and e.session_id), ""
    )
    assert reading.answered == any(isinstance(event, Said | ToolStarted) for event in seen)
    assert reading.writes_lost == (
        "disk full" if any(isinstance(event, WritesLost) for event in seen) else ""
    )
    last = {event.tool_id: event for event in seen if isinstance(event, ToolStarted | ToolEnded)}
    assert set(reading.open_tools) == {
        tool for tool, event in last.items() if isinstance(event, ToolStarted)
    }
    retries = [event for event in seen if isinstance(event, RetrySeen)]
    assert reading.for_classifier() == [
        *retries[-RETRIES_KEPT:],
        *(event for event in seen if isinstance(event, KEPT)),
    ]


def test_the_last_id_that_was_named_counts() -> None:
    """The last id that an event names counts, because an agent may change its conversation's id
    during a run. An event without an id changes nothing."""
    reading = read(SessionSeen("a", "1.0"), SessionSeen("b"), SessionSeen(""))
    assert (reading.session_id, reading.version) == ("b", "1.0")


def test_every_turn_has_its_end() -> None:
    """If the agent works after the end of a turn, that is another turn, whose end is recognized
    again."""
    for again in (TurnStarted(), Said("more"), ToolStarted("1", "Bash")):
        reading = read(TurnEnded(ok=True))
        assert reading.turn_over
        reading.absorb(again)
        assert not reading.turn_over
        reading.absorb(TurnEnded(ok=True))
        assert reading.turn_over


def test_a_reply_after_the_end_of_a_turn_shows_that_the_agent_goes_on() -> None:
    """A new reply after the end of a turn shows that the agent continues. Lines that only come late
    do not count."""
    told = EventTotals()
    first = ReplySeen(Reply(id="1", usage=Usage(10, 2)))
    for event in (first, UsageSeen(Usage(10, 5)), TurnEnded(ok=True), first):
        told.absorb(event)
    assert told.turn_over
    told.absorb(ReplySeen(Reply(id="2", usage=Usage())))
    assert not told.turn_over


def test_retries_in_a_row_are_counted_since_the_last_answer() -> None:
    """A complete answer, which is recognized by its usage, restarts the count of retries. Old
    retries are forgotten, but still counted."""
    reading = read(*[RetrySeen(status=529)] * 50)
    assert (reading.retries_in_a_row, len(reading.retries)) == (50, RETRIES_KEPT)
    reading.absorb(UsageSeen(Usage(1, 1)))
    reading.absorb(RetrySeen())
    assert reading.retries_in_a_row == 1


def test_a_tool_is_named_by_what_it_does() -> None:
    """A tool is named by its command, else by its name."""
    assert read(ToolStarted("1", "Bash", "make"), ToolStarted("2", "Read")).open_tools == {
        "1": "make",
        "2": "Read",
    }


@given(st.lists(usages, max_size=5), usages)
def test_what_is_counted_for_the_launch_is_summed(reported: list[Usage], before: Usage) -> None:
    """For an agent that counts the usage of each launch separately, the earlier usage of the
    conversation does not matter."""
    total = Usage()
    for usage in reported:
        total = total + usage
    assert read(*map(UsageSeen, reported)).usage(before) == total


@given(st.lists(usages, min_size=1, max_size=5))
def test_what_is_counted_for_the_conversation_is_divided(steps: list[Usage]) -> None:
    """For an agent that reports a running total, the attempts' shares add up to that total and are
    never negative."""
    totals = [Usage()]
    for step in steps:
        totals.append(totals[-1] + step)
    shares = [
        read(UsageSeen(after, cumulative=True)).usage(before) for before, after in pairwise(totals)
    ]
    assert shares == steps


def test_a_counter_that_fell_back_began_anew() -> None:
    """If a running total is less than before, it was restarted and belongs entirely to this
    attempt."""
    assert read(UsageSeen(Usage(5, 5), cumulative=True)).usage(Usage(100, 100)) == Usage(5, 5)


def test_a_long_text_is_told_in_several_events() -> None:
    """A text whose pieces together exceed the limit of one event becomes two events."""
    joiner = Joiner()
    piece = SaidPart("x" * (MAX_TEXT // 2 + 1))
    assert [*joiner.add(piece), *joiner.add(piece), *joiner.rest()] == [
        Said(piece.text),
        Said(piece.text),
    ]


@given(st.lists(st.builds(SaidPart, st.text(max_size=8)) | events, max_size=20))
def test_pieces_of_a_text_are_joined_and_nothing_is_lost(seen: list[AgentEvent]) -> None:
    """Every piece is in one text, in its place among the other events, and no text exceeds the
    limit of an event."""
    joiner = Joiner()
    whole = [event for each in seen for event in joiner.add(each)] + joiner.rest()
    assert not any(isinstance(event, SaidPart) for event in whole)
    assert all(len(event.text) <= MAX_TEXT for event in whole if isinstance(event, Said))

    def story(events: list[AgentEvent]) -> list[object]:
        """Return the events with texts joined, and all others unchanged."""
        told: list[object] = []
        for event in events:
            if isinstance(event, Said | SaidPart) and told and isinstance(told[-1], str):
                told[-1] += event.text
            else:
                told.append(event.text if isinstance(event, Said | SaidPart) else event)
        return [each for each in told if each != ""]

    assert story(whole) == story(seen)
    assert joiner.rest() == []


def reply(
    key: str,
    *,
    output: int = 0,
    model: str = "claude-opus-4-8",
    begins: bool = False,
    ends: bool = False,
    **counts: int,
) -> ReplySeen:
    usage = Usage(output=output, **counts)
    return ReplySeen(Reply(id=key, usage=usage, model=model, begins=begins, ends=ends))


REPLY = st.sampled_from(["a", "b", "c"])
replies = st.builds(
    lambda key, usage: ReplySeen(Reply(id=key, usage=replace(usage, cost_usd=0.0))), REPLY, usages
)


@given(st.lists(replies, max_size=12), st.randoms())
def test_a_reply_that_is_told_again_counts_once(seen: list[ReplySeen], dice: Random) -> None:
    """However often and in whatever order replies are reported, each counts once, with its largest
    numbers, as an estimate."""
    expected = Usage()
    for key in sorted({each.reply.id for each in seen}):
        most = [each.reply.usage for each in seen if each.reply.id == key]
        counted = (
            max(getattr(usage, name) for usage in most)
            for name in ("input", "output", "cached", "cache_write")
        )
        expected = expected + Usage(*counted)
    told = [*seen, *seen]
    dice.shuffle(told)
    assert read(*told).usage(Usage()) == replace(expected, estimated=bool(seen))


def test_the_final_figure_takes_the_place_of_the_sum() -> None:
    """Replies are priced by the list until the agent reports its own figure. Replies that it
    reports again afterwards are not counted again."""
    first = reply("a", input=1_000_000), reply("a", output=1_000_000)
    reading = read(SessionSeen("s"), TurnStarted(), *first)
    assert reading.usage(Usage()) == Usage(1_000_000, 1_000_000, cost_usd=30.0, estimated=True)
    for event in (UsageSeen(Usage(5, 6, cost_usd=0.1)), TurnEnded(ok=True)):
        reading.absorb(event)
    reading.count(first[1].reply)
    assert reading.usage(Usage()) == Usage(5, 6, cost_usd=0.1)
    reading.absorb(TurnStarted())
    reading.absorb(first[0])
    assert reading.usage(Usage()) == Usage(5, 6, cost_usd=0.1, estimated=True)
    reading.absorb(reply("b", input=1_000_000))
    assert reading.usage(Usage()) == Usage(1_000_005, 6, cost_usd=5.1, estimated=True)


def test_the_final_figure_of_a_conversation_takes_the_place_of_its_replies() -> None:
    """The agent's final figure is for the whole conversation. Replies during which it was killed
    are counted once, in their own attempt."""
    killed = read(SessionSeen("s"), TurnStarted(), reply("a", input=1000), reply("b", input=2000))
    assert killed.usage(Usage()).input == 3000
    resumed = read(
        SessionSeen("s"),
        TurnStarted(),
        reply("c", input=3000),
        UsageSeen(Usage(4000), cumulative=True),
        TurnEnded(ok=True),
    )
    assert resumed.usage(Usage(1000)) == Usage(3000)


def test_counts_without_names_are_void_beside_named_replies() -> None:
    """Codex reports a reply by its id, and again in the conversation's count. Then only the reply
    counts. Older versions report only the count."""
    count = Reply(id="5 in, 1 out", usage=Usage(5, 1), unnamed=True)
    for named, expected in ((True, 7), (False, 5)):
        reading = read(SessionSeen("s"), TurnStarted())
        if named:
            reading.count(Reply(id="r", usage=Usage(7, 1)))
        reading.count(count)
        assert reading.usage(Usage()).input == expected


def test_a_request_that_was_only_begun_is_taken_for_the_next_one() -> None:
    """OpenCode reports the usage of a step after its tools have ended. If a step was killed in a
    tool, the size of its request is estimated from the previous step."""
    begun = ReplySeen(Reply(id="two", usage=Usage()))
    reading = read(
        SessionSeen("s"),
        TurnStarted(),
        ReplySeen(Reply(id="one", usage=Usage())),
        UsageSeen(Usage(1000, 50)),
        begun,
    )
    assert reading.usage(Usage()) == Usage(2050, 50, 1000, estimated=True)


def missing(cut: list[CutReply]) -> Usage:
    return sum((each.missing for each in cut), Usage())


def test_a_request_that_a_kill_cut_off_is_estimated() -> None:
    """The input of an interrupted request is estimated as the previous answer's context and
    everything since, with the same cached part. Without a previous answer it is the size of the
    conversation. Its output is the mean of the earlier answers, and at most that of a long one."""
    first = ReplySeen(Reply(id="a", usage=Usage(input=1000, output=100, cached=500)))
    begun = ReplySeen(Reply(id="b", usage=Usage(input=1200)))
    assert read(first, RequestSeen()).asking and not read(first).asking
    assert not read(first, RequestSeen(), begun).asking
    held = Reply(id="held", usage=Usage(input=700))
    expected = Usage(input=1140, output=100, cached=570, estimated=True)
    (cut,) = read(first).cut_off([held], 40)
    assert (cut.seen, cut.missing) == (None, expected)
    assert cut.most == replace(expected, output=pricing.REPLY)
    assert missing(read().cut_off([held], 0)) == Usage(
        input=700, output=pricing.REPLY, estimated=True
    )
    assert missing(read().cut_off([], 5)) == Usage(
        input=pricing.FIRST_REQUEST + 5, output=pricing.REPLY, estimated=True
    )
    assert missing(read(first).cut_off([], None)) == Usage()


def test_a_reply_that_a_kill_cut_off_is_taken_to_be_as_long_as_the_others() -> None:
    """The input of an interrupted reply was reported at its beginning, but its output would have
    come at its end. So the output is estimated from the other replies, and is at most that of the
    longest."""
    whole = [reply("a", begins=True, input=1000), reply("a", ends=True, output=4000)]
    begun = reply("b", begins=True, input=1400, output=1)
    shorter = reply("0", ends=True, output=2000)
    assert missing(read(*whole).cut_off([], None)) == Usage()
    (cut,) = read(shorter, *whole, begun).cut_off([], None)
    assert cut.seen is not None and cut.seen.id == "b"
    assert cut.missing == Usage(output=2999, estimated=True)
    assert cut.most == Usage(output=3999, estimated=True)
    assert missing(read(begun).cut_off([], None)) == Usage(output=pricing.REPLY - 1, estimated=True)
    assert (
        missing(read(*whole, begun, reply("b", ends=True, output=9)).cut_off([], None)) == Usage()
    )


def test_the_dearest_reply_is_the_one_with_the_highest_known_price() -> None:
    """The most expensive reply of all turns counts, also after the agent's final figure. A reply
    that was interrupted has no figure yet, and for a model without a price there is none."""
    whole = [reply("a", begins=True, input=1_000_000), reply("a", ends=True, output=1000)]
    cut = reply("b", begins=True, input=9_000_000)
    after = reply("c", ends=True, input=2_000_000)
    assert read(*whole, cut).dearest("") == 5.025
    assert read(*whole, UsageSeen(Usage(5, 5)), cut).dearest("") == 5.025
    assert read(*whole, after).dearest("") == 10
    assert read(*whole).dearest("", [after.reply]) == 10
    assert read(cut).dearest("") == 0
    assert read(ReplySeen(Reply(id="a", usage=Usage(input=5)))).dearest("nobody's") == 0


def test_a_transcript_that_has_a_call_shows_that_the_agent_asks_again() -> None:
    """A call in the transcript, or a printed call, shows that the agent will send another request.
    If the newest reply has no call, or the turn has ended, it will not."""
    used = Usage(input=10, output=1)
    called, last = Reply(id="a", usage=used, calls=True), Reply(id="b", usage=used)
    reading = read(SessionSeen("s"), TurnStarted(), Said("I look."))
    assert not reading.asks_again
    reading.count(called)
    reading.absorb(Said("I look."))
    assert reading.asks_again
    reading.absorb(ToolStarted("1", "Bash"))
    reading.count(last)
    assert reading.asks_again
    reading.absorb(Said("Done."))
    assert not reading.asks_again
    assert not read(TurnStarted(), ReplySeen(called), TurnEnded(True)).asks_again


def test_a_request_that_is_repeated_was_refused() -> None:
    """If an agent announces another try of a request, that request was refused, and no answer is
    open."""
    first = ReplySeen(Reply(id="a", usage=Usage(input=1000, output=100)))
    assert read(first, RetrySeen(status=529)).repeating
    assert not read(first, RetrySeen(status=529), Said("It went on.")).repeating


def test_an_older_reply_that_is_read_late_does_not_hide_a_repetition() -> None:
    """A transcript is read after the agent has announced that it repeats a request. An older reply
    in it does not change that the request is being repeated."""
    totals = read(RetrySeen(status=529))
    totals.count(Reply(id="a", usage=Usage(input=1000, output=100)))
    assert totals.repeating
    totals.absorb(ReplySeen(Reply(id="b", usage=Usage(input=1000))))
    assert not totals.repeating


def test_a_saved_prompt_proves_nothing_until_an_answer_begins() -> None:
    """A saved prompt of OpenCode does not prove that the model was asked, because it is saved
    before the history is read. The beginning of a step proves it. Claude Code saves the prompt when
    it has read the history, so there it is a proof."""
    resume = Continuation(kind=Start.RESUME, session_id="ses_1")
    start = b'{"type":"step_start","sessionID":"ses_1","part":{"messageID":"msg_1"}}'
    opencode = registry.load("opencode")
    begun = read(*opencode.parse(start))
    assert unproven(opencode, resume, read(SessionSeen("ses_1")))
    assert begun.begun and not begun.answered
    assert not unproven(opencode, resume, begun)
    assert not unproven(opencode, resume, read(UsageSeen(Usage(input=5), cumulative=False)))
    assert not unproven(opencode, Continuation(kind=Start.FRESH, session_id="ses_1"), read())
    assert not unproven(registry.load("claude"), resume, read())
    # The database row of an answer exists before the history is read. It has only an estimate.
    row = Reply(id="msg_1", usage=Usage(input=129, cached=100, estimated=True))
    assert unproven(opencode, resume, read(ReplySeen(row)))
    assert not unproven(opencode, resume, read(*opencode.parse(start), ReplySeen(row)))
    words = replace(row, usage=replace(row.usage, output=5))
    assert not unproven(opencode, resume, read(ReplySeen(words)))
