"""Makes packaging/kubernetes/perdure.yaml from the chart, for people who do not use Helm. `make
manifests` runs it; it needs helm-python-sdk.

    python packaging/manifests.py

The file's first lines have a digest of the chart. By this digest a test finds out, without Helm,
that the chart has changed since. The resource is not in the file: it is only in
packaging/helm/perdure/crds/taskruns.yaml.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

CHART = Path(__file__).parent / "helm" / "perdure"
TARGET = Path(__file__).parent / "kubernetes" / "perdure.yaml"
NAME = "perdure"
NAMESPACE = f"""apiVersion: v1
kind: Namespace
metadata:
  name: {NAME}
  labels:
    # What perdure and the attempts' pods keep to by themselves.
    pod-security.kubernetes.io/enforce: restricted
    pod-security.kubernetes.io/warn: restricted
"""


def digest() -> str:
    """Return the SHA-256 digest of everything from which the manifests are made."""
    made = hashlib.sha256()
    for path in sorted(
        [
            CHART / "Chart.yaml",
            CHART / "values.yaml",
            *(CHART / "templates").iterdir(),
            Path(__file__),
        ]
    ):
        made.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return made.hexdigest()


def made() -> str:
    """Return the manifests: the chart's output with its default values, in the namespace perdure,
    without what only Helm uses."""
    import helm_python

    with helm_python.Chart.load(str(CHART)) as chart:
        rendered = chart.render({}, name=NAME, namespace=NAME)
    parts = [
        text.strip("\n")
        for name, text in sorted(rendered.items())
        if name.endswith(".yaml") and text.strip() and "helm.sh/hook" not in text
    ]
    body = re.sub(
        r" +app\.kubernetes\.io/managed-by: Helm\n",
        "",
        "\n---\n".join([NAMESPACE.rstrip("\n"), *parts]),
    )
    head = (
        "# Made from packaging/helm/perdure by `make manifests`. Do not edit. Chart: "
        f"sha256:{digest()}\n"
    )
    use = (
        "# kubectl apply --server-side -f packaging/helm/perdure/crds/taskruns.yaml -f "
        "packaging/kubernetes/perdure.yaml\n"
    )
    return f"{head}{use}{body}\n"


if __name__ == "__main__":
    TARGET.write_text(made(), encoding="utf-8")
