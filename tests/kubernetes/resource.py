"""The TaskRun resource as its file defines it, for the tests: the whole file, its schema, and every
node of the schema."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

TOP = Path(__file__).parents[2]
FILE = TOP / "packaging" / "helm" / "perdure" / "crds" / "taskruns.yaml"


@cache
def resource() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return found


def version() -> dict[str, Any]:
    (found,) = resource()["spec"]["versions"]
    return dict(found)


def schema() -> dict[str, Any]:
    return dict(version()["schema"]["openAPIV3Schema"])


def places(node: dict[str, Any], at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every node of a schema with its path, such as `spec.env[].name`."""
    yield at, node
    for name, below in node.get("properties", {}).items():
        yield from places(below, f"{at}.{name}".lstrip("."))
    if "items" in node:
        yield from places(node["items"], f"{at}[]")
    if isinstance(node.get("additionalProperties"), dict):
        yield from places(node["additionalProperties"], f"{at}{{}}")


def place(namespace: str) -> str:
    """Return the API server's path for the TaskRuns of a namespace."""
    return f"/apis/perdure.dev/v1alpha1/namespaces/{namespace}/taskruns"


def installed(cluster: Any) -> None:
    """Install the resource in a cluster (`tests.servers.kubernetes.cluster.Cluster`), and wait
    until TaskRuns can be made."""
    if cluster.api.find("/apis/perdure.dev/v1alpha1") is None:
        cluster.kubectl("apply", "--server-side", "-f", str(FILE))
    cluster.until(lambda: cluster.api.find(place("default")), "the API server has TaskRuns")
