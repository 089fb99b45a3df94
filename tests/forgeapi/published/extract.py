"""Extracts the calls that perdure makes from GitHub's own description of its REST API, and writes
them to `github.json` beside this file.

    npm pack @octokit/openapi@23.0.2 && tar xzf octokit-openapi-23.0.2.tgz
    python -m tests.forgeapi.published.extract package/generated/api.github.com.json

`@octokit/openapi` (MIT licence, (c) 2020 Octokit contributors) repackages
github/rest-api-description (MIT licence, (c) 2020 GitHub). Texts and examples are left out;
parameters, bodies and schemas are as published.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

OPERATIONS = [
    "GET /user",
    "GET /user/repos",
    "GET /repos/{owner}/{repo}",
    "GET /repos/{owner}/{repo}/collaborators/{username}/permission",
    "GET /repos/{owner}/{repo}/issues",
    "GET /repos/{owner}/{repo}/issues/{issue_number}",
    "GET /repos/{owner}/{repo}/issues/{issue_number}/comments",
    "POST /repos/{owner}/{repo}/issues/{issue_number}/comments",
    "PATCH /repos/{owner}/{repo}/issues/comments/{comment_id}",
    "POST /repos/{owner}/{repo}/issues/{issue_number}/reactions",
    "POST /repos/{owner}/{repo}/issues/comments/{comment_id}/reactions",
    "POST /repos/{owner}/{repo}/pulls/comments/{comment_id}/reactions",
    "GET /repos/{owner}/{repo}/pulls",
    "POST /repos/{owner}/{repo}/pulls",
    "GET /repos/{owner}/{repo}/pulls/{pull_number}",
    "GET /repos/{owner}/{repo}/pulls/{pull_number}/comments",
    "GET /repos/{owner}/{repo}/pulls/{pull_number}/reviews",
    "POST /repos/{owner}/{repo}/statuses/{sha}",
    "GET /repos/{owner}/{repo}/commits/{ref}/status",
    "GET /repos/{owner}/{repo}/commits/{ref}/check-runs",
    "GET /repos/{owner}/{repo}/actions/jobs/{job_id}/logs",
    "GET /repos/{owner}/{repo}/branches/{branch}",
    "GET /repos/{owner}/{repo}/hooks",
    "GET /repos/{owner}/{repo}/hooks/{hook_id}/deliveries",
    "POST /repos/{owner}/{repo}/hooks/{hook_id}/deliveries/{delivery_id}/attempts",
    "GET /orgs/{org}/hooks",
    "GET /orgs/{org}/hooks/{hook_id}/deliveries",
    "POST /orgs/{org}/hooks/{hook_id}/deliveries/{delivery_id}/attempts",
]
DROPPED = (
    "description",
    "example",
    "examples",
    "externalDocs",
    "x-github",
    "title",
    "deprecated",
    "summary",
    "tags",
    "operationId",
)


def without_texts(value: Any, inside: str = "") -> Any:
    """Return a schema without its descriptions and examples. A property that has the name of one of
    these is kept."""
    if isinstance(value, dict):
        return {
            name: without_texts(each, name)
            for name, each in value.items()
            if inside in ("properties", "schemas", "parameters") or name not in DROPPED
        }
    return [without_texts(each) for each in value] if isinstance(value, list) else value


def refs(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(refs, value.values()))
    return set().union(*map(refs, value)) if isinstance(value, list) else set()


def found_at(document: Any, ref: str) -> Any:
    for key in ref.removeprefix("#/").split("/"):
        document = document[key]
    return document


def extract(document: Any) -> Any:
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        method, path = operation.split(" ")
        whole = document["paths"][path][method.lower()]
        wanted = {
            "parameters": whole.get("parameters", []),
            "requestBody": whole.get("requestBody", {}),
        }
        wanted["responses"] = {
            status: each for status, each in whole["responses"].items() if status[0] in "23"
        }
        paths.setdefault(path, {})[method.lower()] = without_texts(wanted)
    components: dict[str, Any] = {}
    todo = refs(paths)
    while todo:
        ref = todo.pop()
        _, _, kind, name = ref.split("/")
        if name not in components.setdefault(kind, {}):
            components[kind][name] = without_texts(found_at(document, ref))
            todo |= refs(components[kind][name])
    return {
        "source": "@octokit/openapi 23.0.2, api.github.com",
        "version": document["info"]["version"],
        "paths": paths,
        "components": components,
    }


if __name__ == "__main__":
    made = extract(json.loads(Path(sys.argv[1]).read_text()))
    Path(__file__).with_name("github.json").write_text(
        json.dumps(made, sort_keys=True, separators=(",", ":")) + "\n"
    )
