"""`export`, `import` and `move`: transfer a run with its conversation and its files to another
machine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.cli.compose import open_engine, settings
from perdure.cli.text import clean, clock
from perdure.errors import NotFound, UsageError

if TYPE_CHECKING:
    from perdure.capsule.imports import ImportRequest, ImportResult
    from perdure.capsule.manifest import Manifest
    from perdure.config import Settings


def export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the run's name, id or key")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="the capsule to write; an existing file is not overwritten",
    )
    parser.add_argument(
        "--at",
        type=int,
        default=0,
        metavar="N",
        help="the checkpoint's number (default: the newest)",
    )
    _about_secrets(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _about_secrets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--redact",
        action="store_true",
        help="replace each byte of a secret in the conversation and the journal with an asterisk",
    )
    parser.add_argument(
        "--leave-out",
        action="store_true",
        help="leave out files of the workdir that contain a secret, and list them",
    )
    parser.add_argument(
        "--allow-secrets", action="store_true", help="include everything as it is, secrets too"
    )


def export_verb(arguments: argparse.Namespace) -> int:
    from perdure.capsule.export import ExportRequest, export

    engine = open_engine(settings())
    done = export(
        engine,
        arguments.name,
        ExportRequest(
            target=Path.cwd() / Path(arguments.output).expanduser(),
            at=arguments.at,
            redact=arguments.redact,
            leave_out=arguments.leave_out,
            allow=arguments.allow_secrets,
        ),
    )
    manifest = done.manifest
    if arguments.json:
        told = {
            **_report(manifest),
            "path": str(done.path),
            "bytes": done.size,
            "unsearched": list(done.unsearched),
        }
        print(json.dumps({"schema_version": 1, **told}, indent=2, ensure_ascii=False))
        return 0
    print(
        f"{clean(str(done.path))}: {manifest.name}, checkpoint {manifest.number} of attempt "
        f"{manifest.attempt}, {_size(done.size)}"
    )
    print(
        "  searched for secrets: the conversation, the journal, the run, its commit messages, and "
        "every file that was added or changed since the run began"
    )
    _print_names("too large to be searched", done.unsearched)
    if manifest.redacted:
        print(f"  secrets replaced by asterisks: {manifest.redacted}")
    _print_names("left out", manifest.left_out)
    print(f"  on the other machine:  perdure import {clean(done.path.name)}")
    return 0


def import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a capsule; `-` reads standard input")
    _where(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--into", metavar="DIR", help="create this directory as the workdir (default: ./NAME)"
    )
    parser.add_argument(
        "--repo",
        metavar="PATH",
        help="use a worktree of this repository, which must have the run's base commit",
    )
    parser.add_argument(
        "--name", default="", help="name of the run on this machine (default: unchanged)"
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="keep the run's permissions, arguments, variables, check command, limits and policy",
    )
    parser.add_argument(
        "--verify",
        metavar="COMMAND",
        help="check command of the run on this machine, instead of the run's own",
    )


def import_verb(arguments: argparse.Namespace) -> int:
    from perdure.capsule.container import open_capsule
    from perdure.capsule.imports import import_run

    chosen = settings()
    wish = _import_request(arguments, chosen, arguments.file)
    engine = open_engine(chosen)
    if arguments.file == "-":
        with open_capsule("standard input", sys.stdin.buffer) as capsule:
            return _print_import(
                import_run(engine, capsule.manifest, capsule, wish), arguments.json
            )
    path = Path(arguments.file).expanduser()
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise NotFound(
            f"there is no file {arguments.file!r}",
            "capsules are made by perdure export NAME -o FILE",
        ) from None
    except OSError as error:
        raise UsageError(f"{arguments.file!r} cannot be read: {error.strerror}") from error
    with file, open_capsule(arguments.file, file) as capsule:
        return _print_import(import_run(engine, capsule.manifest, capsule, wish), arguments.json)


def _import_request(arguments: argparse.Namespace, chosen: Settings, source: str) -> ImportRequest:
    from perdure.capsule.imports import ImportRequest
    from perdure.workspace.identity import local_path

    if arguments.into and arguments.repo:
        raise UsageError(
            "--into and --repo exclude each other: a run has one workdir",
            "leave one of them out",
        )
    return ImportRequest(
        source=source,
        into=Path.cwd() / Path(arguments.into).expanduser() if arguments.into else None,
        repo=(Path.cwd() / Path(local_path(arguments.repo)).expanduser()).resolve()
        if arguments.repo
        else None,
        name=arguments.name,
        trusted=arguments.trust,
        permissions=chosen.permissions,
        verify=arguments.verify,
    )


def _print_import(taken: ImportResult, as_json: bool) -> int:
    run = taken.run
    place = run.workspace.path if run.workspace else ""
    if as_json:
        told = {
            "name": run.name,
            "id": run.id,
            "origin": run.origin,
            "state": str(run.state),
            "workdir": place,
        }
        print(
            json.dumps(
                {
                    "schema_version": 1,
                    **told,
                    "dropped": list(taken.dropped),
                    "notes": list(taken.notes),
                },
                indent=2,
                ensure_ascii=False,
            )
        )
        return 0
    print(f"{run.name} is here, {run.state}, in {clean(place)}")
    for note in taken.notes:
        print(f"  {clean(note)}")
    for dropped in taken.dropped:
        print(f"  not granted: {clean(dropped)}")
    if taken.dropped:
        print("  (--trust keeps these settings)")
    if run.state == "succeeded":
        verb = f'perdure update {run.name} "new instructions"'
    else:
        verb = f"perdure retry {run.name}"
    print(f"  not started; to continue it:  {verb}")
    return 0


def move_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        nargs="?",
        default="",
        help="the run's name or id; without one, --from lists the runs that are there",
    )
    parser.add_argument(
        "--to",
        metavar="URL",
        help="publish the run's newest checkpoint in this checkpoint store, and give up the run on "
        "this machine",
    )
    parser.add_argument(
        "--from",
        dest="source",
        metavar="URL",
        nargs="?",
        const="",
        help="take the run over from this checkpoint store (default: the setting checkpoint_store)",
    )
    parser.add_argument(
        "--take-over",
        action="store_true",
        help="take the run over even from a machine that seems to be running it, which then stops",
    )
    _where(parser)
    _about_secrets(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def move_verb(arguments: argparse.Namespace) -> int:
    from perdure.capsule import move

    chosen = settings()
    if (arguments.to is None) == (arguments.source is None):
        raise UsageError(
            "name a checkpoint store: move a run --to it, or take a run over --from it",
            "perdure move NAME --to URL",
        )
    url = arguments.to or arguments.source or chosen.checkpoint_store
    if not url:
        raise UsageError(
            "no checkpoint store: there is neither a URL nor the setting checkpoint_store",
            "perdure move NAME --from URL",
        )
    engine = open_engine(chosen)
    if arguments.to is not None:
        if not arguments.name:
            raise UsageError("missing the name of the run to move", f"perdure move NAME --to {url}")
        ways = move.SecretOptions(
            redact=arguments.redact, leave_out=arguments.leave_out, allow=arguments.allow_secrets
        )
        manifest = move.move_to(engine, arguments.name, url, ways)
        if arguments.json:
            print(
                json.dumps(
                    {"schema_version": 1, **_report(manifest), "url": url},
                    indent=2,
                    ensure_ascii=False,
                )
            )
        else:
            print(
                f"{manifest.name} is in {clean(url)} as checkpoint {manifest.number}; this "
                f"machine has given it up"
            )
            print(f"  on the other machine:  perdure move {manifest.name} --from {clean(url)}")
        return 0
    if not arguments.name:
        return _list(url, arguments.json)
    return _print_import(
        move.move_from(
            engine,
            arguments.name,
            url,
            _import_request(arguments, chosen, url),
            over=arguments.take_over,
        ),
        arguments.json,
    )


def _list(url: str, as_json: bool) -> int:
    from perdure.capsule import move

    found = move.list_stored_runs(url)
    if as_json:
        rows = []
        for each in found:
            rows.append({**_report(each.manifest), "host": each.host, "free": not each.owner})
        print(json.dumps({"schema_version": 1, "runs": rows}, indent=2, ensure_ascii=False))
        return 0
    for each in found:
        who = f"on {clean(each.host)}" if each.owner else "free"
        print(
            f"{each.manifest.name}  {each.manifest.agent}  checkpoint of {clock(each.manifest.at)} "
            f" {who}"
        )
    return 0


def _report(manifest: Manifest) -> Mapping[str, object]:
    """Return a summary of a capsule's manifest, as --json shows it."""
    return {
        "name": manifest.name,
        "id": manifest.run,
        "agent": manifest.agent,
        "agent_version": manifest.agent_version,
        "checkpoint": manifest.number,
        "attempt": manifest.attempt,
        "at": manifest.at,
        "conversations": [carried.id for carried in manifest.conversations],
        "redacted": manifest.redacted,
        "left_out": list(manifest.left_out),
    }


def _print_names(what: str, names: tuple[str, ...]) -> None:
    for name in names:
        print(f"  {what}: {clean(name)}")


def _size(count: int) -> str:
    if count >= 1e6:
        return f"{count / 1e6:.1f} MB"
    return f"{count / 1e3:.1f} kB"
