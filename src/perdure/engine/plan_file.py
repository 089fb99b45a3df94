"""Reads a plan from a TOML or YAML file. Called by `perdure plan` and by programs. Needs the extra
`plans`.

The format is defined only in `plan.schema.json`, which editors can use as well. All problems of a
file are reported together, each with its line. How the tasks relate to each other is checked in
`perdure.rules.plan`. `read_plan` fills in fields that the file does not set, from the settings.
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.config import Settings
from perdure.errors import NotFound, UsageError
from perdure.host.extras import install_command
from perdure.model import TaskSpec
from perdure.model.durations import duration
from perdure.rules.plan import Plan, PlanError
from perdure.rules.plan.checks import LineOf, RawPlan, planned

if TYPE_CHECKING:
    from yaml import Node

LARGEST = 4 << 20
HINT = "perdure plan check FILE"
OBJECT = "plan"
"""Name that error messages use if the plan did not come from a file."""


def read(path: Path, defaults: Mapping[str, Any]) -> Plan:
    """Return the plan in a file. `defaults`: values for fields that the plan does not set (agent,
    model, permissions, timeout, attempts, continuity).

    Raises NotFound, UsageError for a file that is not TOML or YAML text, and PlanError with all
    problems of the plan.
    """
    _need_libraries()
    text = _text(path)
    if path.suffix in (".yaml", ".yml"):
        raw, line_of = _yaml(text, path)
    else:
        raw, line_of = _toml(text, path)
    if problems := sorted(_misfits(raw, line_of)):
        hint = f"correct it, then: perdure plan check {shlex.quote(str(path))}"
        raise PlanError([f"{path}:{line}: {problem}" for line, problem in problems], hint)
    return planned(_in_seconds(raw), line_of, str(path), defaults)


def read_object(raw: RawPlan, defaults: Mapping[str, Any]) -> Plan:
    """Return the plan in a JSON object that has the structure of a plan file. Raises UsageError,
    and PlanError, whose problems have no line numbers."""
    _need_libraries()

    def line_of(*path: object) -> int:
        return 1

    try:
        json.dumps(raw, ensure_ascii=False).encode()
        if problems := [problem for _, problem in sorted(_misfits(raw, line_of))]:
            raise PlanError(problems, HINT)
        return planned(_in_seconds(raw), line_of, OBJECT, defaults)
    except PlanError as error:
        raise PlanError(
            [problem.removeprefix(f"{OBJECT}:1: ") for problem in error.problems],
            "docs: how-to/plans",
        ) from None
    except (RecursionError, UnicodeEncodeError):
        raise UsageError("the plan is not valid text, or is nested too deeply") from None


def _need_libraries() -> None:
    try:
        import jsonschema  # noqa: F401
        import yaml  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"plans need {error.name}, which is not installed", install_command("plans")
        ) from None


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UsageError(
                f"{path} is larger than {LARGEST >> 20} MiB, more than a plan may have"
            )
        return content.decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(
            f"there is no file {str(path)!r}", "for a plan by its name: perdure plan ls"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the plan {str(path)!r} cannot be read: {error}",
            "expected a UTF-8 file in TOML or YAML",
        ) from None


def _toml(text: str, path: Path) -> tuple[Any, LineOf]:
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is not TOML: {error}", "a plan in YAML needs the file name ending .yaml"
        ) from None
    return raw, _toml_lines(text)


def _toml_lines(text: str) -> LineOf:
    """Return a function that finds the line of a field. tomllib does not report line numbers, so
    the text is searched for headers and keys at the beginning of lines."""
    plain = re.sub(
        r'("""|\'\'\').*?\1', lambda found: "\n" * found[0].count("\n"), text, flags=re.DOTALL
    )
    places: dict[tuple[object, ...], int] = {}
    table: tuple[object, ...] = ()
    count = -1
    for number, line in enumerate(plain.split("\n"), 1):
        if re.match(r"\s*\[\[\s*tasks\s*\]\]", line):
            count += 1
            table = ("tasks", count)
            places[table] = number
        elif key := re.match(r"\s*[\"']?([\w-]+)[\"']?\s*=", line):
            places.setdefault((*table, key[1]), number)
    return _nearest(places)


