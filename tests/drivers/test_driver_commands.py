"""How the drivers find their agents, and the command lines that they build. No agent is started."""

from __future__ import annotations

import json
import os
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from msgspec.structs import replace

from perdure.agents import registry
from perdure.errors import AgentMissing, DriverError
from perdure.model import Continuation, Launch, Permissions, Program, Rung, Start, TaskSpec

MODULES = Path(__file__).parents[2] / "agents" / "node_modules"
ID = "3e86833f-e79e-4c46-88a6-cbeec5618e94"
AGENTS = ("claude", "codex")


def launch(
    agent: str,
    prompt: str = "hello",
    kind: Start = Start.FRESH,
    session_id: str = ID,
    **spec: object,
) -> Launch:
    task = TaskSpec(prompt=prompt, agent=agent, **spec)  # type: ignore[arg-type]
    asked = Continuation(kind=kind, session_id=session_id)
    return Launch(
        spec=task,
        continuation=asked,
        prompt=prompt,
        cwd="/nonexistent",
        home="/nonexistent",
        program=Program(path=f"/bin/{agent}"),
    )


def argv(agent: str, **how: object) -> list[str]:
    return list(registry.load(agent).command(launch(agent, **how)).argv)  # type: ignore[arg-type]


def test_the_native_program_is_found_behind_the_wrapper() -> None:
    """From the npm command on PATH the driver finds the executable file of the platform's package,
    with its version. The wrapper script is never started."""
    environ = {"PATH": str(MODULES / ".bin")}
    for agent, version in (("claude", "2.1.329"), ("codex", "0.169.0")):
        program = registry.load(agent).locate(environ)
        assert Path(program.path).read_bytes()[:4] == b"\x7fELF"
        assert "linux-" in program.path
        assert program.version == version


@pytest.mark.parametrize("agent", AGENTS)
def test_a_program_of_any_other_kind_is_taken_as_it_is(agent: str, tmp_path: Path) -> None:
    """A script on PATH is used as it is. The program that the variable names has precedence. If the
    file's name is a version number, that is the version."""
    script = tmp_path / agent
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    driver = registry.load(agent)
    assert driver.locate({"PATH": str(tmp_path)}) == Program(path=str(script), version="")
    other = tmp_path / "versions" / "2.1.4"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    assert driver.locate(
        {"PATH": str(tmp_path), f"PERDURE_{agent.upper()}": str(other)}
    ) == Program(path=str(other), version="2.1.4")
    script.unlink()
    script.symlink_to(other)
    assert driver.locate({"PATH": str(tmp_path)}) == Program(path=str(script), version="2.1.4")


@pytest.mark.parametrize("agent", AGENTS)
def test_a_missing_program_names_the_command_that_installs_it(agent: str, tmp_path: Path) -> None:
    """The error for a program that is not on PATH, or that the variable names but that does not
    exist, has the command that installs the agent."""
    for environ in (
        {"PATH": str(tmp_path)},
        {"PATH": str(tmp_path), f"PERDURE_{agent.upper()}": str(tmp_path)},
    ):
        with pytest.raises(AgentMissing) as error:
            registry.load(agent).locate(environ)
        assert error.value.hint.startswith("npm install -g @")


def test_where_the_conversations_are_kept() -> None:
    """Conversations are in the directory that the CLI's own variable names, else in the CLI's
    directory in the user's home."""
    claude, codex = registry.load("claude"), registry.load("codex")
    assert claude.home({"HOME": "/h"}) == Path("/h/.claude")
    assert claude.home({"HOME": "/h", "CLAUDE_CONFIG_DIR": "/c"}) == Path("/c")
    assert codex.home({"HOME": "/h"}) == Path("/h/.codex")
    assert codex.home({"HOME": "/h", "CODEX_HOME": "/c"}) == Path("/c")


@pytest.mark.parametrize("agent", AGENTS)
def test_the_prompt_goes_by_stdin_alone(agent: str) -> None:
    """No part of a prompt is an argument."""
    command = registry.load(agent).command(launch(agent, prompt="-secret words"))
    assert command.stdin == b"-secret words"
    assert not any("secret" in argument for argument in command.argv)


