"""The operator's metrics, and the dashboard and alert rules that are shipped with them."""

from __future__ import annotations

import json
import re
from collections import defaultdict

import pytest
import yaml
from lightkube.config.kubeconfig import KubeConfig
from lightkube.config.models import Cluster, User
from prometheus_client.parser import text_string_to_metric_families

from perdure.kubernetes.api import Api
from perdure.kubernetes.metrics import OperatorMetrics
from perdure.kubernetes.status import AttemptStatus, ReceiptSummary, UsageStatus, WorkStatus
from perdure.kubernetes.wanted import wanted
from tests.kubernetes import making
from tests.kubernetes.resource import TOP
from tests.metrics.test_offered import grouped_by, selectors

PACKAGING = TOP / "packaging" / "kubernetes"
MADE_BY_GRAFANA = {"$__rate_interval": "5m", "$namespace": ".*", "$agent": ".*"}
SCRAPED = {"namespace", "pod", "instance"}
"""Labels that Prometheus adds."""


@pytest.fixture
def numbers() -> OperatorMetrics:
    place = Cluster(server="http://127.0.0.1:9")
    config = KubeConfig.from_one(
        cluster=place, user=User(token="x"), context_name="test", namespace="default"
    ).get()
    assert config is not None
    api = Api(config)
    api.counted["get", "pods"] += 1
    phases = {("shop", "claude", "Running"): 1}
    found = OperatorMetrics(api, lambda: 1.0, lambda: 0, lambda: 1, lambda: phases)
    found.launch.observe(1.0)
    found.failed.labels("Away").inc()
    record = AttemptStatus(
        number=1,
        outcome="succeeded",
        receipt=ReceiptSummary(verdict="native"),
        work=WorkStatus(verdict="\n{}anything"),
        usage=UsageStatus(input_tokens=7, output_tokens=3, cost="0.5"),
    )
    found.end(wanted(making.taskrun()), record)
    return found


@pytest.fixture
def offered(numbers: OperatorMetrics) -> dict[str, set[str]]:
    found = defaultdict[str, set[str]](set)
    for family in text_string_to_metric_families(numbers.exposition("")[0].decode()):
        for sample in family.samples:
            found[sample.name] |= set(sample.labels) | SCRAPED
    return found


def test_what_an_attempt_counts(numbers: OperatorMetrics) -> None:
    """Attempts are counted by namespace and agent. An unknown verdict does not get its own
    label."""
    text = numbers.exposition("")[0].decode()
    whose = 'agent="claude",namespace="default"'
    assert f'perdure_operator_receipts_total{{{whose},verdict="native"}} 1.0' in text
    assert f'perdure_operator_works_total{{{whose},verdict="unknown"}} 1.0' in text
    assert (
        'perdure_operator_tokens_total{agent="claude",direction="input",namespace="default"} 7.0'
        in text
    )
    assert f"perdure_operator_cost_usd_total{{{whose}}} 0.5" in text


def test_dashboard_and_alerts_ask_for_what_is_there(offered: dict[str, set[str]]) -> None:
    """Each query is valid PromQL over metrics and labels that exist. Each alert rule says what to
    do."""
    panels = json.loads((PACKAGING / "grafana.json").read_text())["panels"]
    rules = yaml.safe_load((PACKAGING / "alerts.yml").read_text())["groups"][0]["rules"]
    asked = [(each["targets"][0]["expr"], each["title"]) for each in panels]
    asked += [(each["expr"], each["alert"]) for each in rules]
    for expression, title in asked:
        for variable, value in MADE_BY_GRAFANA.items():
            expression = expression.replace(variable, value)
        names = dict(selectors(expression))
        assert names, title
        for name, labels in names.items():
            assert name in offered, (title, name)
            assert labels | grouped_by(expression) <= offered[name] | {"le"}, title
    assert all(each["annotations"].keys() == {"summary", "hint"} for each in rules)


def test_each_number_is_told_of(offered: dict[str, set[str]]) -> None:
    """The documentation of the operator names every metric, and no others."""
    page = (TOP / "docs/reference/operator.md").read_text()
    names = {
        re.sub(r"_(bucket|count|sum)$", "", name)
        for name in offered
        if not name.endswith("_created")
    }
    assert set(re.findall(r"`(perdure_operator_\w+)", page)) == names
