"""Saved rules that answer an agent's calls without asking a person again. Pure.

`engine.attempt.requests` calls `decide` at the end of an attempt, with the file of rules that
`perdure approve --always` writes. A rule never allows more than the person saw. Without a pattern
it allows exactly that call. A pattern allows one program with plain words, as the shell parser of
the effect ledger reads them. A command with `;`, `&&`, `|`, a newline, a redirection, a variable or
a substitution never matches a pattern. A rule that denies takes precedence.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import msgspec

from perdure.model.requests import AgentRequest, RequestKind
from perdure.patterns import late_pattern
from perdure.rules.requests import digest

CallArguments = Mapping[str, object]
"""The arguments of one call of a tool by name, as the agent wrote them."""

SHELL = "Bash"
"""The tool of Claude Code that runs a shell command."""
COMMENTARY = "description"
"""Name of the argument that only describes a shell command. It is ignored, because the model words
it differently each time."""
HARMLESS = frozenset({"timeout"})
"""Names of arguments, besides the command, that a call may have when a rule's pattern allows the
command."""
LONGEST = 4_000
"""Maximum length of a command that a pattern can allow, in characters."""
_PLAIN = late_pattern(r"(?:[\w@%+=:,./-]|'[^'\n]*'|\"[^\"$`\\\n!]*\"|[ \t])+", re.ASCII)
"""Pattern of a command that consists of literal words: the shell expands, joins and redirects
nothing in it. No two alternatives can begin with the same character, so a search never backtracks.
"""
_WILDCARD = late_pattern(r"[*?[]")
_PARTS = late_pattern(r"[/=:,@]")
_REMOTE = late_pattern(r"[^/:]*@[^/:]+:")
"""Pattern of an address on another host in the form of ssh: `git@example.org:shop`."""
_VERSION = late_pattern(r"[-._]?\d|\.")
"""Pattern of the place where a program's name ends and its version or variant begins: `python3.12`,
`vim.basic`."""
_RUNNERS = frozenset(
    """
    sh bash rbash dash ash zsh ksh mksh fish csh tcsh pwsh powershell cmd busybox toybox
    env sudo doas su runuser pkexec run0 chroot nsenter unshare setpriv systemd-run machinectl
    xargs gxargs parallel nohup setsid nice ionice chrt taskset timeout gtimeout time stdbuf
    unbuffer watch watchexec entr nodemon hyperfine flock script expect screen tmux
    strace ltrace perf valgrind gdb lldb ld ld-linux-x at batch crontab
    eval exec command builtin source . trap coproc
    ssh autossh mosh sshpass rsh scp sftp rsync nc ncat netcat socat
    find gfind fd fdfind awk gawk mawk nawk original-awk sed gsed ed ex
    vi vim nvim view vimdiff emacs nano less more most man tar gtar bsdtar cpio zip
    python pypy ipython perl ruby irb node nodejs deno bun bunx php lua luajit tclsh wish
    r rscript julia ghc ghci runghc java jshell scala groovy kotlin swift dotnet mono erl elixir
    iex osascript psql mysql mariadb sqlite
    make gmake bmake nmake cmake ctest ninja samu meson scons bazel bazelisk just task rake ant
    mvn mvnw gradle gradlew sbt mix tox nox invoke fab pre-commit
    npm npx pnpm pnpx yarn corepack pip pipx uv uvx poetry hatch pdm rye conda mamba micromamba
    gem bundle composer cargo rustup go gh glab hub hg
    docker docker-compose podman nerdctl buildah kubectl oc helm terraform tofu vagrant
    ansible ansible-playbook
    """.split()
)
"""Programs that run other programs named in their arguments. A pattern for one of them would allow
any command."""
_GIT = frozenset(
    "add blame branch checkout cherry-pick clean commit describe diff fetch log ls-files ls-remote "
    "merge mv pull push reset restore rev-parse revert rm show stash status switch tag".split()
)
"""Subcommands of git that are allowed in a pattern. They run no program that an argument names, and
no alias can replace them. `_GIT_RUNNERS` excludes options that name a program, such as `--exec`."""
_GIT_RUNNERS = ("--ex", "--rec", "--upl")
"""Beginnings of the git options that name a program to run, because git also accepts an abbreviated
option."""


class ApprovalRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One saved rule. If both `run` and `repository` are empty, the rule applies to all runs."""

    decision: Literal["allow", "deny"]
    tool: str
    run: str = ""
    """The id of the run that the rule applies to; empty for a rule that is not limited to one run.
    """
    repository: str = ""
    """The repository to whose runs the rule applies; empty for a rule that is not limited to one
    repository."""
    command: str = ""
    """The exact shell command that the rule applies to; empty if the rule has a pattern."""
    pattern: str = ""
    """A pattern for the words of one shell command; empty if the rule applies to one exact call."""
    arguments: str = "{}"
    """The arguments of the call besides the shell command, as a JSON object."""
    why: str = ""
    """The reason that the agent gets together with the answer."""
    by: str = ""
    at: str = ""

    def __str__(self) -> str:
        what = self.pattern or self.command or self.arguments
        place = "this repository" if self.repository else "all runs"
        if self.run:
            place = "this run"
        return f"{self.decision} {self.tool} {what} in {place}, saved by {self.by or 'hand'}"


