"""`checkpoints` and `restore`: list the checkpoints of a run, each with workdir and conversation,
and restore one."""

from __future__ import annotations

import argparse
import json
import sys

from perdure.cli.compose import open_engine, open_to_read, settings
from perdure.cli.parser import optional_name
from perdure.cli.text import clean, clock, one_line, say
from perdure.model.checkpoints import IMPORTED

TYPE_CHECKING = False  # importing typing would only take time
if TYPE_CHECKING:
    from perdure.model import Checkpoint

SHOWN = 10


def checkpoints_arguments(parser: argparse.ArgumentParser) -> None:
    optional_name(parser)
    parser.add_argument(
        "--all", action="store_true", help=f"list all that are kept (default: the newest {SHOWN})"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def checkpoints_verb(arguments: argparse.Namespace) -> int:
    from perdure.cli.runs.ls import table
    from perdure.model.codec import plain

    store = open_to_read(settings())
    run = store.get(arguments.name)
    found = list(reversed(store.checkpoints(run.id)))
    shown = found if arguments.all else found[:SHOWN]
    if arguments.json:
        rows = list(map(plain, shown))
        print(
            json.dumps(
                {"schema_version": 1, "run": run.name, "checkpoints": rows},
                indent=2,
                ensure_ascii=False,
            )
        )
        return 0
    lines = list(map(_line, shown))
    table(("N", "TAKEN", "TRY", "AT", "FILES", "CONVERSATION", "HEAD"), lines)
    if not found and sys.stdout.isatty():
        say(f"{run.name} has no checkpoint yet; one is taken at the end of every turn and attempt")
    if len(shown) < len(found):
        print(
            f"{len(found) - len(shown)} older: perdure checkpoints {run.name} --all",
            file=sys.stderr,
        )
    return 0


MOMENTS = {
    "turn": "turn end",
    "tool": "running",
    "stop": "stop requested",
    "end": "attempt end",
    "adopted": "taken over",
    "restore": "before a restore",
    "clean-up": "before a clean-up",
    IMPORTED: "import",
}
"""The text that is shown for each value of `Checkpoint.why`, which is the reason for the
checkpoint."""


def _line(checkpoint: Checkpoint) -> tuple[str, ...]:
    saved, parts = checkpoint.workdir, checkpoint.conversation
    if checkpoint.why == IMPORTED:
        files = "not counted"  # A capsule does not say how many files were changed or new.
    else:
        files = f"{saved.changed} changed, {saved.untracked} new"
    if saved.left_out:
        files += f", {len(saved.left_out)} left out"
    if parts:
        said = f"{checkpoint.session_id[:8]} {parts[0].size:,} B"
    else:
        said = "none yet"
    branch = f" ({one_line(saved.branch, 40)})" if saved.branch else ""
    head = f"{saved.head[:12]}{branch}"
    why = MOMENTS.get(checkpoint.why, clean(checkpoint.why))
    return (
        str(checkpoint.number),
        clock(checkpoint.at),
        str(checkpoint.attempt),
        why,
        files,
        clean(said),
        clean(head),
    )


def restore_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the run's name, id or key")
    parser.add_argument(
        "--at",
        type=int,
        default=0,
        metavar="N",
        help="number of the checkpoint to restore (default: the newest)",
    )
    parser.add_argument(
        "--files",
        action="store_true",
        help="restore only the workdir; the conversation stays as it is",
    )


def restore_verb(arguments: argparse.Namespace) -> int:
    from perdure.engine.checkpoints import restore
    from perdure.errors import UsageError

    if arguments.at < 0:
        raise UsageError(
            "--at needs a checkpoint's number", f"perdure checkpoints {arguments.name}"
        )
    restored = restore(
        open_engine(settings()), arguments.name, arguments.at, files_only=arguments.files
    )
    checkpoint, run = restored.checkpoint, restored.run
    if arguments.files or not restored.transcript:
        what = "its workdir is"
    else:
        what = "its workdir and conversation are"
    print(
        f"{run.name} is back at checkpoint {checkpoint.number} ({clock(checkpoint.at)}): {what} as "
        "they were"
    )
    saved = checkpoint.workdir
    for name, reason in saved.left_out[:SHOWN]:
        print(f"  not in it: {one_line(name, 100)} ({one_line(reason, 60)})")
    if len(saved.left_out) > SHOWN:
        print(
            f"  not in it: {len(saved.left_out) - SHOWN} more, see perdure checkpoints {run.name} "
            "--json"
        )
    for context in restored.retired:
        print(
            f"  retired: instructions {context.version}, given after that checkpoint: "
            f"{one_line(context.text, 100)}"
        )
    for context in restored.revived:
        print(f"  in effect again: instructions {context.version}: {one_line(context.text, 100)}")
    if restored.undo is not None:
        print(f"  undo:  perdure restore {run.name} --at {restored.undo.number}")
    print(f'  continue: perdure retry {run.name}, or perdure update {run.name} "..."')
    return 0
