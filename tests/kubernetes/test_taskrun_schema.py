"""Compares the TaskRun resource with the task that it describes, without a cluster: fields,
defaults, limits and the sentences of refusals."""

from __future__ import annotations

import re
from typing import Any, get_args, get_origin

import msgspec
import pytest
from msgspec import NODEFAULT
from msgspec.structs import fields

from perdure.agents import registry
from perdure.engine import service
from perdure.kubernetes.objects import CHOICES, camel_word, dollars, plain_word, written
from perdure.kubernetes.spec import Spec, task_spec
from perdure.kubernetes.wanted import wanted
from perdure.model import ContinuityPolicy, Permissions, TaskSpec, WhenFull
from perdure.model.choices import OnDenied, OnEdit, OnLeftover
from perdure.workspace import identity
from tests.kubernetes import making
from tests.kubernetes.refusals import CHANGES, REFUSED
from tests.kubernetes.resource import places, schema, version

FIELDS = {
    "prompt": "spec.prompt",
    "agent": "spec.agent",
    "repo": "spec.repository.url",
    "base": "spec.repository.base",
    "branch": "spec.repository.branch",
    "service": "spec.service",
    "task": "spec.task",
    "model": "spec.model",
    "on_denied": "spec.policy.onDenied",
    "on_leftover": "spec.policy.onLeftover",
    "last_word": "spec.policy.lastWord",
    "permissions": "spec.permissions",
    "agent_args": "spec.agentArgs",
    "env": "spec.env",
    "timeout_s": "spec.policy.timeoutSeconds",
    "stall_s": "spec.policy.stallSeconds",
    "attempts": "spec.policy.attempts",
    "budget_usd": "spec.policy.budgetUSD",
    "continuity": "spec.policy.continuity",
    "when_full": "spec.policy.whenFull",
    "verify": "spec.policy.verify",
    "files": "spec.policy.files",
    "verify_rounds": "spec.policy.verifyRounds",
    "verify_timeout_s": "spec.policy.verifyTimeoutSeconds",
    "labels": "spec.labels",
}
"""Path of each field of a task in the resource."""

LEFT_OUT = {
    "name": "the resource's own name",
    "key": "the resource's name is unique in its namespace",
    "here": "a pod has no directory of the user's",
    "backend": "a pod has a clone of its own",
    "scope": "a conversation for each resource",
    "forks": "a later version",
    "fork_at": "a later version",
    "pass_env": "a pod has no variables of the user's",
    "conflicts": "only a plan sets it",
    "map": "as the image's settings say",
    "rule": "only a dispatch sets it",
    "title": "only a dispatch sets it",
    "link": "only a dispatch sets it",
}

BY_PATH = dict(places(schema()))


def test_every_field_of_a_task_has_its_place_or_is_left_out_by_name() -> None:
    """Every field of TaskSpec is in the table of this file, and the table has no other fields."""
    assert set(FIELDS) | set(LEFT_OUT) == set(TaskSpec.__struct_fields__)
    assert not set(FIELDS) & set(LEFT_OUT)
    assert [place for place in FIELDS.values() if place not in BY_PATH] == []


def test_defaults_are_those_of_a_task() -> None:
    """A TaskRun without optional fields has the defaults of `perdure run`."""
    unset = {
        field.name: field.default for field in fields(TaskSpec) if field.default is not NODEFAULT
    }
    for name, place in FIELDS.items():
        default = BY_PATH[place].get("default", unset.get(name))
        if isinstance(default, str) and "enum" in BY_PATH[place]:
            default = plain_word(default)
        assert default == unset.get(name) or name == "prompt", place


