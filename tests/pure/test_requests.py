"""The rules of requests: which calls become a request, how long an answer is valid, and when it is
used."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from perdure import store as stores
from perdure.agents.claude import hook
from perdure.cli import request_text
from perdure.cli.runs.request_prompt import can_ask, shown_for_answer
from perdure.cli.runs.requests import request_lines
from perdure.engine import service
from perdure.engine.attempt.requests import (
    Answers,
    _arguments,
    _ruled,
    answers_for,
    save,
    settle_refused,
    write_decisions,
)
from perdure.errors import UsageError
from perdure.model import Attempt, Continuation, Outcome, OutcomeKind, RunState, Start, codec
from perdure.model.requests import AgentRequest, AnswerKind, OpenCall, RequestKind, RequestState
from perdure.rules import requests as rules
from perdure.rules.approvals import is_stored_whole, rule_for, why_not_allowed
from perdure.testing.stores.requests import given
from perdure.testing.stores.samples import AGAIN, begun, claimed

DAY_MS = 86_400_000


def call(tool: str = "Bash", parked: bool = True, **given: Any) -> OpenCall:
    text = json.dumps(given or {"command": "make deploy"})
    return OpenCall(call=f"t-{tool}", tool=tool, input=text, summary="s", parked=parked)


def made(*calls: OpenCall, earlier: tuple[AgentRequest, ...] = ()) -> tuple[AgentRequest, ...]:
    return rules.requests_of(calls, earlier, run="r", attempt=1, now=1000, lasts_ms=DAY_MS)


def answered(request: AgentRequest, answer: AnswerKind, **more: Any) -> AgentRequest:
    changes = {"state": RequestState.ANSWERED, "answer": answer, **more}
    return replace(request, **changes)


def attempt(number: int, outcome: Outcome | None = None, began: bool = True) -> Attempt:
    return Attempt(
        run="r",
        number=number,
        context_version=1,
        worker="w",
        started=1,
        continuation=Continuation(kind=Start.FRESH) if began else None,
        outcome=outcome,
    )


def test_the_hook_knows_a_call_by_the_same_digest() -> None:
    """The hook imports nothing of perdure, but computes the same digest of a call that perdure has
    stored."""
    given = {"b": [1, 2.5, None, True], "a": {"ü": "\u202e\x1b"}, "c": "x" * 5000}
    turned = json.loads(json.dumps(dict(reversed(given.items()))))
    assert hook.digest("Write", given) == rules.digest("Write", turned)
    assert hook.digest("Write", given) != rules.digest("Bash", given)
    assert hook.digest("Write", {**given, "c": ""}) != rules.digest("Write", given)


def test_an_agent_that_asks_a_thousand_times_makes_few_requests() -> None:
    """The number of requests is limited for an attempt and for a run, and the same call makes only
    one."""
    many = [call(parked=False, command=f"make {n}") for n in range(1000)]
    first = made(*many, *many)
    assert [each.number for each in first] == list(range(1, rules.MOST_AT_ONCE + 1))
    full = tuple(
        replace(first[0], number=n, sha256=str(n)) for n in range(1, rules.MOST_OF_RUN + 1)
    )
    assert made(*many, earlier=full) == ()
    assert len(made(*[many[0]] * 1000)) == 1


def test_a_call_that_was_decided_is_not_asked_for_again() -> None:
    """If a person has allowed a call and another rule denies it, no further request is made. A call
    that waits in the conversation must still be answered."""
    (once,) = made(call(parked=False))
    allowed = answered(once, AnswerKind.ALLOW, given=2)
    assert made(call(parked=False), earlier=(allowed,)) == ()
    (again,) = made(call(parked=True), earlier=(allowed,))
    assert again.number == 2


def test_a_call_of_a_superseded_request_is_asked_for_again(tmp_path: Path) -> None:
    """After new instructions, a person's answer to an earlier call decides no later one. Such a
    call is unfinished work of its turn, and becomes a request. The call that waited is refused."""
    (once,) = made(call(parked=False))
    for answer in (AnswerKind.ALLOW, AnswerKind.DENY):
        closed = answered(once, answer, state=RequestState.SUPERSEDED, given=2)
        (again,) = made(call(parked=False), earlier=(closed,))
        assert again.number == 2
    with closing(stores.open(tmp_path / "perdure.db")) as store:
        run = given(store, AnswerKind.ALLOW)
        store.update(run.id, "something else")
        live = SimpleNamespace(claim=SimpleNamespace(run=run))
        assert settle_refused(store, cast(Any, live)) == ({"call-1"}, set())


def test_a_run_with_requests_waits_until_they_expire() -> None:
    """A run with open requests is queued, and due when the first of them expires. Its condition
    names the verb that answers."""
    requests = made(call(), call(tool="Write", file_path="/x"))
    outcome = Outcome(kind=OutcomeKind.NEEDS_INPUT, detail="it waits")
    decision = rules.waiting(outcome, requests, "task", 1000)
    assert (decision.state, decision.run_after) == (RunState.QUEUED, 1000 + DAY_MS)
    assert decision.condition is not None
    assert decision.condition.type == "needs_input"
    assert "perdure approve task, or perdure deny task" in decision.condition.message


def test_nobody_answers_in_time() -> None:
    """An expired request is refused. A clock that jumps back does not open it again."""
    (request,) = made(call())
    late = rules.expired(request, request.expires)
    assert (late.state, late.answer) == (RequestState.EXPIRED, AnswerKind.DENY)
    assert rules.expired(late, 0) == late
    assert rules.expired(request, request.expires - 1) == request


def test_an_answer_is_given_to_one_attempt() -> None:
    """An answer is given to one attempt. The next attempt gets it only if the first one did not use
    it."""
    (request,) = made(call())
    assert rules.undelivered_answers([request], 1, frozenset()) == ()
    allowed = answered(request, AnswerKind.ALLOW)
    assert rules.undelivered_answers([allowed], 1, frozenset()) == (allowed,)
    given = replace(allowed, given=2)
    assert rules.undelivered_answers([given], 2, frozenset()) == (given,)
    assert rules.undelivered_answers([given], 2, frozenset({1})) == ()
    assert rules.undelivered_answers([given], 3, frozenset()) == ()


def test_an_attempt_that_never_began_loses_no_answer(tmp_path: Path) -> None:
    """The answer that a lost attempt got is passed on, also if the attempt between the lost one and
    this one was claimed but could not begin. It is not passed on past an attempt that
    began."""
    with closing(stores.open(tmp_path / "perdure.db")) as store:
        run = given(store, AnswerKind.ALLOW)
        store.finish(claimed(store, run), AGAIN)
        claim = claimed(store, run)
        (tmp_path / "2").mkdir()
        asked = Continuation(kind=Start.FRESH)

        def answers() -> list[int]:
            found = answers_for(
                store, tmp_path / "4", claim, cast(Any, None), asked, None, news=False
            )
            return [each.number for each in found.requests]

        assert answers() == [1]
        store.begin(claim, begun(run))
        store.finish(claim, AGAIN)
        claim = claimed(store, run)
        assert answers() == []


def test_an_attempt_that_succeeded_needs_no_answer_again() -> None:
    """Only an attempt that has begun, and did not succeed, may have left an answer unused."""
    assert rules.unsettled_attempt([]) == 0
    lost = Outcome(kind=OutcomeKind.LOST)
    assert rules.unsettled_attempt([attempt(1, lost), attempt(2), attempt(3, began=False)]) == 2
    done = Outcome(kind=OutcomeKind.SUCCEEDED)
    assert rules.unsettled_attempt([attempt(1, lost), attempt(2, done)]) == 0


def test_a_superseded_approval_refuses_the_call() -> None:
    """After a restore or new instructions the waiting call is refused, even if it was allowed
    before, and in nobody's name. A call that is not waiting is not mentioned."""
    (request,) = made(call())
    closed = answered(request, AnswerKind.ALLOW, state=RequestState.SUPERSEDED, by="ada")
    (given,) = rules.undelivered_answers([closed], 1, frozenset())
    assert (given.answer, given.by) == (AnswerKind.DENY, "")
    gone = replace(closed, parked=False)
    assert rules.undelivered_answers([gone], 1, frozenset()) == ()


