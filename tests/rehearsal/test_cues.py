"""The choice of the next reply of a script, without a server."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from perdure.agents.rehearsal import ChatMessage, parse
from perdure.agents.rehearsal.conversation import ReplyPlanner, ScriptedConversation, position
from perdure.agents.rehearsal.script import Cut, Hang, Mark, RunTool, Say, ScriptedReply

NOW = ScriptedConversation((ChatMessage("user", "go"),))


def said(cues: ReplyPlanner, conversation: ScriptedConversation = NOW) -> str:
    """Return the next planned answer, described in one word."""
    cue = cues.next(conversation)
    if cue.failure:
        return type(cue.failure).__name__.lower()
    return " ".join(
        action.text
        if isinstance(action, Say)
        else action.command
        if isinstance(action, RunTool)
        else type(action).__name__.lower()
        for action in cue.actions
    )


def history(*lines: str) -> ScriptedConversation:
    """Make a history from `user TEXT`, `say TEXT`, `run COMMAND` (finished), `killed COMMAND`,
    `dangling COMMAND`."""
    messages: list[ChatMessage] = []
    for at, line in enumerate(lines):
        word, _, text = line.partition(" ")
        if word in ("user", "say"):
            messages.append(ChatMessage("user" if word == "user" else "assistant", text))
            continue
        messages.append(ChatMessage("tool_call", text, f"call{at}"))
        if word != "dangling":
            result = "fine" if word == "run" else "[Tool call interrupted: the session ended before"
            messages.append(ChatMessage("tool_result", result, f"call{at}"))
    return ScriptedConversation(tuple(messages))


def test_by_request_each_request_gets_the_next_reply():
    """With `by request`, the n-th request gets the n-th reply, and later ones get `Done.`, whatever
    the history is."""
    cues = ReplyPlanner(parse("say a\n---\nsay b"))
    assert [said(cues) for _ in range(4)] == ["a", "b", "Done.", "Done."]


def test_a_failure_does_not_use_the_reply_up():
    """A reply with K failures is sent after them. A limit counts like a failure."""
    cues = ReplyPlanner(parse("fail 500 x2\nlimit 5\nsay a\n---\nfail 400\n---\nsay c"))
    assert [said(cues) for _ in range(6)] == ["fail", "fail", "limit", "a", "fail", "c"]


def test_a_cut_happens_as_often_as_it_says():
    """A reply with cuts is used up by its last cut."""
    cues = ReplyPlanner(parse("say a\ncut x2\n---\nsay b"))
    assert [said(cues) for _ in range(3)] == ["a cut", "a cut", "b"]


def test_by_history_a_hang_happens_once():
    """The client was killed while a reply hung. The reply is sent again, completely."""
    cues = ReplyPlanner(parse("by history\nsay a\nhang\nrun b\n---\nsay c"))
    assert said(cues, history("user 1")) == "a hang"
    assert said(cues, history("user 1", "user 2")) == "a b"
    assert said(cues, history("user 1", "user 2", "say a", "run b")) == "c"


def test_by_history_an_interrupted_command_is_called_again():
    """A tool call without a result, or with a result that tells of a kill, is sent again."""
    cues = ReplyPlanner(parse("by history\nsay a\nrun b\n---\nsay c"))
    assert said(cues, history("user 1", "say a", "dangling b", "user 2")) == "a b"
    assert (
        said(cues, history("user 1", "say a", "killed b", "say No response requested.", "user 2"))
        == "a b"
    )
    assert said(cues, history("user 1", "say a", "killed b", "user 2", "say a", "run b")) == "c"


def test_by_history_a_lost_history_starts_over():
    """A conversation without a history gets the first reply, even after others were given."""
    cues = ReplyPlanner(parse("by history\nsay a\n---\nsay b"))
    assert said(cues, history("user 1", "say a")) == "b"
    assert said(cues, history("user 1")) == "a"


def test_by_history_a_hole_in_the_history_is_passed_over():
    """The answer is the reply that follows the last one in the history, even if an earlier one is
    missing there."""
    assert (
        said(
            ReplyPlanner(parse("by history\nsay a\n---\nsay b\n---\nsay c")),
            history("user 1", "say b"),
        )
        == "c"
    )


def test_by_history_a_text_cut_short_does_not_count():
    """An incomplete text, which the CLI kept at an interruption, does not count as its reply. It
    does not count as a later reply with the same text either."""
    cues = ReplyPlanner(parse("by history\nsay a long text\n---\nsay a"))
    assert said(cues, history("user 1", "say a", "user 2")) == "a long text"


def test_the_first_script_that_matches_answers():
    """A script's `match` may be anywhere in the user's text of the conversation. The first script
    that matches is used. Each script counts its own replies."""
    cues = ReplyPlanner(parse("match red\nsay r1\n---\nsay r2\n===\nmatch blue\nsay b1"))
    red, blue = (
        history("user the red one", "say x", "user go on"),
        history("user the blue one", "say red"),
    )
    assert [said(cues, red), said(cues, blue), said(cues, red), said(cues, NOW)] == [
        "r1",
        "b1",
        "r2",
        "",
    ]
    assert cues.next(NOW).script is None


def test_the_indices_say_what_answered():
    """Script and reply are numbered from 0. After the last reply there is no number."""
    cues = ReplyPlanner(parse("match x\nsay a\n===\nsay b"))
    assert [(cue.script, cue.reply) for cue in (cues.next(NOW), cues.next(NOW))] == [
        (1, 0),
        (1, None),
    ]


marks = st.sampled_from([("say", "a"), ("say", "b"), ("run", "a"), ("run", "b")])


def as_reply(given: list[Mark]) -> ScriptedReply:
    return ScriptedReply(
        tuple(Say(text) if kind == "say" else RunTool(text) for kind, text in given)
    )


replies = st.lists(
    st.lists(marks, min_size=1, max_size=4).map(as_reply).filter(lambda reply: reply.marks),
    min_size=1,
    max_size=6,
)


@given(replies, st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=8))
def test_by_history_survives_any_kills(script: list[ScriptedReply], kills: list[tuple[int, bool]]):
    """However often a reply is interrupted (with any number of its parts in the history, and the
    last command finished or not), the next reply is always the first one that the history does not
    have completely. That also holds if replies are alike."""
    found: list[tuple[Mark, bool]] = [(("user", ""), False)]
    waiting = list(kills)
    for index, reply in enumerate(script):
        while waiting:
            assert position(script, found) == index
            kept, finished = waiting.pop()
            part = reply.marks[: min(kept, len(reply.marks))]
            whole = len(part) == len(reply.marks) and (finished or part[-1][0] == "say")
            found += [
                (mark, mark[0] == "say" or finished or at < len(part) - 1)
                for at, mark in enumerate(part)
            ]
            found.append((("user", ""), False))
            if whole:
                break
        else:
            assert position(script, found) == index
            found += [(mark, True) for mark in reply.marks]
    assert position(script, found) == len(script)


def test_disturbances_end_what_is_sent():
    """After a hang or a cut nothing more of a reply is sent in the same answer."""
    for word, kind in (("hang", Hang), ("cut", Cut)):
        cue = ReplyPlanner(parse(f"say a\n{word}\nsay b")).next(NOW)
        assert cue.actions == (Say("a"), kind())
