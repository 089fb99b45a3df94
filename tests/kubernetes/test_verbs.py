"""A person's actions on a TaskRun during and after its run, on the real control plane with the real
Claude Code: new instructions, one more attempt, a stop, a deletion. The tests check what reached
the model."""

from __future__ import annotations

import pytest

from tests.journeys.stage import said
from tests.kubernetes.place import Place
from tests.kubernetes.story import WORD, Story, tell

pytestmark = [pytest.mark.kubernetes, pytest.mark.journey, pytest.mark.timeout(900)]

TURNS = """by history
run echo one > one.txt
---
slow 3
say The first file is written.
---
run echo two > two.txt
---
say The second file is written.
---
say The third thing is said.
"""


def test_new_instructions_during_a_run_and_after_it(place: Place) -> None:
    """A new version during an attempt is used after its end; a new version after the run has ended
    reopens the run. Both continue the same conversation, and the agent gets only the new
    instructions."""
    story = tell(place, "updated", script=TURNS)
    story.until(lambda: len(story.asked) >= 2, "the first turn is at its second step")
    story.update("Now write two.txt. The second word is fagus.")
    first = story.settled()
    delta = _turn(story, "fagus")
    assert WORD not in delta
    story.update("Say the third thing. The third word is betula.")
    story.settled()
    delta = _turn(story, "betula")
    assert WORD not in delta and "fagus" not in delta
    whole = said(story.rehearsal.last.messages)
    assert all(
        word in whole
        for word in (
            WORD,
            "fagus",
            "betula",
            "The first file is written.",
            "The second file is written.",
        )
    )
    last = story.status()
    assert {each["sessionId"] for each in last["attempts"]} == {first["sessionId"]}
    assert [each["receipt"]["verdict"] for each in last["attempts"][1:]] == ["native"] * (
        len(last["attempts"]) - 1
    )
    assert last["contextVersion"] == 3
    story.one_of_each()


def _turn(story: Story, word: str) -> str:
    """Return the prompt that contains a word."""
    return next(prompt for prompt in reversed(story.rehearsal.prompts()) if word in prompt)


def test_one_more_attempt_by_annotation_and_by_verb(place: Place) -> None:
    """When the attempts are used up, each new value of the annotation gives one more attempt, once.
    `kubectl perdure retry` does the same."""
    story = tell(
        place,
        "again",
        script="by history\nrun echo one > one.txt\n---\nhang x2\nsay It is done.\n",
        policy={"attempts": 1},
    )
    story.hangs()
    story.agent_process().kill()
    failed = story.settled("Failed")
    assert len(failed["attempts"]) == 1 and "1 of 1 attempts used" in failed["reason"]
    story.annotate("retry", "a")
    # The killed agent may not have recorded the output of its tool. Then it sends one more request
    # before it waits.
    story.until(
        lambda: sum(each.reply == 1 for each in story.asked) >= 2,
        "the second attempt waits for the model",
    )
    story.agent_process().kill()
    story.settled("Failed")
    story.annotate("retry", "a")
    place.perdure("retry", story.name)
    _, last = story.went_on()
    assert last["number"] == 3


def test_a_stop_and_on_again(place: Place) -> None:
    """A suspended attempt ends properly, and none follows. When the suspension ends, the run
    continues in the same conversation."""
    claim, store = tell(place, "stopped"), tell(place, "stopped-store", mode="Checkpoints")
    for story in (claim, store):
        story.hangs()
        story.patch(spec={"suspend": True})
    for story in (claim, store):
        status = story.settled("Suspended")
        assert [each["outcome"] for each in status["attempts"]] == [
            "cancelled"
        ] and not story.processes()
        story.patch(spec={"suspend": False})
    for story in (claim, store):
        _, last = story.went_on()
        assert last["number"] == 2


def test_a_task_that_was_deleted_goes_on_as_another(place: Place) -> None:
    """With a claim that is kept, a TaskRun may be deleted while it runs. Its pod ends properly, and
    the claim stays. The next TaskRun for the same task continues in the same conversation."""
    story = tell(place, "first", task="cart")
    story.hangs()
    session = story.until(lambda: story.rehearsal.requests[0].session, "the conversation has an id")
    story.delete()
    story.gone()
    story.until(lambda: not story.processes(), "nothing of it lives")
    after = tell(place, "second", task="cart", script="by history\nsay It was done before.\n")
    status = after.settled()
    assert status["sessionId"] == session and status["receipt"] == "native"
    assert WORD in said(after.rehearsal.last.messages)


def test_unsaved_work_holds_a_deletion(place: Place) -> None:
    """If the volume claim would be deleted with the TaskRun and holds work that is saved nowhere
    else, the deletion waits and says what to do. With the annotation that confirms it, both are
    deleted. If all work is in the checkpoint store, nothing holds the deletion."""
    script = "by history\nrun echo one > one.txt\n---\nsay It is done.\n"
    held = tell(
        place, "held", script=script, workspace={**place.workspace("Claim"), "reclaim": "Delete"}
    )
    free = tell(place, "free", script=script, mode="Checkpoints")
    for story in (held, free):
        story.settled()
        story.delete()
    free.gone()
    told = held.until(lambda: held.condition("UnsavedWork"), "it says that there is unsaved work")
    assert "perdure.dev/abandon" in told["message"]
    assert held.body()["metadata"]["finalizers"]
    held.annotate("abandon", "true")
    held.gone()
    held.until(
        lambda: not place.api.items(place.of("v1", "persistentvolumeclaims")), "the claim is gone"
    )


def test_a_look_at_the_claim(place: Place) -> None:
    """Between two attempts a separate pod shows the conversations and the changes on the claim, and
    is gone afterwards. While an attempt has the claim, there is no such pod. A retry can change
    limits."""
    story = tell(
        place,
        "looked",
        script="by history\nrun echo one > one.txt\n---\nhang\nsay It is done.\n",
        policy={"attempts": 1},
    )
    story.hangs()
    with pytest.raises(
        AssertionError, match="an attempt of looked is using the volume: looked is running"
    ):
        place.perdure("sessions", story.name)
    story.agent_process().kill()
    story.settled("Failed")
    place.perdure("retry", story.name, "--attempts", "2", "--timeout", "30m", "--budget-usd", "5")
    whole, _ = story.went_on()
    policy = story.body()["spec"]["policy"]
    assert (policy["timeoutSeconds"], policy["budgetUSD"]) == (1800, 5)
    assert story.status()["attemptsAllowed"] == 3
    # The Job of the newest attempt may be gone. The pod is then made from an older one.
    newest = story.status()["attempts"][-1]["job"]
    place.api.discard(f"{place.of('batch/v1', 'jobs')}/{newest}")
    assert whole["sessionId"] in place.perdure("sessions", story.name, "--json")
    with pytest.raises(AssertionError, match="is not in a git repository"):
        place.perdure("diff", story.name)  # the pod's sentence and exit code are passed on
    named = place.of("v1", "pods")

    def looks() -> list[str]:
        names = [each["metadata"]["name"] for each in place.api.items(named)]
        return [name for name in names if "-look-" in name]

    place.cluster.until(lambda: not looks(), "the pods are gone")
    told = place.perdure("debug", story.name)
    (name,) = looks()
    assert f"kubectl exec -it {name}" in told
    pod = place.api.get(f"{named}/{name}")
    assert pod["status"]["phase"] == "Running"
    assert not [each for each in pod["spec"]["volumes"] if "secret" in each]
    place.api.discard(f"{named}/{name}")
