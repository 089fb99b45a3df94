"""The Helm chart and the manifests that are made from it, as far as the tests need neither Helm nor
a cluster."""

from __future__ import annotations

import json
import re
import runpy
from typing import Any

import yaml
from jsonschema import Draft7Validator

import perdure
from tests.kubernetes.resource import FILE, TOP

CHART = FILE.parents[1]
MANIFESTS = TOP / "packaging" / "kubernetes" / "perdure.yaml"


def test_the_manifests_are_those_of_the_chart() -> None:
    """A change of the chart for which `make manifests` was not run is reported."""
    digest = runpy.run_path(str(TOP / "packaging" / "manifests.py"))["digest"]()
    assert f"sha256:{digest}" in MANIFESTS.read_text(encoding="utf-8").partition("\n")[0], (
        "run make manifests"
    )


def test_the_chart_has_perdures_version() -> None:
    """The chart's version, the default of the image's tag and the package's version are the same."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["version"] == chart["appVersion"] == perdure.__version__


def test_the_operator_and_the_attempts_have_an_image_each() -> None:
    """The operator runs the small image, and uses the image with the agents for attempts."""
    (container,) = (
        container
        for each in yaml.safe_load_all(MANIFESTS.read_text(encoding="utf-8"))
        if each and each["kind"] == "Deployment"
        for container in each["spec"]["template"]["spec"]["containers"]
    )
    assert container["image"] == f"perdure-operator:{perdure.__version__}"
    assert f"--image=perdure:{perdure.__version__}" in container["args"]


def test_every_value_has_its_place_in_the_schema() -> None:
    """Helm refuses a misspelt value, and accepts all default values."""
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert [error.message for error in Draft7Validator(schema).iter_errors(values)] == []
    assert sorted(_leaves(values)) == sorted(_allowed(schema))
    assert list(Draft7Validator(schema).iter_errors({**values, "imagePullSecret": []}))


def test_the_readme_has_every_value() -> None:
    """A new value without a description is reported."""
    text = (CHART / "README.md").read_text(encoding="utf-8")
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert [name for name in _leaves(values) if f"`{name}`" not in text] == []


def test_nothing_in_the_manifests_is_privileged() -> None:
    """The operator cannot read or write Secrets, or create or enter pods, and no rule has a
    wildcard."""
    documents = [each for each in yaml.safe_load_all(MANIFESTS.read_text(encoding="utf-8")) if each]
    rules = [
        rule
        for each in documents
        if each["kind"] in ("Role", "ClusterRole")
        for rule in each["rules"]
    ]
    granted = {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert not [each for each in granted if "*" in each]
    assert not [each for each in granted if each[1] == "secrets"]
    assert {verb for _, resource, verb in granted if resource == "pods"} <= {
        "get",
        "list",
        "watch",
        "delete",
    }
    assert not [each for each in granted if re.match("pods/|nodes|serviceaccounts|roles", each[1])]


def _leaves(values: dict[str, Any], at: str = "") -> list[str]:
    found = []
    for name, value in values.items():
        found += (
            _leaves(value, f"{at}{name}.")
            if isinstance(value, dict) and value and name not in FREE
            else [f"{at}{name}"]
        )
    return found


def _allowed(schema: dict[str, Any], at: str = "") -> list[str]:
    """Return the names of all values, except for deprecated ones, which have no default."""
    found = []
    for name, below in schema["properties"].items():
        if f"{at}{name}" != "global" and not below.get("deprecated"):
            found += _allowed(below, f"{at}{name}.") if "properties" in below else [f"{at}{name}"]
    return found


FREE = {
    "resources",
    "nodeSelector",
    "affinity",
    "podLabels",
    "podAnnotations",
    "annotations",
    "labels",
}
"""Values that the chart passes on unchanged."""
