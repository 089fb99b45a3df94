"""`agents` and `config`: list the agents that perdure knows, and show the settings. Both are
read-only."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import Any

from perdure.cli.compose import environment, open_to_read, settings
from perdure.cli.text import clean, say
from perdure.config.passwords import shown
from perdure.config.values import DURATIONS
from perdure.model import RunState
from perdure.model.durations import written

DEFAULT = "default"


def agents_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def agents_verb(arguments: argparse.Namespace) -> int:
    from perdure.agents.installed import installed

    chosen = settings()
    running = [row.agent for row in open_to_read(chosen).find([RunState.RUNNING], limit=100_000)]
    found = installed(running, os.environ, environment(chosen))
    if arguments.json:
        print(json.dumps({"schema_version": 1, "agents": found}, indent=2, ensure_ascii=False))
        return 0
    for agent in found:
        live = f", {agent['running']} running" if agent["running"] else ""
        if agent["installed"]:
            unknown = "version not known"
        else:
            unknown = "not installed"
        print(f"{agent['name']}  {agent['version'] or unknown}{live}")
        if agent["installed"]:
            print(f"  program   {clean(agent['program'])}")
            print(f"  home      {clean(agent['home'])}")
            say(f"  can       {', '.join(_words(agent['abilities']))}", 10)
        else:
            say(f"  {clean(agent['problem'])}")
    return 0


def _words(abilities: dict[str, Any]) -> list[str]:
    """Return the abilities of an agent as text for a person. If an ability has a limit, its text
    ends with the limit."""
    unlimited, limited = [], []
    for key, value in abilities.items():
        words = key.replace("_", " ")
        if value is True:
            unlimited.append(words)
        elif value:
            limited.append(f"{words} {_amount(value)}")
    return unlimited + limited


def _amount(value: int | Sequence[str]) -> str:
    """Return the limit of an ability as text. The limit is either a number, or a list of
    permissions. The agent has the ability only if it runs with one of these permissions."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"at {' and '.join(value)}"


def config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="?",
        choices=["show"],
        default="show",
        help="show (default): every setting and its value",
    )
    parser.add_argument(
        "--origin",
        action="store_true",
        help="also show the source of each: a variable, a file and line, or the default",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def config_verb(arguments: argparse.Namespace) -> int:
    chosen = settings()
    names = [name for name in chosen.__struct_fields__ if name != "origin"]
    found = {}
    for name in names:
        value = _plain(shown(name, getattr(chosen, name)))
        found[name] = {"value": value, "origin": chosen.origin.get(name, DEFAULT)}
    if arguments.json:
        print(json.dumps({"schema_version": 1, "settings": found}, indent=2, ensure_ascii=False))
        return 0
    width = max(map(len, names))
    for name, setting in found.items():
        line = f"{name:{width}}  {clean(printed(name, getattr(chosen, name)))}"
        print(f"{line}  ({clean(str(setting['origin']))})" if arguments.origin else line.rstrip())
    return 0


def printed(name: str, value: Any) -> str:
    """Return a setting's value as text for a person. A duration is written as in a settings file, a
    list as its items."""
    if name in DURATIONS:
        return written(value)
    return str(_plain(shown(name, value)))


def _plain(value: Any) -> str | int | float:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if value is None:
        return ""
    return str(value)
