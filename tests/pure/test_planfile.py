"""Plan files: TOML and YAML have the same meaning, and all problems of a file are reported at once,
with their lines."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.cli.runs.plan import plan_verb
from perdure.engine.plan_file import LARGEST, read, schema
from perdure.errors import NotFound, PerdureError, UsageError
from perdure.rules.plan import PlanError

DEFAULTS: dict[str, Any] = {
    "agent": "claude", "model": "", "permissions": "edit", "timeout": 3600.0, "attempts": 3, "continuity": "disclose",
}  # fmt: skip

TOML = '''name = "shop"
agent = "codex"
timeout = "15m"

[[tasks]]
name = "models"
prompt = """
Write the models.
[[tasks]]
name = "not a task"
"""
files = ["shop/models.py"]

[[tasks]]
name = "views"
prompt = "Write the views."
needs = ["models"]
agent = "claude"
'''
YAML = """name: shop
agent: codex
timeout: 15m
tasks:
  - name: models
    prompt: "Write the models.\\n[[tasks]]\\nname = \\"not a task\\"\\n"
    files: [shop/models.py]
  - name: views
    prompt: Write the views.
    needs: [models]
    agent: claude
"""


def written(directory: Path, text: str, name: str = "plan.toml") -> Path:
    path = directory / name
    path.write_text(text)
    return path


def problems(path: Path) -> list[str]:
    with pytest.raises(PlanError) as caught:
        read(path, DEFAULTS)
    return [problem.removeprefix(f"{path}:") for problem in caught.value.problems]


def test_toml_and_yaml_say_the_same(tmp_path: Path) -> None:
    """The same plan in TOML and in YAML gives equal plans. A task inherits the values of the plan,
    and the plan those of the settings."""
    first, second = (
        read(written(tmp_path, TOML), DEFAULTS),
        read(written(tmp_path, YAML, "plan.yaml"), DEFAULTS),
    )
    assert first == second
    models, views = first.tasks
    assert (models.agent, models.timeout_s, models.attempts, models.files) == (
        "codex",
        900.0,
        3,
        ("shop/models.py",),
    )
    assert (views.agent, views.needs) == ("claude", ("models",))


def test_a_model_is_for_one_agent(tmp_path: Path) -> None:
    """A task with another agent than its plan does not use the plan's model, and a plan with
    another agent than the settings does not use the settings' model."""
    usual = {**DEFAULTS, "model": "opus"}
    tasks = ('name = "a"\nprompt = "x"', 'name = "b"\nprompt = "x"\nagent = "gemini"')
    body = "".join(f"\n[[tasks]]\n{task}\n" for task in tasks)
    heads = ("", 'agent = "codex"\n', 'agent = "codex"\nmodel = "m"\n')
    found = [
        [task.model for task in read(written(tmp_path, f'name = "p"\n{head}{body}'), usual).tasks]
        for head in heads
    ]
    assert found == [["opus", ""], ["", ""], ["m", ""]]


BAD_TOML = """name = "Shop!"
jobs = 0
colour = "red"

[[tasks]]
prompt = "a"

[[tasks]]
name = "b"
prompt = " "
timeout = "soon"
files = ["ok.py", "../up.py"]
needs = "a"
"""
BAD_YAML = """name: Shop!
jobs: 0
colour: red
tasks:
  - prompt: a

  - name: b
    prompt: " "
    timeout: soon
    files:
      - ok.py
      - ../up.py
    needs: a
"""


@pytest.mark.parametrize(
    ("text", "name", "lines"),
    [
        (BAD_TOML, "plan.toml", (1, 2, 3, 5, 10, 11, 12, 13)),
        (BAD_YAML, "plan.yml", (1, 2, 3, 5, 8, 9, 12, 13)),
    ],
)
def test_all_problems_are_told_at_once(
    tmp_path: Path, text: str, name: str, lines: tuple[int, ...]
) -> None:
    """Each wrong value, unknown key and missing key has one sentence in plain words, with its line,
    in order."""
    sentences = (
        "name: expected a name of up to 40 lower-case letters, digits and hyphens, not 'Shop!'",
        "jobs: expected a whole number from 1 to 64, not 0",
        "unknown key 'colour' in a plan; known are name, agent, model, permissions, timeout, "
        "attempts, continuity, repo, base, verify, map, unforkable, budget_usd, jobs, tasks",
        "'name' is missing in a task",
        "prompt: expected a text, not ' '",
        "timeout: expected a duration such as 90s, 15m, 2h or 7d, not 'soon'",
        "files, entry 2: expected a relative path within the workdir, not '../up.py'",
        "needs: expected a list of names of tasks, not 'a'",
    )
    assert problems(written(tmp_path, text, name)) == [
        f"{line}: {text}" for line, text in zip(lines, sentences, strict=True)
    ]


