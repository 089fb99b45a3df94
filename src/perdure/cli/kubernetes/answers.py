"""`requests`, `approve`, `deny`, `answer` of `perdure --cluster`: show what agents ask of people,
and answer it. The answer is an annotation of the TaskRun; the operator gives it to the next
attempt.

If a request gets two answers, the first one counts, even if the operator has not read it yet.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from msgspec import structs

from perdure.cli.arguments import positive
from perdure.cli.kubernetes.requests import following, print_and_follow
from perdure.cli.kubernetes.verbs import printed
from perdure.cli.runs.requests import WHICH, request_lines
from perdure.errors import Conflict, NotFound, UsageError
from perdure.kubernetes.objects import KubernetesObject
from perdure.kubernetes.requests import (
    ANSWERS,
    GivenAnswer,
    agent_request,
    annotation,
    given_answers,
    with_answers,
)
from perdure.kubernetes.status import RequestStatus, status_of
from perdure.kubernetes.view import part, report_of, several, word
from perdure.model.requests import AnswerKind, RequestKind
from perdure.rules.requests import WORDS, late

if TYPE_CHECKING:
    from perdure.kubernetes.taskruns import TaskRuns

PROGRAM = "kubectl perdure"
MOST_TRIES = 20
"""Maximum number of tries to write an answer while other programs change the TaskRun."""


def requests_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", help="all requests of this TaskRun (default: the open ones of all)"
    )
    parser.add_argument("--json", action="store_true", help="print them as JSON")


def approve_arguments(parser: argparse.ArgumentParser) -> None:
    _answer_arguments(parser)


def deny_arguments(parser: argparse.ArgumentParser) -> None:
    _answer_arguments(parser)
    parser.add_argument("--why", default="", metavar="WORDS", help="the reason, for the agent")


def answer_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the TaskRun's name")
    parser.add_argument(
        "words", help="the answer; for several questions a line for each, in their order"
    )
    parser.add_argument("--request", type=positive, default=0, metavar="N", help=WHICH)
    following(parser)


def _answer_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the TaskRun's name")
    parser.add_argument("--request", type=positive, default=0, metavar="N", help=WHICH)
    following(parser)


def requests_verb(taskruns: TaskRuns, arguments: argparse.Namespace) -> int:
    if arguments.name:
        bodies = [taskruns.get(arguments.name)]
    else:
        bodies = taskruns.list()
    found: list[dict[str, object]] = []
    lines: list[str] = []
    for body in bodies:
        name = word(body, "metadata.name")
        for report in report_of(body).requests:
            if arguments.name or not report.answer:
                found.append({"name": name, **structs.asdict(report)})
        for each in _requests(body):
            if arguments.name or each.answer is None:
                request = agent_request(each, word(body, "metadata.uid"))
                lines += request_lines(request, name, PROGRAM)
    if arguments.json:
        printed(found)
        return 0
    if not lines:
        lines = ["no requests" if arguments.name else "no open requests"]
    print("\n".join(lines))
    return 0


def _requests(body: KubernetesObject) -> tuple[RequestStatus, ...]:
    """Return the requests of a TaskRun, with the answers that the operator has not read yet. Empty
    if its status is not valid."""
    found = status_of(part(body, "status")).requests
    now = time.time_ns() // 1_000_000
    return with_answers(found, _given(body), word(body, "metadata.uid"), now)


def approve_verb(taskruns: TaskRuns, arguments: argparse.Namespace) -> int:
    return _answer(taskruns, arguments, AnswerKind.ALLOW, "")


def deny_verb(taskruns: TaskRuns, arguments: argparse.Namespace) -> int:
    return _answer(taskruns, arguments, AnswerKind.DENY, arguments.why)


def answer_verb(taskruns: TaskRuns, arguments: argparse.Namespace) -> int:
    return _answer(taskruns, arguments, AnswerKind.TEXT, arguments.words)


def _answer(taskruns: TaskRuns, arguments: argparse.Namespace, kind: AnswerKind, words: str) -> int:
    """Write the answer into the TaskRun. Return the exit code. Raises NotFound, Conflict,
    UsageError."""
    if len(words) > WORDS:
        raise UsageError(f"An answer has at most {WORDS} characters, got {len(words)}")
    by = ""
    for tries in range(MOST_TRIES):
        body = taskruns.get(arguments.name)
        request = _meant(body, arguments.request, kind, words)
        by = by or f"kubernetes:{taskruns.person()}"
        answer = GivenAnswer(request=request.id, answer=kind, words=words, by=by)
        change = {"metadata": {"annotations": {ANSWERS: _with(body, answer)}}}
        try:
            asked = taskruns.patch(arguments.name, change, seen=body)
            break
        except Conflict:
            # Another program changed the TaskRun in the meantime. That program may have answered
            # the request.
            if tries == MOST_TRIES - 1:
                raise
            time.sleep(0.1)

    def is_read(now: KubernetesObject) -> bool:
        for each in several(now, "status.requests"):
            if word(each, "id") == request.id and not word(each, "answer"):
                return False
        return True

    return print_and_follow(taskruns, asked, arguments, f"has your answer: {kind}", is_read)


def _meant(body: KubernetesObject, number: int, kind: AnswerKind, words: str) -> RequestStatus:
    """Return the open request that an answer is meant for. Raises NotFound, Conflict,
    UsageError."""
    from perdure.engine.service import check_answer

    name, uid = word(body, "metadata.name"), word(body, "metadata.uid")
    every = _requests(body)
    opened = [each for each in every if each.answer is None]
    hint = f"{PROGRAM} requests {name}"
    if number:
        fitting = [each for each in every if each.number == number]
        if not fitting:
            raise NotFound(f"{name} has no request {number}", hint)
    else:
        question = kind is AnswerKind.TEXT
        fitting = [each for each in opened if (each.kind is RequestKind.QUESTION) == question]
        fitting = fitting or opened
        if not fitting:
            last = f". {late(agent_request(every[-1], uid))}" if every else ""
            raise Conflict(f"{name} has no open request{last}", hint)
        if len(fitting) > 1:
            numbers = [str(each.number) for each in fitting]
            raise UsageError(
                f"{name} has several open requests: {', '.join(numbers)}",
                f"{hint}, then --request N",
            )
    found = fitting[0]
    request = agent_request(found, uid)
    if found.answer is not None:
        raise Conflict(late(request), hint)
    check_answer(name, request, kind, words, PROGRAM)
    return found


def _given(body: KubernetesObject) -> tuple[GivenAnswer, ...]:
    return given_answers(part(body, "metadata.annotations").get(ANSWERS))


def _with(body: KubernetesObject, answer: GivenAnswer) -> str:
    """Return the annotation with one more answer. Answers to requests that are not open any more
    are removed."""
    opened = {each.id for each in status_of(part(body, "status")).requests if each.answer is None}
    kept = [each for each in _given(body) if each.request in opened]
    return annotation([*kept, answer])