def _yaml(text: str, path: Path) -> tuple[Any, LineOf]:
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise UsageError(
                    f"{path}: aliases (*name) are not read in a plan", "write the value instead"
                )
            if isinstance(event, yaml.ScalarEvent):
                # YAML accepts an unpaired surrogate that is written as an escape. Encoding it
                # raises ValueError.
                event.value.encode()
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(
            f"{path} is not YAML: {' '.join(str(error).split())}",
            "a plan in TOML needs the file name ending .toml",
        ) from None
    except (RecursionError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    places: dict[tuple[object, ...], int] = {}
    _yaml_lines(node, (), places)
    return raw, _nearest(places)


def _yaml_lines(
    node: Node | None, at: tuple[object, ...], places: dict[tuple[object, ...], int]
) -> None:
    from yaml import MappingNode, SequenceNode

    if isinstance(node, MappingNode):
        for key, value in node.value:
            if (first := places.get((*at, key.value))) is not None:
                raise UsageError(
                    f"the plan says {key.value!r} twice, on line {first} and on line "
                    f"{key.start_mark.line + 1}",
                    HINT,
                )
            places[(*at, key.value)] = key.start_mark.line + 1
            _yaml_lines(value, (*at, key.value), places)
    elif isinstance(node, SequenceNode):
        for index, value in enumerate(node.value):
            places[(*at, index)] = value.start_mark.line + 1
            _yaml_lines(value, (*at, index), places)


def _nearest(places: Mapping[tuple[object, ...], int]) -> LineOf:
    """Return a function that finds the line of a field, or of its nearest parent."""

    def line_of(*path: object) -> int:
        while path and path not in places:
            path = path[:-1]
        return places.get(path, 1)

    return line_of


@cache
def schema() -> Mapping[str, object]:
    """Return the JSON Schema of a plan (draft 2020-12)."""
    found: Mapping[str, object] = json.loads(
        files("perdure.rules.plan").joinpath("plan.schema.json").read_text(encoding="utf-8")
    )
    return found


def _misfits(raw: Any, line_of: LineOf) -> Iterator[tuple[int, str]]:
    from jsonschema import Draft202012Validator

    for error in Draft202012Validator(schema()).iter_errors(raw):
        path = tuple(error.absolute_path)
        if error.validator == "additionalProperties":
            for name in sorted(set(error.instance) - set(error.schema["properties"]), key=str):
                known = ", ".join(error.schema["properties"])
                yield (
                    line_of(*path, name),
                    f"unknown key {str(name)!r} {_within(path)}; known are {known}",
                )
        else:
            yield line_of(*path), _sentence(error, path)


def _sentence(error: Any, path: tuple[str | int, ...]) -> str:
    if path and isinstance(path[-1], str):
        what = str(path[-1])
    elif len(path) > 1:
        what = f"{path[-2]}, entry {int(path[-1]) + 1}"
    else:
        what = "a plan"
    if error.validator == "required":
        missing = next(
            name for name in error.validator_value if error.message.startswith(repr(name))
        )
        return f"{missing!r} is missing {_within(path)}"
    wanted = error.schema.get("title") or error.schema.get("description", "")
    if len(repr(error.instance)) <= 60:
        shown = repr(error.instance)
    else:
        shown = f"{repr(error.instance)[:60]}..."
    return f"{what}: expected {wanted}, not {shown}"


def _within(path: tuple[str | int, ...]) -> str:
    if path[:1] == ("tasks",):
        return "in a task"
    return "in a plan"


def _in_seconds(raw: RawPlan) -> RawPlan:
    """Return the plan with durations such as `90s` converted to seconds."""
    return {**_converted(raw), "tasks": list(map(_converted, raw["tasks"]))}


def _converted(table: Mapping[str, object]) -> Mapping[str, object]:
    if "timeout" not in table:
        return table
    return {**table, "timeout": duration(str(table["timeout"]))}


def read_plan(file: Path, chosen: Settings) -> Plan:
    """Return the plan in the file. Fields that the file does not set have the values of the
    settings. Raises NotFound, UsageError, PlanError."""
    return read(file, plan_defaults(chosen))


def plan_defaults(chosen: Settings) -> Mapping[str, object]:
    """Return the values that a plan's fields have if the file does not set them, taken from the
    settings."""
    names = ("agent", "model", "permissions", "timeout", "attempts", "continuity")
    return {name: getattr(chosen, name) for name in names}


def seed_of(chosen: Settings, cwd: Path) -> TaskSpec:
    """Return the spec that contains the fields that all tasks share: the repository at `cwd`, and
    the limits of the settings."""
    return TaskSpec(
        prompt="",
        repo=str(cwd),
        base=chosen.base,
        backend=str(chosen.backend or ""),
        stall_s=chosen.stall,
        budget_usd=chosen.budget_usd,
        verify_rounds=chosen.verify_rounds,
        verify_timeout_s=chosen.verify_timeout,
    )


def name_of(ref: str, chosen: Settings) -> str:
    """Return the name of a plan. `ref`: that name, or the path of the plan's file."""
    if is_file(ref):
        return read_plan(Path(ref), chosen).name
    return ref


def is_file(ref: str) -> bool:
    """Return whether `ref` is the path of a plan's file. If not, it is the name of a plan."""
    return Path(ref).suffix in (".toml", ".yaml", ".yml")
