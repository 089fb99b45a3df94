"""TaskRuns that the API server refuses, and those that it accepts. The table is used on the real
API server, and checked for gaps without one."""

from __future__ import annotations

from typing import Any

BASE: dict[str, Any] = {"service": "shop", "task": "118", "prompt": "Fix the rounding of cents"}
LONG = "x" * 131_073

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no instructions": (
        {"prompt": None},
        "spec.prompt: Invalid value: give the instructions in either spec.prompt or "
        "spec.promptFrom",
    ),
    "instructions twice": (
        {"promptFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}},
        "spec.prompt: Invalid value: give the instructions in either spec.prompt or "
        "spec.promptFrom",
    ),
    "a blank prompt": ({"prompt": " \n\t"}, "spec.prompt: Invalid value"),
    "a prompt with NUL": ({"prompt": "a\x00b"}, "spec.prompt: Invalid value"),
    "a prompt too long": ({"prompt": LONG}, "spec.prompt: Too long: may not be more than 131072"),
    "two references": (
        {
            "prompt": None,
            "promptFrom": {
                "configMapKeyRef": {"name": "a", "key": "b"},
                "secretKeyRef": {"name": "a", "key": "b"},
            },
        },
        "spec.promptFrom: Invalid value: spec.promptFrom needs either configMapKeyRef or "
        "secretKeyRef",
    ),
    "no reference": (
        {"prompt": None, "promptFrom": {}},
        "spec.promptFrom: Invalid value: spec.promptFrom needs either",
    ),
    "a reference without key": (
        {"prompt": None, "promptFrom": {"configMapKeyRef": {"name": "a"}}},
        "spec.promptFrom.configMapKeyRef.key: Required",
    ),
    "a file without content": (
        {"files": [{"path": "spec.md"}]},
        "spec.files[0]: Invalid value: spec.files needs for each either configMapKeyRef or "
        "secretKeyRef",
    ),
    "a file elsewhere": (
        {"files": [{"path": "a/../../b", "configMapKeyRef": {"name": "a", "key": "b"}}]},
        'spec.files[0].path: Invalid value: "a/../../b": spec.files: a path within the workdir is needed',
    ),
    "a file of git's": (
        {"files": [{"path": ".git/config", "secretKeyRef": {"name": "a", "key": "b"}}]},
        'spec.files[0].path: Invalid value: ".git/config": spec.files: a path within the workdir is',
    ),
    "a file twice": (
        {"files": [{"path": "a", "secretKeyRef": {"name": "a", "key": "b"}}] * 2},
        "spec.files[1]: Duplicate value",
    ),
    "a task of nobody": (
        {"service": None, "repository": {"url": "https://git.example.com/a/b"}},
        "spec.task: Invalid value: spec.task is the id of a task within its service: give "
        "spec.service too",
    ),
    "nothing to work on": (
        {"service": None, "task": None},
        "spec.repository: Invalid value: give spec.repository, or spec.service for a task without "
        "a repository",
    ),
    "a service with a path": ({"service": "../shop"}, "spec.service: Invalid value"),
    "a service with a capital end": ({"service": "shop-"}, "spec.service: Invalid value"),
    "a task too long": ({"task": "x" * 64}, "spec.task: Too long"),
    "an agent with an option": ({"agent": "--help"}, "spec.agent: Invalid value"),
    "version nought": ({"contextVersion": 0}, "spec.contextVersion: Invalid value: 0"),
    "version too great": (
        {"contextVersion": 1_000_001},
        "spec.contextVersion: Invalid value: 1000001",
    ),
    "credentials in an address": (
        {"repository": {"url": "https://me:secret@host/a"}},
        "spec.repository.url: Invalid value",
    ),
    "another transport": (
        {"repository": {"url": "ext::sh -c id"}},
        "spec.repository.url: Invalid value",
    ),
    "no address": ({"repository": {"base": "main"}}, "spec.repository.url: Required value"),
    "an option as base": (
        {"repository": {"url": "https://host/a", "base": "--upload-pack=id"}},
        "spec.repository.base: Invalid value",
    ),
    **{
        f"the branch {branch}": (
            {"repository": {"url": "https://host/a", "branch": branch}},
            "spec.repository.branch: Invalid value"
            if branch.startswith("-")
            else "spec.repository.branch is no branch name",
        )
        for branch in (
            "-b",
            "a..b",
            "a//b",
            "a/.b",
            "a/-b",
            "a/",
            "a.",
            "a.lock",
            "a.lock/b",
            "refs/heads/a",
        )
    },
    "a secret's name": (
        {"repository": {"url": "https://host/a", "credentialsSecretRef": {"name": "A"}}},
        "spec.repository.credentialsSecretRef.name: Invalid",
    ),
    "ssh without a key": (
        {"repository": {"url": "ssh://git@host/a"}},
        "spec.repository.credentialsSecretRef is missing: a repository by ssh needs a Secret with "
        "ssh-privatekey and known_hosts",
    ),
    "two forms of the agent's Secret": (
        {"credentialsSecretRef": {"name": "a"}, "credentialsSecretName": "a"},
        "spec.credentialsSecretName is the earlier form of spec.credentialsSecretRef: give one of "
        "the two",
    ),
    "two forms of the repository's Secret": (
        {
            "repository": {
                "url": "https://host/a",
                "credentialsSecretRef": {"name": "a"},
                "credentialsSecretName": "b",
            }
        },
        "spec.repository.credentialsSecretName is the earlier form of "
        "spec.repository.credentialsSecretRef: give one of the two",
    ),
    "two forms of the store's Secret": (
        {
            "workspace": {
                "checkpoints": "s3://b",
                "checkpointsSecretRef": {"name": "a"},
                "checkpointsSecretName": "a",
            }
        },
        "spec.workspace.checkpointsSecretName is the earlier form of "
        "spec.workspace.checkpointsSecretRef: give one of the two",
    ),
    "a reference without a name": (
        {"credentialsSecretRef": {}},
        "spec.credentialsSecretRef.name: Required value",
    ),
    "a model with an option": ({"model": "-x"}, "spec.model: Invalid value"),
    "a permission of nobody": (
        {"permissions": "root"},
        'spec.permissions: Unsupported value: "root": supported values: "Read", "Edit", "Full"',
    ),
    "too many arguments": (
        {"agentArgs": ["x"] * 65},
        "spec.agentArgs: Too many: 65: must have at most 64 items",
    ),
    "a variable of perdure's": (
        {"env": [{"name": "PERDURE_STATE", "value": "x"}]},
        'spec.env[0].name: Invalid value: "PERDURE_STATE": spec.env: names that begin with '
        "PERDURE_ are perdure's own",
    ),
    "a variable with =": (
        {"env": [{"name": "A=B", "value": "x"}]},
        "spec.env[0].name: Invalid value",
    ),
    "a variable without a value": ({"env": [{"name": "A"}]}, "spec.env[0].value: Required value"),
    "a variable twice": (
        {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]},
        "spec.env[1]: Duplicate value",
    ),
    "no session to go on with": (
        {"resume": {"mode": "Session"}},
        "spec.resume.sessionId: Invalid value: spec.resume.sessionId is missing",
    ),
    "a session and Auto": (
        {"resume": {"sessionId": "s1"}},
        "spec.resume.sessionId: Invalid value: spec.resume.sessionId goes with mode Session only",
    ),
    "a source and Fresh": (
        {"resume": {"mode": "Fresh", "from": "a"}},
        "spec.resume.from: Invalid value: spec.resume.from goes with modes Session and Fork only",
    ),
    "a fork of nothing": (
        {"resume": {"mode": "Fork"}},
        "spec.resume.from: Invalid value: spec.resume.from is missing: mode Fork copies",
    ),
    "a fork without a claim": (
        {
            "resume": {"mode": "Fork", "from": "a"},
            "workspace": {"mode": "Checkpoints", "checkpoints": "s3://b"},
        },
        "spec.resume: Invalid value: spec.resume.mode Fork goes with workspace.mode Claim only",
    ),
    "a fork of the same task": (
        {"task": None, "resume": {"mode": "Fork", "from": "a"}},
        "spec.task: Invalid value: spec.task is missing: a fork is another task of the service",
    ),
    "a session with an option": (
        {"resume": {"mode": "Session", "sessionId": "--last"}},
        "spec.resume.sessionId: Invalid value",
    ),
    "no attempts": ({"policy": {"attempts": 0}}, "spec.policy.attempts: Invalid value: 0"),
    "too many attempts": (
        {"policy": {"attempts": 1001}},
        "spec.policy.attempts: Invalid value: 1001",
    ),
    "a negative deadline": (
        {"policy": {"timeoutSeconds": -1}},
        "spec.policy.timeoutSeconds: Invalid value: -1",
    ),
    "a negative silence": (
        {"policy": {"stallSeconds": -1}},
        "spec.policy.stallSeconds: Invalid value: -1",
    ),
    "a negative time for an answer": (
        {"policy": {"requestExpirySeconds": -1}},
        "spec.policy.requestExpirySeconds: Invalid value: -1",
    ),
    "an unknown agent": (
        {"agent": "cluade"},
        "spec.agent: Invalid value: spec.agent is none of claude, codex, gemini, opencode and acp-",
    ),
    "a budget as a float": ({"policy": {"budgetUSD": 2.5}}, "spec.policy.budgetUSD: Invalid value"),
    "a budget in words": (
        {"policy": {"budgetUSD": "2.5e3"}},
        'spec.policy.budgetUSD: Invalid value: "2.5e3"',
    ),
    "a word of an earlier version": (
        {"policy": {"continuity": "fresh-ok"}},
        'spec.policy.continuity: Unsupported value: "fresh-ok": supported values: "Strict", '
        '"Disclose", "FreshOk"',
    ),
    "a negative budget": (
        {"policy": {"budgetUSD": -1}},
        "spec.policy.budgetUSD: Invalid value: -1",
    ),
    "a policy of nobody": (
        {"policy": {"continuity": "lax"}},
        'spec.policy.continuity: Unsupported value: "lax"',
    ),
    "a fullness of nobody": (
        {"policy": {"whenFull": "ignore"}},
        'spec.policy.whenFull: Unsupported value: "ignore"',
    ),
    "too many rounds": (
        {"policy": {"verifyRounds": 101}},
        "spec.policy.verifyRounds: Invalid value: 101",
    ),
    "a blank check": ({"policy": {"verify": " "}}, "spec.policy.verify: Invalid value"),
    "a file out of the workdir": (
        {"policy": {"files": ["a/../../b"]}},
        'spec.policy.files[0]: Invalid value: "a/../../b": spec.policy.files: a path within the '
        "workdir is needed",
    ),
    "an absolute file": (
        {"policy": {"files": ["/etc/passwd"]}},
        "spec.policy.files[0]: Invalid value",
    ),
    "a mode of nobody": (
        {"workspace": {"mode": "Local"}},
        'spec.workspace.mode: Unsupported value: "Local"',
    ),
    "Shared without a claim": (
        {"workspace": {"mode": "Shared"}},
        "spec.workspace.claimName: Invalid value: spec.workspace.claimName names the claim of mode "
        "Shared",
    ),
    "a claim and no Shared": (
        {"workspace": {"claimName": "a"}},
        "spec.workspace.claimName names the claim of mode Shared",
    ),
    "Shared without a task": (
        {"task": None, "workspace": {"mode": "Shared", "claimName": "a"}},
        "spec.task: Invalid value: spec.service and spec.task name the task's directory on a "
        "shared claim",
    ),
    "Checkpoints without a store": (
        {"workspace": {"mode": "Checkpoints"}},
        "spec.workspace.checkpoints: Invalid value: spec.workspace.checkpoints is missing",
    ),
    "a store of its own and Shared": (
        {"workspace": {"mode": "Shared", "claimName": "a", "checkpoints": "s3://b/c"}},
        "spec.workspace.checkpoints: Invalid value: spec.workspace.checkpoints does not go with "
        "mode Shared",
    ),
    "a store of another scheme": (
        {"workspace": {"checkpoints": "http://host/x"}},
        "spec.workspace.checkpoints: Invalid value",
    ),
    "a store with a password": (
        {"workspace": {"checkpoints": "s3://key:secret@bucket"}},
        "spec.workspace.checkpoints: Invalid value",
    ),
    "a size without a claim": (
        {"workspace": {"mode": "Checkpoints", "checkpoints": "s3://b/c", "size": "1Gi"}},
        "spec.workspace.size: Invalid value: spec.workspace.size and storageClassName describe the "
        "claim",
    ),
    "a store's Secret without a store": (
        {"workspace": {"checkpointsSecretRef": {"name": "s3"}}},
        "spec.workspace.checkpointsSecretRef is for the store of spec.workspace.checkpoints",
    ),
    "a store's Secret in its earlier form without a store": (
        {"workspace": {"checkpointsSecretName": "s3"}},
        "spec.workspace.checkpointsSecretName is for the store of spec.workspace.checkpoints",
    ),
    "a size of nothing": ({"workspace": {"size": "0Gi"}}, "spec.workspace.size: Invalid value"),
    "a reclaim of nobody": (
        {"workspace": {"reclaim": "Recycle"}},
        'spec.workspace.reclaim: Unsupported value: "Recycle"',
    ),
    "a label of two lines": ({"labels": {"a": "b\nc"}}, "spec.labels.a: Invalid value"),
    "too many labels": (
        {"labels": {f"l{n}": "x" for n in range(33)}},
        "spec.labels: Too many: 33: must have at most 32",
    ),
    "a directory of the node": (
        {"pod": {"volumes": [{"name": "host", "hostPath": {"path": "/"}}]}},
        "spec.pod.volumes[0]: Invalid value: spec.pod.volumes: hostPath, a directory of the node",
    ),
    "a volume of perdure's": (
        {"pod": {"volumes": [{"name": "perdure-data", "emptyDir": {}}]}},
        'spec.pod.volumes[0].name: Invalid value: "perdure-data": spec.pod.volumes: names that '
        "begin with perdure- are perdure's own",
    ),
    "a mount of perdure's": (
        {"pod": {"volumeMounts": [{"name": "perdure-data", "mountPath": "/x"}]}},
        "spec.pod.volumeMounts: Invalid value: spec.pod.volumeMounts: volumes whose names begin "
        "with perdure- are perdure's own",
    ),
    **{
        f"a mount at {path}": (
            {"pod": {"volumeMounts": [{"name": "mine", "mountPath": path}]}},
            "spec.pod.volumeMounts: /data, /perdure, /tmp, /dev and the home directory are "
            "perdure's own",
        )
        for path in (
            "/",
            "//data",
            "/data",
            "/data/x",
            "/perdure/order",
            "/tmp",
            "/dev/shm",
            "/home/perdure/.claude",
            "/srv/../data",
        )
    },
    "a label of the operator's": (
        {"pod": {"labels": {"perdure.dev/taskrun": "x"}}},
        "spec.pod.labels: Invalid value: spec.pod.labels: labels of perdure.dev and kubernetes.io "
        "are set by",
    ),
    "a label of the cluster's": (
        {"pod": {"labels": {"batch.kubernetes.io/job-name": "x"}}},
        "spec.pod.labels: Invalid value",
    ),
    "an annotation of the operator's": (
        {"pod": {"annotations": {"perdure.dev/x": "x"}}},
        "spec.pod.annotations: Invalid value: spec.pod.annotations: annotations of perdure.dev are "
        "set by perdure",
    ),
    "a resource of words": (
        {"pod": {"resources": {"limits": {"memory": "much"}}}},
        "spec.pod.resources.limits.memory: Invalid value",
    ),
    "an image with a space": ({"pod": {"image": "a b"}}, "spec.pod.image: Invalid value"),
    "no grace": (
        {"pod": {"terminationGracePeriodSeconds": 1}},
        "spec.pod.terminationGracePeriodSeconds: Invalid value: 1",
    ),
    "a field that is not there": ({"promt": "x"}, 'unknown field "spec.promt"'),
    "a field of a pod that is not there": (
        {"pod": {"hostNetwork": True}},
        'unknown field "spec.pod.hostNetwork"',
    ),
    "a number as text": ({"contextVersion": "2"}, 'spec.contextVersion: Invalid value: "string"'),
}
"""For each error its name, the changes to BASE (None removes a field), and the API server's
answer."""