def is_stored_whole(request: AgentRequest) -> bool:
    """Return whether the whole call was stored. Only then has a person who allows the call seen all
    of it. A call that is too long, or contains a secret or half a surrogate pair, is not stored
    whole."""
    try:
        given = json.loads(request.payload)
    except ValueError:
        return False
    return digest(request.tool, given) == request.sha256


def why_not_allowed(request: AgentRequest) -> str:
    """Return why a person cannot allow the call but only refuse it, as a clause; empty if they may
    allow it."""
    if request.kind is RequestKind.QUESTION:
        return ""
    if request.size > len(request.payload):
        return f"too long to be shown whole ({request.size} characters)"
    if is_stored_whole(request):
        return ""
    return "not stored whole, probably because it holds a secret or an invalid character"


def not_whole(request: AgentRequest) -> str:
    """Return a clause that says why a comment does not show the whole request, and what follows
    from that. Empty if the whole request is shown."""
    if why := why_not_allowed(request):
        return f"{why}: it can only be refused"
    if request.size > len(request.payload):
        return f"cut here, {request.size} characters in all"
    return ""


def rule_for(
    decision: Literal["allow", "deny"], tool: str, given: CallArguments, pattern: str = ""
) -> ApprovalRule:
    """Return the rule to save for a decision: for exactly this call, or for the pattern if one is
    given. Raises ValueError with a sentence if the pattern does not match this call."""
    rest = dict(given)
    if tool != SHELL:
        if pattern:
            raise ValueError(f"a pattern is for shell commands, and this is a call of {tool}")
        return ApprovalRule(decision=decision, tool=tool, arguments=_json(rest))
    command = str(rest.pop("command", ""))
    rest.pop(COMMENTARY, None)
    if not pattern:
        return ApprovalRule(decision=decision, tool=tool, command=command, arguments=_json(rest))
    check_pattern(pattern, decision)
    rule = ApprovalRule(decision=decision, tool=tool, pattern=pattern)
    if not _fits(rule, given):
        raise ValueError(
            "the pattern does not fit this call: one program with plain words, and options only "
            "where the pattern has them"
        )
    return rule


def check_pattern(pattern: str, decision: Literal["allow", "deny"]) -> None:
    """Raise ValueError if no rule can have this pattern. The error's text is a sentence for a
    person."""
    words = _pattern_words(pattern)
    if not words:
        raise ValueError("the pattern has no words, or a quote without its end")
    if _WILDCARD.search(words[0]):
        raise ValueError("the first word of a pattern is the program, without * ? [")
    if decision == "deny" or not any(map(_WILDCARD.search, words[1:])):
        return
    name = words[0].rpartition("/")[2].lower()
    program = _VERSION.split(name)[0] or name
    if program in _RUNNERS:
        raise ValueError(
            f"{words[0]} runs other programs, so a pattern for it would allow any program"
        )
    if program == "git" and (
        words[1] not in _GIT or any(each.startswith(_GIT_RUNNERS) for each in words)
    ):
        raise ValueError(
            "git can run other programs: the second word of a pattern for git must be a subcommand "
            "that does not, such as push, and no option may name a program"
        )
    if any(each.startswith("-") and _WILDCARD.search(each.partition("=")[0]) for each in words):
        raise ValueError("the name of an option in a pattern is written out, without * ? [")


