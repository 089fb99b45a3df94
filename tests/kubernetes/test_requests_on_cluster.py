"""An agent asks a person, on the real control plane with the real Claude Code. The TaskRun waits
without a pod, `kubectl perdure` shows and answers the request, and exactly that call runs."""

from __future__ import annotations

import json

import pytest

from tests.journeys.test_requests import call, question
from tests.kubernetes.place import Place
from tests.kubernetes.story import Story, tell
from tests.servers.kubernetes.api import Object

pytestmark = [pytest.mark.kubernetes, pytest.mark.journey, pytest.mark.timeout(900)]

OUTSIDE = "/data/outside.txt"
"""A file on the volume that is not in the workdir, so that writing it needs a permission."""


def asking(story: Story) -> Object:
    """Wait until the TaskRun waits for a person. Return its only request."""

    def open_request() -> Object | None:
        found = story.status()
        waits = found.get("phase") == "Pending" and found.get("requests")
        return dict(found["requests"][0]) if waits else None

    return dict(story.until(open_request, "it waits for a person"))


def test_an_approval_and_an_answer(place: Place) -> None:
    """Two TaskRuns wait in the phase Pending without a pod. `kubectl perdure` shows their requests.
    After the answers both conversations continue: the call runs once, and the question gets its
    answer."""
    write = call("Write", file_path=OUTSIDE, content="ran")
    script = f"by history\n{write}---\n{write}---\nsay It is written.\n"
    call_story = tell(place, "push", script=script, permissions="Edit")
    asks = f"by history\n{question('Which database?')}---\nsay It is chosen.\n"
    question_story = tell(place, "choose", script=asks, permissions="Edit")

    for story, kind in ((call_story, "approval"), (question_story, "question")):
        request = asking(story)
        assert (request["number"], request["kind"], request.get("answer")) == (1, kind, None)
        story.until(
            lambda story=story: all(
                each["status"]["phase"] in ("Succeeded", "Failed") for each in story.pods()
            ),
            "no pod is at work",
        )
        told = story.condition("NeedsPerson")
        assert told is not None and story.condition("Failed") is None
        assert f"kubectl perdure {'answer' if kind == 'question' else 'approve'}" in told["message"]
        assert len(story.attempts()) == 1
    outside = place.volume_of(call_story.status()["workspace"]["claimName"]) / "outside.txt"
    assert not outside.exists()

    told = place.perdure("requests")
    assert f"file_path: {OUTSIDE}" in told and "Which database?" in told and "- SQLite" in told
    assert "kubectl perdure approve push, or kubectl perdure deny push" in told
    said = place.perdure("approve", "push", "--follow", "--quiet")
    assert "has your answer: allow" in said
    place.perdure("answer", "choose", "SQLite")

    status = call_story.settled()
    assert outside.read_text() == "ran"
    first, last = status["attempts"]
    assert (first["outcome"], last["outcome"]) == ("needs_input", "succeeded")
    assert last["receipt"]["verdict"] == "native" and last["sessionId"] == first["sessionId"]
    results = [
        each.text for each in call_story.rehearsal.last.messages if each.role == "tool_result"
    ]
    assert len([each for each in results if "created" in each]) == 1, results
    (request,) = json.loads(place.perdure("requests", "push", "--json"))
    assert (request["answer"], request["name"]) == ("allow", "push")
    assert request["by"].startswith("kubernetes:") and len(request["by"]) > len("kubernetes:")
    call_story.one_of_each()

    question_story.settled()
    shown = "\n".join(each.text for each in question_story.rehearsal.last.messages)
    assert "SQLite" in shown
    question_story.one_of_each()
    assert "no open requests" in place.perdure("requests")
