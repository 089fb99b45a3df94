"""The state of a TaskRun that a person can see: its conversation while it runs, the log of an
attempt whose pod is gone, its files, and a second TaskRun with a copy of conversation and files; on
the real control plane with the real Claude Code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.journeys.stage import said
from tests.kubernetes.operators import NAME, RBAC
from tests.kubernetes.place import Place
from tests.kubernetes.place import place as a_place
from tests.kubernetes.story import WORD, tell
from tests.servers.kubernetes.cluster import Cluster
from tests.servers.s3 import Bucket

pytestmark = [pytest.mark.kubernetes, pytest.mark.journey, pytest.mark.timeout(900)]

SCRIPT = """by history
run mkdir -p out && echo one > out/one.txt && echo two > two.txt && ln -s /etc out/away
---
hang
say It is done.
---
say The fork is done.
"""


@pytest.fixture
def place(cluster: Cluster, bucket: Bucket) -> Iterator[Place]:
    """Make a namespace whose operator reads logs and has the right to do so."""
    with a_place(cluster, bucket, more=("--read-logs",)) as made:
        at = f"{RBAC}/namespaces/{made.namespace}"
        rule = {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]}
        cluster.api.create(f"{at}/roles", {"metadata": {"name": "logs"}, "rules": [rule]})
        binding = {
            "metadata": {"name": "logs"},
            "roleRef": {"apiGroup": RBAC.split("/")[2], "kind": "Role", "name": "logs"},
            "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": made.namespace}],
        }
        cluster.api.create(f"{at}/rolebindings", binding)
        yield made


def test_the_state_of_a_taskrun(place: Place, tmp_path: Path) -> None:
    """The conversation is in the status while the first attempt runs. After that attempt's pod was
    deleted, its log is read from the claim. Files are copied out of the workdir; a link that leads
    away is refused. A fork has the conversation and the files, and its parent stays as it is."""
    story = tell(place, "origin", script=SCRIPT)
    story.hangs()
    session = story.until(lambda: story.rehearsal.requests[0].session, "the conversation has an id")
    story.until(lambda: story.status().get("sessionId") == session, "the status names it")
    status = story.status()
    assert status["phase"] == "Running" and not status["attempts"][0].get("outcome")
    assert status["attempts"][0]["sessionId"] == session
    assert session in place.perdure("why", story.name)

    pod = status["attempts"][0]["pod"]
    place.api.discard(f"{place.of('v1', 'pods')}/{pod}", gracePeriodSeconds=0)
    followed = place.perdure("attach", story.name)
    assert "It is done." in followed and "attempt 2: succeeded" in followed
    status = story.settled()
    assert [each["outcome"] for each in status["attempts"]] == ["lost", "succeeded"]
    log = place.perdure("logs", story.name)
    assert log.index("out/one.txt") < log.index("attempt 2:") < log.index("It is done.")

    place.perdure("cp", f"{story.name}:two.txt", str(tmp_path))
    assert (tmp_path / "two.txt").read_text() == "two\n"
    place.perdure("cp", f"{story.name}:two.txt", str(tmp_path / "three.txt"))
    assert (tmp_path / "three.txt").read_text() == "two\n"
    with pytest.raises(AssertionError, match=r"cannot be written to .*away"):
        place.perdure("cp", f"{story.name}:out", str(tmp_path))
    assert not (tmp_path / "out" / "away").exists()
    with pytest.raises(AssertionError, match=r"nothing\.txt of origin cannot be copied: .*No such"):
        place.perdure("cp", f"{story.name}:nothing.txt", str(tmp_path))
    with pytest.raises(AssertionError, match="a path below its workdir"):
        place.perdure("cp", f"{story.name}:../x", str(tmp_path))

    # A fork that was killed while it was made has left a workdir that belongs to no run.
    volume = place.volume_of(status["workspace"]["claimName"])
    (workdir,) = volume.glob("**/.task/origin")
    left = workdir.with_name("second")
    left.mkdir()
    (left / "half.txt").write_text("half")
    os.chown(left, workdir.stat().st_uid, workdir.stat().st_gid)

    asked = len(story.asked)
    out = place.perdure("fork", story.name, "--as", "second", "--follow", "Do it again.")
    assert "starts as a fork of origin" in out
    forked = place.api.get(place.runs("second"))
    assert forked["status"]["phase"] == "Succeeded" and forked["status"]["receipt"] == "forked"
    assert forked["status"]["sessionId"] != session
    assert forked["status"]["workspace"]["claimName"] == status["workspace"]["claimName"]
    (request,) = story.asked[asked:]
    words = said(request.messages)
    assert WORD in words and "Do it again." in words
    place.perdure("cp", "second:two.txt", str(tmp_path / "forked.txt"))
    assert (tmp_path / "forked.txt").read_text() == "two\n"
    assert not (left / "half.txt").exists() and [*volume.glob("**/trash/**/half.txt")]
    assert story.status()["sessionId"] == session and story.status()["attempt"] == 2
    assert "Do it again." not in place.perdure("logs", story.name)