TAKEN: dict[str, dict[str, Any]] = {
    "the least": {},
    "a repository alone": {"service": None, "task": None, "repository": {"url": "https://git.example.com/a/b.git"}},
    "a service alone": {"task": None},
    "a repository of a service": {
        "repository": {"url": "https://host/a/b", "base": "main", "branch": "fix/118", "credentialsSecretRef": {"name": "git"}}
    },
    "a forge without TLS": {"repository": {"url": "http://gitea.forge.svc:3000/a/b"}},
    "a repository by ssh": {"repository": {"url": "git@host:a/b", "credentialsSecretRef": {"name": "git"}}},
    "instructions of a ConfigMap": {"prompt": None, "promptFrom": {"configMapKeyRef": {"name": "a.b", "key": "task.md"}}},
    "instructions of a Secret": {"prompt": None, "promptFrom": {"secretKeyRef": {"name": "a", "key": "b"}}},
    "task files": {
        "files": [
            {"path": "docs/spec.md", "configMapKeyRef": {"name": "a", "key": "spec.md"}},
            {"path": ".github/x", "secretKeyRef": {"name": "b", "key": "c"}},
        ],
        "onEdit": "Keep",
    },
    "the longest prompt": {"prompt": "\n" + LONG[2:]},
    "a later version at once": {"contextVersion": 7},
    "a session": {"resume": {"mode": "Session", "sessionId": "5f0c1c52-8d6e-4f5e-9a55-3b1f4d9c7e21", "from": "earlier"}},
    "an OpenCode session": {"agent": "opencode", "resume": {"mode": "Session", "sessionId": "ses_6f0a1b2c3d4e"}},
    "anew": {"resume": {"mode": "Fresh"}},
    "a fork": {"resume": {"mode": "Fork", "from": "earlier"}},
    "all limits": {
        "policy": {
            "attempts": 1000, "timeoutSeconds": 0, "stallSeconds": 0, "budgetUSD": "2.50", "continuity": "FreshOk", "whenFull": "RollOver",
            "verify": "make test", "verifyRounds": 0, "verifyTimeoutSeconds": 0, "requestExpirySeconds": 0, "files": ["a/b.py", ".github/x", "..a"],
        }
    },
    "a claim described": {
        "workspace": {"size": "20Gi", "storageClassName": "fast", "checkpoints": "s3://bucket/prefix", "checkpointsSecretRef": {"name": "s3"}}
    },
    "Secrets in their earlier form": {
        "repository": {"url": "https://host/a/b", "credentialsSecretName": "git"},
        "credentialsSecretName": "claude",
        "workspace": {"checkpoints": "s3://b", "checkpointsSecretName": "s3"},
    },
    "a shared claim": {"workspace": {"mode": "Shared", "claimName": "shop"}},
    **{
        f"checkpoints at {url}": {"workspace": {"mode": "Checkpoints", "checkpoints": url}}
        for url in ("s3://b", "gs://b/p", "az://c/p", "abfss://c/p", "file:///mnt/checkpoints")
    },
    "an ACP agent": {"agent": "acp-mine"},
    "an agent of one's own": {"agent": "mine", "pod": {"image": "registry.example.com/mine"}},
    "a whole budget": {"policy": {"budgetUSD": 5}},
    "variables": {"env": [{"name": "A", "value": ""}, {"name": "_B1", "value": "x\ny"}], "agentArgs": ["--verbose"], "model": "opus"},
    "suspended from the start": {"suspend": True},
    "a pod of one's own": {
        "labels": {"team": "billing"},
        "credentialsSecretRef": {"name": "claude"},
        "pod": {
            "image": "registry.example.com:5000/perdure@sha256:" + "0" * 64,
            "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "4Gi", "nvidia.com/gpu": 1}},
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "agents", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
            "serviceAccountName": "agent", "priorityClassName": "low", "runtimeClassName": "gvisor", "schedulerName": "other",
            "imagePullSecrets": [{"name": "registry"}],
            "labels": {"team": "billing"}, "annotations": {"example.com/x": "y"},
            "volumes": [{"name": "cache", "persistentVolumeClaim": {"claimName": "cache"}}],
            "volumeMounts": [{"name": "cache", "mountPath": "/mnt/cache", "subPath": "a", "readOnly": True}],
            "terminationGracePeriodSeconds": 120,
        },
    },
}  # fmt: skip
"""For each valid case its name and the changes to BASE."""

CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another service": (
        {},
        {"service": "bank"},
        "spec.service is the task's identity and cannot be changed",
    ),
    "no service any more": (
        {"task": None, "repository": {"url": "https://host/a"}},
        {"service": None},
        "spec.service is the task's identity and cannot be changed",
    ),
    "another task": ({}, {"task": "119"}, "spec.task is the task's identity and cannot be changed"),
    "a task later": (
        {"task": None},
        {"task": "118"},
        "spec.task is the task's identity and cannot be changed",
    ),
    "another agent": ({}, {"agent": "codex"}, "spec.agent cannot be changed"),
    "another repository": (
        {"repository": {"url": "https://host/a"}},
        {"repository": {"url": "https://host/b"}},
        "spec.repository.url cannot be changed",
    ),
    "another branch": (
        {"repository": {"url": "https://host/a"}},
        {"repository": {"branch": "b"}},
        "spec.repository.branch cannot be changed",
    ),
    "another base": (
        {"repository": {"url": "https://host/a", "base": "main"}},
        {"repository": {"base": "next"}},
        "spec.repository.base cannot be changed",
    ),
    "a repository later": (
        {},
        {"repository": {"url": "https://host/a"}},
        "spec.repository cannot be added or removed",
    ),
    "another Secret for the repository": (
        {"repository": {"url": "https://host/a", "credentialsSecretRef": {"name": "old"}}},
        {"repository": {"credentialsSecretRef": {"name": "new"}}},
        "",
    ),
    "references instead of names": (
        {
            "repository": {"url": "https://host/a", "credentialsSecretName": "git"},
            "credentialsSecretName": "keys",
            "workspace": {"checkpoints": "s3://b", "checkpointsSecretName": "s3"},
        },
        {
            "repository": {"credentialsSecretName": None, "credentialsSecretRef": {"name": "git"}},
            "credentialsSecretName": None,
            "credentialsSecretRef": {"name": "keys"},
            "workspace": {"checkpointsSecretName": None, "checkpointsSecretRef": {"name": "s3"}},
        },
        "",
    ),
    "another beginning": (
        {},
        {"resume": {"mode": "Fresh"}},
        "spec.resume says how the first attempt began and cannot be changed",
    ),
    "another workspace": (
        {},
        {"workspace": {"mode": "Checkpoints", "checkpoints": "s3://b/c"}},
        "spec.workspace.mode cannot be changed",
    ),
    "another shared claim": (
        {"workspace": {"mode": "Shared", "claimName": "a"}},
        {"workspace": {"claimName": "b"}},
        "spec.workspace.claimName cannot be changed",
    ),
    "another store of all state": (
        {"workspace": {"mode": "Checkpoints", "checkpoints": "s3://b/c"}},
        {"workspace": {"checkpoints": "s3://b/d"}},
        "spec.workspace.checkpoints cannot be changed",
    ),
    "another way to reclaim": ({}, {"workspace": {"reclaim": "Delete"}}, ""),
    "a store of checkpoints later": ({}, {"workspace": {"checkpoints": "s3://b/c"}}, ""),
    "a smaller version": (
        {"contextVersion": 3},
        {"contextVersion": 2},
        "spec.contextVersion only grows",
    ),
    "new instructions without a version": (
        {},
        {"prompt": "More"},
        "spec.prompt changes only together with a greater spec.contextVersion",
    ),
    "another reference without a version": (
        {"prompt": None, "promptFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}},
        {"promptFrom": {"configMapKeyRef": {"key": "c"}}},
        "spec.promptFrom changes only together with a greater spec.contextVersion",
    ),
    "another file without a version": (
        {"files": [{"path": "a", "configMapKeyRef": {"name": "a", "key": "b"}}]},
        {"files": [{"path": "a", "configMapKeyRef": {"name": "a", "key": "c"}}]},
        "spec.files changes only together with a greater spec.contextVersion",
    ),
    "no files any more, as a new version": (
        {"files": [{"path": "a", "configMapKeyRef": {"name": "a", "key": "b"}}]},
        {"files": None, "contextVersion": 2},
        "",
    ),
    "an update": ({}, {"prompt": "More", "contextVersion": 2}, ""),
    "an update that leaves numbers out": ({}, {"prompt": "More", "contextVersion": 40}, ""),
    "the same again, as a new version": ({}, {"contextVersion": 2}, ""),
    "from a text to a reference": (
        {},
        {
            "prompt": None,
            "promptFrom": {"configMapKeyRef": {"name": "a", "key": "b"}},
            "contextVersion": 2,
        },
        "",
    ),
    "a stop": ({}, {"suspend": True}, ""),
    "more attempts": ({}, {"policy": {"attempts": 5}}, ""),
    "another model, more room": (
        {},
        {"model": "opus", "pod": {"resources": {"limits": {"memory": "8Gi"}}}},
        "",
    ),
}
"""For each change its name, the TaskRun before (as changes to BASE), the patch, and the refusal. An
empty refusal means that the change is accepted."""


def laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return `below` with `above` applied to it as a JSON merge patch."""
    merged = dict(below)
    for key, value in above.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = (
                laid_over(merged.get(key, {}), value) if isinstance(value, dict) else value
            )
    return merged