HOSTILE = "echo \x1b[2J\x1b]0;x\x07 \u202egnp.exe\u2066 <script>alert(1)</script>\r\nrm -rf /"


@pytest.mark.parametrize("tool", ["Bash", "x\x1b[31m\u202e\n"])
def test_a_hostile_call_is_shown_as_it_is(tool: str) -> None:
    """Escape sequences, direction marks and line breaks of a command are visible, and cannot move
    the text beside them."""
    (request,) = made(call(tool=tool, command=HOSTILE))
    text = "\n".join(request_lines(request, "task"))
    assert not set(text) & {"\x1b", "\x07", "\r", "\u202e", "\u2066"}
    assert "^[[2J" in text
    assert "<U+202E>gnp.exe" in text
    assert "<script>alert(1)</script>\\r\\nrm -rf /" in text


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("git status # then\nrm -rf work", "git status # then\\nrm -rf work"),
        ("git status # then\\nrm -rf work", "git status # then\\\\nrm -rf work"),
        ("cp a \\\n b", "cp a \\\\\\n b"),
        ("cp a \\\\n b", "cp a \\\\\\\\n b"),
        ("echo a\\rb", "echo a\\\\rb"),
        ("echo 'a\\tb'", "echo 'a\\tb'"),
    ],
)
def test_a_line_break_is_told_from_its_escape(command: str, shown: str) -> None:
    """A line break is shown as `\\n`. If the call itself has these two characters, its backslashes
    are doubled. So two different calls are never shown in the same way."""
    (request,) = made(call(command=command))
    assert f"command: {shown}" in rules.payload_lines(request)
    (request,) = made(call(command=["sh", command]))
    assert f"command: {json.dumps(['sh', command])}" in rules.payload_lines(request)


