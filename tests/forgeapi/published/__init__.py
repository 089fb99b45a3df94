"""GitHub's own description of the calls that perdure uses (`github.json`, made by `extract`), with
which perdure's requests and the small forge's answers are compared.

`dressed` turns the small forge's answer into GitHub's form: fields that GitHub always has are
filled in, and unpublished fields are removed, so that a client that reads an unpublished field
finds nothing. `check` compares a request with the published parameters and body.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

DOCUMENT = json.loads(Path(__file__).with_name("github.json").read_text())
WORDS = {"uri": "https://github.invalid/", "date-time": "2026-01-02T03:04:05Z"}


def operation(method: str, path: str) -> Any:
    """Return GitHub's description of the call with this method and path, or None if there is
    none."""
    for template, methods in DOCUMENT["paths"].items():
        pattern = re.sub(r"\\\{(ref|branch)\\\}", ".+", re.escape(template))
        if method.lower() in methods and re.fullmatch(
            re.sub(r"\\\{\w+\\\}", "[^/]+", pattern), f"/{path}"
        ):
            return methods[method.lower()]
    return None


def resolved(schema: Any) -> Any:
    while "$ref" in schema:
        schema = DOCUMENT["components"][schema["$ref"].split("/")[2]][schema["$ref"].split("/")[3]]
    return schema


def answer_schema(method: str, path: str, status: int) -> Any:
    found = operation(method, path)
    answer = (
        resolved(found["responses"][str(status)])
        if found and str(status) in found["responses"]
        else {}
    )
    return answer.get("content", {}).get("application/json", {}).get("schema")


def check(method: str, path: str, query: dict[str, str], body: Any) -> None:
    """Raise AssertionError if a request has something that GitHub's description does not."""
    found = operation(method, path)
    assert found is not None, f"GitHub has no {method} /{path}"
    known = {each["name"]: each for each in map(resolved, found["parameters"])}
    for name, value in query.items():
        assert name in known, f"{name} is no parameter of {method} /{path}"
        schema = known[name]["schema"]
        kinds = {"integer": int, "boolean": bool}
        held(kinds.get(schema.get("type"), str)(value), schema)
    wanted = found["requestBody"].get("content", {}).get("application/json", {}).get("schema")
    if wanted is not None:
        held(body, wanted)
        assert set(body) <= set(properties(wanted)), (
            f"not published: {set(body) - set(properties(wanted))}"
        )


def held(value: Any, schema: Any) -> None:
    """Raise AssertionError if a value does not match a schema."""
    problems = [*validator(json.dumps(schema)).iter_errors(value)]
    assert not problems, f"{problems[0].message} at {[*problems[0].absolute_path]}"


@cache
def validator(schema: str) -> Any:
    return Draft202012Validator(
        {**nullable(json.loads(schema)), "components": nullable(DOCUMENT["components"])}
    )


def nullable(value: Any) -> Any:
    """Convert `nullable` of OpenAPI 3.0 to the null of JSON Schema."""
    if isinstance(value, list):
        return [nullable(each) for each in value]
    if not isinstance(value, dict):
        return value
    inner = {name: nullable(each) for name, each in value.items()}
    return {"anyOf": [inner, {"type": "null"}]} if value.get("nullable") is True else inner


def properties(schema: Any) -> dict[str, Any]:
    schema = resolved(schema)
    found = dict(schema.get("properties", {}))
    for each in (*schema.get("allOf", ()), *schema.get("anyOf", ()), *schema.get("oneOf", ())):
        found |= properties(each)
    return found


def filled(schema: Any) -> Any:
    """Return the smallest valid value."""
    schema = resolved(schema)
    if schema.get("nullable"):
        return None
    if "enum" in schema:
        return schema["enum"][0]
    if "allOf" in schema:
        return {name: each for one in schema["allOf"] for name, each in filled(one).items()}
    if "anyOf" in schema or "oneOf" in schema:
        return filled((schema.get("anyOf") or schema["oneOf"])[0])
    match schema.get("type"):
        case "object":
            return {name: filled(schema["properties"][name]) for name in schema.get("required", ())}
        case "array":
            return []
        case "string":
            return WORDS.get(schema.get("format", ""), "")
        case "boolean":
            return False
    return 1


def dress(value: Any, schema: Any) -> Any:
    """Convert a value from the names of `ForgeApi` to GitHub's."""
    schema = resolved(schema)
    if isinstance(value, list) and schema.get("type") == "array":
        return [dress(each, schema["items"]) for each in value]
    known = properties(schema)
    if not isinstance(value, dict) or not known:
        return value
    ways = [
        one for one in (schema.get("anyOf") or schema.get("oneOf") or [schema]) if properties(one)
    ]
    least = filled({**resolved(ways[0]), "nullable": False})
    return {
        **least,
        **{name: dress(each, known[name]) for name, each in value.items() if name in known},
    }


def dressed(method: str, path: str, status: int, value: Any) -> tuple[int, Any]:
    """Return status and answer as GitHub would give them. An answer that cannot be made valid
    raises AssertionError."""
    schema = answer_schema(method, path, status)
    if schema is None:
        return status, value if status >= 300 or value is None else {}
    found = dress(value, schema)
    held(found, schema)
    return status, found