@pytest.mark.parametrize(
    ("text", "name", "what"),
    [
        ("name = ", "plan.toml", "is not TOML"),
        ("name: [", "plan.yaml", "is not YAML"),
        ("a: &x [1]\nb: *x\n", "plan.yaml", "aliases"),
        ("name: !!python/object:os.system x\n", "plan.yaml", "is not YAML"),
        ("x" * (LARGEST + 1), "plan.toml", "larger than"),
        ("[" * 100_000, "plan.yaml", "plan.yaml"),
    ],
)
def test_what_is_no_plan_is_one_sentence(tmp_path: Path, text: str, name: str, what: str) -> None:
    """A file in another format, one that would run code, and one that would never end are each
    refused with one sentence that names the file."""
    with pytest.raises(UsageError, match=what):
        read(written(tmp_path, text, name), DEFAULTS)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The sentence about a missing file has its path, and the command in the hint works as it is
    printed."""
    with pytest.raises(NotFound, match="gone") as caught:
        read(tmp_path / "gone.toml", DEFAULTS)
    assert caught.value.hint.endswith("perdure plan ls")


@pytest.mark.parametrize("wrong", ['needs = ["nobody"]', "timeuot = 3"])
def test_the_hint_after_problems_names_the_file(tmp_path: Path, wrong: str) -> None:
    """The command in the hint can be given to a shell as it is printed, even if the file's name has
    spaces."""
    text = f'name = "x"\n[[tasks]]\nname = "a"\nprompt = "p"\n{wrong}\n'
    path = written(tmp_path, text, "my plan.toml")
    with pytest.raises(PlanError) as caught:
        read(path, DEFAULTS)
    assert caught.value.hint.endswith(f"perdure plan check '{path}'")


def test_names_and_commands_are_whole(tmp_path: Path) -> None:
    """A name that ends with a newline and a command with a NUL are reported, each with its line.
    Each missing key is reported once."""
    path = written(
        tmp_path,
        'name = "a\\n"\nverify = "x\\u0000"\n[[tasks]]\nname = "b\\n"\nprompt = "x"\nfiles = '
        '["c\\n"]\n',
    )
    assert [text.split(":")[0] for text in problems(path)] == ["1", "2", "4", "6"]
    missing = problems(written(tmp_path, 'agent = "claude"\n'))
    assert [text.partition(": ")[2] for text in missing] == [
        "'name' is missing in a plan",
        "'tasks' is missing in a plan",
    ]


@pytest.mark.parametrize("line", ["prompt: y", 'verify: "\\ud800"'])
def test_what_yaml_lets_through_is_refused(tmp_path: Path, line: str) -> None:
    """A duplicate key, of which YAML would use the last, and a lone surrogate are refused."""
    with pytest.raises(UsageError):
        read(
            written(
                tmp_path, f"name: shop\ntasks:\n- name: a\n  prompt: x\n  {line}\n", "plan.yaml"
            ),
            DEFAULTS,
        )


@pytest.mark.parametrize(
    "text", ["[]", "5", "~", "tasks: {}", "name: x\ntasks: [5, {name: [1], prompt: {}}]"]
)
def test_any_shape_is_a_problem_and_no_crash(tmp_path: Path, text: str) -> None:
    """Lists in place of tables, numbers in place of texts, and an empty file are problems with
    lines."""
    assert problems(written(tmp_path, text, "plan.yaml"))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3),
)
tasks = st.dictionaries(
    st.sampled_from(["name", "prompt", "needs", "files", "agent", "timeout", "x"]),
    values | st.just("ok"),
    max_size=5,
)


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(["name", "tasks", "jobs", "agent", "y"]),
        values | st.lists(tasks, max_size=3),
        max_size=4,
    )
)
def test_whatever_is_written_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, raw: dict[str, Any]
) -> None:
    """Any content of a file gives a plan or a sentence."""
    path = tmp_path_factory.mktemp("p") / "plan.yaml"
    path.write_text(json.dumps(raw))
    try:
        read(path, DEFAULTS)
    except PerdureError as error:
        assert str(error)


def test_the_schema_is_one() -> None:
    """The schema file for editors is a valid JSON Schema."""
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize(
    ("what", "wanted", "hint"),
    [
        ("show", "needs a plan's name", "perdure plan ls"),
        ("retry", "needs a plan's name", "perdure plan ls"),
        ("run", "needs a plan file", "perdure plan --help"),
    ],
)
def test_a_missing_argument_is_named_for_what_it_is(what: str, wanted: str, hint: str) -> None:
    """The error for a missing argument says what it is: `show` and `retry` take the name of a plan,
    the others a file."""
    with pytest.raises(UsageError, match=wanted) as caught:
        plan_verb(Namespace(what=what, file=None, task=None))
    assert caught.value.hint == hint