def test_a_call_of_a_megabyte_is_cut_and_can_only_be_refused() -> None:
    """The text that is shown is bounded. The digest is that of the whole call."""
    (request,) = made(call(command="x" * 1_000_000))
    assert len(request.payload) == rules.SHOWN
    assert request.size > 1_000_000
    assert request.sha256 == rules.digest("Bash", {"command": "x" * 1_000_000})
    assert "too long to be shown whole" in "\n".join(request_lines(request, "task"))


def test_half_a_surrogate_pair_is_stored_and_can_only_be_refused() -> None:
    """The store cannot keep half of a surrogate pair. The text that is shown has a question mark in
    its place, and the digest is that of the real call."""
    given = {"command": "echo \ud83d"}
    raw = OpenCall(call="t", tool="Bash", input=json.dumps(given, ensure_ascii=False), summary="s")
    (request,) = made(raw)
    assert codec.decode(codec.encode(request), AgentRequest) == request
    assert json.loads(request.payload) == {"command": "echo ?"}
    assert request.sha256 == rules.digest("Bash", given)
    assert not is_stored_whole(request)
    assert why_not_allowed(request)


@pytest.mark.parametrize("given", ["[]", '"x"', "null", '{"questions": 7}', '{"questions": ["?"]}'])
def test_a_strange_question_is_no_crash(given: str) -> None:
    """A question whose arguments are of any form causes no crash."""
    (request,) = made(OpenCall(call="t", tool=rules.QUESTION, input=given, parked=True))
    assert request.kind is RequestKind.QUESTION
    assert request_lines(request, "task")
    assert rules.detail(request)


def decided(directory: Path, request: AgentRequest, **more: Any) -> None:
    """Write the answer to a file as perdure does before a launch."""
    given = {"number": 1, "call": request.call, "sha256": request.sha256, "parked": True}
    texts = {"answer": str(request.answer), "words": request.words, "each": {}}
    (directory / "decisions.json").write_text(json.dumps([{**given, **texts, **more}]))


def asks_hook(directory: Path, request: AgentRequest, call: str = "", **given: Any) -> str:
    """Return the hook's decision about a call, or an empty string if it leaves the decision to the
    CLI."""
    told = {"tool_name": request.tool, "tool_use_id": call or request.call}
    arguments = given or json.loads(request.payload)
    found = hook.before(
        str(directory),
        {**told, "tool_input": arguments},
        hook.digest(request.tool, arguments),
    )
    return "" if found is None else str(found["permissionDecision"])


def test_the_hook_lets_the_approved_call_run_once(tmp_path: Path) -> None:
    """The call runs once. A second call, other arguments, another tool and unreadable answers are
    refused."""
    (request,) = made(call())
    assert asks_hook(tmp_path, request) == ""
    decided(tmp_path, answered(request, AnswerKind.ALLOW))
    assert asks_hook(tmp_path, request, command="rm -rf /") == "deny"
    assert asks_hook(tmp_path, request, call="another") == ""
    assert asks_hook(tmp_path, request) == "allow"
    assert asks_hook(tmp_path, request) == "deny"
    (tmp_path / "decisions.json").write_text("{broken")
    assert asks_hook(tmp_path, request) == ""