def decide(
    rules: Sequence[ApprovalRule], *, run: str, repository: str, tool: str, given: CallArguments
) -> ApprovalRule | None:
    """Return the saved rule that decides on a call; None if a person has to be asked."""
    fitting = []
    for each in rules:
        if (
            each.tool == tool
            and each.run in ("", run)
            and each.repository in ("", repository)
            and _fits(each, given)
        ):
            fitting.append(each)
    denying = [each for each in fitting if each.decision == "deny"]
    return next(iter(denying or fitting), None)


def _fits(rule: ApprovalRule, given: CallArguments) -> bool:
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
        check_pattern(rule.pattern, rule.decision)
    except ValueError:
        return False
    words = _pattern_words(rule.pattern)
    if rule.decision == "deny":
        return any(_matches(words, each, _is_like) for each in _programs(command))
    return rest.keys() <= HARMLESS and _matches(words, _single(command), _word_fits)


def _single(command: str) -> tuple[str, ...]:
    """Return the words of a command, if it is one program with literal words; empty for any other
    command."""
    from perdure.rules.effects.shell import UNKNOWN, read

    if len(command) > LONGEST or not _PLAIN.fullmatch(command):
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
    """Return the words of all programs that a command starts, for each program separately. Programs
    that the parser does not find are missing."""
    from perdure.rules.effects.shell import read

    return [each.words for each in read(command).invocations]


def _pattern_words(pattern: str) -> list[str]:
    try:
        return shlex.split(pattern)
    except ValueError:
        return []


def _matches(
    pattern: Sequence[str], words: Sequence[str], fits: Callable[[str, str], bool]
) -> bool:
    """Return whether the words match the pattern. A `*` at the end matches one or more words."""
    if not words:
        return False
    if len(pattern) > 1 and pattern[-1] == "*" and len(words) > len(pattern):
        pattern = [*pattern, *["*"] * (len(words) - len(pattern))]
    return len(pattern) == len(words) and all(map(fits, pattern, words))


def _is_like(pattern: str, word: str) -> bool:
    return fnmatchcase(word, pattern)


def _word_fits(pattern: str, word: str) -> bool:
    """Return whether a word matches its pattern.

    A wildcard never matches an option, because an option such as `--receive-pack=...` can run
    another program. A wildcard also matches no path outside the workdir, no other server, and no
    refspec such as `+main` (forced push) or `:main` (deletion). It matches such a word only if the
    text before the wildcard already has that form.
    """
    if not _WILDCARD.search(pattern):
        return pattern == word
    shown = _WILDCARD.split(pattern)[0]
    is_option = word.startswith("-") and not shown.startswith("-")
    is_forced = word.startswith(("+", ":")) and not shown
    is_away = any(each in word and each not in shown for each in ("://", "::"))
    is_away = is_away or bool(_REMOTE.match(word) and not _REMOTE.match(shown))
    is_above = ".." in _PARTS.split(word) or (_is_absolute(word) and not _is_absolute(shown))
    return not (is_option or is_forced or is_away or is_above) and _is_like(pattern, word)


def _is_absolute(word: str) -> bool:
    """Return whether a word is an absolute path or contains one: `of=/dev/sda`, `@~/.netrc`."""
    return any(each.startswith(("/", "~")) for each in re.split("[=:,@]", word))


def _json(given: CallArguments) -> str:
    return json.dumps(given, sort_keys=True, ensure_ascii=False)


def _same(arguments: str) -> str:
    """Return the JSON text of a rule's arguments with sorted keys, as `_json` writes it. Empty if
    the text is not a JSON object."""
    try:
        found = json.loads(arguments)
    except ValueError:
        return ""
    if isinstance(found, dict):
        return _json(found)
    return ""
