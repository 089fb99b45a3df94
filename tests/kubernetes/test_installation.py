"""`perdure operator --check`, which the pod of `helm test` runs: it checks rights and probes."""

from __future__ import annotations

import pytest
import yaml

from perdure.kubernetes import installation
from perdure.kubernetes.api import Api
from perdure.kubernetes.installation import ACCOUNTS, LOGS, POLICIES, RIGHTS, check, rights
from perdure.kubernetes.operator import Options
from tests.kubernetes.apiserver import fails
from tests.kubernetes.resource import TOP
from tests.kubernetes.staging import Stage, play

MANIFESTS = TOP / "packaging" / "kubernetes" / "perdure.yaml"
LABELS = {"app.kubernetes.io/name": "perdure", "app.kubernetes.io/component": "operator"}
SELECTOR = ",".join(f"{name}={value}" for name, value in LABELS.items())


def pod(stage: Stage, name: str, phase: str = "Running") -> None:
    status = {"phase": phase, "podIP": "127.0.0.1"}
    stage.server.add("pods", {"metadata": {"name": name, "labels": LABELS}, "status": status})


async def checked(stage: Stage, port: int) -> tuple[bool, list[str]]:
    said: list[str] = []
    api = Api(stage.config())
    try:
        options = Options(namespaces=("default",), image="perdure:1", port=port)
        return await check(api, options, "default", SELECTOR, said.append), said
    finally:
        await api.close()


def test_the_rights_are_those_of_the_charts_role() -> None:
    """The check asks for exactly the rights that the role grants, and for more with the flags that
    need more."""
    (role,) = (
        each
        for each in yaml.safe_load_all(MANIFESTS.read_text(encoding="utf-8"))
        if each and each["kind"] == "Role"
    )
    granted = {
        (group, resource, tuple(rule["verbs"]))
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert granted == set(RIGHTS)
    options = Options(namespaces=(), image="a", read_logs=True, policy={"a": 1}, make_account=True)
    assert list(rights(options)) == [*RIGHTS, LOGS, POLICIES, ACCOUNTS]


def test_a_healthy_installation() -> None:
    """In a healthy installation all rights are granted, and the operator's own probes answer. A pod
    that has ended is not probed."""

    async def story(stage: Stage) -> None:
        operator = stage.begin()
        await stage.until(lambda: operator.ready.is_set())
        pod(stage, "perdure-a")
        pod(stage, "perdure-old", "Succeeded")
        assert await checked(stage, operator.port) == (
            True,
            [
                "rights in namespace default: all 25",
                "perdure-a: /healthz and /readyz answer",
            ],
        )

    play(fails(0), story)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check names a missing right, a missing operator pod, and a pod that does not answer."""

    async def story(stage: Stage) -> None:
        monkeypatch.setattr(installation, "WAIT_S", 0.0)
        stage.server.forbidden = {"create jobs", "patch taskruns/status"}
        assert await checked(stage, 9) == (
            False,
            [
                "rights in namespace default: missing patch taskruns/status, create jobs",
                f"no pod with {SELECTOR} is running in default",
            ],
        )
        stage.server.forbidden = set()
        pod(stage, "perdure-a")
        well, said = await checked(stage, 9)
        assert not well
        assert said[1] == (
            "http://127.0.0.1:9/healthz: ConnectError; http://127.0.0.1:9/readyz: ConnectError"
        )

    play(fails(0), story)
