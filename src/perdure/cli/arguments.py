"""The flags that describe a task: the prompt, the files, and all the other fields of a TaskSpec.

`perdure run` and similar verbs use all of these flags. The same verbs of `perdure --cluster` have
most of them, and create a TaskRun from them.
"""

from __future__ import annotations

import argparse
import sys

from perdure.cli.choices import CONTINUITY, ON_DENIED, ON_LEFTOVER, PERMISSIONS, WHEN_FULL
from perdure.errors import NotFound, UsageError

TYPE_CHECKING = False  # a verb's arguments are parsed before any model class is loaded
if TYPE_CHECKING:
    from pathlib import Path

    from perdure.config import Settings
    from perdure.model import TaskSpec
    from perdure.workspace.task_files import FileRequest


def seconds_of(text: str) -> float:
    from perdure.model.durations import duration

    try:
        return duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError("expected a whole number from 1 to 1000")
    return int(text)


def rounds_of(text: str) -> int:
    if not text.isdigit() or int(text) > 100:
        raise argparse.ArgumentTypeError("expected a whole number from 0 to 100")
    return int(text)


LOST = (
    "if the conversation is lost (the receipt says what was done): strict: stop; disclose "
    "(default): rebuild it from a brief; fresh-ok: start a new one"
)
DENIED = (
    "what to do if a tool call was denied: ask (default): ask you; fail: fail the run; report: "
    "count the turn as done, and name the call in the report"
)
WORD = (
    "on: ask the agent to end with its status, a summary, open questions and follow-ups in a fixed "
    "form (Claude Code, Codex); off (default): do not"
)
LEFT = (
    "what to do with a process that still runs at the end of the turn: end (default): stop it; "
    "keep: leave it running; wait: wait for it"
)
FULL = (
    "what to do when the context window is nearly full: compact (default) has the agent shorten "
    "it, roll-over continues in a new conversation with a summary, stop asks you, cli leaves it to "
    "the agent"
)


