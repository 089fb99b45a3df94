"""Messages for a running attempt: which ones a turn takes, and the state that is reported for
each."""

from __future__ import annotations

from perdure.model import Context
from perdure.model.events import ContextAdded, MessageDelivered, MessageReceived, Record
from perdure.rules.messages import INTO_TURN, described, newest_in, pending, states, words

TASK = Context(1, "Do it.", 10)


def message(version: int, text: str = "Use tabs.") -> Context:
    return Context(version, text, 10 * version, message=f"key-{version}")


def test_a_turn_takes_messages_up_to_the_first_other_instructions() -> None:
    """A turn takes messages only up to the next update, so that order is kept. Later ones wait for
    the attempt with that update."""
    told = [TASK, message(2), message(3), Context(4, "Other.", 40), message(5)]
    assert [each.version for each in pending(told, 1)] == [2, 3]
    assert [each.version for each in pending(told, 2)] == [3]
    assert pending(told, 3) == ()
    assert [each.version for each in pending(told, 4)] == [5]


def test_a_turn_takes_no_more_than_its_cli_shows_whole() -> None:
    """A message that is too long for the CLI waits, and so do all later messages, so that none
    overtakes it."""
    long = message(3, "x" * INTO_TURN)
    assert [each.version for each in pending([TASK, message(2), long, message(4)], 1)] == [2]
    # A character outside of the basic plane counts as two, as in the CLI.
    assert pending([TASK, message(2, "\U0001f600" * (INTO_TURN // 2))], 1) == ()


def test_the_conversation_decides_which_messages_it_has() -> None:
    """A message has arrived if the conversation contains its text. One text may have several
    messages. The first missing message ends the search. The same words in another version are
    another message."""
    told = [TASK, message(2), message(3), message(4)]
    both = "\n\n".join([words(told[1]), words(told[2])])
    assert newest_in(told, 1, [both]) == 3
    assert newest_in(told, 1, [words(told[2])]) == 1
    assert newest_in(told, 1, []) == 1
    assert newest_in([TASK, Context(2, "Use tabs.", 20)], 1, [words(told[1])]) == 1


def test_the_state_of_a_message_comes_from_the_journal() -> None:
    """A message's state is that of its newest delivery, with the first time at which it was seen in
    the conversation."""
    records = [
        Record("r", 1, 0, 20, ContextAdded(version=2, message=True)),
        Record("r", 2, 1, 30, MessageDelivered(2, "turn")),
        Record("r", 3, 2, 40, MessageDelivered(2, "prompt")),
        Record("r", 4, 2, 50, MessageReceived(2)),
        Record("r", 5, 2, 60, MessageReceived(7)),
    ]
    (state,) = states([TASK, message(2)], records)
    assert (state.told, state.delivered, state.received) == (20, 40, 50)
    assert (state.how, state.attempt) == ("prompt", 2)
    assert described(state).endswith("the model has it")
    (early,) = states([TASK, message(2)], records[:2])
    assert described(early) == (
        "given to the running turn (attempt 1); not seen in the conversation yet"
    )
    (first,) = states([TASK, message(2)], [])
    assert described(first) == "accepted; the agent does not have it yet"
