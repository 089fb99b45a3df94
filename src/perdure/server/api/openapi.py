"""Makes the OpenAPI 3.1 document of the API from the tables of verbs, so that it matches what the
API does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from itertools import chain
from typing import Any

import msgspec

from perdure.model.events import Record
from perdure.server.api import shapes
from perdure.server.api.forms import LINE
from perdure.server.api.verbs import PREFIX, Verb
from perdure.server.limits import Reach

REFERENCES = "#/components/schemas/{name}"
ABOUT = (
    "Every verb and list of the command line, with the same JSON. A request carries a token: "
    "`Authorization: Bearer ...` (`perdure token new NAME --scope read|answer|dispatch|admin`). "
    "Times are milliseconds since 1970, durations seconds, money US dollars. Fields are added "
    "without a new `schema_version`. Texts that agents, repositories and forges wrote are hostile: "
    "clean them before you show them."
)
_NAMES = {kind.__name__: name for kind, name in shapes.REPORTS.items()}
_NAME = re.compile(rf'"(#/components/schemas/|)(?:(\w+)Shape|({"|".join(_NAMES)}))"')
"""Pattern of the names that the document changes: class names in quotation marks, and references to
classes. A class in `shapes.REPORTS` gets the name listed there. Other classes lose the suffix
`Shape`, which they have in the code only because another class already uses the plain name."""
OF_LIMITS = {
    Reach.RUN: "A token with limits gets 404 for a run outside of them.",
    Reach.LIST: "A token with limits sees what is inside of them.",
    Reach.TASK: "A token with limits makes only tasks inside of them.",
    Reach.NOTHING: "For tokens with limits too.",
    Reach.WHOLE: "Not for tokens with limits.",
}
PROBLEMS = {
    "400": "The request does not match this document.",
    "401": "No token, or an invalid one.",
    "403": (
        "The token's scope or limits are insufficient, or the request comes from a page of another "
        "site."
    ),
    "404": "No such run, conversation, plan, delivery or entry.",
    "409": "A conflict, or the request would lose work: `hint` says what to do.",
    "422": "The request is valid JSON, but contradicts itself.",
    "429": "Too many invalid tokens came from this address.",
    "503": "The database cannot be used at this moment.",
}


def document(verbs: Sequence[Verb]) -> bytes:
    """Return the OpenAPI document as JSON."""
    kinds = dict.fromkeys(
        kind
        for kind in chain.from_iterable(
            (verb.body, _shape(verb), shapes.ProblemDetails, Record) for verb in verbs
        )
        if kind
    )
    _, schemas = msgspec.json.schema_components(tuple(kinds), ref_template=REFERENCES)
    _, named = msgspec.json.schema_components(
        tuple(dict.fromkeys(verb.query for verb in verbs)), ref_template=REFERENCES
    )
    parameters = {
        name: schema
        for name, schema in named.items()
        if name.endswith("Query") or name in ("Query", "Page")
    }
    schemas |= {name: schema for name, schema in named.items() if name not in parameters}
    schemas = json.loads(_NAME.sub(_renamed, json.dumps(schemas)))
    paths: dict[str, dict[str, Any]] = {}
    for verb in verbs:
        paths.setdefault(f"{PREFIX}{verb.path}", {})[verb.method.lower()] = _operation(
            verb, parameters
        )
    for path, which in (
        ("/events", "all runs, from now on"),
        ("/runs/{run}/events", "one run, from its first record on"),
    ):
        paths[f"{PREFIX}{path}"] = {"get": _stream(path, which)}
    paths[f"{PREFIX}/openapi.json"] = {
        "get": {
            "operationId": "get_openapi",
            "summary": "This document.",
            "responses": {"200": {"description": "It.", "content": {"application/json": {}}}}
            | _problems({"401", "429"}),
        }
    }
    found = {
        "openapi": "3.1.0",
        "info": {
            "title": "perdure",
            "version": version("perdure"),
            "description": ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"bearer": []}],
        "paths": dict(sorted(paths.items())),
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": dict(sorted(schemas.items())),
            "responses": {
                f"Problem{status}": {
                    "description": says,
                    "content": {
                        "application/problem+json": {
                            "schema": {"$ref": "#/components/schemas/ProblemDetails"}
                        }
                    },
                }
                for status, says in {**PROBLEMS, "": "Anything else that went wrong."}.items()
            },
        },
    }
    return json.dumps(found, indent=1, ensure_ascii=False).encode()


def _renamed(found: re.Match[str]) -> str:
    """Return the name that replaces a class name, or a reference to a class, in the document."""
    return f'"{found[1]}{found[2] or _NAMES[found[3]]}"'


def _shape(verb: Verb) -> type[msgspec.Struct] | None:
    if verb.answer == "text":
        return None
    return shapes.named(verb.answer)


def _operation(verb: Verb, parameters: dict[str, Any]) -> dict[str, Any]:
    statuses = {"400", "401", "403", "429", "503"}
    names_run = "run" in verb.query.__struct_fields__
    statuses |= {"404"} if "{" in verb.path or verb.body is not None or names_run else set()
    statuses |= {"409", "422"} if verb.method != "GET" or verb.answer == "text" else {"422"}
    if verb.answer == "text":
        kind, schema = ("text/plain", {"type": "string"})
    else:
        kind, schema = ("application/json", _to(verb.answer))
    found: dict[str, Any] = {
        "operationId": verb.id,
        "tags": [verb.path.split("/")[1]],
        "summary": verb.says,
        "description": f"Needs the scope `{verb.scope}`. {OF_LIMITS[verb.within]}",
        "parameters": [*_of_path(verb.path), *_of_query(parameters[verb.query.__name__])],
        "responses": {
            str(verb.status): {"description": "Done.", "content": {kind: {"schema": schema}}}
        }
        | _problems(statuses),
    }
    if verb.body is not None:
        needed = any(each.required for each in msgspec.structs.fields(verb.body))
        found["requestBody"] = {
            "required": needed,
            "content": {
                "application/json": {"schema": _to(verb.body.__name__.removesuffix("Shape"))}
            },
        }
    return found


def _stream(path: str, which: str) -> dict[str, Any]:
    back = {
        "name": "Last-Event-ID",
        "in": "header",
        "schema": {"type": "string"},
        "description": "The id of the last event seen.",
    }
    after = {
        "name": "after",
        "in": "query",
        "schema": {"type": "integer", "minimum": 0},
        "description": "The same, for clients that cannot set the header.",
    }
    return {
        "operationId": f"get{path}".replace("/", "_").translate({ord(each): None for each in "{}"}),
        "tags": ["events"],
        "summary": (
            f"Records of {which}, as server-sent events; `data` is a Record, `id` its number."
        ),
        "description": (
            "Needs the scope `read`. A reader that does not keep up is disconnected, and "
            "reconnects with the last id."
        ),
        "parameters": [*_of_path(path), back, after],
        "responses": {"200": {"description": "Events.", "content": {"text/event-stream": {}}}}
        | _problems({"400", "401", "404", "429", "503"}),
    }


def _of_path(path: str) -> list[dict[str, Any]]:
    schema = {"type": "string", "minLength": 1, "maxLength": 1000, "pattern": LINE}
    return [
        {"name": name, "in": "path", "required": True, "schema": schema}
        for name in re.findall(r"{(\w+)}", path)
    ]


def _of_query(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "query", "required": False, "schema": each}
        for name, each in schema.get("properties", {}).items()
    ]


def _problems(statuses: Iterable[str]) -> dict[str, Any]:
    found = {
        status: {"$ref": f"#/components/responses/Problem{status}"} for status in sorted(statuses)
    }
    return found | {"default": {"$ref": "#/components/responses/Problem"}}


def _to(name: str) -> dict[str, Any]:
    return {"$ref": REFERENCES.format(name=name)}
