"""`requests`, `approve`, `deny`, `answer`: list the requests of agents to people, and answer
them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from perdure.cli.arguments import positive
from perdure.cli.compose import open_engine, open_to_read, settings
from perdure.cli.parser import optional_name
from perdure.cli.runs.run import check_known, following, start_and_follow
from perdure.cli.text import clock, one_line
from perdure.errors import UsageError
from perdure.model.codec import plain
from perdure.model.requests import AgentRequest, AnswerKind, RequestState
from perdure.rules.approvals import not_whole, why_not_allowed
from perdure.rules.requests import options_of, payload_lines, questions
from perdure.rules.text import at_home, visible, write_stderr

if TYPE_CHECKING:
    from perdure.model import TaskRun
    from perdure.protocols import RunStore


def requests_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", help="all requests of this run (default: the open ones of all runs)"
    )
    parser.add_argument("--json", action="store_true", help="print them as JSON")


def approve_arguments(parser: argparse.ArgumentParser) -> None:
    _answer_arguments(parser)
    _always_arguments(parser)


def deny_arguments(parser: argparse.ArgumentParser) -> None:
    _answer_arguments(parser)
    _always_arguments(parser)
    parser.add_argument("--why", default="", metavar="WORDS", help="the reason, for the agent")


def answer_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the run's name, id or key")
    parser.add_argument(
        "words", help="the answer; for several questions a line for each, in their order"
    )
    parser.add_argument("--request", type=positive, default=0, metavar="N", help=WHICH)
    following(parser)


def _always_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--always",
        action="store_true",
        help="also save a rule that gives this answer to such calls from now on",
    )
    parser.add_argument(
        "--for",
        dest="scope",
        choices=("run", "repository", "all"),
        default="run",
        help="the runs that the rule applies to (default: run)",
    )
    parser.add_argument(
        "--pattern",
        default="",
        metavar="WORDS",
        help="shell commands that the rule is for, such as 'git push *' (default: only this call)",
    )


WHICH = "the number of the request (default: the only open one)"


def _answer_arguments(parser: argparse.ArgumentParser) -> None:
    optional_name(parser)
    parser.add_argument("--request", type=positive, default=0, metavar="N", help=WHICH)
    following(parser)


def requests_verb(arguments: argparse.Namespace) -> int:
    from perdure.engine import service

    store = open_to_read(settings())
    found = service.requests(store, arguments.name or "")
    if arguments.json:
        print(json.dumps([_report(store, each) for each in found], indent=2, ensure_ascii=False))
        return 0
    if not found:
        print("no requests" if arguments.name else "no open requests")
    for each in found:
        print("\n".join(request_lines(each, store.get(each.run).name)))
    return 0


def _report(store: RunStore, request: AgentRequest) -> Mapping[str, object]:
    return {"name": store.get(request.run).name, **plain(request)}


def request_lines(request: AgentRequest, name: str, program: str = "perdure") -> list[str]:
    """Return the lines that show a request. Control characters in the agent's text are made
    visible, so that the text cannot imitate other output of the terminal. `program` is the command
    that answers the request."""
    lines = [f"{name}  request {request.number}  {_state(request)}"]
    asked = questions(request)
    for each in asked:
        lines.append(f"  asks   {one_line(visible(str(each.get('question', ''))), 1000)}")
        for option in options_of(each):
            lines.append(f"         - {one_line(visible(str(option.get('label', ''))), 200)}")
    if not asked:
        lines.append(f"  wants  {one_line(visible(request.tool), 200)}")
        lines += [f"         {line}" for line in payload_lines(request)]
    if note := not_whole(request):
        lines.append(f"         ... {note}")
    if request.state is RequestState.OPEN:
        if asked:
            verb = f'answer {name} "..."'
        elif why_not_allowed(request):
            verb = f"deny {name}"
        else:
            verb = f"approve {name}, or {program} deny {name}"
        lines.append(f"  until  {clock(request.expires)}: {program} {verb}")
    elif request.words:
        lines.append(f"  words  {one_line(visible(request.words), 1000)}")
    return lines


def _state(request: AgentRequest) -> str:
    if request.answer is None or request.state is RequestState.EXPIRED:
        return str(request.state)
    by = f" by {one_line(visible(request.by), 100)}" if request.by else ""
    superseded = ", then superseded" if request.state is RequestState.SUPERSEDED else ""
    return f"{request.answer}{by}{superseded}"


def approve_verb(arguments: argparse.Namespace) -> int:
    return _store_answer(arguments, AnswerKind.ALLOW, "")


def deny_verb(arguments: argparse.Namespace) -> int:
    return _store_answer(arguments, AnswerKind.DENY, arguments.why)


def answer_verb(arguments: argparse.Namespace) -> int:
    return _store_answer(arguments, AnswerKind.TEXT, arguments.words)


def _store_answer(arguments: argparse.Namespace, answer: AnswerKind, words: str) -> int:
    """Store the answer, then continue the run in this process, as `retry` does. If the run's files
    are on another host, leave the run to that host. Return the exit code."""
    check_known(arguments.name)
    from perdure.engine import service

    chosen = settings()
    engine = open_engine(chosen)
    if getattr(arguments, "always", False):
        run = _always(engine, arguments, answer, words)
    else:
        if getattr(arguments, "pattern", ""):
            raise UsageError(
                "--pattern describes a saved rule, so it needs --always", "add --always"
            )
        run, _ = service.answer(engine, arguments.name, arguments.request, answer, words)
    if engine.host.elsewhere(run):
        print(f"answered; {run.name} continues on {run.host_name}")
        return 0

    return start_and_follow(arguments, chosen, lambda engine: engine.store.get(run.id))


def _always(engine: Any, arguments: argparse.Namespace, answer: AnswerKind, words: str) -> TaskRun:
    """Store the answer, and a rule that gives the same answer to such calls in the future. Print
    the path of the rule's file. Return the run."""
    from perdure.engine.steering import Always, answer_always
    from perdure.host.actors import current, local_person

    always = Always(
        scope=arguments.scope, pattern=arguments.pattern, denies=answer is AnswerKind.DENY
    )
    run, path = answer_always(
        engine, arguments.name, arguments.request, always, words, current(local_person())
    )
    write_stderr(f"saved a rule for such calls: {at_home(str(path))}")
    return run
