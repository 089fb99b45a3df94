"""`run`, `retry`, `update`: start an attempt, and follow the run to its end."""

from __future__ import annotations

import sys

from perdure.cli.arguments import (
    agent_flags,
    change_flags,
    check_flags,
    files_of,
    label_flag,
    limit_flags,
    policy_flags,
    prompt_flags,
    read_prompt,
    spec_of,
)
from perdure.cli.choices import (
    MAP_WHEN,
    ON_EDIT,
)
from perdure.cli.parser import optional_name
from perdure.cli.text import clean
from perdure.errors import NotFound, PerdureError

# Importing typing is slow, and `perdure retry NAME` must not load modules that only new runs need.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any

    from perdure.config import Settings
    from perdure.model import TaskRun
    from perdure.model.reports import RunReport
    from perdure.workspace import Workspaces


def run_arguments(parser: argparse.ArgumentParser) -> None:
    prompt_flags(parser)
    what = parser.add_argument_group("agent")
    agent_flags(
        what,
        agent="an agent that `perdure agents` lists (default: claude)",
        env="NAME[=VALUE]",
        variable="a variable for the agent; NAME alone passes your own value; repeatable",
    )
    what.add_argument(
        "--map",
        choices=MAP_WHEN,
        help=(
            "which prompts include the project map: off: none; fallback (default): those of an "
            "agent that has not seen the repository's files; first: also the first prompt of every "
            "conversation; always: all"
        ),
    )
    file_arguments(parser)
    where = parser.add_argument_group("where")
    where.add_argument("--repo", help="a repository's path or URL (default: the current one)")
    where.add_argument(
        "--base", help="the commit or branch to start from (default: the repository's HEAD)"
    )
    where.add_argument("--branch", help="the branch to work on (default: perdure/NAME)")
    where.add_argument(
        "--backend",
        choices=["worktree", "isolated"],
        help="the workdir: a git worktree of your repository (default), or a clone of its own",
    )
    where.add_argument(
        "--include-changes",
        action="store_true",
        help="copy uncommitted changes of the checkout into the workdir",
    )
    where.add_argument("--here", action="store_true", help="work directly in this directory")
    where.add_argument(
        "--service", help="for a task without a repository: the program that the task belongs to"
    )
    where.add_argument("--task", help="the id of the task in that program")
    who = parser.add_argument_group("run")
    who.add_argument("--name", help="the run's name (default: one is made up)")
    who.add_argument(
        "--key", help="idempotency key: the same task with the same key returns the existing run"
    )
    who.add_argument("--scope", help="runs of one agent with the same scope share one conversation")
    label_flag(who)
    limits = parser.add_argument_group("limits and checks")
    limit_flags(limits)
    policy_flags(limits)
    check_flags(limits)
    following(parser)


def retry_arguments(parser: argparse.ArgumentParser) -> None:
    optional_name(parser, ask=True)
    parser.add_argument(
        "--agent",
        help="hand the run over to another agent: same workdir, a new conversation with a brief",
    )
    change_flags(parser)
    following(parser)


def update_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the run's name, id or key")
    parser.add_argument("prompt", nargs="?", help="new instructions; `-` reads standard input")
    parser.add_argument(
        "--prompt-file",
        metavar="FILE",
        help="read the new instructions from a file (`-`: standard input)",
    )
    file_arguments(parser)
    policy_flags(parser.add_argument_group("changes that stay in effect"))
    following(parser)


def file_arguments(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("task files")
    files.add_argument(
        "--file",
        action="append",
        default=[],
        metavar="PATH[=DEST]",
        help="put this file into the workdir; repeatable",
    )
    files.add_argument(
        "--context",
        default="",
        metavar="DIR",
        help="put all files below this directory into the workdir",
    )
    files.add_argument(
        "--on-edit",
        choices=ON_EDIT,
        default="merge",
        help=(
            "what to do with a file that the agent has edited too: keep: leave the agent's; "
            "replace: use yours, with a backup; merge (default): merge both"
        ),
    )


def drive_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name")


def following(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-d",
        "--detach",
        action="store_true",
        help="return at once; the run continues in the background",
    )
    parser.add_argument("--json", action="store_true", help="print the run as JSON at the end")
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="no progress; only the summary at the end"
    )


def run_verb(arguments: argparse.Namespace) -> int:
    import uuid
    from pathlib import Path

    from perdure.cli.compose import settings
    from perdure.model import RunState

    chosen = settings()
    spec = spec_of(arguments, chosen, Path.cwd())
    made = uuid.uuid4().hex

    def submit(engine: Any) -> TaskRun:
        from perdure.engine import service

        if not arguments.detach:
            service.check_reachable(engine.workspaces, spec)
        run = service.submit(
            engine,
            spec,
            Path.cwd(),
            files_of(arguments),
            include_changes=arguments.include_changes,
            run_id=made,
        )
        if not arguments.include_changes and not arguments.quiet:
            tell_left_out(engine.workspaces, run)
        if run.state is RunState.RUNNING:
            return service.retry(engine, run.id)
        return run

    return start_and_follow(arguments, chosen, submit, new=True, made=made)


