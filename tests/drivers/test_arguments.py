"""The user's arguments for an agent that perdure also sets: they are merged, or refused with a
sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perdure.agents import registry
from perdure.model import Continuation, Launch, Program, Start, TaskSpec

ID = "11111111-2222-4333-8444-555555555555"


def launch(agent: str, *arguments: str, cwd: str = "/") -> Launch:
    """Return a launch of a new conversation with these arguments."""
    spec = TaskSpec(prompt="x", agent=agent, agent_args=arguments)
    begins = Continuation(kind=Start.FRESH, session_id=ID if agent != "codex" else "")
    return Launch(
        spec=spec,
        continuation=begins,
        prompt="x",
        cwd=cwd,
        home="/none",
        program=Program(path="/bin/true"),
    )


def settings_of(
    *arguments: str, cwd: str = "/"
) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
    """Return the settings of the launch, the last two words of its command, and its notes. The
    settings must be in one argument."""
    command = registry.load("claude").command(launch("claude", *arguments, cwd=cwd))
    given = [word for word in command.argv if word.startswith("--settings")]
    assert len(given) == 1
    return json.loads(given[0].partition("=")[2]), command.argv[-2:], command.notes


@pytest.mark.parametrize(
    "spelled", [("--settings", '{"model":"opus"}'), ('--settings={"model":"opus"}',)]
)
def test_settings_of_the_user_are_merged(spelled: tuple[str, ...]) -> None:
    """The user's setting is used in both spellings. The setting that keeps the CLI from deleting
    conversations stays."""
    found, _, notes = settings_of(*spelled)
    assert found == {"model": "opus", "cleanupPeriodDays": 3650}
    assert notes == ()


def test_a_file_and_a_repeated_flag_are_merged(tmp_path: Path) -> None:
    """A file's path is relative to the agent's directory. Objects are merged key by key, and the
    later value wins."""
    (tmp_path / "own.json").write_text('{"permissions": {"allow": ["Bash"]}, "model": "opus"}')
    later = '{"permissions": {"deny": ["Write"]}, "model": "haiku"}'
    found, rest, _ = settings_of(
        "--settings=own.json", "--add-dir", "/x", "--settings", later, cwd=str(tmp_path)
    )
    assert found["permissions"] == {"allow": ["Bash"], "deny": ["Write"]}
    assert (found["model"], found["cleanupPeriodDays"]) == ("haiku", 3650)
    assert rest == ("--add-dir", "/x")


@pytest.mark.parametrize("days", ["0", "7", "true", '"x"'])
def test_the_clean_up_cannot_be_switched_on(days: str) -> None:
    """For the number of days after which the CLI deletes conversations, perdure's value wins over a
    lower or invalid one, and a note says so."""
    found, _, notes = settings_of(f'--settings={{"cleanupPeriodDays":{days}}}')
    assert found == {"cleanupPeriodDays": 3650}
    assert notes == (
        f"cleanupPeriodDays {days} in --settings is not used: it would have conversations deleted",
    )


def test_a_longer_time_of_the_user_holds() -> None:
    """If the user's setting keeps conversations longer than perdure requires, it is not changed."""
    found, _, notes = settings_of('--settings={"cleanupPeriodDays":99999}')
    assert (found, notes) == ({"cleanupPeriodDays": 99999}, ())


def test_bad_settings_are_one_sentence_before_the_launch(tmp_path: Path) -> None:
    """Settings are refused before the launch if they are broken JSON. So is a file with variables
    that does not keep conversations: perdure would have to merge it, and the variables' values must
    not appear in a command line."""
    claude = registry.load("claude")
    (tmp_path / "secret.json").write_text('{"env": {"TOKEN": "s3cret"}}')
    (tmp_path / "broken.json").write_text("[")
    assert claude.refuse(launch("claude", "--settings={broken")).startswith(
        "The JSON of the argument --settings is not valid: "
    )
    assert "broken.json is not valid" in claude.refuse(
        launch("claude", "--settings=broken.json", cwd=str(tmp_path))
    )
    secret = launch("claude", "--settings=secret.json", cwd=str(tmp_path))
    assert 'it needs "cleanupPeriodDays": 3650 itself' in claude.refuse(secret)
    assert "s3cret" not in str(claude.command(secret).argv)


def test_a_file_with_variables_that_keeps_conversations_is_passed_as_it_is(tmp_path: Path) -> None:
    """The content of a settings file with variables stays out of the command line if nothing has to
    be merged into it."""
    (tmp_path / "secret.json").write_text('{"env": {"TOKEN": "s3cret"}, "cleanupPeriodDays": 3650}')
    own = launch("claude", "--settings=secret.json", cwd=str(tmp_path))
    command = registry.load("claude").command(own)
    assert registry.load("claude").refuse(own) == ""
    assert "--settings=secret.json" in command.argv
    assert "s3cret" not in str(command.argv)


def test_a_file_that_is_not_there_is_left_to_the_cli() -> None:
    """A settings file that is missing is passed on, because it may be in a directory that does not
    exist yet. If it is still missing at the launch, the CLI ends with its own error."""
    assert registry.load("claude").refuse(launch("claude", "--settings=missing.json")) == ""
    assert (
        "--settings=missing.json"
        in registry.load("claude").command(launch("claude", "--settings=missing.json")).argv
    )


@pytest.mark.parametrize(
    ("agent", "argument"),
    [
        ("claude", "--no-session-persistence"),
        ("claude", f"--session-id={ID}"),
        ("claude", f"-r{ID}"),
        ("claude", "--worktree=x"),
        ("codex", "--ephemeral"),
        ("codex", "--worktree"),
        ("codex", "-C/elsewhere"),
        ("gemini", "--sessionFile=x"),
        ("gemini", f"--sessionId={ID}"),
        ("gemini", "-rlatest"),
        ("opencode", "-sses_x"),
        ("opencode", "--printLogs"),
    ],
)
def test_what_would_take_the_conversation_elsewhere_is_refused(agent: str, argument: str) -> None:
    """An argument that would move the conversation is refused in each form that the CLI accepts,
    such as with its value attached, or in camel case."""
    assert "cannot be passed" in registry.load(agent).refuse(launch(agent, argument))


@pytest.mark.parametrize(
    ("agent", "argument"),
    [("codex", "-cmodel_reasoning_effort=low"), ("claude", "--add-dir"), ("gemini", "-d")],
)
def test_other_arguments_pass(agent: str, argument: str) -> None:
    """The user may change settings that perdure does not need."""
    assert registry.load(agent).refuse(launch(agent, argument)) == ""
