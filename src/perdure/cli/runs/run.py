"""`run`, `retry`, `update`: the verbs that start something and follow it to its end."""

from __future__ import annotations

import sys

from perdure.cli.arguments import files_of, positive, read_prompt, rounds_of, seconds_of, spec_of
from perdure.cli.choices import (
    CONTINUITY,
    MAP_WHEN,
    ON_DENIED,
    ON_EDIT,
    ON_LEFTOVER,
    PERMISSIONS,
    WHEN_FULL,
)
from perdure.cli.parser import optional_name
from perdure.cli.text import clean
from perdure.errors import NotFound, PerdureError

TYPE_CHECKING = False  # `perdure retry NAME` must not load what only new runs need
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any

    from perdure.config import Settings
    from perdure.model import TaskRun

LOST = (
    "if the conversation is lost: strict stops, disclose (default) rebuilds it from a brief, "
    "fresh-ok starts a new one; each says so"
)

DENIED = (
    "if a call of a tool was denied: ask (default) asks you, fail fails the run, report lets the "
    "turn count"
)
WORD = (
    "on asks the agent to end with its status, a summary, open questions and follow-ups in a fixed "
    "form (Claude Code, Codex); default off"
)
LEFT = (
    "if a process still runs when the agent's turn is over: end (default) ends it, keep lets it "
    "run on, wait waits for its end"
)
FULL = (
    "what to do when the context window is nearly full: compact (default) has the agent shorten "
    "it, roll-over continues in a new conversation with a summary, stop asks you, cli leaves it to "
    "the agent"
)


def run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="the prompt; `-` reads standard input")
    parser.add_argument(
        "--prompt-file", metavar="FILE", help="read the prompt from a file (`-`: standard input)"
    )
    what = parser.add_argument_group("agent")
    what.add_argument("--agent", help="one of perdure agents (default: claude)")
    what.add_argument("--model", help="the model, by the agent's own name for it")
    what.add_argument(
        "--permissions",
        choices=PERMISSIONS,
        help="read: look only; edit (default): change the workdir, run commands; full: anything",
    )
    what.add_argument(
        "--agent-arg",
        action="append",
        default=[],
        metavar="ARG",
        help="an argument for the agent's program; repeatable",
    )
    what.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a variable for the agent; NAME alone passes your own value; repeatable",
    )
    what.add_argument(
        "--map",
        choices=MAP_WHEN,
        help=(
            "which prompts get the project map: none; needed: those whose conversation lacks it "
            "(default); first: the first of each conversation; all"
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
        "--backend", choices=["worktree", "isolated"], help="how the workdir is made"
    )
    where.add_argument(
        "--include-changes",
        action="store_true",
        help="copy uncommitted changes of the checkout into the workdir",
    )
    where.add_argument("--here", action="store_true", help="work directly in this directory")
    where.add_argument("--service", help="a task of a service without a repository")
    where.add_argument("--task", help="the task's id within its service")
    who = parser.add_argument_group("run")
    who.add_argument("--name", help="the run's name (default: one is made up)")
    who.add_argument("--key", help="idempotency key: the same key and task is the same run")
    who.add_argument("--scope", help="runs of one agent with the same scope share one conversation")
    who.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="label of the run, NAME=VALUE; repeatable",
    )
    limits = parser.add_argument_group("limits and checks")
    limits.add_argument("--attempts", type=positive, help="maximum number of attempts (default: 3)")
    limits.add_argument(
        "--timeout",
        type=seconds_of,
        help="maximum time of one attempt: 90s, 30m, 2h (default: 1h; 0: no limit)",
    )
    limits.add_argument(
        "--stall",
        type=seconds_of,
        help="stop after this long without output, 5x in a tool (default: 10m; 0: no limit)",
    )
    limits.add_argument("--budget-usd", type=float, help="dollars for all attempts together")
    limits.add_argument("--continuity", choices=CONTINUITY, help=LOST)
    limits.add_argument("--when-full", choices=WHEN_FULL, help=FULL)
    policy_arguments(limits)
    limits.add_argument(
        "--verify",
        metavar="COMMAND",
        help="run in the workdir after success; its failure goes back to the agent",
    )
    limits.add_argument(
        "--verify-rounds",
        type=rounds_of,
        help="how many times a failing check is returned to the agent (default: 3)",
    )
    limits.add_argument(
        "--verify-timeout",
        type=seconds_of,
        help="maximum time of the check (default: 30m; 0: no limit)",
    )
    following(parser)


def retry_arguments(parser: argparse.ArgumentParser) -> None:
    optional_name(parser)
    parser.add_argument(
        "--agent",
        help="hand it over to another agent: same workdir, a new conversation with a brief",
    )
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
    policy_arguments(changes)
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
    policy_arguments(parser.add_argument_group("changes that stay in effect"))
    following(parser)


