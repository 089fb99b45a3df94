"""`doctor`: checks whether runs can work on this machine, and shows which variables an agent would
get.

perdure itself changes nothing. `finding` asks an agent's CLI whether the agent is logged in. The
CLI runs without network access, with a timeout, and in a scratch home if the agent has none. It may
write its own settings, as it does at any start.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import asdict

from perdure.cli.compose import DATABASE, environment, settings
from perdure.cli.overview import printed
from perdure.cli.server import doctor
from perdure.cli.style import fitted, paint, wrapped
from perdure.cli.text import clean, clock, columns
from perdure.config import Settings
from perdure.config.files import defaults, misspelled
from perdure.config.passwords import without_password
from perdure.errors import ConfigError, PerdureError
from perdure.host import system
from perdure.host.extras import install_command
from perdure.model import Program
from perdure.protocols import AgentDriver

if TYPE_CHECKING:
    from perdure.protocols import Retention

ASK_S = 20.0
"""Timeout for a CLI's answer, in seconds. On an idle machine a CLI takes 0.2 to 3 s."""
_NOWHERE = dict.fromkeys(
    ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
    "http://127.0.0.1:9",
)
"""Environment variables that name a proxy that does not exist. They keep the CLI off the network,
so that the check does not renew an expired login."""


def finding(
    driver: AgentDriver, program: Program, home: Path, environ: Mapping[str, str], *, usual: bool
) -> tuple[str, str] | None:
    """Return the state (`warn` or `bad`) and the message about a missing login. Return None if the
    agent is logged in or this is unknown. `usual` is true if the agent is the default one or the
    user named it."""
    from perdure.agents.registry import names
    from perdure.agents.shared import logins
    from perdure.engine.attempt.engine import ORDINARY, is_passed
    from perdure.host import process

    agent = logins.native_name(driver.name, names())
    passed = {}
    for name, value in environ.items():
        if is_passed(name, (*ORDINARY, *driver.variables)):
            passed[name] = value
    if agent == driver.name:
        command = logins.question(agent, program)
    else:
        command = ()
    code, said = 0, ""
    if command:
        try:
            made = tempfile.TemporaryDirectory(prefix="perdure-")
        except FileNotFoundError:
            return "warn", (
                "the login was not checked: no directory for temporary files is writable. Set "
                "TMPDIR to a writable directory"
            )
        with made as scratch:
            place = Path(scratch)
            if home.exists():
                own = passed
            else:
                own = passed | {
                    "HOME": scratch,
                    "CLAUDE_CONFIG_DIR": scratch,
                    "CODEX_HOME": scratch,
                }
            code, said = process.run_quick(
                command, directory=place / "asked", cwd=place, env=own | _NOWHERE, timeout_s=ASK_S
            )
        if code in (124, 125):
            return (
                "warn",
                f"the login was not checked: no answer within {ASK_S:g} s from "
                f"{' '.join(command[1:])}",
            )
    lacks = logins.missing(agent, home, passed, code, said)
    if lacks is None:
        return None
    return "bad" if lacks.certain and usual else "warn", f"{lacks.sentence}: {lacks.remedy}"


UNPROVEN = (
    "perdure is untested on this system: a process that leaves its session and clears its "
    "environment may survive a kill, agents may read perdure's memory, and run_as and perdure "
    "entrypoint do not work (docs: reference/platforms)"
)
"""Warning that is shown on every system except Linux, because perdure is only proven to work on
Linux."""


class DoctorFinding(Struct, frozen=True):
    """The result of one check. `state` is one of these:

    - `ok`: no problem was found
    - `warn`: runs work, with a restriction
    - `bad`: a run would fail
    """

    topic: str
    state: str
    message: str


def doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="also show settings that are not defaults, and the environment of each agent",
    )
    parser.add_argument("--agent", action="append", default=[], help="only this agent; repeatable")


def doctor_verb(arguments: argparse.Namespace) -> int:
    problems: list[str] = []
    try:
        chosen = settings()
    except ConfigError as error:
        problems, chosen = error.problems, defaults(os.environ)
    findings = [DoctorFinding("settings", "bad", problem) for problem in problems]
    findings += examine(chosen, arguments.agent)
    passed = dict(variables(chosen, arguments.agent))
    if arguments.json:
        shown = {
            "schema_version": 1,
            "findings": list(map(asdict, findings)),
            "environment": passed,
            "settings": origins(chosen),
        }
        print(json.dumps(shown, indent=2, ensure_ascii=False))
    else:
        for finding in findings:
            _say(f"{finding.state:5} {finding.topic:12} {clean(finding.message)}", finding.state)
        if arguments.verbose:
            _say_surroundings(chosen, passed)
        _say(f"\n{_verdict(findings, arguments.verbose)}", _worst(findings))
    if _worst(findings) == "bad":
        return 1
    return 0