def prompt_flags(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the prompt of a new run."""
    parser.add_argument("prompt", nargs="?", help="the prompt; `-` reads standard input")
    parser.add_argument(
        "--prompt-file", metavar="FILE", help="read the prompt from a file (`-`: standard input)"
    )


def agent_flags(group: argparse._ArgumentGroup, *, agent: str, env: str, variable: str) -> None:
    """Add the flags that describe the agent of a new run, here or on a cluster. `agent` is the help
    text of `--agent`. `env` is the placeholder for the value of `--env`, and `variable` is its help
    text."""
    group.add_argument("--agent", help=agent)
    group.add_argument("--model", help="the model, by the agent's own name for it")
    group.add_argument(
        "--permissions",
        choices=PERMISSIONS,
        help=(
            "what the agent may do: read: only read files; edit (default): change the workdir and "
            "run commands; full: everything"
        ),
    )
    group.add_argument(
        "--agent-arg",
        action="append",
        default=[],
        metavar="ARG",
        help="an argument for the agent's program; repeatable",
    )
    group.add_argument("--env", action="append", default=[], metavar=env, help=variable)


def label_flag(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="label of the run; repeatable",
    )


def limit_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags for the limits of a new run, here or on a cluster."""
    group.add_argument("--attempts", type=positive, help="maximum number of attempts (default: 3)")
    group.add_argument(
        "--timeout",
        type=seconds_of,
        help="maximum time of one attempt: 90s, 30m, 2h (default: 1h; 0: no limit)",
    )
    group.add_argument(
        "--stall",
        type=seconds_of,
        help="stop the attempt after this time without output, or five times as long during a tool "
        "call (default: 10m; 0: no limit)",
    )
    group.add_argument("--budget-usd", type=float, help="dollars for all attempts together")
    group.add_argument("--continuity", choices=CONTINUITY, help=LOST)
    group.add_argument("--when-full", choices=WHEN_FULL, help=FULL)


def policy_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags for denied calls, for leftover processes, and for the agent's last message."""
    group.add_argument("--on-denied", choices=ON_DENIED, help=DENIED)
    group.add_argument("--on-leftover", choices=ON_LEFTOVER, help=LEFT)
    group.add_argument("--last-word", choices=("off", "on"), help=WORD)


def change_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the settings that a retry may change, here or on a cluster."""
    changes = parser.add_argument_group("changes that stay in effect")
    changes.add_argument("--continuity", choices=CONTINUITY, help=LOST)
    changes.add_argument("--model", help="the model, by the agent's own name for it")
    changes.add_argument(
        "--budget-usd", type=float, help="dollars for all attempts together, earlier ones included"
    )
    changes.add_argument(
        "--timeout", type=seconds_of, help="maximum time of one attempt: 90s, 30m, 2h (0: no limit)"
    )
    changes.add_argument(
        "--attempts", type=positive, help="number of further attempts (default: 1)"
    )
    policy_flags(changes)


def check_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags for the check of a new run's work, here or on a cluster."""
    group.add_argument(
        "--verify",
        metavar="COMMAND",
        help="command to run in the workdir after success; a failure goes back to the agent",
    )
    group.add_argument(
        "--verify-rounds",
        type=rounds_of,
        help="maximum number of times a failed check is returned to the agent (default: 3)",
    )
    group.add_argument(
        "--verify-timeout",
        type=seconds_of,
        help="maximum time of the check (default: 30m; 0: no limit)",
    )


def read_prompt(
    arguments: argparse.Namespace, asked: str = 'perdure run "Fix the failing test"'
) -> str:
    """Return the prompt from the argument, the file or standard input. If there is none, the error
    has `asked` as its hint. Raises UsageError or NotFound."""
    given, file = arguments.prompt, arguments.prompt_file
    if given is not None and file is not None:
        raise UsageError(
            "there are two prompts: the argument and --prompt-file",
            "leave one of them out",
        )
    if file not in (None, "-"):
        from pathlib import Path

        try:
            return Path(file).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise NotFound(f"there is no file {file!r} to read the prompt from") from None
        except UnicodeDecodeError:
            raise UsageError(
                f"the prompt in {file!r} is not UTF-8 text", "expected a UTF-8 text file"
            ) from None
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "not the name of a file"
            raise UsageError(
                f"the prompt cannot be read from {file!r}: {why.lower()}",
                "expected a UTF-8 text file",
            ) from None
    if given not in (None, "-"):
        return str(given)
    if given is None and file is None and sys.stdin.isatty():
        raise UsageError("missing the prompt", asked)
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError("the prompt on standard input is not UTF-8 text") from None


def files_of(arguments: argparse.Namespace) -> FileRequest | None:
    """Return the task files that the flags name, or None if they name none."""
    if not arguments.file and not arguments.context:
        return None
    from pathlib import Path

    from perdure.model import OnEdit
    from perdure.workspace.task_files import FileRequest

    said = (lambda text: None) if arguments.quiet else _say
    return FileRequest(
        cwd=Path.cwd(),
        files=tuple(arguments.file),
        context=arguments.context,
        on_edit=OnEdit(arguments.on_edit),
        tell=said,
    )


def _say(text: str) -> None:
    from perdure.cli.text import one_line

    print(f"perdure: {one_line(text, 300)}", file=sys.stderr)


def spec_of(arguments: argparse.Namespace, chosen: Settings, cwd: Path) -> TaskSpec:
    """Return a TaskSpec from the settings and the command's flags. A flag overrides its setting.
    Raises UsageError."""
    if arguments.here and (
        arguments.repo or arguments.service or arguments.branch or arguments.base
    ):
        raise UsageError(
            "--here works in this directory as it is: it excludes --repo, --service, --branch and "
            "--base"
        )
    if arguments.service and (arguments.repo or arguments.branch or arguments.base):
        raise UsageError(
            "a task of a --service has no repository: --service excludes --repo, --branch and "
            "--base"
        )
    if arguments.task and not arguments.service:
        raise UsageError("--task is the id of a task within its service", "add --service NAME")
    from perdure.config.tasks import task_defaults
    from perdure.rules.specification import with_defaults

    prompt = read_prompt(arguments)
    variables, passed = {}, []
    for text in arguments.env:
        if "=" in text:
            name, value = pair_of(text, "--env")
            variables[name] = value
        else:
            passed.append(variable_of(text))
    given = {
        "prompt": prompt,
        "agent_args": tuple(arguments.agent_arg),
        "env": variables,
        "pass_env": tuple(passed),
        "labels": dict(pair_of(text, "--label") for text in arguments.label),
    }
    return with_defaults(
        task_defaults(chosen),
        {**given, **_place(arguments, cwd), **_texts(arguments), **_values(arguments)},
    )


def _place(arguments: argparse.Namespace, cwd: Path) -> dict[str, str]:
    """Return the fields that say where the task works."""
    from pathlib import Path

    from perdure.workspace.identity import is_remote

    if arguments.here:
        return {"here": str(cwd)}
    if arguments.service:
        return {"service": arguments.service}
    repo = arguments.repo or str(cwd)
    if is_remote(repo):
        return {"repo": repo}
    return {"repo": str((cwd / Path(repo).expanduser()).resolve())}


def _texts(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the fields whose flags have a text that is not empty."""
    from perdure.model import Backend, ContinuityPolicy, Permissions

    kinds = {"backend": Backend, "permissions": Permissions, "continuity": ContinuityPolicy}
    names = (
        "agent",
        "name",
        "key",
        "base",
        "branch",
        "task",
        "scope",
        "backend",
        "model",
        "permissions",
        "continuity",
        "when_full",
        "on_denied",
        "last_word",
        "on_leftover",
        "map",
    )
    found = {}
    for name in names:
        if text := getattr(arguments, name):
            found[name] = kinds.get(name, str)(text)
    return found


def _values(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the fields whose flags are given, also as zero or as an empty text. Raises
    UsageError."""
    if arguments.budget_usd is not None and not 0 <= arguments.budget_usd < 1e6:
        raise UsageError("--budget-usd: expected an amount in dollars, such as 2.50")
    values = {
        "timeout_s": arguments.timeout,
        "stall_s": arguments.stall,
        "attempts": arguments.attempts,
        "budget_usd": arguments.budget_usd,
        "verify": arguments.verify,
        "verify_rounds": arguments.verify_rounds,
        "verify_timeout_s": arguments.verify_timeout,
    }
    return {name: value for name, value in values.items() if value is not None}


def pair_of(text: str, flag: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals or "\x00" in text:
        raise UsageError(f"{flag}: expected NAME=VALUE, got {text!r}")
    return (variable_of(name) if flag == "--env" else name), value


def variable_of(name: str) -> str:
    if not name.isascii() or not name.replace("_", "a").isalnum() or name[0].isdigit():
        raise UsageError(f"{name!r} is not a valid variable name")
    if name.startswith("PERDURE_"):
        raise UsageError(f"{name} is reserved for perdure and is not passed to agents")
    return name
