"""Decides which of an agent's commands are checks, and whether an exit code is that of the check.
Pure.

A shell returns one exit code for a whole line. `pytest | tail` returns that of `tail`, and `pytest;
echo` that of `echo`. So these exit codes prove nothing about the tests. `cd app && pytest` returns
0 only if the tests passed.
"""

from __future__ import annotations

import re
import shlex
from functools import lru_cache

from msgspec import Struct

from perdure.patterns import late_pattern

SHOWN = 300
"""Maximum number of characters of a command in a report."""
REMEMBERED = 1000
"""Maximum number of parsed commands that are cached. The cache helps because a command is parsed up
to three times: at the end of the attempt, for the attempt's report, and for a line that is shown.
"""
_SHELL = late_pattern(r"(?:\S*/)?(?:ba|da|z|k)?sh$")
_ASSIGNMENT = late_pattern(r"[A-Za-z_]\w*=")
_WRAPPERS = (
    late_pattern(
        r"(?:sudo|env|time|exec|command|nohup|nice|xvfb-run|dotenv|direnv exec \S+) (?:-\S+ )*"
    ),
    late_pattern(r"timeout (?:-\S+ )*\d\S* "),
    late_pattern(r"(?:npx|bunx|pnpx|pnpm (?:exec|dlx)|yarn (?:exec|dlx)|bundle exec) (?:--?\S+ )*"),
    late_pattern(r"(?:uv|poetry|pdm|hatch|pipenv|rye|conda|mise|nix-shell) run (?:--?\S+ )*"),
    late_pattern(r"(?:\S*/)?python[\d.]* (?:-[A-Zu]\S* )*-m "),
)
_STARTERS = frozenset(
    "sudo env time exec command nohup nice xvfb-run dotenv direnv timeout npx bunx pnpx pnpm yarn "
    "bundle uv poetry pdm hatch pipenv rye conda mise nix-shell".split()
)
"""First words of the commands that a pattern in `_WRAPPERS` matches, except Python."""
_RUNNER = late_pattern(
    r"(?:"
    r"(?:\S*/)?(?:pytest|py\.test|unittest|tox|nox|jest|vitest|mocha|ava|jasmine|karma|ctest|rspec|"
    r"phpunit|pest|gotestsum|behave|cucumber|bats|busted|prove|nextest|trial|nosetests?)"
    r"|(?:npm|pnpm|yarn|bun) (?:--?\S+ )*(?:run(?:-script)? )?(?:tests?|t|check)(?::\S+)?"
    r"|node (?:--?\S+ )*--test"
    r"|(?:playwright|cypress|ng|deno|swift|mix|lein|stack|cabal|sbt|bazel|bazelisk|dotnet|flutter|"
    r"dart|zig build|rails|composer|rake|just|task|go|gleam|dune|pub) (?:--?\S+ )*(?:run )?"
    r"(?:tests?|spec|check|runtest)(?::\S+)?"
    r"|cargo (?:\+\S+ )?(?:--?\S+ )*(?:test|nextest run|t)"
    r"|(?:make|gmake|ninja|meson) (?:\S+ )*?(?:tests?|check|verify)(?:[-_:]\w+)*"
    r"|(?:\S*/)?mvnw? (?:\S+ )*?(?:test|verify|integration-test)"
    r"|(?:\S*/)?gradlew? (?:\S+ )*?(?:\S*:)?(?:test|check)"
    r"|(?:\S*/)?python[\d.]* (?:-[A-Zu]\S* )*(?:\S*/)?(?:test_\w+|\w+_test|tests?|run_?tests?)\.py"
    r"|(?:\S*/)?python[\d.]* (?:\S*/)?(?:manage|setup)\.py test"
    r"|(?:(?:ba|z)?sh (?:-\w+ )*)?(?:\S*/)?(?:run[-_]?)?(?:all[-_]?)?tests?\.(?:sh|py|js|rb|bash)"
    r"|\S+/(?:run[-_]?)?(?:all[-_]?)?tests?"
    r")(?= |$)"
)
_OF_A_RUNNER = (
    *("test", "spec", "check", "verify", "tox", "nox", "jest", "mocha", "ava", "jasmine", "karma"),
    *("phpunit", "pest", "behave", "cucumber", "bats", "busted", "prove", "trial"),
    *("npm", "yarn", "bun ", "cargo"),
)
"""Fragments of words. Every command that `_RUNNER` matches contains at least one of them. They are
searched first, because the pattern `_RUNNER` takes 2 ms to compile."""
_NO_RUN = late_pattern(
    r" (?:--help|--version|-h|--collect-only|--co|--list(?:-tests)?|--listTests|--dry-run|-N|"
    r"--no-run|--fixtures|--markers)(?: |$)|^ g?make .*-[a-z]*n\b"
)
_BLOCKS = frozenset(
    {
        "then",
        "do",
        "else",
        "elif",
        "if",
        "while",
        "until",
        "for",
        "case",
        "fi",
        "done",
        "!",
        "{",
        "}",
    }
)
_SUBSTITUTION = late_pattern(r"\$\(|`|[<>]\(")
_CUT = late_pattern(r"\[\d+ characters more\]$")

