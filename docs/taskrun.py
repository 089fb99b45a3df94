"""Writes `docs/reference/taskrun.md` from the TaskRun resource and the parsers of `kubectl
perdure`. Only `generate` calls it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from perdure.cli.kubernetes import verbs

TARGET = Path(__file__).resolve().parent / "reference" / "taskrun.md"
SOURCE = (
    Path(__file__).resolve().parent.parent
    / "packaging"
    / "helm"
    / "perdure"
    / "crds"
    / "taskruns.yaml"
)

HEAD = """# The TaskRun resource

<!-- Made by docs/generate.py from packaging/helm/perdure/crds/taskruns.yaml. Do not edit: change that, then run it. -->

`taskruns.perdure.dev`, version `v1alpha1`, short name `ptr`, category `perdure` (`kubectl get perdure`). Tekton has a resource of the same
kind: with both in a cluster, write `taskruns.perdure.dev` or `ptr`. How to use it: [Kubernetes](../how-to/kubernetes.md). `kubectl explain
taskruns.perdure.dev.spec` shows the same.

A TaskRun is an ordinary [task](cli.md#the-run-as-json) of perdure. Its name is also the run's name: at most 63 lower-case letters, digits and
hyphens.
"""

ANNOTATIONS = (
    (
        "annotation",
        "perdure.dev/retry",
        "any new value: one more attempt, once for each value; `kubectl perdure retry` sets it",
    ),
    (
        "annotation",
        "perdure.dev/retry-attempts",
        "how many further attempts a retry allows (1); `kubectl perdure retry --attempts` sets it",
    ),
    (
        "annotation",
        "perdure.dev/abandon",
        '"true": the finalizer is removed although work is saved nowhere else',
    ),
    (
        "finalizer",
        "perdure.dev/unsaved-work",
        "there while work may be saved nowhere else, or a claim is to be deleted with the TaskRun; "
        "not where all work stays on a claim that is kept",
    ),
    (
        "label",
        "kueue.x-k8s.io/queue-name",
        "passed on to the attempts' Jobs, with `kueue.x-k8s.io/priority-class`",
    ),
)


def page(table: Callable[..., Iterator[str]]) -> str:
    """Return the whole page. `table`: the function of `generate` that makes a table."""
    (version,) = yaml.safe_load(SOURCE.read_text(encoding="utf-8"))["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]["properties"]
    columns = [
        (
            column["name"],
            f"`{column['jsonPath']}`",
            "with `-o wide`" if column.get("priority") else "",
        )
        for column in version["additionalPrinterColumns"]
    ]
    selectable = ", ".join(
        f"`{field['jsonPath'].lstrip('.')}`" for field in version["selectableFields"]
    )
    return "\n".join(
        [
            *(HEAD, "## spec", ""),
            *(
                "Numbers, lengths and counts have bounds; a field that is not here is refused or "
                "left out by the API server.",
                "",
            ),
            *table(("Field", "Type", "Default", "Meaning"), fields(schema["spec"], "", True)),
            *(
                "## Rules",
                "",
                "Beside types and bounds, the API server checks these. A refusal has the sentence.",
                "",
            ),
            *table(("Where", "Sentence"), rules(schema["spec"], "spec")),
            *("## Labels, annotations, finalizer", ""),
            *table(
                ("Kind", "Name", "Meaning"),
                ((kind, f"`{name}`", meaning) for kind, name, meaning in ANNOTATIONS),
            ),
            *("## status", "", "Written by the operator alone.", ""),
            *table(
                ("Field", "Type", "Meaning"),
                (
                    (name, kind, meaning)
                    for name, kind, _, meaning in fields(schema["status"], "", False)
                ),
            ),
            *("## Columns and field selectors", ""),
            *table(("Column", "From", ""), columns),
            *(f"`--field-selector` takes {selectable}.", ""),
            *("## kubectl perdure", ""),
            "`kubectl perdure VERB`, or `perdure --cluster VERB`. Every verb takes `-n NS`, "
            "`--context NAME` and `--kubeconfig FILE`. Exit codes are [those of "
            "perdure](cli.md#exit-codes); with `--follow` that of the task.",
            "",
            *table(
                ("Verb", "What it does", "Arguments"),
                ((f"`{verb}`", text, arguments(verb)) for verb, (_, text) in verbs.VERBS.items()),
            ),
        ]
    )


def fields(node: dict[str, Any], at: str, spec: bool) -> Iterator[tuple[str, str, str, str]]:
    """Yield a row for each field and for each field below it: path, type, default and
    description."""
    required = node.get("required", [])
    for name, below in node.get("properties", {}).items():
        if below.get("description") == "Refused.":
            continue
        path = f"{at}{name}"
        inner = below.get("items", below)
        default = below.get("default")
        shown = (
            "required"
            if name in required and spec
            else f"`{default}`"
            if default not in (None, {}) and not isinstance(default, dict)
            else ""
        )
        yield f"`{path}`", kind(below), shown, words(below)
        if inner.get("properties"):
            yield from fields(inner, f"{path}[]." if below is not inner else f"{path}.", spec)


def kind(node: dict[str, Any]) -> str:
    if "enum" in node:
        return ", ".join(f"`{each}`" for each in node["enum"])
    if node.get("x-kubernetes-int-or-string"):
        return "quantity"
    if "items" in node:
        return f"list of {kind(node['items'])}"
    if "additionalProperties" in node:
        return f"map of {kind(node['additionalProperties'])}"
    return {"date-time": "time"}.get(node.get("format", ""), str(node.get("type", "any")))


def words(node: dict[str, Any]) -> str:
    return " ".join(str(node.get("description", "")).split()).replace("|", "\\|")


def rules(node: dict[str, Any], at: str) -> Iterator[tuple[str, str]]:
    for rule in node.get("x-kubernetes-validations", []):
        yield f"`{at}`", rule["message"].replace("|", "\\|")
    for name, below in node.get("properties", {}).items():
        inner = below.get("items")
        yield from rules(below, f"{at}.{name}")
        if inner:
            yield from rules(inner, f"{at}.{name}[]")


def arguments(verb: str) -> str:
    """Return the verb's own arguments, without those that all verbs have."""
    found = []
    for action in verbs.parser_of(verb)._actions:
        if action.dest in ("help", "namespace", "context", "kubeconfig"):
            continue
        place = action.metavar or action.dest.upper()
        if not action.option_strings:
            found.append(f"`[{place}]`" if action.nargs == "?" else f"`{place}`")
        elif isinstance(action, argparse._StoreTrueAction):
            found.append(f"`{action.option_strings[-1]}`")
        else:
            found.append(
                f"`{action.option_strings[-1]} "
                f"{'/'.join(map(str, action.choices)) if action.choices else place}`"
            )
    return " ".join(found)


def problem(table: Callable[..., Iterator[str]]) -> str:
    """Return one sentence if the page on disk differs from the one made from the code, else an
    empty string."""
    there = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
    return (
        ""
        if there == page(table)
        else f"reference/{TARGET.name} is not up to date: run docs/generate.py"
    )


def write(table: Callable[..., Iterator[str]]) -> None:
    TARGET.write_text(page(table), encoding="utf-8")