def tell_left_out(workspaces: Workspaces, run: TaskRun) -> None:
    """Print how many uncommitted changes of the checkout will be missing in the run's new
    workdir."""
    from contextlib import suppress
    from pathlib import Path

    from perdure.model import Backend
    from perdure.workspace.identity import is_remote

    place = run.workspace
    if (
        place is None
        or place.backend not in (Backend.WORKTREE, Backend.ISOLATED)
        or is_remote(run.spec.repo)
    ):
        return
    # Say nothing if the workdir exists already, because the checkout's changes may be in it. Ignore
    # errors of the repository here, because the run will fail with them anyway.
    if run.attempt or Path(place.path).exists():
        return
    with suppress(PerdureError):
        state = workspaces.state(workspaces.plan_here(Path(run.spec.repo)))
        count = state.changed + state.untracked
        if count:
            if count == 1:
                what = "an uncommitted change"
            else:
                what = f"{count} uncommitted changes"
            print(
                f"perdure: {what} of {place.repo} will not be in the workdir; --include-changes "
                f"copies them",
                file=sys.stderr,
            )


def check_known(name: str) -> None:
    """Raise NotFound if no run has this name. This check is made before the modules that perform a
    run are loaded, because they load slowly."""
    from perdure.cli.runs.ls import DATABASE, state_directory
    from perdure.store.fast_list import similar_names

    place = state_directory()
    names = similar_names(f"{place}/{DATABASE}", name) if place else None
    if names is not None:
        from difflib import get_close_matches

        close = get_close_matches(name, names, n=3, cutoff=0.5)
        if close:
            hint = "did you mean " + " or ".join(close) + "?"
        else:
            hint = "perdure ls"
        raise NotFound(f"There is no run {name!r}", hint)


def retry_verb(arguments: argparse.Namespace) -> int:
    check_known(arguments.name)
    from perdure.cli.compose import settings
    from perdure.model import ContinuityPolicy

    def again(engine: Any) -> TaskRun:
        from perdure.engine import service

        changes = service.Changes(
            continuity=ContinuityPolicy(arguments.continuity) if arguments.continuity else None,
            model=arguments.model,
            budget_usd=arguments.budget_usd,
            timeout_s=arguments.timeout,
            attempts=arguments.attempts,
            on_denied=arguments.on_denied,
            on_leftover=arguments.on_leftover,
            last_word=arguments.last_word,
        )
        return service.retry(engine, arguments.name, arguments.agent or "", changes)

    return start_and_follow(arguments, settings(), again)


def update_verb(arguments: argparse.Namespace) -> int:
    check_known(arguments.name)
    from perdure.cli.compose import settings

    text = read_prompt(arguments, f'perdure update {arguments.name} "new instructions"')

    def more(engine: Any) -> TaskRun:
        from perdure.engine import service

        changes = service.Changes(
            on_denied=arguments.on_denied,
            on_leftover=arguments.on_leftover,
            last_word=arguments.last_word,
        )
        return service.update(engine, arguments.name, text, files_of(arguments), changes)

    return start_and_follow(arguments, settings(), more, updated=True)


def drive_verb(arguments: argparse.Namespace) -> int:
    """Supervise one run silently, in the background. Return the exit code."""
    from perdure.cli.compose import Stopper, open_engine, settings
    from perdure.engine.worker import drive

    with Stopper() as stopper:
        drive(stopper.attach(open_engine(settings())), arguments.name)
    return 0