def test_how_claude_is_told_which_conversation() -> None:
    """The id is set for a new conversation; a conversation is resumed by id or by path, or forked.
    `latest` is never used."""
    assert f"--session-id={ID}" in argv("claude")
    assert f"--session-id={ID}" in argv("claude", kind=Start.REBUILD)
    assert f"--resume={ID}" in argv("claude", kind=Start.RESUME)
    assert {f"--resume={ID}", "--fork-session"} <= set(argv("claude", kind=Start.FORK))
    asked = launch("claude", kind=Start.RESUME)
    by_path = replace(
        asked,
        continuation=replace(asked.continuation, rung=Rung.PATH),
        transcript=f"/somewhere/{ID}.jsonl",
    )
    assert f"--resume=/somewhere/{ID}.jsonl" in registry.load("claude").command(by_path).argv
    for wrong in ("", f"somewhere/{ID}.jsonl", "/somewhere/other.jsonl"):
        with pytest.raises(ValueError):
            registry.load("claude").command(replace(by_path, transcript=wrong))


def test_how_codex_is_told_which_conversation() -> None:
    """The id of the conversation comes after the subcommand. All flags come before it, and the dash
    for the prompt on stdin is last."""
    assert argv("codex")[-1] == "-"
    assert "resume" not in argv("codex")
    assert argv("codex", kind=Start.RESUME)[-3:] == ["resume", ID, "-"]
    assert argv("codex", kind=Start.FORK)[-3:] == ["fork", ID, "-"]


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("kind", [Start.WAIT, Start.REFUSE])
def test_what_starts_nothing_has_no_command(agent: str, kind: Start) -> None:
    """There is no command for the continuations `wait` and `refuse`, which start no process."""
    with pytest.raises(ValueError):
        argv(agent, kind=kind)


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("level", list(Permissions))
def test_permissions_are_set_again_on_each_resume(agent: str, level: Permissions) -> None:
    """The flags are the same for the first launch, a resume and a fork, because the CLIs forget
    them."""

    def flags(kind: Start) -> set[str]:
        found = argv(agent, kind=kind, permissions=level)
        return {
            flag for flag in found if "permission" in flag or "Tools" in flag or "sandbox" in flag
        }

    assert flags(Start.FRESH) == flags(Start.RESUME) == flags(Start.FORK) != set()


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize(
    "prompt", ["", " \n\t", "half \ud83d a pair", "x" * (10 * 1024 * 1024 + 1)]
)
def test_a_prompt_that_cannot_work_is_refused_in_one_sentence(agent: str, prompt: str) -> None:
    """Empty, unwritable and too long prompts are refused before the launch."""
    sentence = registry.load(agent).refuse(launch(agent, prompt=prompt))
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_the_limits_are_those_of_the_clis() -> None:
    """The longest prompt that each CLI accepts is accepted, and a prompt with one more character is
    refused. For Codex a character may have four bytes."""
    claude, codex = registry.load("claude"), registry.load("codex")
    assert not claude.refuse(launch("claude", prompt="x" * (10 << 20)))
    assert claude.refuse(launch("claude", prompt="/" + "x" * ((10 << 20) - 1)))
    assert not codex.refuse(launch("codex", prompt="🙂" * (1 << 20)))
    assert codex.refuse(launch("codex", prompt="x" * ((1 << 20) + 1)))
    assert len(("🙂" * (1 << 20)).encode()) <= codex.abilities.max_prompt_bytes


@pytest.mark.parametrize(
    ("agent", "arguments"),
    [
        ("claude", ("--continue",)),
        ("claude", ("--model", "x", "--resume=abc")),
        ("claude", ("--no-session-persistence",)),
        ("claude", ("--output-format=json",)),
        ("codex", ("--last",)),
        ("codex", ("--ephemeral",)),
        ("codex", ("-",)),
    ],
)
def test_arguments_that_would_undo_perdures_own_are_refused(
    agent: str, arguments: tuple[str, ...]
) -> None:
    """The user's arguments cannot choose the conversation or the output format."""
    assert "perdure sets it" in registry.load(agent).refuse(launch(agent, agent_args=arguments))
    assert not registry.load(agent).refuse(launch(agent, agent_args=("--add-dir", "/x")))


