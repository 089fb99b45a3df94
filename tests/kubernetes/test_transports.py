"""Repositories by ssh and by http without TLS: which TaskRuns may fetch them, without a cluster and
on the real control plane with the real Claude Code."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from perdure.kubernetes import manifests, order
from perdure.kubernetes.status import TaskRunStatus
from perdure.kubernetes.status_moves import begun
from perdure.kubernetes.step import TaskRunFacts, WriteStatus, next_step
from perdure.kubernetes.transports import Permitted, refusal, transport_of
from perdure.kubernetes.wanted import wanted
from tests.journeys.stage import said
from tests.kubernetes import making
from tests.kubernetes.place import Place
from tests.kubernetes.place import place as a_place
from tests.kubernetes.story import tell
from tests.kubernetes.test_relay_on_cluster import looks_for
from tests.servers import githttp, sshd
from tests.servers.kubernetes.cluster import Cluster
from tests.servers.s3 import Bucket

PASSWORD = "the-password-of-git"
SSH = {"url": "ssh://git@git.example.com/a/b", "credentialsSecretRef": {"name": "key"}}
HTTP = {"url": "http://gitea.forge.svc:3000/a/b"}
TOLD = manifests.Cluster(image="perdure:1", account="")


@pytest.mark.parametrize(
    ("url", "transport", "host"),
    [
        ("https://h/a", "", ""),
        ("/srv/a", "", ""),
        ("http://127.0.0.1:3000/a", "", ""),
        ("http://localhost/a", "", ""),
        ("http://127.0.0.1.evil.example/a", "http", "127.0.0.1.evil.example"),
        ("http://H:80/a", "http", "h"),
        ("http://h:3000/a", "http", "h:3000"),
        ("ssh://git@h/a", "ssh", "h"),
        ("ssh://h:2222/a", "ssh", "h:2222"),
        ("git@h:a", "ssh", "h"),
    ],
)
def test_a_permission_is_for_one_server_and_one_transport(
    url: str, transport: str, host: str
) -> None:
    """https and the pod's own address need no permission. A permission for ssh is not valid for
    http, and one for a server is not valid for another port of it."""
    spec = wanted(making.taskrun(repository={"url": url})).spec
    assert transport_of(url) == transport
    every = frozenset({"h", "h:3000", "h:2222", "127.0.0.1.evil.example"}) - {host}
    others = {"http": every, "ssh": every} | ({transport: frozenset({host})} if transport else {})
    assert refusal(spec, Permitted(**others)) == ""
    if transport:
        others = {"http": every | {host}, "ssh": every | {host}} | {transport: every}
        why = refusal(spec, Permitted(**others))
        assert (
            f"attempts.repositories.{transport}Hosts" in why and f"{transport}-host {host}" in why
        )


def test_a_taskrun_without_permission_begins_no_attempt() -> None:
    """A TaskRun without the permission fails, and the message names the setting. An attempt that
    has begun already continues."""
    body = making.taskrun(repository=HTTP)
    body["status"] = {"contextVersion": 1, "phase": "Pending"}
    run = wanted(body)
    why = refusal(run.spec, Permitted())
    step = next_step(TaskRunFacts(run=run, recorded=frozenset({1}), forbidden=why), 1_000, 0.5)
    assert isinstance(step, WriteStatus)
    (condition,) = (each for each in step.status.conditions if each.type == "NeedsPerson")
    assert (step.status.phase, condition.reason) == ("Failed", "NotPermitted")
    assert "attempts.repositories.httpHosts" in condition.message
    body["status"] |= {"attempt": 1, "attempts": [{"number": 1, "job": run.job(1)}]}
    seen = TaskRunFacts(run=wanted(body), recorded=frozenset({1}), forbidden=why)
    step = next_step(seen, 1_000, 0.5)
    assert not (isinstance(step, WriteStatus) and step.status.phase == "Failed")


def test_the_order_has_the_permission_and_the_relay_the_key() -> None:
    """A pod that fetches by ssh has the key in a directory in memory, which only its relay
    mounts."""
    run = wanted(making.taskrun(repository=SSH))
    record = begun(TaskRunStatus(context_version=1), 1, run, 0).attempts[-1]
    assert order.decode(manifests.order(run, record, (1,))).transports == {"https", "ssh"}
    pod = manifests.job(run, record, (1,), "c", TOLD)["spec"]["template"]["spec"]
    (volume,) = (each for each in pod["volumes"] if each["name"] == "perdure-key")
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Mi"}
    (agent,), (relay,) = pod["containers"], pod["initContainers"]
    names = [{each["name"] for each in part["volumeMounts"]} for part in (agent, relay)]
    assert "perdure-key" not in names[0] and "perdure-repository" not in names[0]
    assert {"perdure-key", "perdure-repository"} <= names[1]
    plain = wanted(making.taskrun(repository=HTTP))
    assert order.decode(manifests.order(plain, record, (1,))).transports == {"https", "http"}
    job = manifests.job(plain, record, (1,), "c", TOLD)
    assert "initContainers" not in job["spec"]["template"]["spec"]


@pytest.mark.kubernetes
def test_the_setting_is_named_and_retry_begins_with_it(place: Place) -> None:
    """Without the setting each TaskRun fails at once, without a Job. When the operator has the
    setting, `kubectl perdure retry` starts an attempt."""
    place.secret("key", {"ssh-privatekey": "x", "known_hosts": "y"})
    runs = [place.scripted("by-ssh", repository=SSH), place.scripted("plain", repository=HTTP)]
    for run, setting in zip(runs, ("sshHosts", "httpHosts"), strict=True):
        run.settled("Failed")
        found = run.condition("NeedsPerson")
        assert found is not None and found["reason"] == "NotPermitted"
        assert f"attempts.repositories.{setting}" in found["message"]
        assert not run.jobs() and setting in place.perdure("why", run.name)
    place.operator.kill()
    place.operator.more += ("--ssh-host=git.example.com", "--http-host=gitea.forge.svc:3000")
    place.operator.start()
    for run in runs:
        place.perdure("retry", run.name)
        run.settled()


@pytest.mark.kubernetes
@pytest.mark.journey
@pytest.mark.timeout(900)
def test_agents_work_on_what_is_permitted_and_find_no_key(
    cluster: Cluster, bucket: Bucket, repository: Path, tmp_path: Path
) -> None:
    """A private repository behind a real sshd, and one of a forge without TLS, are fetched in pods.
    The agent looks for the key and does not find it. Its pod is killed, and the next attempt
    continues."""
    with (
        sshd.serving(tmp_path / "sshd") as server,
        githttp.serving(tmp_path / "served", PASSWORD, "127.0.0.2") as forge,
        a_place(
            cluster,
            bucket,
            more=(f"--ssh-host=127.0.0.1:{server.port}", f"--http-host=127.0.0.2:{forge.port}"),
        ) as place,
    ):
        bare = server.top / "r.git"
        subprocess.run(["git", "clone", "-q", "--bare", repository, bare], check=True)
        forge.make("r", repository)
        key = server.key.read_text()
        word = key.split("\n")[1][:40]
        values = {"ssh-privatekey": key, "known_hosts": server.known_hosts.read_text()}
        story = tell(
            place,
            "by-ssh",
            mode="Checkpoints",
            script=f"by history\nrun {looks_for(word)}; git log; echo one > one.txt\n---\n"
            "hang\nsay It is done.\n",
            service=None,
            task=None,
            repository={
                "url": server.url(bare),
                "credentialsSecretRef": {"name": place.secret("deploy", values)},
            },
        )
        plain = tell(
            place,
            "plain",
            script="run git log\nsay It is done.\n",
            service=None,
            task=None,
            repository={
                "url": forge.url("r"),
                "credentialsSecretRef": {"name": place.secret("forge", {"token": PASSWORD})},
            },
        )
        story.hangs()
        place.kill_pod(story.pod())
        story.went_on()
        words = said(story.rehearsal.last.messages)
        before, _, found = words.partition("seen:")
        assert "cannot push" in found and "cannot write" in found, words
        assert word not in words and "secrets/repository" not in before, words
        assert "/environ\n" not in before and "as-relay" not in found, words
        assert f"git-upload-pack '{bare}'" in server.given
        plain.settled()
        assert forge.users and not any("receive-pack" in each for each in forge.asked)
