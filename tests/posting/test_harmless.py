"""Other people's text appears on a forge only as code. The tests use a Markdown parser, the one
that comes with rich."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from msgspec.structs import replace

from perdure.forge.replies.sentences import MOST, Account, block, code, comment, title
from perdure.model import (
    Attempt,
    Condition,
    Continuation,
    Outcome,
    OutcomeKind,
    RunState,
    Start,
    TaskRun,
    TaskSpec,
    Usage,
)
from perdure.model.work import (
    CheckOfWork,
    DeniedCall,
    LastWordOfWork,
    WorkReport,
    WorkVerdict,
)

MARK = "<!-- perdure:task=0123 -->"
EVIL = (
    *(
        "@ada",
        "#1",
        "!2",
        "owner/name#3",
        "closes #4",
        "/close",
        "/assign @ben",
        "<script>x</script>",
        "<img src=x onerror=y>",
        "<!--",
    ),
    *(
        "-->",
        "</details>",
        "<details open>",
        "`",
        "``",
        "```",
        "````\n",
        "~~~",
        "|",
        "||",
        "\\",
        "\\`",
        "\n",
        "\r\n",
        "\n\n",
        "    ",
    ),
    *(
        "\t",
        "[x](javascript:y)",
        "![x](https://tracker.invalid/x.png)",
        "https://forge.invalid/a/b/issues/1",
        "www.example.com",
    ),
    *(
        "&#64;ada",
        "&lt;b&gt;",
        "\x1b[31m",
        "\u202e",
        "\x00",
        "* ",
        "> ",
        "# ",
        "---",
        "$x$",
        ":tada:",
        "0" * 40,
        "[[x]]",
        "\u2028",
        "word",
    ),
)
WORDS = st.lists(st.sampled_from(EVIL) | st.text(max_size=12), max_size=12).map("".join)


def parsed(text: str) -> Iterator[Token]:
    """Yield all tokens of a text, parsed in GitHub's dialect: with tables and bare links."""
    for each in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text):
        yield each
        yield from each.children or ()


def account(words: str, *, name: str = "brave-otter") -> Account:
    spec = TaskSpec(prompt="p", labels={"delivery": "1"})
    needs = Condition(type="needs_person", message=words, at=1)
    run = TaskRun(
        id="1", name=name, spec=spec, state=RunState.FAILED, created=1, updated=2, attempt=1, reason=words, conditions=(needs,)
    )  # fmt: skip
    ended = Attempt(
        run="1", number=1, context_version=1, worker="w", started=1000, ended=66_000, continuation=Continuation(kind=Start.FRESH),
        outcome=Outcome(kind=OutcomeKind.FAILED, detail=words), usage=Usage(1500, 20, 0, 0, 0.5),
    )  # fmt: skip
    return Account(
        rule="dev",
        run=run,
        attempts=[ended, replace(ended, number=2)],
        work=WorkReport(
            verdict=WorkVerdict.BLOCKED,
            reasons=(words,),
            observed=True,
            checks=(CheckOfWork(command=words, by=words, code=1),) * 9,
            denied=(DeniedCall(name=words, input=words, count=2),) * 9,
            question=words,
            contradictions=(words,),
            last_message=words,
            last_word=LastWordOfWork(status="done", summary=words, follow_ups=(words,) * 9),
        ),
        words=words,
        held_back=words,
        commit="c" * 40,
        branch="b",
    )


@settings(max_examples=150, deadline=None)
@given(words=WORDS)
@example(words="```\n@ada closes #4\n<b>")
@example(words="`` @ada | closes #4 <b> ``")
def test_only_ever_code(words: str) -> None:
    """The comment has no HTML, link, image or table cell except perdure's own, whatever the text of
    other people is."""
    text = comment(account(words), MARK)
    plain = comment(account("word"), MARK)
    html = [
        each.content.strip() for each in parsed(text) if each.type in ("html_block", "html_inline")
    ]
    # If cleaning removes the whole text, the comment has no <details> element, and the mark is its
    # only HTML.
    assert html in (
        [
            each.content.strip()
            for each in parsed(plain)
            if each.type in ("html_block", "html_inline")
        ],
        [MARK],
    )
    kinds = [each.type for each in parsed(text)]
    assert not {
        "link_open",
        "image",
        "heading_open",
        "bullet_list_open",
        "blockquote_open",
        "hr",
    } & set(kinds)
    assert kinds.count("td_open") == 3 * 6 and kinds.count("table_open") == 1
    said = "".join(each.content for each in parsed(text) if each.type == "text")
    assert "ada" not in said and "closes" not in said and "http" not in said
    assert len(text) <= MOST


@given(words=WORDS)
def test_a_title_refers_to_nobody(words: str) -> None:
    """A title is one line without a mention, a reference or an address."""
    made = title(words)
    assert (
        "\n" not in made
        and "@a" not in made
        and "#1" not in made
        and "://" not in made
        and "<" not in made
    )


def test_a_long_story_is_cut() -> None:
    """The agent's text and the table of attempts are shortened far below the limits of forges, and
    a mark shows that."""
    one = account("x" * 100_000)
    many = replace(
        one, attempts=[replace(one.attempts[0], number=number) for number in range(1, 500)]
    )
    text = comment(many, MARK)
    assert (
        len(text) < 20_000
        and "| 1 to 479 | ... |" in text
        and "more characters]" in text
        and "perdure retry brave-otter" in text
    )


def test_the_verdict_is_told_with_its_reason() -> None:
    """The comment gives the facts that a reviewer needs before the description of the work."""
    text = comment(account("pytest"), MARK)
    for line in (
        "**Work: blocked** (`pytest`)",
        "Contradiction: `pytest`",
        "Check (`pytest`): `pytest` exit code 1",
        "Denied: `pytest pytest` (2)",
        "Denied: 4 more",
        "It asks: `pytest`",
        "It says: `done`, `pytest`",
        "Next: `pytest`",
    ):
        assert line in text
    assert "**Work" not in comment(replace(account("x"), work=None), MARK)


@pytest.mark.parametrize(
    ("text", "made"), [("", ""), ("a`b|c", "`a'b\u00a6c`"), ("a\n b", "`a b`")]
)
def test_code(text: str, made: str) -> None:
    """A word is shown as code in a table's cell, whatever its characters are."""
    assert code(text) == made and block(text, 100).count(text.strip()) >= bool(text)


def test_what_a_waiting_run_waits_for() -> None:
    """The comment of a run that waits for a person, possibly for days, does not say that the run
    continues soon."""
    run = TaskRun(
        id="1",
        name="teal",
        spec=TaskSpec(prompt="x", agent="claude"),
        state=RunState.QUEUED,
        attempt=1,
        created=1,
        updated=1,
        reason="it waits",
    )
    account = Account(rule="dev", run=run, attempts=())
    assert "**dev** (claude) continues soon (attempt 2): `it waits`." in comment(account, MARK)
    needs = Condition(type="needs_input", message="which one?", at=1)
    asking = Account(rule="dev", run=replace(run, conditions=(needs,)), attempts=())
    assert "**dev** (claude) waits for a person: `it waits`." in comment(asking, MARK)
