"""`completion`: prints the completion script of a shell, generated from the verbs' parsers.

Names of runs come from `perdure ls` when Tab is pressed. There are three small writers instead of a
library: shtab, the most suitable one, supports neither lazily loaded verbs nor values that a
program supplies (see docs/decisions).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import chain
from typing import Any

from msgspec import Struct

SHELLS = ("bash", "zsh", "fish")
NAMES = "perdure ls --limit 500 2>/dev/null | tail -n +2 | cut -d ' ' -f 1"
AGENTS = 'perdure agents --json 2>/dev/null | sed -n \'s/^ *"name": "\\(.*\\)",$/\\1/p\''


class Word(Struct, frozen=True):
    """An argument of a verb. `kind` describes its value: `none` (a switch, which has no value),
    `one of`, `run`, `agent`, `file`, `directory` or `text`."""

    flags: tuple[str, ...]
    kind: str
    choices: tuple[str, ...]
    help: str


def completion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help='for bash: eval "$(perdure completion bash)"')


def completion_verb(arguments: argparse.Namespace) -> int:
    print({"bash": bash, "zsh": zsh, "fish": fish}[arguments.shell](), end="")
    return 0


def words() -> dict[str, tuple[str, list[Word]]]:
    """Return the summary and the arguments of every verb, by the verb's name."""
    from perdure.cli.main import VERBS, parser_of

    found = {}
    for verb, (_, text) in VERBS.items():
        if text:
            actions = [each for each in parser_of(verb)._actions if each.help != argparse.SUPPRESS]
            found[verb] = (text, list(map(_word, actions)))
    return found


def _word(action: Any) -> Word:
    flags = tuple(action.option_strings)
    told = " ".join(str(action.help or "").split())
    if action.nargs == 0:
        return Word(flags, "none", (), told)
    if action.choices:
        return Word(flags, "one of", tuple(map(str, action.choices)), told)
    return Word(flags, _kind(action.dest, str(action.metavar or ""), bool(flags)), (), told)


def _kind(dest: str, metavar: str, is_flag: bool) -> str:
    if dest == "name" and not is_flag:
        return "run"
    if dest == "agent":
        return "agent"
    return {"FILE": "file", "PATH[=DEST]": "file", "DIR": "directory"}.get(
        metavar, "directory" if dest == "repo" else "text"
    )


def bash() -> str:
    """Return the completion script for bash 4.4 and newer."""
    cases: list[str] = []
    for verb, (_, taken) in words().items():
        cases += _bash_verb(verb, taken)
    return "\n".join(
        [
            "# perdure completion bash",
            "_perdure() {",
            '  local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" '
            'verb="${COMP_WORDS[1]}"',
            "  COMPREPLY=()",
            "  if (( COMP_CWORD == 1 )); then",
            f'    mapfile -t COMPREPLY < <(compgen -W "{" ".join(words())}" -- "$current")',
            "    return",
            "  fi",
            '  case "$verb" in',
            *cases,
            "  esac",
            "}",
            "complete -F _perdure perdure",
            "",
        ]
    )


def _bash_verb(verb: str, taken: list[Word]) -> Iterator[str]:
    yield f"    {verb})"
    if valued := [word for word in taken if word.flags and word.kind != "none"]:
        yield '      case "$before" in'
        for word in valued:
            yield f"        {'|'.join(word.flags)}) {_bash_values(word)}; return ;;"
        yield "      esac"
    flags = " ".join(chain.from_iterable(word.flags for word in taken))
    found = f'mapfile -t COMPREPLY < <(compgen -W "{flags}" -- "$current")'
    yield f'      if [[ "$current" == -* ]]; then {found}; return; fi'
    if places := [word for word in taken if not word.flags and word.kind != "text"]:
        yield f"      {_bash_values(places[0])}"
    yield "      ;;"


def _bash_values(word: Word) -> str:
    what = {
        "one of": f'-W "{" ".join(word.choices)}"',
        "run": f'-W "$({NAMES})"',
        "agent": f'-W "$({AGENTS})"',
        "file": "-f",
        "directory": "-d",
    }.get(word.kind)
    if what:
        return f'mapfile -t COMPREPLY < <(compgen {what} -- "$current")'
    return ":"


def zsh() -> str:
    """Return the completion script for zsh. Users save it as a function file named `_perdure`, or
    pass it to `eval`."""
    verbs: list[str] = []
    cases: list[str] = []
    for verb, (text, taken) in words().items():
        verbs.append(f"    {_quoted(f'{verb}:{text}')}")
        cases += _zsh_verb(verb, taken)
    return "\n".join(
        [
            "#compdef perdure",
            '_perdure_runs() { local -a runs; runs=(${(f)"$(' + NAMES + ')"}); compadd -a runs }',
            '_perdure_agents() { local -a agents; agents=(${(f)"$('
            + AGENTS
            + ')"}); compadd -a agents }',
            "_perdure() {",
            "  local -a verbs",
            "  verbs=(",
            *verbs,
            "  )",
            "  if (( CURRENT == 2 )); then _describe verb verbs; return; fi",
            "  local verb=$words[2]",
            "  shift words; (( CURRENT-- ))",
            '  case "$verb" in',
            *cases,
            "  esac",
            "}",
            'if [[ "$funcstack[1]" == _perdure ]]; then _perdure "$@"; else compdef _perdure '
            "perdure; fi",
            "",
        ]
    )


def _zsh_verb(verb: str, taken: list[Word]) -> Iterator[str]:
    yield f"    {verb}) _arguments \\"
    for word in taken:
        values = {
            "one of": f"({' '.join(word.choices)})",
            "run": "_perdure_runs",
            "agent": "_perdure_agents",
            "file": "_files",
            "directory": "_files -/",
        }.get(word.kind, " ")
        told = word.help.replace("[", "(").replace("]", ")").replace(":", "\\:")
        value = "" if word.kind == "none" else f":value:{values}"
        for flag in word.flags:
            yield f"      {_quoted(f'*{flag}[{told}]{value}')} \\"
        if not word.flags:
            yield f"      {_quoted(f':{verb}:{values}')} \\"
    yield "      ;;"


def fish() -> str:
    """Return the completion script for fish. Users save it as
    ~/.config/fish/completions/perdure.fish, or pipe it into `source`."""
    lines = ["# perdure completion fish", "complete -c perdure -f"]
    for verb, (text, taken) in words().items():
        lines.append(
            f"complete -c perdure -n __fish_use_subcommand -a {verb} -d {_fish_quoted(text)}"
        )
        here = f"complete -c perdure -n '__fish_seen_subcommand_from {verb}'"
        for line in filter(None, map(_fish_word, taken)):
            lines.append(f"{here}{line}")
    return "\n".join([*lines, ""])


def _fish_word(word: Word) -> str:
    flags = ""
    for flag in word.flags:
        if flag.startswith("--"):
            flags += f" -l {flag[2:]}"
        else:
            flags += f" -s {flag[1:]}"
    values = {
        "one of": f" -xa {_fish_quoted(' '.join(word.choices))}",
        "run": f" -xa {_fish_quoted(f'({NAMES})')}",
        "agent": f" -xa {_fish_quoted(f'({AGENTS})')}",
        "file": " -rF",
        "directory": " -xa '(__fish_complete_directories)'",
        "text": " -x",
    }.get(word.kind, "")
    if not flags:
        if word.kind != "text":
            return values
        return ""
    return f"{flags}{values} -d {_fish_quoted(word.help)}"


def _quoted(text: str) -> str:
    """Return the text quoted for bash and zsh."""
    return "'" + text.replace("'", "'\\''") + "'"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
