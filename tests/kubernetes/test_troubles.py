"""Obstacles that keep an attempt from starting. Each is a condition with a reason and advice, uses
up no attempt, and ends when its cause is gone.

The pods are scripted (`scripted/attempt.py`), because the subject is the operator and the cluster.
"""

from __future__ import annotations

import pytest

from tests.kubernetes.place import Place
from tests.servers.kubernetes.images import PERDURE

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(900)]


def test_what_is_missing_is_told_and_waited_for(place: Place) -> None:
    """A missing Secret, image, volume, service account, suitable node or quota is reported with
    advice. Once it exists, the same attempt begins."""
    secret = place.scripted("secret", credentialsSecretRef={"name": "none"})
    account = place.scripted("account", pod={"serviceAccountName": "none"})
    node = place.scripted("node", pod={"nodeSelector": {"disk": "fast"}})
    claim = place.scripted("claim", workspace={"mode": "Claim", "storageClassName": "none"})
    wanted = {
        secret: "SecretMissing",
        account: "Forbidden",
        node: "Unschedulable",
        claim: "ClaimPending",
    }
    for story, reason in wanted.items():
        told = story.waits_for(reason)
        assert len(told["message"]) > 40, told
        assert story.attempts()[0].get("outcome") is None and len(story.attempts()) == 1
        assert reason in place.perdure("why", story.name) or told["message"][:30] in place.perdure(
            "why", story.name
        )
    place.secret("none", {"ANTHROPIC_API_KEY": "a"})
    place.api.create(place.of("v1", "serviceaccounts"), {"metadata": {"name": "none"}})
    place.volume("none")
    with place.labelled("one", disk="fast"):
        for story in wanted:
            status = story.settled()
            assert [each["outcome"] for each in status["attempts"]] == ["succeeded"]
            assert story.condition("Waiting") is None
            story.one_of_each()


def test_an_image_that_is_not_there(place: Place) -> None:
    """While the image is missing, the pod waits. The status says so, and no other pod is started.
    If a person stops the run, it ends."""
    story = place.scripted("image", pod={"image": "nowhere.invalid/none:1"})
    assert "spec.pod.image" in story.waits_for("ImagePullFailed")["message"]
    assert len(story.jobs()) == 1
    story.patch(spec={"suspend": True})
    story.settled("Suspended")


def test_a_quota_that_is_used_up(place: Place) -> None:
    """If a quota allows no pod, the condition names it as the cause. The condition ends when the
    quota has room."""
    place.api.create(
        place.of("v1", "resourcequotas"),
        {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}},
    )
    place.cluster.until(
        lambda: (
            place.api.get(place.of("v1", "resourcequotas", "none")).get("status", {}).get("hard")
        ),
        "the quota is in force",
    )
    story = place.scripted("quota")
    assert "quota" in story.waits_for("QuotaExceeded")["message"]
    place.api.delete(place.of("v1", "resourcequotas", "none"))
    story.settled()
    story.one_of_each()


def test_an_unknown_agent_needs_a_person(place: Place) -> None:
    """If perdure in the pod does not know the agent, there is one attempt, a person is needed, and
    nothing is retried."""
    story = place.scripted("unknown", agent="hal", pod={"image": PERDURE})
    status = story.settled("Failed")
    assert len(status["attempts"]) == 1
    told = story.condition("NeedsPerson")
    assert told is not None and "hal" in told["message"], status
