"""Nodes that only pretend (kwok, sigs.k8s.io/kwok): a thousand pods that say they run and end, and no process for any of them.

For counting what an operator does at scale, on a cluster without machines: `with running(nodes=()) as cluster, kwok(cluster, End(...))`.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.servers.kubernetes.api import Object
from tests.servers.kubernetes.build import program
from tests.servers.kubernetes.cluster import Cluster

FAKE = {"kwok.x-k8s.io/node": "fake"}
LEASE_S = 8
"""Renewed every quarter of it (kwok, pkg/kwok/controllers/node_lease_controller.go); the control plane waits for ten seconds."""


@dataclass(frozen=True)
class End:
    """How pods of Jobs end: after `delay_ms` and up to `jitter_ms` more, with an exit code and a termination message.

    `message` is a template of Go with the pod for its dot: `{{ index .metadata.labels "perdure.dev/attempt" }}` (at most 4096 bytes).
    Of several ends, each is chosen as often as its `weight` says.
    """

    message: str = ""
    exit_code: int = 0
    delay_ms: int = 1000
    jitter_ms: int = 1500
    weight: int = 1


@contextmanager
def kwok(cluster: Cluster, *ends: End, nodes: int = 10) -> Iterator[None]:
    """Fake nodes that take pods, for a while: `kwok-0` and so on, labelled `kwok=fake`, with room for 250 pods each."""
    config = cluster.top / "kwok.yaml"
    stages = [_nodes(), _runs(), *(_ends(end, number) for number, end in enumerate(ends)), _goes()]
    config.write_text("\n---\n".join(json.dumps(each) for each in stages))
    account = cluster.plan.access("node-kwok").kubeconfig(cluster.top / "kwok.kubeconfig")
    words = ["-v", "WARN", "--kubeconfig", str(account), "--config", str(config), "--node-lease-duration-seconds", str(LEASE_S)]
    chosen = ",".join(f"{name}={value}" for name, value in FAKE.items())
    with (cluster.top / "kwok.log").open("ab") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", str(program("kwok")), *words, "--manage-nodes-with-annotation-selector", chosen],
            cwd=cluster.top, env={"HOME": str(cluster.top)}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    cluster.processes["kwok"] = process
    names = [f"kwok-{number}" for number in range(nodes)]
    try:
        room = {"cpu": "1000", "memory": "1Ti", "pods": "250"}
        for name in names:
            labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kwok": "fake"}
            body = {"metadata": {"name": name, "labels": labels, "annotations": FAKE}, "status": {"capacity": room, "allocatable": room}}
            cluster.api.create("/api/v1/nodes", body)
        for name in names:
            cluster.until(lambda name=name: _takes_pods(cluster.api.get(f"/api/v1/nodes/{name}")), f"{name} is ready")
        yield
    finally:
        cluster.processes.pop("kwok", None)
        process.kill()
        process.wait()
        for name in names:
            cluster.api.discard(f"/api/v1/nodes/{name}")


def _takes_pods(node: Object) -> bool:
    ready = {each["type"]: each["status"] for each in node["status"].get("conditions", ())}
    return ready.get("Ready") == "True" and not node["spec"].get("taints")


def _stage(name: str, kind: str, selector: list[Object], next: Object, **more: object) -> Object:
    spec = {"resourceRef": {"apiGroup": "v1", "kind": kind}, "selector": {"matchExpressions": selector}, "next": next, **more}
    return {"apiVersion": "kwok.x-k8s.io/v1alpha1", "kind": "Stage", "metadata": {"name": name}, "spec": spec}


def _is(key: str, operator: str, *values: str) -> Object:
    return {"key": key, "operator": operator, **({"values": list(values)} if values else {})}


NOT_READY = _is('.status.conditions.[] | select( .type == "Ready" ) | .status', "NotIn", "True")
STAYS = _is(".metadata.deletionTimestamp", "DoesNotExist")


def _nodes() -> Object:
    template = (
        "conditions:\n{{ range NodeConditions }}\n- lastHeartbeatTime: {{ Now | Quote }}\n  lastTransitionTime: {{ Now | Quote }}\n"
        "  message: {{ .message | Quote }}\n  reason: {{ .reason | Quote }}\n  status: {{ .status | Quote }}\n  type: {{ .type | Quote }}\n"
        "{{ end }}\nphase: Running\n"
    )
    return _stage("node-initialize", "Node", [NOT_READY], {"statusTemplate": template})


def _runs() -> Object:
    conditions = "".join(
        f'- lastTransitionTime: {{{{ Now | Quote }}}}\n  status: "True"\n  type: {kind}\n'
        for kind in ("Initialized", "Ready", "ContainersReady")
    )
    template = (
        f"conditions:\n{conditions}"
        "containerStatuses:\n{{ range .spec.containers }}\n- image: {{ .image | Quote }}\n  name: {{ .name | Quote }}\n  ready: true\n"
        "  restartCount: 0\n  state:\n    running:\n      startedAt: {{ Now | Quote }}\n{{ end }}\n"
        "podIP: 127.0.0.1\nhostIP: 127.0.0.1\nphase: Running\nstartTime: {{ Now | Quote }}\n"
    )
    return _stage("pod-ready", "Pod", [STAYS, _is(".status.phase", "In", "Pending"), NOT_READY], {"statusTemplate": template})


def _ends(end: End, number: int) -> Object:
    phase, reason = ("Failed", "Error") if end.exit_code else ("Succeeded", "Completed")
    text, arguments = _format(end.message)
    template = (
        "{{ $pod := . }}\ncontainerStatuses:\n{{ range .spec.containers }}\n- image: {{ .image | Quote }}\n  name: {{ .name | Quote }}\n"
        "  ready: false\n  restartCount: 0\n  started: false\n  state:\n    terminated:\n"
        f"      exitCode: {end.exit_code}\n      reason: {reason}\n"
        "      startedAt: {{ Now | Quote }}\n      finishedAt: {{ Now | Quote }}\n"
        f"      message: {{{{ with $pod }}}}{{{{ printf `{text}` {arguments} | Quote }}}}{{{{ end }}}}\n{{{{ end }}}}\nphase: {phase}\n"
    )
    selector = [STAYS, _is(".status.phase", "In", "Running"), _is(".metadata.ownerReferences.[].kind", "In", "Job")]
    delay = {"durationMilliseconds": end.delay_ms, "jitterDurationMilliseconds": end.delay_ms + end.jitter_ms}
    return _stage(f"pod-end-{number}", "Pod", selector, {"statusTemplate": template}, delay=delay, weight=end.weight)


def _format(message: str) -> tuple[str, str]:
    """A template of text and `{{ expressions }}` as a format and its arguments, so that the whole can be quoted for YAML."""
    text, arguments, rest = "", [], message
    while "{{" in rest:
        before, _, rest = rest.partition("{{")
        expression, _, rest = rest.partition("}}")
        text += before.replace("%", "%%") + "%v"
        arguments.append(f"({expression.strip()})")
    return text + rest.replace("%", "%%"), " ".join(arguments)


def _goes() -> Object:
    return _stage("pod-delete", "Pod", [_is(".metadata.deletionTimestamp", "Exists")], {"delete": True})
