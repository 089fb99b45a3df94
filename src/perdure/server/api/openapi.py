"""Makes the OpenAPI 3.1 document of the API from the tables of verbs, so that it matches what the
API does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from perdure.model.events import Record
from perdure.server.api import shapes
from perdure.server.api.forms import LINE
from perdure.server.api.verbs import PREFIX, Verb
from perdure.server.limits import Reach

JsonSchema = Mapping[str, object]
"""A schema of JSON Schema 2020-12, as msgspec makes it."""


class Reference(Struct):
    """A reference to a schema or a response in `components`."""

    ref: str = field(name="$ref")


class MediaType(Struct):
    schema: JsonSchema | Reference | UnsetType = UNSET


class RequestBody(Struct):
    required: bool
    content: Mapping[str, MediaType]


class ResponseObject(Struct):
    description: str
    content: Mapping[str, MediaType]


class Parameter(Struct, kw_only=True):
    """A parameter of a path, a query or a header."""

    name: str
    in_: str = field(name="in")
    required: bool | UnsetType = UNSET
    schema: JsonSchema
    description: str | UnsetType = UNSET


Responses = Mapping[str, ResponseObject | Reference]
"""The responses of an operation by status. The key `default` is for all other statuses."""


class Operation(Struct, kw_only=True, rename="camel"):
    """An operation of the document (OpenAPI 3.1). The document has the fields in this order."""

    operation_id: str
    tags: Sequence[str] | UnsetType = UNSET
    summary: str
    description: str | UnsetType = UNSET
    parameters: Sequence[Parameter] | UnsetType = UNSET
    responses: Responses
    request_body: RequestBody | UnsetType = UNSET


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
"""Pattern of the class names that the document replaces. A class name appears there in quotation
marks, alone or at the end of a reference. A class in `shapes.REPORTS` gets the name listed there.
Other classes lose the suffix `Shape`, which they have in the code only because another class
already uses the plain name."""
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
    kinds = []
    for verb in verbs:
        kinds += [verb.body, _shape(verb), shapes.ProblemDetails, Record]
    _, schemas = msgspec.json.schema_components(
        tuple(dict.fromkeys(filter(None, kinds))), ref_template=REFERENCES
    )
    _, named = msgspec.json.schema_components(
        tuple(dict.fromkeys(verb.query for verb in verbs)), ref_template=REFERENCES
    )
    parameters: dict[str, Mapping[str, JsonSchema]] = {}
    for name, schema in named.items():
        if name.endswith("Query") or name in ("Query", "Page"):
            parameters[name] = schema.get("properties", {})
        else:
            schemas[name] = schema
    schemas = json.loads(_NAME.sub(_renamed, json.dumps(schemas)))
    paths: dict[str, dict[str, Operation]] = {}
    for verb in verbs:
        of_path = paths.setdefault(f"{PREFIX}{verb.path}", {})
        of_path[verb.method.lower()] = _operation(verb, parameters[verb.query.__name__])
    for path, which in (
        ("/events", "all runs, from now on"),
        ("/runs/{run}/events", "one run, from its first record on"),
    ):
        paths[f"{PREFIX}{path}"] = {"get": _stream(path, which)}
    paths[f"{PREFIX}/openapi.json"] = {
        "get": Operation(
            operation_id="get_openapi",
            summary="This document.",
            responses={
                "200": ResponseObject("It.", {"application/json": MediaType()}),
                **_problems({"401", "429"}),
            },
        )
    }
    problem = {"application/problem+json": MediaType(_to("ProblemDetails"))}
    responses = {}
    for status, says in {**PROBLEMS, "": "Anything else that went wrong."}.items():
        responses[f"Problem{status}"] = ResponseObject(says, problem)
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
            "responses": responses,
        },
    }
    return json.dumps(msgspec.to_builtins(found), indent=1, ensure_ascii=False).encode()


def _renamed(found: re.Match[str]) -> str:
    """Return the text that replaces a match of `_NAME`: the class's name in the document, in
    quotation marks, with the beginning of the reference if there is one."""
    return f'"{found[1]}{found[2] or _NAMES[found[3]]}"'


def _shape(verb: Verb) -> type[msgspec.Struct] | None:
    if verb.answer == "text":
        return None
    return shapes.named(verb.answer)


def _operation(verb: Verb, of_query: Mapping[str, JsonSchema]) -> Operation:
    """Return the OpenAPI operation of a verb. `of_query` has the schemas of its query's parameters,
    by name."""
    statuses = {"400", "401", "403", "429", "503"}
    names_run = "run" in verb.query.__struct_fields__
    statuses |= {"404"} if "{" in verb.path or verb.body is not None or names_run else set()
    statuses |= {"409", "422"} if verb.method != "GET" or verb.answer == "text" else {"422"}
    if verb.answer == "text":
        content = {"text/plain": MediaType({"type": "string"})}
    else:
        content = {"application/json": MediaType(_to(verb.answer))}
    found = Operation(
        operation_id=verb.id,
        tags=[verb.path.split("/")[1]],
        summary=verb.says,
        description=f"Needs the scope `{verb.scope}`. {OF_LIMITS[verb.within]}",
        parameters=[*_of_path(verb.path), *_of_query(of_query)],
        responses={str(verb.status): ResponseObject("Done.", content), **_problems(statuses)},
    )
    if verb.body is not None:
        needed = any(each.required for each in msgspec.structs.fields(verb.body))
        body = _to(verb.body.__name__.removesuffix("Shape"))
        found.request_body = RequestBody(needed, {"application/json": MediaType(body)})
    return found


def _stream(path: str, which: str) -> Operation:
    back = Parameter(
        name="Last-Event-ID",
        in_="header",
        schema={"type": "string"},
        description="The id of the last event seen.",
    )
    after = Parameter(
        name="after",
        in_="query",
        schema={"type": "integer", "minimum": 0},
        description="The same, for clients that cannot set the header.",
    )
    events = ResponseObject("Events.", {"text/event-stream": MediaType()})
    return Operation(
        operation_id=f"get{path}".replace("/", "_").translate({ord(each): None for each in "{}"}),
        tags=["events"],
        summary=f"Records of {which}, as server-sent events; `data` is a Record, `id` its number.",
        description=(
            "Needs the scope `read`. A reader that does not keep up is disconnected, and "
            "reconnects with the last id."
        ),
        parameters=[*_of_path(path), back, after],
        responses={"200": events, **_problems({"400", "401", "404", "429", "503"})},
    )


def _of_path(path: str) -> list[Parameter]:
    schema = {"type": "string", "minLength": 1, "maxLength": 1000, "pattern": LINE}
    names = re.findall(r"{(\w+)}", path)
    return [Parameter(name=name, in_="path", required=True, schema=schema) for name in names]


def _of_query(properties: Mapping[str, JsonSchema]) -> list[Parameter]:
    found = []
    for name, schema in properties.items():
        found.append(Parameter(name=name, in_="query", required=False, schema=schema))
    return found


def _problems(statuses: Iterable[str]) -> Mapping[str, Reference]:
    found = {}
    for status in sorted(statuses):
        found[status] = Reference(f"#/components/responses/Problem{status}")
    return {**found, "default": Reference("#/components/responses/Problem")}


def _to(name: str) -> Reference:
    return Reference(REFERENCES.format(name=name))