READING = frozenset(
    "ls cat head tail grep egrep rg pwd echo wc file stat du df which type tree diff cmp printf "
    "true cd sort uniq cut tr less more date id whoami uname test [ jq basename dirname "
    "realpath".split()
)
"""Names of commands that change no file, unless output is redirected."""
GIT_KEEPS = frozenset(
    "status diff log show add commit push fetch branch tag rev-parse blame".split()
)
"""git commands that do not change the files of the workdir."""


class Ran(Struct, frozen=True):
    """A check in a shell line. `own`: whether the exit code of the whole line is that of the
    check."""

    command: str
    own: bool


@lru_cache(REMEMBERED)
def check_of(line: str) -> Ran | None:
    """Return the last check in a shell line; None if there is none."""
    script = _unwrapped(line)
    pieces = _pieces(script)
    found = None
    for at, (before, words, after) in enumerate(pieces):
        command = _bare(words)
        if _is_runner(command) and not _NO_RUN.search(f" {command}"):
            later = [each[2] for each in pieces[at + 1 :]]
            joined = [after, *later]
            own = before != "||" and all(each in ("&&", "") for each in joined)
            found = Ran(" ".join(script.split())[:SHOWN], own)
    if found is None:
        return None
    whole = any(not _BLOCKS.isdisjoint(words[:1]) for _, words, _ in pieces)
    doubtful = whole or _SUBSTITUTION.search(script) or _CUT.search(line.strip())
    return Ran(found.command, found.own and not doubtful)


def _is_runner(command: str) -> bool:
    return any(each in command for each in _OF_A_RUNNER) and bool(_RUNNER.match(command))


@lru_cache(REMEMBERED)
def changes_nothing(line: str) -> bool:
    """Return whether every command of a shell line leaves the workdir's files unchanged."""
    script = _unwrapped(line)
    if ">" in script or _SUBSTITUTION.search(script) or _CUT.search(line.strip()):
        return False
    for _, words, _ in _pieces(script):
        command = _bare(words).split(" ")
        if command[0] == "git":
            named = [word for word in command[1:] if not word.startswith("-")]
            if not named or named[0] not in GIT_KEEPS:
                return False
        elif command[0] and command[0] not in READING:
            return False
    return True


def _unwrapped(line: str, depth: int = 3) -> str:
    """Return the script inside `bash -lc '...'`; any other line unchanged."""
    try:
        words = shlex.split(line, comments=False)
    except ValueError:
        return line
    if depth and len(words) == 3 and _SHELL.match(words[0]) and re.fullmatch(r"-\w*c", words[1]):
        return _unwrapped(words[2], depth - 1)
    return line


def _pieces(script: str) -> list[tuple[str, list[str], str]]:
    """Return the simple commands of a script. Each has the operator before it and the operator
    after it: `&&`, `||`, `;`, `|`, `&`."""
    lexer = shlex.shlex(script.strip().replace("\n", " ; "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        tokens = list(lexer)
    # A quote is not closed, so nothing in the line can be interpreted with certainty.
    except ValueError:
        tokens = [*script.split(), ";", ":"]
    pieces: list[tuple[str, list[str], str]] = []
    before, words = "", list[str]()
    for token in [*tokens, ""]:
        if token in ("(", ")"):
            continue
        if token and not re.fullmatch(r"[;&|]+", token):
            words.append(token)
            continue
        if words:
            pieces.append((before, words, token))
        elif pieces and token:
            # A `;` after a closing bracket belongs to the command inside the brackets.
            pieces[-1] = (*pieces[-1][:2], token)
        before, words = token, []
    if pieces and pieces[-1][2] == ";":
        pieces[-1] = (*pieces[-1][:2], "")
    return pieces


def _bare(words: list[str]) -> str:
    """Return the command without variable assignments at its beginning, and without programs such
    as `env` that only start it."""
    while words and "=" in words[0] and _ASSIGNMENT.match(words[0]):
        words = words[1:]
    command = " ".join(words)
    for _ in range(5):
        rest = command
        first = rest.partition(" ")[0]
        wrappers = _WRAPPERS if first in _STARTERS or "python" in first else ()
        for wrapper in wrappers:
            if wrapper.match(rest):
                rest = wrapper.sub("", rest, count=1)
        while "=" in rest and _ASSIGNMENT.match(rest) and " " in rest:
            rest = rest.partition(" ")[2]
        if rest == command:
            return command
        command = rest
    return command