def _say(text: str, state: str = "") -> None:
    """Print clean text in the color of its state. On a terminal the text is wrapped, and
    continuation lines are indented to the column where the message begins."""
    style = {"ok": "", "warn": "warn", "bad": "bad", "good": "good"}.get(state, "")
    for line in wrapped(text, columns(sys.stdout), 19).split("\n"):
        print(paint(fitted(line, sys.stdout), style, sys.stdout))


def _say_surroundings(chosen: Settings, passed: dict[str, dict[str, str]]) -> None:
    print("\nsettings that are not defaults:" + ("" if origins(chosen) else " none"))
    for name, (value, origin) in origins(chosen).items():
        _say(f"  {name} = {clean(value)}  ({clean(origin)})")
    for agent, names in passed.items():
        print(f"\nvariables of your environment that {agent} gets:")
        for name, value in names.items():
            _say(f"  {name}={clean(value)}")


def _verdict(findings: list[DoctorFinding], verbose: bool) -> str:
    counts = Counter(each.state for each in findings)
    good = len(findings) - counts["warn"] - counts["bad"]
    words = [f"{good} ok"]
    for state, word in (("warn", "warning"), ("bad", "problem")):
        if counts[state]:
            plural = "s" if counts[state] > 1 else ""
            words.append(f"{counts[state]} {word}{plural}")
    if counts["bad"]:
        works = "a run would fail here"
    else:
        works = "runs can work here"
    more = "" if verbose else " (-v: settings and agents' environments)"
    return f"{', '.join(words)}: {works}{more}"


def _worst(findings: list[DoctorFinding]) -> str:
    if any(finding.state == "bad" for finding in findings):
        return "bad"
    return "good"


def origins(chosen: Settings) -> dict[str, tuple[str, str]]:
    """Return the settings that are not defaults, by name. Each has its value, as in a settings
    file, and its source."""
    found = {}
    for name, place in chosen.origin.items():
        found[name] = (printed(name, getattr(chosen, name)), place)
    return found


def examine(
    chosen: Settings, agents: list[str], *, serving: bool = False
) -> Iterator[DoctorFinding]:
    """Yield the results of all checks. `agents` names the agents to check; empty means all. If
    `serving` is true, `perdure serve` itself runs the checks, and no agent is asked whether it is
    logged in."""
    yield DoctorFinding("python", "ok", f"{sys.version.split()[0]} on {sys.platform}")
    if problem := system.problem():
        yield DoctorFinding("processes", "bad", ". ".join(problem))
    if system.IS_PORTABLE:
        yield DoctorFinding("platform", "warn", UNPROVEN)
    yield from _git()
    for name, near in misspelled(os.environ).items():
        yield DoctorFinding("variable", "warn", f"{name} has no effect; did you mean {near}?")
    yield from _agents(chosen, agents, ask=not serving)
    yield from _usual_agent(chosen)
    for topic, directory in (("workdirs", chosen.root), ("state", chosen.state)):
        yield _directory(topic, directory, chosen)
    yield from _checkpoints(chosen)
    yield from _store(chosen)
    if doctor.wanted(chosen):
        for found in doctor.findings(chosen, serving=serving):
            yield DoctorFinding(*found)
    if chosen.session_cache:
        yield _session_cache(chosen)


def _session_cache(chosen: Settings) -> DoctorFinding:
    """Check the session cache. Runs work without it, so a cache that does not answer is only a
    warning."""
    place = without_password(chosen.session_cache)
    try:
        from perdure.store.session_cache.redis import problem
    except ImportError:
        return DoctorFinding(
            "session cache",
            "bad",
            f"the library redis is not installed: {install_command('redis')}",
        )
    found = problem(chosen.session_cache)
    return DoctorFinding(
        "session cache",
        "warn" if found else "ok",
        f"{place}: {found}; the database is used instead" if found else place,
    )


def _git() -> Iterator[DoctorFinding]:
    from perdure.host.git import require

    try:
        yield DoctorFinding("git", "ok", require(os.environ.get("PATH", os.defpath)))
    except PerdureError as error:
        yield DoctorFinding("git", "bad", str(error))


def _agents(chosen: Settings, only: list[str], *, ask: bool) -> Iterator[DoctorFinding]:
    """Check that the agents are installed. If `ask` is true, also start each agent's CLI to ask
    whether it is logged in, which takes seconds."""
    from perdure.agents import registry
    from perdure.engine.attempt.opening_steps import check_home, check_temporary
    from perdure.host.homes.linked_homes import LinkedHomes

    found = 0
    for name in only or registry.names():
        try:
            driver = registry.load(name)
            program = driver.locate(os.environ)
        except PerdureError as error:
            yield DoctorFinding(
                name,
                "bad" if only else "warn",
                f"{error}".rstrip(".") + (f": {error.hint}" if error.hint else ""),
            )
            continue
        found += 1
        try:
            LinkedHomes(chosen.state).check(name)
        except PerdureError as error:
            yield DoctorFinding(name, "bad", str(error))
            continue
        home = driver.home(environment(chosen))
        yield DoctorFinding(
            name,
            "ok",
            f"{program.version or 'version unknown'} at {program.path}, conversations in {home}",
        )
        if kept := driver.retention(home):
            yield DoctorFinding(name, "warn", removes(kept))
        try:
            check_home(driver, home)
            check_temporary(driver, chosen.permissions, environment(chosen))
        except PerdureError as error:
            yield DoctorFinding(name, "bad", f"{error}. {error.hint}")
            continue
        if ask and system.problem() is None:
            lacks = finding(
                driver, program, home, environment(chosen), usual=bool(only) or name == chosen.agent
            )
            if lacks is not None:
                yield DoctorFinding(name, *lacks)
    if not found:
        yield DoctorFinding("agents", "bad", "no agent is installed")