def test_the_hook_lets_a_call_that_is_made_again_run_once(tmp_path: Path) -> None:
    """An approval that the prompt mentions applies to the call with the same digest, whatever its
    id."""
    (request,) = made(call(parked=False))
    decided(tmp_path, answered(request, AnswerKind.ALLOW), parked=False)
    assert asks_hook(tmp_path, request, call="new", command="make other") == ""
    assert asks_hook(tmp_path, request, call="new") == "allow"
    assert asks_hook(tmp_path, request, call="newer") == ""


def test_the_agent_decides_no_path_of_the_answers(tmp_path: Path) -> None:
    """The agent may have put a link in the place of the answers. The link is replaced, and the file
    that it points to stays as it is. Without answers there is no such file."""
    (request,) = made(call(parked=False))
    directory = tmp_path / "runs/r/requests"
    directory.mkdir(parents=True)
    victim, answers = tmp_path / "victim", directory / "decisions.json"
    victim.write_text("mine")
    answers.symlink_to(victim)
    write_decisions(tmp_path, "r", Answers(requests=(answered(request, AnswerKind.ALLOW),)))
    assert victim.read_text() == "mine" and len(json.loads(answers.read_text())) == 1
    write_decisions(tmp_path, "r", Answers())
    assert list(directory.iterdir()) == []


def test_the_hook_lets_a_call_run_once_for_each_approval(tmp_path: Path) -> None:
    """A person allowed the same call twice, so it runs twice. A refusal of the same call has
    precedence."""
    (request,) = made(call(parked=False))
    given = {"call": "", "sha256": request.sha256, "parked": False, "words": "", "each": {}}
    answers = [{**given, "number": number, "answer": "allow"} for number in (1, 2)]
    (tmp_path / "decisions.json").write_text(json.dumps(answers))
    assert [asks_hook(tmp_path, request) for _ in range(3)] == ["allow", "allow", ""]
    answers = [*answers, {**given, "number": 3, "answer": "deny"}]
    (tmp_path / "decisions.json").write_text(json.dumps(answers))
    assert asks_hook(tmp_path, request) == "deny"


def test_the_hook_asks_for_a_denied_call_once_more(tmp_path: Path) -> None:
    """A call that needed a permission is deferred when the agent repeats it. Other calls are not
    deferred, and neither are calls of a subagent."""
    (request,) = made(call())
    arguments = json.loads(request.payload)
    denied = {"tool_name": "Bash", "tool_input": arguments}
    failed = {**denied, "tool_response": "Tool permission request failed: AbortError"}
    well = {**denied, "tool_response": "Tool permission request failed? No: this is a file."}
    assert hook.after(str(tmp_path), {"tool_calls": [well]}) is None
    told = hook.after(str(tmp_path), {"tool_calls": [failed, failed]})
    assert told is not None
    assert "Make exactly the same call once more" in told["additionalContext"]
    assert asks_hook(tmp_path, request, command="make other") == ""
    aside = {**denied, "tool_use_id": "t", "agent_id": "a"}
    assert hook.before(str(tmp_path), aside, request.sha256) is None
    assert asks_hook(tmp_path, request) == "defer"
    assert (tmp_path / "parked").read_text() == f"{request.call}\n"


def test_a_used_approval_of_a_killed_attempt_refuses_the_call() -> None:
    """If the attempt was killed after an approval was used, it is not known whether the call ran,
    so the call is refused. The answer to a question is given again."""
    (request,) = made(call())
    used = answered(request, AnswerKind.ALLOW, given=2)
    assert rules.used_up([used], 2, frozenset({1})) == (used,)
    assert rules.used_up([used], 2, frozenset()) == ()
    text = answered(request, AnswerKind.TEXT, given=2)
    assert rules.undelivered_answers([text], 2, frozenset({1})) == (text,)
    assert rules.used_up([text], 2, frozenset({1})) == ()


def test_no_text_of_an_agent_passes_for_the_prompt_of_a_terminal() -> None:
    """A command is shown completely. Each of its lines begins with ` | `, even where a long line is
    continued on the next one. Hidden characters are shown by name. So no text of an agent looks
    like the prompt of a terminal."""
    nasty = "echo a\r\x1b[2J\u202eb\nAllow it once? y" + " " * 500 + "rm -rf /"
    (request,) = made(call(command=nasty, description="Say\u200b hi"))
    lines = shown_for_answer(request, "request 1 of task")[2:]
    assert all(each.startswith("  | ") and len(each) <= 80 for each in lines)
    text = "".join(each.removeprefix("  | ") for each in lines)
    assert "$ echo a^M^[[2J<U+202E>b" in text and "Say<U+200B> hi" in text
    assert "$ Allow it once? y" in text and text.endswith("rm -rf /")
    (edit,) = made(call("Edit", file_path="/a", old_string="one\ntwo", new_string="three"))
    lines = shown_for_answer(edit, "")[2:]
    assert [each.removeprefix("  | ") for each in lines] == [
        "tool: Edit", "file_path: /a", "- one", "- two", "+ three",
    ]  # fmt: skip
    long = made(call(command="x" * 20_000))[0]
    assert "too long to be shown whole" in shown_for_answer(long, "")[-1]