def start_and_follow(
    arguments: argparse.Namespace,
    chosen: Settings,
    begin: Callable[[Any], TaskRun],
    new: bool = False,
    updated: bool = False,
    made: str = "",
) -> int:
    """Start the run. Then supervise it to its end, or leave it to a supervisor in the background.
    Return the exit code.

    - `begin`: starts the run with the engine.
    - `new`: if true, the run is cancelled if its first attempt cannot start.
    - `updated`: if true, the run has new instructions. If they wait for another host, return 75.
    - `made`: id that `begin` gives to a new run; empty if `begin` always makes a new run. If
      `begin` returns a run with another id, that is an older run with the same key, and it is not
      cancelled.
    """
    from contextlib import nullcontext

    from perdure.cli.compose import Stopper, open_engine
    from perdure.engine import service
    from perdure.engine.attempt.engine import unavailable_reason
    from perdure.engine.worker import drive, follow
    from perdure.model import RunState

    progress = None
    if not (arguments.quiet or arguments.detach):
        from perdure.cli.runs.progress import Progress

        progress = Progress()
    with Stopper() as stopper, progress or nullcontext():
        engine = stopper.attach(open_engine(chosen, observers=[progress] if progress else []))
        if progress:
            progress.stopping = engine.stopping
        run = begin(engine)
        if progress:
            progress.introduce(run)
            if updated and run.state is RunState.RUNNING:
                progress.print_line(
                    f"attempt {run.attempt} is running: the new instructions start when it ends"
                )
        away = ""
        if updated and run.state is RunState.QUEUED:
            away = unavailable_reason(engine.host, engine.publisher, run)
        if away:
            print_waits_for_host(run, away)
        elif arguments.detach and run.state is RunState.QUEUED:
            detach(chosen, run)
        elif run.state is RunState.RUNNING and not arguments.detach:
            run = follow(engine, run.id, progress or (lambda record: None))
        elif run.state is not RunState.RUNNING:
            try:
                run = drive(engine, run.id)
            except PerdureError:
                now = engine.store.get(run.id)
                if now.state is RunState.RUNNING and now.worker != engine.worker:
                    # Another supervisor (perdure work) claimed the run first. Follow the run as
                    # that supervisor executes it; the result is the same.
                    run = follow(engine, run.id, progress or (lambda record: None))
                else:
                    if new and now.attempt == 0 and made in ("", now.id):
                        engine.store.request_cancel(run.id)
                    if updated and now.state is RunState.QUEUED:
                        # Without this line a person would repeat the update, and so give the
                        # instructions twice.
                        print(
                            f"{now.name}: the new instructions are stored; perdure retry "
                            f"{now.name} continues with them",
                            file=sys.stderr,
                        )
                    raise
        # Imported after the agent has ended, so that the import does not delay the agent's start.
        from perdure.cli.runs.progress import changes_of, say_summary

        run = engine.store.get(run.id)
        report = service.describe(engine.store, engine.state, engine.host, run.id)
        if arguments.detach:
            code = 0
        else:
            code = service.exit_code(run, service.last_outcome(engine.store, run))
        changes = "" if arguments.detach else changes_of(engine, report)
    if arguments.json:
        from perdure.model.codec import printed

        print(printed(report))
    elif arguments.detach:
        print(run.name)
    else:
        print_result(report, shown=progress is not None)
    if progress and not away:
        progress.conclude(report, changes)
    elif not arguments.detach:
        say_summary(report, changes)
    if not arguments.detach:
        warn(report)
    if progress and not arguments.json and _asks(run):
        return answered_here(chosen, run, code)
    return code


def print_waits_for_host(run: TaskRun, reason: str) -> None:
    """Print on standard error that new instructions are stored and wait for the run's host."""
    print(f"{run.name}: the new instructions are stored, but {reason}", file=sys.stderr)
    print(
        f"  perdure retry {run.name}, on {run.host_name}; perdure work does it too", file=sys.stderr
    )


def _asks(run: TaskRun) -> bool:
    from perdure.rules.requests import WAITING

    return any(each.type == WAITING for each in run.conditions)


def answered_here(chosen: Settings, run: TaskRun, code: int) -> int:
    """Ask the person at this terminal for the answers to the agent's requests. Continue the run if
    all are answered, and return its exit code. If the run still waits, return `code`."""
    from argparse import Namespace

    from perdure.cli.compose import open_engine
    from perdure.cli.runs.request_prompt import answer_here, can_ask

    if not can_ask():
        return code
    here = open_engine(chosen)
    if not answer_here(here, run.id):
        return code
    if here.host.elsewhere(run):
        print(f"answered; {run.name} continues on {run.host_name}", file=sys.stderr)
        return 0

    silent = Namespace(quiet=False, detach=False, json=False)
    return start_and_follow(silent, chosen, lambda engine: engine.store.get(run.id))


def print_result(report: RunReport, *, shown: bool) -> None:
    """Print the agent's final message on standard output, if the run succeeded. `shown` is true if
    the progress on standard error included the message. It is then not printed again if both
    streams are terminals."""
    text = clean(report.result).strip()
    if report.state != "succeeded" or not text:
        return
    if not (shown and sys.stdout.isatty() and sys.stderr.isatty()):
        print(text, flush=True)


def warn(report: RunReport) -> None:
    """Print a warning on standard error if a checkpoint of this run could not be taken."""
    from perdure.rules.explanation import missed_checkpoint

    text = missed_checkpoint(report)
    if text:
        print(f"WARNING: {report.name}: {text}", file=sys.stderr, flush=True)


def detach(chosen: Settings, run: TaskRun) -> None:
    """Start a supervisor for the run, in the background."""
    from perdure.host.process.detached import spawn_detached

    log = chosen.state / "runs" / run.id / "supervisor.log"
    spawn_detached((sys.executable, "-m", "perdure", "_drive", run.id), log)
