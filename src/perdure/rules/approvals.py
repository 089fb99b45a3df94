"""Saved rules that answer an agent's calls without asking a person again. Pure.

`engine.attempt.requests` asks `decide` at the end of an attempt, with the file of rules that
`perdure approve --always` writes. A rule never allows more than the person saw: without a pattern
it is for exactly that call. A pattern is for one program with plain words, as the shell parser of
the effect ledger reads them; a command with `;`, `&&`, `|`, a newline, a redirection, a variable or
a substitution never fits one. A rule that denies wins.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import msgspec

SHELL = "Bash"
"""The tool of Claude Code that runs a shell command."""
COMMENTARY = "description"
"""The argument of a shell command that changes nothing: the model words it differently each
time."""
HARMLESS = frozenset({"timeout"})
"""Other arguments that a command which fits a pattern may have."""
_PLAIN = re.compile(r"(?:[\w@%+=:,./-]+|'[^'\n]*'|\"[^\"$`\\\n!]*\"|[ \t])+", re.ASCII)
"""A command of literal words alone: nothing that the shell expands, joins or redirects."""
_RUNNERS = frozenset(
    "sh bash dash zsh ksh fish csh tcsh env sudo doas su xargs gxargs nohup nice ionice timeout "
    "time watch find fd eval exec command builtin source . trap ssh python python2 python3 perl "
    "ruby node deno bun php lua awk gawk sed npx uvx uv pipx docker podman nsenter chroot setsid "
    "strace script tmux screen parallel flock systemd-run busybox".split()
)
"""Programs whose arguments are programs themselves, so that a pattern would allow any command."""


class ApprovalRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One saved rule. Without `run` and `repository` it is for all runs."""

    decision: Literal["allow", "deny"]
    tool: str
    run: str = ""
    """The id of the run that it is for."""
    repository: str = ""
    """The repository whose runs it is for."""
    command: str = ""
    """The exact shell command."""
    pattern: str = ""
    """A pattern for the words of one shell command."""
    arguments: str = "{}"
    """The other arguments of the call as JSON."""
    why: str = ""
    """The reason that the agent is told."""
    by: str = ""
    at: str = ""

    def __str__(self) -> str:
        what = self.pattern or self.command or self.arguments
        place = "this repository" if self.repository else "all runs"
        if self.run:
            place = "this run"
        return f"{self.decision} {self.tool} {what} in {place}, saved by {self.by or 'hand'}"


def rule_for(
    decision: Literal["allow", "deny"], tool: str, given: Mapping[str, Any], pattern: str = ""
) -> ApprovalRule:
    """Return the rule for exactly this call, or for the pattern. Raises ValueError with a sentence
    if the pattern is not one for this call."""
    rest = dict(given)
    if tool != SHELL:
        if pattern:
            raise ValueError(f"a pattern is for shell commands, and this is a call of {tool}")
        return ApprovalRule(decision=decision, tool=tool, arguments=_json(rest))
    command = str(rest.pop("command", ""))
    rest.pop(COMMENTARY, None)
    if not pattern:
        return ApprovalRule(decision=decision, tool=tool, command=command, arguments=_json(rest))
    check_pattern(pattern)
    rule = ApprovalRule(decision=decision, tool=tool, pattern=pattern)
    if not _fits(rule, given):
        raise ValueError(
            "the pattern does not fit this call: one program with plain words, and options only "
            "where the pattern has them"
        )
    return rule


def check_pattern(pattern: str) -> None:
    """Raise ValueError with a sentence if no rule can have this pattern."""
    words = _pattern_words(pattern)
    if not words:
        raise ValueError("the pattern has no words, or a quote without its end")
    if any(each in words[0] for each in "*?["):
        raise ValueError("the first word of a pattern is the program, without * ? [")
    if words[0].rpartition("/")[2] in _RUNNERS and any("*" in each for each in words[1:]):
        raise ValueError(f"{words[0]} runs other programs, so a pattern for it would allow any")


def decide(
    rules: Sequence[ApprovalRule], *, run: str, repository: str, tool: str, given: Mapping[str, Any]
) -> ApprovalRule | None:
    """Return the rule that decides about a call, or None if a person has to be asked."""
    fitting = [
        each
        for each in rules
        if each.tool == tool
        and each.run in ("", run)
        and each.repository in ("", repository)
        and _fits(each, given)
    ]
    denying = [each for each in fitting if each.decision == "deny"]
    return next(iter(denying or fitting), None)


def _fits(rule: ApprovalRule, given: Mapping[str, Any]) -> bool:
    rest = dict(given)
    if rule.tool != SHELL:
        return not (rule.pattern or rule.command) and _json(rest) == _same(rule.arguments)
    command = rest.pop("command", None)
    rest.pop(COMMENTARY, None)
    if not isinstance(command, str):
        return False
    if not rule.pattern:
        return (
            bool(rule.command) and command == rule.command and _json(rest) == _same(rule.arguments)
        )
    try:
        check_pattern(rule.pattern)
    except ValueError:
        return False
    words = _pattern_words(rule.pattern)
    if rule.decision == "deny":
        return any(_matches(words, each) for each in _programs(command))
    return rest.keys() <= HARMLESS and _matches(words, _single(command))


def _single(command: str) -> tuple[str, ...]:
    """Return the words of a command that is one program with literal words; else nothing."""
    from perdure.rules.effects.shell import UNKNOWN, read

    if not _PLAIN.fullmatch(command):
        return ()
    script = read(command)
    if not script.whole or len(script.invocations) != 1 or script.functions:
        return ()
    (only,) = script.invocations
    try:
        plain = tuple(shlex.split(command))
    except ValueError:
        return ()
    alone = only.text == command.strip() and only.stdin is None and not only.piped
    if alone and plain == only.words and UNKNOWN not in command:
        return only.words
    return ()


def _programs(command: str) -> Iterable[tuple[str, ...]]:
    """Return the words of all programs that a command starts, as far as they are known."""
    from perdure.rules.effects.shell import read

    return [each.words for each in read(command).invocations]


def _pattern_words(pattern: str) -> list[str]:
    try:
        return shlex.split(pattern)
    except ValueError:
        return []


def _matches(pattern: Sequence[str], words: Sequence[str]) -> bool:
    """Return whether the words fit. A `*` at the end stands for one or more words. No wildcard
    stands for an option: an option such as `--receive-pack=...` can run another program."""
    if not words:
        return False
    if len(pattern) > 1 and pattern[-1] == "*" and len(words) > len(pattern):
        pattern = [*pattern, *["*"] * (len(words) - len(pattern))]
    return len(pattern) == len(words) and all(map(_word_fits, pattern, words))


def _word_fits(pattern: str, word: str) -> bool:
    is_option = word.startswith("-") and not pattern.startswith("-")
    return not is_option and fnmatchcase(word, pattern)


def _json(given: Mapping[str, Any]) -> str:
    return json.dumps(given, sort_keys=True, ensure_ascii=False)


def _same(arguments: str) -> str:
    """Return the JSON of a rule in the form of `_json`; empty if it is no object."""
    try:
        found = json.loads(arguments)
    except ValueError:
        return ""
    if isinstance(found, dict):
        return _json(found)
    return ""