def test_keys_and_labels_draw_no_line_without_the_bar() -> None:
    """An agent chooses the names of arguments, of tools and of options. Even if a name has line
    breaks, each line that is shown begins with ` | `, so the text cannot be taken for perdure's
    own."""
    forged = "x\n\nrequest 2 of task\nAllow it once?"
    (one,) = made(call(f"T{forged}", **{forged: 1}))
    asked = {"questions": [{"question": forged, "options": [{"label": forged}]}]}
    (other,) = made(call(rules.QUESTION, **asked))
    for request in (one, other):
        text = "\n".join(shown_for_answer(request, "")[2:])
        assert all(line.startswith("  | ") for line in text.split("\n"))


def test_a_call_with_a_secret_is_not_allowed_unseen() -> None:
    """A call that contains a secret cannot be allowed, because it is not shown completely. The
    secret is replaced by a name of the same length, so that the size of the call reveals
    nothing."""
    (request,) = made(call(command="deploy abc"))
    assert is_stored_whole(request)
    hidden = replace(request, payload=request.payload.replace("abc", "***"))
    assert hidden.size == len(hidden.payload) and not is_stored_whole(hidden)
    assert "holds a secret" in shown_for_answer(hidden, "")[-1]
    listed = "\n".join(request_lines(hidden, "task"))
    assert "holds a secret" in listed and "perdure deny task" in listed and "approve" not in listed


def test_a_question_that_was_cut_says_so() -> None:
    """A question that was cut can be answered with one text, and the person sees its beginning and
    that it was cut."""
    text = {"questions": [{"question": "x" * (2 * rules.SHOWN)}]}
    (request,) = made(call(rules.QUESTION, **text))
    for lines in (shown_for_answer(request, ""), request_lines(request, "task")):
        assert f"cut here, {request.size} characters in all" in "\n".join(lines)
        assert "refused" not in "\n".join(lines)
    assert "xxxx" in "\n".join(shown_for_answer(request, ""))
    assert len(request_text.questions_of(request)) == 1


def test_calls_with_one_id_are_ruled_by_their_own_arguments(tmp_path: Path) -> None:
    """If several calls have one id, each is judged by its own arguments. A tool whose name was cut
    is left to a person."""
    calls = [
        OpenCall(call="", tool=tool, input=json.dumps({"command": command}))
        for tool, command in (("Bash", "make"), ("Bash", "rm -rf /"), ("T" * 300, "make"))
    ]
    for tool in ("Bash", "T" * 200):
        save(tmp_path, rule_for("allow", tool, {"command": "make"}))
    spec = SimpleNamespace(repo="")
    claim = SimpleNamespace(run=SimpleNamespace(id="r", spec=spec))
    found = _ruled(tmp_path, cast(Any, claim), made(*calls), _arguments(calls))
    answers = [each.answer for each in found]
    assert answers == [AnswerKind.ALLOW, None, None]


def test_in_ci_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a CI build no person is asked, because a build sometimes has a terminal, but no person
    reads it."""
    above, below = os.openpty()
    with os.fdopen(above), os.fdopen(below, "r") as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        monkeypatch.setattr("sys.stderr", terminal)
        monkeypatch.setattr(os, "tcgetpgrp", lambda fd: os.getpgrp())
        monkeypatch.delenv("CI", raising=False)
        assert can_ask()
        monkeypatch.setenv("CI", "true")
        assert not can_ask()


def test_the_hint_of_a_wrong_answer_names_the_run() -> None:
    """The command in the hint of a wrong answer works as it is printed, because it names the
    run."""
    (request,) = made(call())
    with pytest.raises(UsageError, match="not a question") as caught:
        service.check_answer("billing", request, AnswerKind.TEXT, "SQLite")
    assert caught.value.hint == "perdure approve billing, or perdure deny billing"
