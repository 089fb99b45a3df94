"""`resume`: continues a conversation, even one that was started manually. If none is named, a
picker opens on a terminal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.cli.arguments import read_prompt
from perdure.cli.compose import conversation_index, open_engine, open_to_read, settings
from perdure.cli.data.sessions import print_entries, project
from perdure.cli.runs.run import following, start_and_follow
from perdure.config import Settings
from perdure.config.tasks import task_defaults
from perdure.errors import NotFound, UsageError
from perdure.model import Permissions, RunState, TaskSpec
from perdure.rules.specification import with_defaults

if TYPE_CHECKING:
    from perdure.engine.conversations import ConversationEntry

CANDIDATES = 50


def resume_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "which",
        nargs="?",
        metavar="SESSION|NAME",
        help="the id of a conversation (or its first characters) or a run (default: choose)",
    )
    parser.add_argument("prompt", nargs="?", help="new instructions; `-` reads standard input")
    parser.add_argument(
        "--prompt-file", metavar="FILE", help="read the prompt from a file (`-`: standard input)"
    )
    parser.add_argument(
        "-a", "--all", action="store_true", help="offer the conversations of all directories"
    )
    parser.add_argument(
        "--agent",
        action="append",
        default=[],
        help="offer only conversations of this agent; repeatable",
    )
    new = parser.add_argument_group("for a conversation without a run")
    new.add_argument("--name", default="", help="the run's name (default: one is made up)")
    new.add_argument(
        "--repo",
        default="",
        help="work in a new worktree of this repository (default: in the conversation's directory)",
    )
    new.add_argument("--branch", default="", help="work on this branch, in a new worktree")
    new.add_argument("--model", default="", help="the model, by the agent's own name for it")
    new.add_argument(
        "--permissions",
        choices=list(map(str, Permissions)),
        help="what the agent may do; see perdure run --help",
    )
    following(parser)


def resume_verb(arguments: argparse.Namespace) -> int:
    from perdure.engine.conversations import ResumeRequest, resume

    chosen = settings()
    entry = _named(arguments) if arguments.which else _picked(arguments, chosen)
    if entry is None:
        return 130
    wanted = ResumeRequest(
        spec=_spec(arguments, chosen, _prompt(arguments, entry)),
        repo=str(Path(arguments.repo).expanduser().resolve())
        if arguments.repo and "://" not in arguments.repo
        else arguments.repo,
        branch=arguments.branch,
    )

    return start_and_follow(
        arguments, chosen, lambda engine: resume(engine, entry, wanted), new=entry.run is None
    )


def _named(arguments: argparse.Namespace) -> ConversationEntry:
    """Return the conversation that the argument names, by the name of its run or by its own id.
    Raises NotFound or UsageError."""
    from perdure.engine.conversations import ConversationEntry
    from perdure.model import SessionKey

    store = open_to_read(settings())
    index = conversation_index(store, arguments.agent)
    try:
        run = store.get(arguments.which)
    except NotFound:
        return index.find(arguments.which)
    session = store.session(SessionKey(run.spec.agent, run.scope))
    return ConversationEntry(
        agent=run.spec.agent,
        id=session.id if session else "",
        updated=run.updated,
        session=session,
        run=run,
    )


def _picked(arguments: argparse.Namespace, chosen: Settings) -> ConversationEntry | None:
    """Let a person choose a conversation on the terminal. Return None if none is chosen. Without a
    terminal, print the conversations and raise UsageError."""
    store = open_to_read(chosen)
    index = conversation_index(store, arguments.agent)
    here = project(Path.cwd())
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        print_entries(
            index.entries(CANDIDATES, None if arguments.all else here),
            store.now(),
            as_json=arguments.json,
        )
        raise UsageError(
            "missing the conversation, and there is no terminal to choose one on",
            'perdure resume ID "new instructions"',
        )
    from perdure.cli.runs.picker import pick

    return pick(index, here, open_engine(chosen).workspaces, everywhere=arguments.all)


def _prompt(arguments: argparse.Namespace, entry: ConversationEntry) -> str:
    """Return the prompt from the arguments, or ask for one on a terminal. The prompt may be empty
    only if the run is unfinished; the agent then continues its task. Raises UsageError."""
    if arguments.prompt is not None or arguments.prompt_file is not None:
        return read_prompt(arguments)
    unfinished = entry.run is not None and entry.run.state is not RunState.SUCCEEDED
    if arguments.which and unfinished:
        return ""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        if entry.run is not None:
            done = f"{entry.run.name} has succeeded: "
        else:
            done = ""
        raise UsageError(
            "missing the prompt", f'{done}perdure resume {arguments.which} "new instructions"'
        )
    default = " (empty: continue the task)" if unfinished else ""
    print(f"New instructions?{default}", file=sys.stderr)
    print("> ", end="", file=sys.stderr, flush=True)
    try:
        text = sys.stdin.readline()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        raise
    if not text.strip() and not unfinished:
        raise UsageError("the prompt is empty", "nothing was started")
    return text.strip()


def _spec(arguments: argparse.Namespace, chosen: Settings, prompt: str) -> TaskSpec:
    """Return a spec from the settings of this machine and the flags. The caller adds the agent and
    the directory of the conversation."""
    given = {"prompt": prompt, "name": arguments.name, "model": arguments.model}
    if arguments.permissions:
        given["permissions"] = Permissions(arguments.permissions)
    return with_defaults(task_defaults(chosen), given)