def policy_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the flags for what a turn's end is worth, and what it has to report."""
    group.add_argument("--on-denied", choices=ON_DENIED, help=DENIED)
    group.add_argument("--on-leftover", choices=ON_LEFTOVER, help=LEFT)
    group.add_argument("--last-word", choices=("off", "on"), help=WORD)


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
            "a file that the agent has edited too: keep the agent's, replace it (with a backup), "
            "or merge both (default)"
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
    from pathlib import Path

    from perdure.cli.compose import settings
    from perdure.model import RunState

    chosen = settings()
    spec = spec_of(arguments, chosen, Path.cwd())

    def submit(engine: Any) -> TaskRun:
        from perdure.engine import service

        if not arguments.detach:
            service.check_reachable(engine, spec)
        run = service.submit(
            engine, spec, Path.cwd(), files_of(arguments), include_changes=arguments.include_changes
        )
        if not arguments.include_changes and not arguments.quiet:
            tell_left_out(engine, run)
        if run.state is RunState.RUNNING:
            return service.retry(engine, run.id)
        return run

    return followed(arguments, chosen, submit, new=True)


def tell_left_out(engine: Any, run: TaskRun) -> None:
    """Say which changes of the checkout a new workdir does not have, because they are not
    committed."""
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
    # An existing workdir has changes of its own. A repository that cannot be read will fail the run
    # anyway.
    if run.attempt or Path(place.path).exists():
        return
    with suppress(PerdureError):
        state = engine.workspaces.state(engine.workspaces.plan_here(Path(run.spec.repo)))
        count = state.changed + state.untracked
        if count:
            what = "an uncommitted change" if count == 1 else f"{count} uncommitted changes"
            print(
                f"perdure: {what} of {place.repo} will not be in the workdir; --include-changes "
                f"copies them",
                file=sys.stderr,
            )


def check_known(name: str) -> None:
    """Raise NotFound for a name that matches no run, before any module is loaded that works on
    one."""
    from perdure.cli.runs.ls import DATABASE, state_directory
    from perdure.store.glance import names_beside

    place = state_directory()
    names = names_beside(f"{place}/{DATABASE}", name) if place else None
    if names is not None:
        from difflib import get_close_matches

        close = get_close_matches(name, names, n=3, cutoff=0.5)
        hint = "did you mean " + " or ".join(close) + "?" if close else "perdure ls"
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

    return followed(arguments, settings(), again)


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

    return followed(arguments, settings(), more, updated=True)


def drive_verb(arguments: argparse.Namespace) -> int:
    """Supervise one run silently, in the background."""
    from perdure.cli.compose import Stopper, open_engine, settings
    from perdure.engine.worker import drive

    with Stopper() as stopper:
        drive(stopper.attach(open_engine(settings())), arguments.name)
    return 0


def followed(
    arguments: argparse.Namespace,
    chosen: Settings,
    begin: Callable[[Any], TaskRun],
    new: bool = False,
    updated: bool = False,
) -> int:
    """Start the run. Then drive it to its end with progress, or leave it to a supervisor in the
    background. Return the exit code."""
    from contextlib import nullcontext

    from perdure.cli.compose import Stopper, open_engine
    from perdure.cli.runs.progress import Progress
    from perdure.cli.runs.summary import changes_of, say_summary
    from perdure.engine import service
    from perdure.engine.worker import drive, follow
    from perdure.model import RunState

    progress = None if arguments.quiet or arguments.detach else Progress()
    with Stopper() as stopper, progress or nullcontext():
        engine = stopper.attach(open_engine(chosen, observers=[progress] if progress else []))
        if progress:
            progress.stopping = engine.stopping
        run = begin(engine)
        if progress:
            progress.introduce(run)
            if updated and run.state is RunState.RUNNING:
                progress.part(
                    f"attempt {run.attempt} is running: the new instructions start when it ends"
                )
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
                    # Another supervisor (perdure work) was quicker, which is just as good.
                    run = follow(engine, run.id, progress or (lambda record: None))
                else:
                    if new and now.attempt == 0:
                        engine.store.request_cancel(run.id)
                    raise
        run = engine.store.get(run.id)
        report = service.describe(engine, run.id)
        code = 0 if arguments.detach else service.exit_code(run, service.last_outcome(engine, run))
        changes = "" if arguments.detach else changes_of(engine, run.id)
    if arguments.json:
        import json

        print(json.dumps(report, indent=2, ensure_ascii=False))
    elif arguments.detach:
        print(run.name)
    else:
        answer(report, shown=progress is not None)
    if progress:
        progress.conclude(report, changes)
    elif not arguments.detach:
        say_summary(report, changes)
    if not arguments.detach:
        warn(report)
    return code


def answer(report: dict[str, Any], *, shown: bool) -> None:
    """Print the final message of a successful run on standard output, cleaned for a terminal. If
    progress and output share a terminal, the message is there already (`shown`)."""
    text = clean(report["result"]).strip()
    if report["state"] != "succeeded" or not text:
        return
    if not (shown and sys.stdout.isatty() and sys.stderr.isatty()):
        print(text, flush=True)


def warn(report: dict[str, Any]) -> None:
    """Say on standard error which promise does not hold for this run, even with --quiet."""
    from perdure.rules.explanation import missed_checkpoint

    text = missed_checkpoint(report)
    if text:
        print(f"WARNING: {report['name']}: {text}", file=sys.stderr, flush=True)


def detach(chosen: Settings, run: TaskRun) -> None:
    """Start a supervisor for a run in the background."""
    from perdure.host.process.detached import spawn_detached

    log = chosen.state / "runs" / run.id / "supervisor.log"
    spawn_detached((sys.executable, "-m", "perdure", "_drive", run.id), log)