def test_names_and_limits_are_perdures_own() -> None:
    """perdure accepts every choice and name that the API server accepts. Choices are the values of
    the same enums. The patterns of names allow no more than those of workspaces and services."""
    words = {
        "spec.permissions": Permissions,
        "spec.onEdit": OnEdit,
        "spec.policy.continuity": ContinuityPolicy,
        "spec.policy.whenFull": WhenFull,
        "spec.policy.onDenied": OnDenied,
        "spec.policy.onLeftover": OnLeftover,
    }
    assert set(words) == {"spec." + ".".join(place) for place in CHOICES}
    for place, choices in words.items():
        assert BY_PATH[place]["enum"] == [camel_word(each) for each in choices]
        assert [plain_word(each) for each in BY_PATH[place]["enum"]] == [str(e) for e in choices]
    known = "self.agent in [" + ", ".join(f"'{name}'" for name in registry.BUILT_IN) + "]"
    rules = [each["rule"] for each in BY_PATH["spec"]["x-kubernetes-validations"]]
    assert any(rule.startswith(f"{known} || self.agent.startsWith('acp-')") for rule in rules)
    for place in ("spec.service", "spec.task", "spec.agent"):
        for name in ("a", "A.b_c-9", "x" * 63):
            assert re.search(BY_PATH[place]["pattern"], name) and identity.check_name(
                "service", name
            )
        for name in ("", ".a", "-a", "a/b", "a\n", "x" * 64, "é", "a..", "a-"):
            assert not re.search(BY_PATH[place]["pattern"].replace("$", r"\Z"), name)
    (rule,) = schema()["x-kubernetes-validations"]
    assert f"matches('^{service.NAME.pattern}$')" in rule["rule"]
    assert BY_PATH["spec.repository.base"]["pattern"] == f"^{identity._BASE.pattern}$"
    assert BY_PATH["spec.repository.branch"]["pattern"] == f"^{identity._BRANCH.pattern}$"


@pytest.mark.parametrize(
    ("url", "taken"),
    [
        ("https://git.example.com/a/b.git", True),
        ("http://127.0.0.1:3000/a/b", True),
        ("/srv/repositories/shop", True),
        ("https://me:secret@git.example.com/a", False),
        ("http://git.example.com/a/b", True),
        ("ssh://git@host/a", True),
        ("ssh://host:2222/a", True),
        ("git@host:a/b", True),
        ("http://me:secret@git.example.com/a", False),
        ("ssh://git:secret@host/a", False),
        ("ssh://-oProxyCommand=id/a", False),
        ("git@-oProxyCommand=id:a", False),
        ("git@host:-a", False),
        ("git@host://a", False),
        ("file:///srv/x", False),
        ("ext::sh -c id", False),
        ("https://host", False),
        ("--upload-pack=id", False),
    ],
)
def test_repositories_that_no_pod_would_fetch_are_refused_at_the_door(
    url: str, taken: bool
) -> None:
    """The resource refuses an address with credentials, or with a transport that perdure does not
    use. For http and ssh the operator's permission decides."""
    assert bool(re.search(BY_PATH["spec.repository.url"]["pattern"], url)) is taken


def test_there_is_no_float_and_one_style_of_words() -> None:
    """Amounts are whole numbers or text, and choices are spelled as Kubernetes spells them."""
    for place, node in BY_PATH.items():
        assert node.get("type") != "number", place
        for word in node.get("enum", []):
            assert re.fullmatch(r"([A-Z][a-z]*)+", str(word)), (place, word)


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0.0, 0), (5.0, 5), (2.5, "2.5"), (0.1 + 0.2, "0.3"), (0.012345, "0.012345"), (1e-9, "0")],
)
def test_amounts_are_written_as_text_and_read_as_numbers(amount: float, text: int | str) -> None:
    assert written(amount) == text and dollars(text) == pytest.approx(amount, abs=1e-6)


def test_what_an_earlier_version_wrote_is_read() -> None:
    """A TaskRun of an earlier version, with floats and lower-case words in spec and status, is read
    with the same meaning."""
    policy = {"budgetUSD": 2.5, "continuity": "fresh-ok", "whenFull": "roll-over"}
    policy |= {"onDenied": "ask", "onLeftover": "keep"}
    run = making.taskrun(permissions="full", policy=policy)
    run["status"] = {"usage": {"inputTokens": 7, "costUSD": 0.25}}
    now = making.taskrun(
        permissions="Full",
        policy={
            "budgetUSD": "2.50",
            "continuity": "FreshOk",
            "whenFull": "RollOver",
            "onDenied": "Ask",
            "onLeftover": "Keep",
        },
    )
    old, new = wanted(run), wanted(now)
    assert not old.invalid and not new.invalid
    assert task_spec(old.spec) == task_spec(new.spec) and task_spec(old.spec).budget_usd == 2.5
    assert old.status.usage.usage.cost_usd == 0.25
    assert "budgetUSD" in wanted(making.taskrun(policy={"budgetUSD": "much"})).invalid


