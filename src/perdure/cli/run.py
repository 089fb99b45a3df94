"""`run`, `retry`, `update`: the verbs that start something and follow it to its end."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.cli.compose import Stopper, open_engine, settings
from perdure.config import Settings
from perdure.durations import duration
from perdure.errors import NotFound, PerdureError, UsageError
from perdure.model import Backend, ContinuityPolicy, MapWhen, OnEdit, Permissions, RunState, TaskRun, TaskSpec, WhenFull

if TYPE_CHECKING:
    from perdure.taskfiles import Asked

LOST = "if the conversation is lost: strict stops, disclose (default) rebuilds it from a brief, fresh-ok starts anew; all say so"

FULL = (
    "if the conversation is nearly too long: compact (default) has the agent shorten it, roll-over goes on in a new one with a summary, "
    "stop asks you, cli leaves it to the agent"
)


def run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="what the agent is to do; `-` reads standard input")
    parser.add_argument("--prompt-file", metavar="FILE", help="read the prompt from a file (`-`: standard input)")
    what = parser.add_argument_group("what runs")
    what.add_argument("--agent", help="one of perdure agents (default: claude)")
    what.add_argument("--model", help="the model, by the agent's own name for it")
    what.add_argument(
        "--permissions",
        choices=[str(p) for p in Permissions],
        help="read: look only; edit (default): change the workdir, run commands; full: anything",
    )
    what.add_argument("--agent-arg", action="append", default=[], metavar="ARG", help="passed on to the agent's program; repeatable")
    what.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a variable for the agent; NAME alone passes your own value on; repeatable",
    )
    what.add_argument(
        "--map",
        choices=[str(each) for each in MapWhen],
        help="which prompts get the project map: none, where no conversation carries what it says (default), each first one, all",
    )
    file_arguments(parser)
    where = parser.add_argument_group("where")
    where.add_argument("--repo", help="a repository's path or URL (default: the one you stand in)")
    where.add_argument("--base", help="the commit or branch to begin at (default: where the repository stands)")
    where.add_argument("--branch", help="the branch to work on (default: perdure/NAME)")
    where.add_argument("--backend", choices=["worktree", "isolated"], help="how the workdir is made")
    where.add_argument("--here", action="store_true", help="work in this directory, as it is")
    where.add_argument("--service", help="a task of a service without a repository")
    where.add_argument("--task", help="the task's id within its service")
    who = parser.add_argument_group("which run")
    who.add_argument("--name", help="the run's name (default: one is made up)")
    who.add_argument("--key", help="the same key and task is the same run: nothing is started twice")
    who.add_argument("--scope", help="runs of one agent with the same scope share one conversation")
    who.add_argument("--label", action="append", default=[], metavar="NAME=VALUE", help="kept with the run; repeatable")
    limits = parser.add_argument_group("limits and checks")
    limits.add_argument("--attempts", type=positive, help="how often it is tried (default 3)")
    limits.add_argument("--timeout", type=seconds_of, help="the longest that one attempt may take: 90s, 30m, 2h (default 1h; 0: no limit)")
    limits.add_argument("--stall", type=seconds_of, help="the longest silence, five times as long inside a tool (default 10m; 0: no limit)")
    limits.add_argument("--budget-usd", type=float, help="dollars for all attempts together")
    limits.add_argument("--continuity", choices=[str(p) for p in ContinuityPolicy], help=LOST)
    limits.add_argument("--when-full", choices=[str(each) for each in WhenFull], help=FULL)
    limits.add_argument("--verify", metavar="COMMAND", help="run in the workdir after success; its failure goes back to the agent")
    limits.add_argument("--verify-rounds", type=rounds_of, help="how often a failed check goes back; uses up no attempt (default 3)")
    limits.add_argument("--verify-timeout", type=seconds_of, help="the longest that the check may take (default 30m; 0: no limit)")
    following(parser)


def retry_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the run's name, id or key")
    parser.add_argument("--agent", help="hand it over to another agent: same workdir, a new conversation with a brief")
    following(parser)


def update_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the run's name, id or key")
    parser.add_argument("prompt", nargs="?", help="the new instructions; `-` reads standard input")
    parser.add_argument("--prompt-file", metavar="FILE", help="read them from a file (`-`: standard input)")
    file_arguments(parser)
    following(parser)


def file_arguments(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("task files")
    files.add_argument("--file", action="append", default=[], metavar="PATH[=DEST]", help="put this file into the workdir; repeatable")
    files.add_argument("--context", default="", metavar="DIR", help="put all files below this directory into the workdir")
    files.add_argument(
        "--on-edit",
        choices=[str(each) for each in OnEdit],
        default=str(OnEdit.MERGE),
        help="a file that the agent has edited too: keep the agent's, replace it (with a backup), or merge both (default)",
    )


def drive_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name")


def following(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", "--detach", action="store_true", help="return at once; the run goes on in the background")
    parser.add_argument("--json", action="store_true", help="print the run as JSON at the end")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def seconds_of(text: str) -> float:
    try:
        return duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError("a whole number from 1 to 1000 is needed")
    return int(text)


def rounds_of(text: str) -> int:
    if not text.isdigit() or int(text) > 100:
        raise argparse.ArgumentTypeError("a whole number from 0 to 100 is needed")
    return int(text)


def run_verb(arguments: argparse.Namespace) -> int:
    chosen = settings()
    spec = spec_of(arguments, chosen, Path.cwd())

    def submit(engine: Any) -> TaskRun:
        from perdure import service

        run = service.submit(engine, spec, Path.cwd(), files_of(arguments))
        if run.state is RunState.RUNNING:
            return service.retry(engine, run.id)
        return run

    return followed(arguments, chosen, submit, new=True)


def retry_verb(arguments: argparse.Namespace) -> int:
    def again(engine: Any) -> TaskRun:
        from perdure import service

        return service.retry(engine, arguments.name, arguments.agent or "")

    return followed(arguments, settings(), again)


def update_verb(arguments: argparse.Namespace) -> int:
    text = read_prompt(arguments)

    def more(engine: Any) -> TaskRun:
        from perdure import service

        return service.update(engine, arguments.name, text, files_of(arguments))

    return followed(arguments, settings(), more)


def drive_verb(arguments: argparse.Namespace) -> int:
    """The detached supervisor: follows one run in silence."""
    from perdure.worker import drive

    with Stopper() as stopper:
        drive(stopper.attach(open_engine(settings())), arguments.name)
    return 0


def followed(arguments: argparse.Namespace, chosen: Settings, begin: Callable[[Any], TaskRun], new: bool = False) -> int:
    """Begins, then drives the run to its end with progress, or leaves it to a supervisor of its own."""
    from perdure import service
    from perdure.cli.progress import Progress
    from perdure.worker import drive, follow

    progress = None if arguments.quiet or arguments.detach else Progress()
    with Stopper() as stopper, progress or nullcontext():
        engine = stopper.attach(open_engine(chosen, observers=[progress] if progress else []))
        run = begin(engine)
        if progress:
            progress.introduce(run)
        if arguments.detach and run.state is RunState.QUEUED:
            detach(chosen, run)
        elif run.state is RunState.RUNNING and not arguments.detach:
            run = follow(engine, run.id, progress or (lambda record: None))
        elif run.state is not RunState.RUNNING:
            try:
                run = drive(engine, run.id)
            except PerdureError:
                now = engine.store.get(run.id)
                if now.state is RunState.RUNNING and now.worker != engine.worker:
                    # Another supervisor (perdure work) was quicker: it is as good as one of our own.
                    run = follow(engine, run.id, progress or (lambda record: None))
                else:
                    if new and now.attempt == 0:
                        engine.store.request_cancel(run.id)
                    raise
        run = engine.store.get(run.id)
        report = service.describe(engine, run.id)
        code = 0 if arguments.detach else service.exit_code(run, service.last_outcome(engine, run))
    if arguments.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    elif arguments.detach:
        print(run.name)
    if progress:
        progress.conclude(report)
    return code


def detach(chosen: Settings, run: TaskRun) -> None:
    """Leaves a run to a supervisor of its own, in the background."""
    from perdure.process.detached import spawn_detached

    log = chosen.state / "runs" / run.id / "supervisor.log"
    spawn_detached((sys.executable, "-m", "perdure", "_drive", run.id), log)


def read_prompt(arguments: argparse.Namespace) -> str:
    """The prompt by argument, file or standard input; exactly one of them. Raises UsageError, NotFound."""
    given, file = arguments.prompt, arguments.prompt_file
    if given is not None and file is not None:
        raise UsageError("the prompt is given twice, as an argument and with --prompt-file", "leave one of them out")
    if file not in (None, "-"):
        try:
            return Path(file).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise NotFound(f"there is no file {file!r} to read the prompt from") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the prompt cannot be read from {file!r}: {error}", "a UTF-8 text file is needed") from None
    if given not in (None, "-"):
        return str(given)
    if given is None and file is None and sys.stdin.isatty():
        raise UsageError("there is no prompt", 'perdure run "what the agent is to do"')
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"the prompt on standard input is not UTF-8 text: {error}") from None


def files_of(arguments: argparse.Namespace) -> Asked | None:
    """The files that were asked for; None for none."""
    from perdure.taskfiles import Asked

    if not arguments.file and not arguments.context:
        return None
    said = (lambda text: None) if arguments.quiet else _say
    return Asked(cwd=Path.cwd(), files=tuple(arguments.file), context=arguments.context, on_edit=OnEdit(arguments.on_edit), tell=said)


def _say(text: str) -> None:
    from perdure.cli.text import one_line

    print(f"perdure: {one_line(text, 300)}", file=sys.stderr)


def spec_of(arguments: argparse.Namespace, chosen: Settings, cwd: Path) -> TaskSpec:
    """The command's flags over the settings, as a TaskSpec. Raises UsageError."""
    if arguments.here and (arguments.repo or arguments.service or arguments.branch or arguments.base):
        raise UsageError("--here works in this directory as it is: it goes with none of --repo, --service, --branch, --base")
    if arguments.service and (arguments.repo or arguments.branch or arguments.base):
        raise UsageError("a task of a --service has no repository: it goes with none of --repo, --branch, --base")
    if arguments.task and not arguments.service:
        raise UsageError("--task is the id of a task within its service", "add --service NAME")
    from perdure.workspace.identity import is_remote

    repo = "" if arguments.here or arguments.service else (arguments.repo or str(cwd))
    return TaskSpec(
        prompt=read_prompt(arguments),
        agent=arguments.agent or chosen.agent,
        name=arguments.name or "",
        key=arguments.key or "",
        repo=repo if not repo or is_remote(repo) else str((cwd / Path(repo).expanduser()).resolve()),
        base=arguments.base or ("" if arguments.here or arguments.service else chosen.base),
        branch=arguments.branch or "",
        here=str(cwd) if arguments.here else "",
        service=arguments.service or "",
        task=arguments.task or "",
        scope=arguments.scope or "",
        backend=str(Backend(arguments.backend or chosen.backend)) if arguments.backend or chosen.backend else "",
        model=arguments.model or chosen.model,
        permissions=Permissions(arguments.permissions) if arguments.permissions else chosen.permissions,
        agent_args=tuple(arguments.agent_arg),
        env=dict(pair_of(text, "--env") for text in arguments.env if "=" in text),
        pass_env=tuple(variable_of(text) for text in arguments.env if "=" not in text),
        timeout_s=chosen.timeout if arguments.timeout is None else arguments.timeout,
        stall_s=chosen.stall if arguments.stall is None else arguments.stall,
        attempts=arguments.attempts or chosen.attempts,
        budget_usd=_dollars(arguments.budget_usd, chosen.budget_usd),
        continuity=ContinuityPolicy(arguments.continuity) if arguments.continuity else chosen.continuity,
        when_full=arguments.when_full or "",
        verify=_verify(arguments, chosen),
        verify_rounds=chosen.verify_rounds if arguments.verify_rounds is None else arguments.verify_rounds,
        verify_timeout_s=chosen.verify_timeout if arguments.verify_timeout is None else arguments.verify_timeout,
        labels=dict(pair_of(text, "--label") for text in arguments.label),
        map=arguments.map or "",
    )


def _verify(arguments: argparse.Namespace, chosen: Settings) -> str:
    """A project's own check is a command of the repository: it is not run for a task that may only look."""
    if arguments.verify is not None:
        return str(arguments.verify)
    reads_only = (arguments.permissions or chosen.permissions) == Permissions.READ
    return "" if reads_only else chosen.verify


def _dollars(given: float | None, default: float) -> float:
    if given is not None and not 0 <= given < 1e6:
        raise UsageError("--budget-usd needs an amount of dollars")
    return default if given is None else given


def pair_of(text: str, flag: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals or "\x00" in text:
        raise UsageError(f"{flag} needs NAME=VALUE, not {text!r}")
    return (variable_of(name) if flag == "--env" else name), value


def variable_of(name: str) -> str:
    if not name.isascii() or not name.replace("_", "a").isalnum() or name[0].isdigit():
        raise UsageError(f"{name!r} cannot be a variable's name")
    if name.startswith("PERDURE_"):
        raise UsageError(f"{name} is perdure's own and does not reach an agent")
    return name