def test_the_defaults_of_an_unattended_run_give_way_to_the_task() -> None:
    """By default the CLI does not update itself during a run and retries only a few times. Settings
    of the task have precedence."""
    env = registry.load("claude").command(launch("claude")).env
    assert env == {
        "DISABLE_AUTOUPDATER": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_RETRIES": "3",
    }
    own = (
        registry.load("claude").command(launch("claude", env={"CLAUDE_CODE_MAX_RETRIES": "9"})).env
    )
    assert "CLAUDE_CODE_MAX_RETRIES" not in own


PASSED = {
    "claude": (
        "ANTHROPIC_API_KEY",
        "CLAUDE_CONFIG_DIR",
        "CLAUDE_CODE_USE_BEDROCK",
        "CLAUDE_CODE_OAUTH_TOKEN",
        "AWS_REGION",
        "https_proxy",
        "IS_SANDBOX",
    ),
    "codex": ("OPENAI_API_KEY", "CODEX_HOME", "CODEX_API_KEY", "NO_PROXY", "SSL_CERT_FILE"),
}
KEPT_OUT = {
    "claude": (
        "CLAUDECODE",
        "CLAUDE_PID",
        "CLAUDE_CODE_SESSION_ID",
        "CLAUDE_CODE_CHILD_SESSION",
        "CLAUDE_CODE_MESSAGING_TOKEN",
        "CLAUDE_CODE_ENTRYPOINT",
    ),
    "codex": ("CODEX_THREAD_ID", "CODEX_SANDBOX_NETWORK_DISABLED", "CODEX_SESSION_ID", "CODEX_CI"),
}


@pytest.mark.parametrize("agent", AGENTS)
def test_which_variables_are_the_agents_own(agent: str) -> None:
    """Settings and credentials are passed on. Variables that a running agent sets for its children,
    and other programs' secrets, are not."""
    patterns = registry.load(agent).variables

    def passes(name: str) -> bool:
        taken_out = any(
            fnmatchcase(name, pattern[1:]) for pattern in patterns if pattern.startswith("!")
        )
        return not taken_out and any(fnmatchcase(name, pattern) for pattern in patterns)

    assert [name for name in PASSED[agent] if not passes(name)] == []
    others = ("GITHUB_TOKEN", "PERDURE_STATE", "SSH_AUTH_SOCK", "PGPASSWORD")
    assert [name for name in (*KEPT_OUT[agent], *others) if passes(name)] == []


def test_an_unknown_agent_is_told_with_the_known_ones() -> None:
    """The error for an unknown agent lists the known agents in its hint."""
    with pytest.raises(AgentMissing) as error:
        registry.load("nobody")
    assert "claude, codex" in error.value.hint


def install(
    folder: Path, name: str, module: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Install a distribution that has one driver as an entry point, as pip would."""
    (folder / f"{module}.py").write_text(source)
    meta = folder / f"{module}-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text(f"[perdure.drivers]\n{name} = {module}:Driver\n")
    monkeypatch.syspath_prepend(str(folder))


def test_a_driver_from_outside_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver from an entry point of another distribution is used like the built-in ones, and is
    in the list of names."""
    source = (
        "from perdure.agents.claude.driver import ClaudeDriver\n\nclass Driver(ClaudeDriver):\n    name "
        "= 'guest'\n"
    )
    install(tmp_path, "guest", "guest_driver", source, monkeypatch)
    assert registry.load("guest").name == "guest"
    assert registry.names() == sorted([*registry.BUILT_IN, "guest"])


@pytest.mark.parametrize(
    ("module", "source", "words"),
    [
        ("half_driver", "class Driver:\n    name = 'half'\n", "lacks"),
        ("torn_driver", "raise RuntimeError('torn')\n", "could not be loaded: torn"),
    ],
)
def test_what_is_no_driver_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, source: str, words: str
) -> None:
    """An entry point that is not a driver, or whose module cannot be imported, gives one clear
    error."""
    install(tmp_path, module, module, source, monkeypatch)
    with pytest.raises(DriverError, match=words):
        registry.load(module)
    sys.modules.pop(module, None)


def test_the_list_of_drivers_costs_nothing(tmp_path: Path) -> None:
    """Importing the package and listing the drivers' names loads no driver."""
    import subprocess

    code = (
        "import sys, json, perdure.agents.registry; print(json.dumps([m for m in sys.modules if "
        "m.startswith('perdure.agents.') and m != 'perdure.agents.registry']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
    )
    assert json.loads(done.stdout) == []
