"""`home`: keeps agents' homes on a volume. `link` moves them there, `status` and `verify` check
them, `unlink` moves them back."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict, replace

from perdure.cli.compose import settings
from perdure.cli.text import clean

if TYPE_CHECKING:
    from perdure.host.homes.link import MovedDirectory


def home_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        choices=["link", "status", "verify", "unlink"],
        help="link: move to a volume; status: show what is recorded; verify: check it; "
        "unlink: move back",
    )
    parser.add_argument(
        "agents",
        nargs="*",
        metavar="AGENT",
        help="only these (default: all built-in agents; for unlink: all linked ones)",
    )
    parser.add_argument(
        "--volume",
        type=Path,
        metavar="DIR",
        help="for link: a directory that outlives this machine or container",
    )
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        "--symlink",
        action="store_true",
        help="for link: leave a symlink at the old place, for agents that you start yourself",
    )
    way.add_argument(
        "--variable",
        action="store_true",
        help="for link: set the agent's environment variable instead of a symlink (default: as "
        "the existing link does; the variable if there is none)",
    )
    parser.add_argument(
        "--new",
        action="store_true",
        help="for link: create a volume in a directory that is not a mount point",
    )
    parser.add_argument(
        "-n", "--dry-run", action="store_true", help="show what would be moved, and change nothing"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def home_verb(arguments: argparse.Namespace) -> int:
    act = {"link": _link, "unlink": _unlink, "status": _look, "verify": _look}[arguments.what]
    return act(arguments)


def agents_of(wanted: Sequence[str]) -> list[str]:
    """Return the named agents, or all agents if none is named. The name `acp-NAME` means the agent
    NAME. Raises NotFound."""
    from perdure.agents.shared.homes import HOMES, home_of

    for name in wanted:
        home_of(name)
    return list(dict.fromkeys(name.removeprefix("acp-") for name in wanted)) or list(HOMES)


def _link(arguments: argparse.Namespace) -> int:
    from perdure.agents.shared.homes import home_of
    from perdure.errors import UsageError
    from perdure.host.homes.link import Linking
    from perdure.host.homes.linked_homes import LINK, LinkedHomes
    from perdure.host.homes.volume import volume_at

    if arguments.volume is None:
        raise UsageError("missing --volume DIR", "perdure home link --volume DIR")
    agents = agents_of(arguments.agents)
    volume = volume_at(arguments.volume, make=True, new=arguments.new, dry_run=arguments.dry_run)
    state = settings().state
    remembered = LinkedHomes(state)
    call = Linking(
        volume=volume,
        state=state,
        environ=os.environ,
        symlink=arguments.symlink,
        dry_run=arguments.dry_run,
        tell=_progress(),
    )
    moved = []
    for agent in agents:
        linked_now = any(each.way == LINK for each in remembered.of(agent))
        keeps_link = linked_now and not arguments.variable
        one = replace(call, symlink=call.symlink or keeps_link)
        moved += one.link(agent, home_of(agent))
    _print(moved, arguments, "link")
    return 0


def _unlink(arguments: argparse.Namespace) -> int:
    from perdure.agents.shared.homes import home_of
    from perdure.host.homes.linked_homes import LinkedHomes
    from perdure.host.homes.unlink import unlink

    state = settings().state
    wanted = {home.agent for home in LinkedHomes(state).all()} | set(arguments.agents)
    moved: list[MovedDirectory] = []
    for agent in agents_of(arguments.agents):
        if agent in wanted:
            moved += unlink(
                agent,
                home_of(agent),
                state,
                os.environ,
                tell=_progress(),
                dry_run=arguments.dry_run,
            )
    _print(moved, arguments, "unlink")
    return 0


def _progress() -> Any:
    """Return a function that shows the current step on one line of a terminal."""
    from perdure.host.homes.link import quiet

    if not sys.stderr.isatty():
        return quiet

    def tell(step: str) -> None:
        print(
            f"\r\033[K{clean(step)[:70]}" if step != "finished" else "\r\033[K",
            end="",
            file=sys.stderr,
            flush=True,
        )

    return tell


def report_of(moved: Sequence[MovedDirectory]) -> Sequence[Mapping[str, object]]:
    found = []
    for each in moved:
        about = asdict(each.linked) | asdict(each.taken)
        found.append({**about, "kept": each.kept, "line": each.line})
    return found


def _print(moved: Sequence[MovedDirectory], arguments: argparse.Namespace, what: str) -> None:
    if arguments.json:
        shown = {"schema_version": 1, "dry_run": arguments.dry_run, "homes": report_of(moved)}
        print(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    would = "would be " if arguments.dry_run else ""
    for each in moved:
        if what == "link":
            goes = (each.linked.place, each.linked.target)
        else:
            goes = (each.linked.target, each.linked.place)
        print(clean(f"{each.linked.agent}  {goes[0]} -> {goes[1]}  ({each.linked.way})"))
        print(
            f"  {each.taken.files} file(s), {each.taken.bytes / (1 << 20):.1f} MiB {would}copied; "
            f"{each.taken.same} already there"
        )
        for name in each.taken.conflicts:
            print(clean(f"  two versions: {name}"))
        for name in each.taken.left:
            print(clean(f"  left behind: {name}"))
        for path in each.kept:
            print(clean(f"  kept: {path}"))
        if each.line and what == "link":
            print(clean(f"  for your shell: {each.line}"))
    if not moved:
        print("no home is linked")


def _look(arguments: argparse.Namespace) -> int:
    from perdure.agents import registry
    from perdure.host.homes.linked_homes import HomeEnvironment, LinkedHomes
    from perdure.host.homes.verification import HomeFinding, kept_beside, verify

    state = settings().state
    shown, bad = [], False
    for home in LinkedHomes(state).all():
        if arguments.agents and home.agent not in agents_of(arguments.agents):
            continue
        findings = list(verify(home, os.environ))
        is_bad = any(each.state == "bad" for each in findings)
        if (
            arguments.what == "verify"
            and not is_bad
            and home.name in (home.agent, f"{home.agent}/data")
        ):
            driver = registry.load(home.agent)
            found = driver.conversations(driver.home(HomeEnvironment(state, os.environ)), 100_000)
            findings.append(HomeFinding("ok", f"{len(found)} conversation(s) are found"))
        bad = bad or is_bad
        shown.append((home, findings, kept_beside(home)))
    if arguments.json:
        told = []
        for home, findings, kept in shown:
            told.append({**asdict(home), "findings": list(map(asdict, findings)), "kept": kept})
        print(json.dumps({"schema_version": 1, "homes": told}, indent=2, ensure_ascii=False))
    else:
        for home, findings, kept in shown:
            print(clean(f"{home.agent}  {home.target}  ({home.way}, was {home.place})"))
            for each in findings:
                if arguments.what == "verify" or each.state != "ok":
                    print(clean(f"  {each.state:5} {each.message}"))
            for path in kept:
                print(clean(f"  kept  {path}"))
        if not shown:
            print("no home is linked")
    if bad and arguments.what == "verify":
        return 7
    return 0