def test_everything_in_it_has_a_bound() -> None:
    """Every text, list and map of the resource has a limit, which bounds the work of the API server
    and the size in etcd."""
    for place, node in BY_PATH.items():
        if node.get("x-kubernetes-preserve-unknown-fields") or place in (
            "apiVersion",
            "kind",
            "metadata",
        ):
            continue
        match node.get("type"):
            case "string":
                assert {"maxLength", "enum", "format"} & set(node), place
            case "array":
                assert "maxItems" in node, place
            case "object" if "additionalProperties" in node:
                assert "maxProperties" in node, place
            case "integer" | "number" if (
                place.startswith("spec.") and node.get("format") != "int64"
            ):
                assert {"minimum", "maximum"} <= set(node), place


def test_every_rule_names_its_field() -> None:
    """Every refusal names its field."""
    for place, node in BY_PATH.items():
        for rule in node.get("x-kubernetes-validations", []):
            last = place.partition("[")[0].partition("{")[0] or "metadata"
            assert last in rule["message"], rule
            if field := rule.get("fieldPath", "").strip("."):
                assert field in node["properties"] and f"{field}" in rule["message"], rule


def test_every_rule_is_tried_on_the_api_server() -> None:
    """The table of refusals, which the tests on a cluster use, has a case for each rule."""
    said = [wanted for _, wanted in REFUSED.values()] + [wanted for *_, wanted in CHANGES.values()]
    tails = {wanted[at:] for wanted in said for at in range(len(wanted) - 15)}
    rules = [
        rule["message"]
        for node in BY_PATH.values()
        for rule in node.get("x-kubernetes-validations", [])
    ]
    assert [
        each
        for each in rules
        if not any(each.startswith(tail) for tail in tails) and not each.startswith("metadata.name")
    ] == []


def test_patterns_mean_the_same_to_both_engines() -> None:
    """Every pattern is anchored, and uses only syntax that RE2 supports."""
    for place, node in BY_PATH.items():
        if pattern := node.get("pattern"):
            re.compile(pattern)
            assert pattern.startswith("^") and pattern.endswith("$") and "(?" not in pattern, place


def test_the_operator_reads_every_field() -> None:
    """The operator's structs have exactly the fields of the resource, with the same defaults."""
    spec = {place.removeprefix("spec.") for place in BY_PATH if place.startswith("spec.")}
    told = {place for place in spec if not re.match(r"pod\.(\w+)[\[{.]|.*[]}]$", place)}
    assert set(_fields(Spec)) == told
    for place, default in _fields(Spec).items():
        if "default" in BY_PATH[f"spec.{place}"] and not isinstance(
            BY_PATH[f"spec.{place}"]["default"], dict
        ):
            found = BY_PATH[f"spec.{place}"]["default"]
            if tuple(place.split(".")) in CHOICES:
                found = plain_word(found)
            assert found == default, place


def _fields(struct: Any, at: str = "") -> dict[str, Any]:
    """Return the fields of a struct and of the structs in it, by their names in the resource, each
    with its default."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(struct):
        name, kinds = f"{at}{field.encode_name}", [field.type, *get_args(field.type)]
        below = next(
            (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, msgspec.Struct)),
            None,
        )
        found[name] = field.default
        if below is not None:
            found |= _fields(below, f"{name}[]." if get_origin(field.type) is tuple else f"{name}.")
    return found


def test_columns_and_selectable_fields_are_there() -> None:
    """Every column and every selectable field is in the schema. Otherwise it would always be
    empty."""
    for column in (*version()["additionalPrinterColumns"], *version()["selectableFields"]):
        path = column["jsonPath"].lstrip(".")
        assert path in BY_PATH or path == "metadata.creationTimestamp", path


def test_lists_with_keys_are_merged_by_them() -> None:
    """Two writers of conditions, attempts, variables or volumes do not replace each other's
    entries."""
    keyed = {
        place: node["x-kubernetes-list-map-keys"]
        for place, node in BY_PATH.items()
        if node.get("x-kubernetes-list-type") == "map"
    }
    assert keyed == {
        "spec.files": ["path"],
        "spec.env": ["name"],
        "spec.pod.imagePullSecrets": ["name"],
        "spec.pod.volumes": ["name"],
        "spec.pod.volumeMounts": ["mountPath"],
        "status.conditions": ["type"],
        "status.attempts": ["number"],
        "status.requests": ["number"],
        "status.instructionsFrom": ["version"],
    }
