"""An agent's requests are moved with its run: open requests are asked on the other machine, and an
approval of one machine is not valid on another."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from perdure.capsule.story import MOVED, CapsuleStory, import_requests
from perdure.model import Attempt, Continuation, RunState, Start, TaskRun, TaskSpec
from perdure.model.requests import AgentRequest, AnswerKind, RequestKind, RequestState

NOW, LASTS = 1_000_000, 500
OPEN = AgentRequest(
    run="a" * 32,
    number=1,
    attempt=1,
    kind=RequestKind.APPROVAL,
    tool="Write",
    call="call-1",
    summary="a.txt",
    payload="{}",
    size=2,
    sha256="0" * 64,
    parked=True,
    asked=1,
    expires=2,
)
ALLOWED = replace(OPEN, state=RequestState.ANSWERED, answer=AnswerKind.ALLOW, by="ada")


@pytest.mark.parametrize(
    ("request_there", "here"),
    [
        (OPEN, (RequestState.OPEN, None, "")),
        (ALLOWED, (RequestState.OPEN, None, "")),
        (replace(ALLOWED, given=2), (RequestState.SUPERSEDED, AnswerKind.ALLOW, MOVED)),
        (replace(ALLOWED, given=1), (RequestState.ANSWERED, AnswerKind.ALLOW, "")),
        (
            replace(ALLOWED, answer=AnswerKind.DENY, words="no"),
            (RequestState.ANSWERED, AnswerKind.DENY, "no"),
        ),
    ],
    ids=["open", "allowed and not used", "given to the newest attempt", "used before", "refused"],
)
def test_a_request_arrives(
    request_there: AgentRequest, here: tuple[RequestState, AnswerKind | None, str]
) -> None:
    """An imported request can be answered for the full time again. An approval that was given but
    not used is requested again."""
    spec, state = TaskSpec(prompt="x"), RunState.QUEUED
    run = TaskRun(id="b" * 32, name="task", spec=spec, state=state, created=1, updated=1, attempt=3)
    start = Continuation(kind=Start.FRESH)
    # The third attempt was claimed and has never begun.
    attempts = tuple(
        Attempt(
            run=run.id, number=number, context_version=1, worker="w", started=1, continuation=begun
        )
        for number, begun in ((1, start), (2, start), (3, None))
    )
    story = CapsuleStory(
        run=run, contexts=(), attempts=attempts, sessions=(), requests=(request_there,)
    )
    (found,) = import_requests(story, run.id, NOW, LASTS)
    assert (found.run, found.expires) == (run.id, NOW + LASTS)
    assert (found.state, found.answer, found.words) == here
