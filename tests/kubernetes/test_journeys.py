"""An attempt is ended in every way that a cluster has, and the next one continues the same
conversation. The tests use the real control plane with two nodes, the operator under its own
account, the real Claude Code and the real Codex.

They check what reached the model, the receipt and the session in the TaskRun, and `kubectl perdure
why`. Claude Code is ended in each way, both with a claim and with only the object store; Codex with
one of the two. The next attempt is on the other node. One test has a claim that several pods share.
"""

from __future__ import annotations

import pytest

from tests.kubernetes.place import Place
from tests.kubernetes.story import WORD, Story, tell
from tests.servers.kubernetes.api import Object

pytestmark = [pytest.mark.kubernetes, pytest.mark.journey, pytest.mark.timeout(900)]


def three(place: Place, cause: str, codex: str, **spec: object) -> list[Story]:
    """Start Claude Code with a claim and with only the object store, and Codex with one of them.
    All run on the same node, and their models are silent."""
    with place.cordoned("two"):
        made = [
            tell(place, f"{cause}-claim", **spec),
            tell(place, f"{cause}-store", mode="Checkpoints", **spec),
            tell(place, f"{cause}-codex", agent="codex", mode=codex, **spec),
        ]
        for story in made:
            story.hangs()
    return made


def moved(story: Story) -> tuple[Object, Object]:
    """Check that the second attempt continued on the other node. Return both attempts."""
    first, last = story.went_on()
    assert last["number"] == 2 and (first["node"], last["node"]) == ("one", "two")
    return first, last


def test_the_agent_is_killed(place: Place) -> None:
    """After SIGKILL of the agent's program the attempt has failed, and the next one continues."""
    stories = three(place, "agent", "Checkpoints")
    with place.cordoned("one"):
        for story in stories:
            story.agent_process().kill()
        for story in stories:
            first, _ = moved(story)
            assert not first.get("infrastructure")


def test_the_pod_is_killed(place: Place) -> None:
    """SIGKILL of the pod's first process ends everything in the pod, so no process can report a
    result. The next attempt continues."""
    stories = three(place, "pod", "Claim")
    with place.cordoned("one"):
        for story in stories:
            place.kill_pod(story.pod())
        for story in stories:
            first, _ = moved(story)
            assert first["outcome"] == "lost" and "SIGKILL" in first["detail"]


def test_the_operator_is_killed(place: Place) -> None:
    """The operator gets SIGKILL during attempts, whose pods then end. The next operator finds their
    results and continues."""
    stories = three(place, "operator", "Checkpoints")
    place.operator.kill()
    with place.cordoned("one"):
        for story in stories:
            place.kill_pod(story.pod())
        for story in stories:
            story.until(
                lambda story=story: story.pods()[0]["status"]["phase"] == "Failed",
                "the pod has ended",
            )
        place.operator.start()
        for story in stories:
            moved(story)


def test_the_deadline_passes(place: Place) -> None:
    """An attempt that exceeds its deadline is ended properly, and the next one continues."""
    stories = three(place, "deadline", "Claim", policy={"timeoutSeconds": 40})
    with place.cordoned("one"):
        for story in stories:
            first, _ = moved(story)
            assert first["outcome"] == "timed_out"


def test_the_pod_is_evicted(place: Place) -> None:
    """The node is drained. The evicted attempt saves everything within its grace period, and the
    next one continues on the other node."""
    stories = three(place, "evicted", "Checkpoints")
    with place.cordoned("one"):
        for story in stories:
            place.evict(story.pod())
        for story in stories:
            first, _ = moved(story)
            assert first["infrastructure"]


def test_the_node_is_lost(place: Place) -> None:
    """The power of a node is cut. With only the object store the next attempt continues on the
    other node automatically. With a claim, the next attempt waits until the node is declared lost,
    and a condition says so."""
    claim, *free = three(place, "node", "Checkpoints")
    with place.lost("one"):
        for story in free:
            first, _ = moved(story)
            assert first["infrastructure"]
        assert "out-of-service" in claim.waits_for("NodeLost")["message"]
        assert len(claim.jobs()) == 1
        place.declare_lost("one")
        first, _ = moved(claim)
        assert first["infrastructure"]


def test_two_tasks_of_one_service_on_one_claim(place: Place) -> None:
    """On a shared volume claim each task has its own directory. Pods of both are killed at the same
    time. Each task continues in its own conversation, and neither model sees anything of the other
    task."""
    place.share()
    one = tell(place, "one", mode="Shared")
    two = tell(
        place,
        "two",
        mode="Shared",
        prompt=f"Write two.txt after one.txt. The words are {WORD} and fagus.",
    )
    for story in (one, two):
        story.hangs()
    for story in (one, two):
        place.kill_pod(story.pod())
    assert one.went_on()[1]["sessionId"] != two.went_on()[1]["sessionId"]
    assert not any("fagus" in prompt for asked in one.asked for prompt in asked.prompts)
    assert all(any("fagus" in prompt for prompt in asked.prompts) for asked in two.asked)


def test_two_operators_at_once(place: Place) -> None:
    """Two operators serve one namespace. Each attempt has one Job, and either operator may finish
    what the other began."""
    with place.another_operator():
        stories = [tell(place, "double"), tell(place, "double-store", mode="Checkpoints")]
        for story in stories:
            story.hangs()
            place.kill_pod(story.pod())
        for story in stories:
            _, last = story.went_on()
            assert last["number"] == 2
