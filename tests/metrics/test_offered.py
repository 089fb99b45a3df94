"""Files that are shipped for the metrics: the address of `perdure serve`, a Grafana dashboard, and
alert rules, which use only existing metrics."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from perdure.engine.attempt import Engine
from perdure.model import TaskSpec
from perdure.telemetry.metrics.exposition import MetricsPage
from perdure.testing.stores.inbox import arrived
from perdure.testing.stores.samples import claimed, submit
from tests.metrics.lives import a_life, samples
from tests.web.serving import PATIENCE_S, Serving

PACKAGING = Path(__file__).parents[2] / "packaging"
MADE_BY_GRAFANA = {"$__rate_interval": "5m", "$__range": "1d", "$agent": ".*"}


@pytest.fixture
def offered(engine: Engine) -> dict[str, set[str]]:
    """Return every metric of a store in which everything has happened, with the names of its
    labels."""
    a_life(engine.store)
    claimed(engine.store, submit(engine.store, TaskSpec(prompt="do it", rule="dev")))
    engine.store.accept([arrived()])
    meter, found = MetricsPage(engine, "1.2.3", fresh_s=0), defaultdict[str, set[str]](set)
    while "perdure_disk_bytes" not in found:
        for family in text_string_to_metric_families(meter.exposition()[0].decode()):
            for sample in family.samples:
                found[sample.name] |= set(sample.labels)
    return found


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Yield the metrics that a query reads, each with the labels of its selector. Fail if the query
    is not PromQL."""
    found: list[Any] = []
    promql_parser.walk(promql_parser.parse(expression), lambda node: found.append(node) or True)
    for node in found:
        if isinstance(node, promql_parser.VectorSelector):
            yield node.name, {matcher.name for matcher in node.matchers.matchers}


def grouped_by(expression: str) -> set[str]:
    """Return the labels that a query's grouping keeps or removes."""
    return {
        name
        for group in re.findall(r"\bby \(([^)]*)\)", expression)
        for name in re.split(r",\s*", group)
    } - {"le"}


def test_the_dashboard_asks_for_what_is_there(offered: dict[str, set[str]]) -> None:
    """Each query of the Grafana dashboard is PromQL with metrics and labels that a scrape has. No
    panels overlap."""
    dashboard = json.loads((PACKAGING / "grafana.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            for variable, value in MADE_BY_GRAFANA.items():
                expression = expression.replace(variable, value)
            names = dict(selectors(expression))
            assert names, panel["title"]
            for name, labels in names.items():
                legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                assert name in offered, panel["title"]
                assert labels | grouped_by(expression) | legend <= offered[name], panel["title"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) > 10


def test_each_number_is_used_or_told_of(offered: dict[str, set[str]]) -> None:
    """The page on metrics names exactly the existing metrics."""
    page = (PACKAGING.parent / "docs/reference/metrics.md").read_text()
    told = set(re.findall(r"`(perdure_\w+)`", page))
    names = {
        re.sub(r"_(bucket|count|sum)$", "", name)
        for name in offered
        if not name.endswith("_created")
    }
    assert told == names


def test_the_alerts_ask_for_what_is_there(offered: dict[str, set[str]]) -> None:
    """Each alert rule is PromQL with metrics that a scrape has, and says what to do."""
    groups = yaml.safe_load((PACKAGING / "alerts.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) > 5
    for rule in rules:
        assert (
            rule["annotations"]["summary"]
            and rule["annotations"]["hint"]
            and rule["labels"]["severity"]
        )
        names = dict(selectors(rule["expr"]))
        assert names
        for name, labels in names.items():
            assert name in offered and labels <= offered[name], rule["alert"]


def test_serve_answers_a_scrape(tmp_path: Path) -> None:
    """`GET /metrics` needs a token of any scope, returns the metrics as text, and changes
    nothing."""
    serving = Serving(tmp_path).start()
    try:
        assert _scrape(serving)[0] == 401
        token = serving.token("read")
        serving.deliver("hub")
        status, content_type, text = _scrape(serving, token)
        assert (status, content_type.partition(";")[0]) == (200, "text/plain")
        found = samples(text)
        assert (
            found["perdure_deliveries", "hub", "received"] == 1 and found["perdure_runs_due",] == 0
        )
        assert found["perdure_disk_free_bytes", "state"] > 0
        assert "python_info" not in text
    finally:
        serving.kill()


def _scrape(serving: Serving, token: str = "") -> tuple[int, str, str]:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", serving.port, timeout=PATIENCE_S)
    ) as connection:
        connection.request("GET", "/metrics", headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers["content-type"], answer.read().decode()
