"""The API matches its OpenAPI document: schemathesis sends to a real `perdure serve` everything
that the document allows or forbids."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from perdure.server.api.openapi import document
from perdure.server.api.routes import VERBS
from tests.journeys.stage import native
from tests.web.serving import Serving

NOT_ASKED = [positive_data_acceptance]
"""Checks that are left out. A valid request may still be refused, because the run does not exist or
is running."""
EXAMPLES = 6
SCHEMA = schemathesis.openapi.from_dict({**json.loads(document(VERBS)), "security": []})
"""The document without its security section. Each request here has a token; `test_api` shows that
every request needs one."""
OPERATIONS = {
    f"{each.ok().method.upper()} {each.ok().path}": each.ok()
    for each in SCHEMA.get_all_operations()
    if not each.ok().path.endswith("/events")
}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, str]]:
    """Start a server with an agent that is never started, some runs, and an admin's token."""
    serving = Serving(
        tmp_path_factory.mktemp("document"), "", PERDURE_CLAUDE=str(native("claude"))
    ).start()
    token = serving.token("admin")
    for number in range(3):
        task = {"prompt": "x", "service": "a", "task": str(number), "name": f"r{number}"}
        status, said = serving.ask("POST", "/api/v1/runs", token, task)
        assert status == 201, said
    yield serving, token
    assert serving.stop() == 0
    assert "Traceback" not in serving.said()


POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
CASES = [(name, POSITIVE) for name in OPERATIONS]
CASES += [
    (name, NEGATIVE)
    for name, each in OPERATIONS.items()
    if each.path_parameters or each.query or each.body
]


def test_every_reference_leads_somewhere() -> None:
    """The document refers only to shapes that it defines, and every operation has a unique name."""
    found = json.loads(document(VERBS))
    names = {
        f"#/components/{kind}/{name}" for kind, each in found["components"].items() for name in each
    }
    assert set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(found))) <= names
    ids = [
        operation["operationId"] for path in found["paths"].values() for operation in path.values()
    ]
    assert len(ids) == len(set(ids)) == len(VERBS) + 3


@pytest.mark.parametrize(
    ("name", "mode"), CASES, ids=[f"{mode.value} {name}" for name, mode in CASES]
)
def test_an_operation_does_what_the_document_says(
    machine: tuple[Serving, str], name: str, mode: Any
) -> None:
    """Any request, valid or not, is answered with a status and a shape of the document, and never
    causes an internal error."""
    serving, token = machine
    # In a query, a single value is read as a list of one. So what schemathesis considers a wrong
    # type is accepted.
    lists = any(each.definition["schema"].get("type") == "array" for each in OPERATIONS[name].query)
    not_asked = [*NOT_ASKED, negative_data_rejection] if lists else NOT_ASKED

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=OPERATIONS[name].as_strategy(generation_mode=mode))
    def every(case: Any) -> None:
        case.call_and_validate(
            base_url=f"http://127.0.0.1:{serving.port}",
            headers={"authorization": f"Bearer {token}"},
            excluded_checks=not_asked,
            timeout=90,
        )

    every()