def _usual_agent(chosen: Settings) -> Iterator[DoctorFinding]:
    """Yield a finding if perdure does not know the agent that the settings name as default."""
    from perdure.agents import registry

    try:
        registry.load(chosen.agent)
    except PerdureError as error:
        yield DoctorFinding(
            "agents",
            "bad",
            f"the setting agent: {str(error).rstrip('.')}. {error.hint}".rstrip("."),
        )


def removes(kept: Retention) -> str:
    """Return a sentence about what the agent's own clean-up deletes, and how to prevent it."""
    return (
        f"it deletes conversations after {kept.days:g} days when you run it yourself; perdure "
        f"keeps copies. To keep them all: {kept.setting}"
    )


def _directory(topic: str, directory: Path, chosen: Settings) -> DoctorFinding:
    there = directory
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK, effective_ids=True):
        return DoctorFinding(topic, "bad", f"{directory} cannot be made or written")
    from perdure.cli.data.clean import size
    from perdure.host.volumes import Volumes, free_space

    free = free_space(there).free
    volumes = Volumes(
        places=(there,),
        warn=chosen.disk_warn,
        refuse=chosen.disk_refuse,
        refuse_bytes=chosen.disk_refuse_bytes,
    )
    if volumes.crowded():
        state = "bad"
    elif free < chosen.disk_ballast:
        # A small volume may be smaller than the ballast even when it is empty. It may still be
        # enough for a small task, so this is only a warning.
        return DoctorFinding(topic, "warn", f"{directory}, only {size(free)} free")
    elif volumes.warnings():
        state = "warn"
    else:
        state = "ok"
    return DoctorFinding(topic, state, f"{directory}, {size(free)} free")


def _checkpoints(chosen: Settings) -> Iterator[DoctorFinding]:
    """Check that a checkpoint could write git objects into the repository of the current
    directory."""
    from perdure.workspace import Workspaces

    try:
        repository = Workspaces(chosen.root, environ=os.environ).try_checkpoint(Path.cwd())
    except (PerdureError, OSError) as error:
        yield DoctorFinding(
            "checkpoints",
            "bad",
            f"no checkpoint of this repository can be taken from {chosen.root}: {error}",
        )
        return
    if repository:
        yield DoctorFinding(
            "checkpoints", "ok", f"a trial checkpoint of {repository} from {chosen.root} succeeded"
        )


def _store(chosen: Settings) -> Iterator[DoctorFinding]:
    from perdure import store as stores

    if chosen.database:
        for state, message in stores.examine(chosen.database):
            yield DoctorFinding("store", state, message)
        return
    warning = stores.sqlite_warning()
    if warning:
        yield DoctorFinding("sqlite", "warn", warning)
    try:
        there = (chosen.state / DATABASE).exists()
        with closing(stores.open(chosen.state / DATABASE, read_only=True)) as store:
            parked = store.parked() if there else ()
        yield DoctorFinding("store", "ok", str(chosen.state / DATABASE) if there else "no run yet")
        for parking in parked:
            yield DoctorFinding(
                "parked",
                "warn",
                f"{parking.reason}; nothing is launched on {parking.what}{parking.affected} until "
                f"{clock(parking.until)}",
            )
    except PerdureError as error:
        yield DoctorFinding("store", "bad", str(error))


def variables(chosen: Settings, only: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each agent with the environment variables that it gets. Values that may be secret are
    masked."""
    from perdure.agents import registry
    from perdure.engine.attempt.engine import ORDINARY, is_passed

    for name in only or registry.names():
        try:
            patterns = (*ORDINARY, *registry.load(name).variables)
        except PerdureError:
            continue
        shown = {}
        for variable in sorted(os.environ):
            if is_passed(variable, patterns):
                shown[variable] = mask(variable, os.environ[variable], variable in ORDINARY)
        yield name, shown


def mask(name: str, value: str, ordinary: bool) -> str:
    """Return the value of a variable for display. An `ordinary` value is returned unchanged. Any
    other value may be secret. If it is long, it is reduced to its first three characters and its
    length; if it is short, to an ellipsis."""
    if ordinary:
        return value
    if len(value) > 12:
        return f"{value[:3]}… ({len(value)} characters)"
    return "…" * bool(value)
