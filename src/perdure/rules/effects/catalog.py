"""Finds the effects of a tool call outside the workdir in the table `catalog.toml`. Used by the
ledger.

A program that the table does not list as local counts as a possible effect. The table is read once,
at the first call, from `catalog.json`. docs/generate.py writes that file from the TOML, which takes
20 times as long to parse.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from itertools import takewhile

import msgspec

from perdure.model.codec import resolved
from perdure.patterns import late_pattern
from perdure.rules.effects.shell import LONGEST, UNKNOWN, Invocation, read

LOCAL = "local"
PROGRAM, SCRIPT, CODE, TOOL, COMMAND = "program", "script", "code", "tool", "command"
"""Kinds of possible effects, for calls whose effect is unknown."""
MOST_LEVELS = 8
"""Maximum nesting depth of programs that start programs, and of scripts in scripts."""
MOST_CALLS = 1_000
"""Maximum number of programs of one tool call that are examined."""
MOST_FOUND = 50
"""Maximum number of effects of one tool call that are listed."""

_ASSIGNMENT = late_pattern(r"[A-Za-z_]\w*=")
_CODE_FILE = late_pattern(
    r"\.(?:py|sh|bash|zsh|js|mjs|cjs|ts|mts|tsx|rb|pl|php|lua|r|jl|exs?)$", re.I
)
_VERSIONED = late_pattern(r"(?<=.)@[\w.^~-]+$")
_CAMEL = late_pattern(r"(?<=[a-z])(?=[A-Z])")
_WITH_C = r"-[a-zA-Z]*c[a-zA-Z]*"
"""Pattern of a word with short options of a shell that include `-c`, such as `-lc`."""
_HELP = ("--help", "--version")


class EffectFinding(msgspec.Struct, frozen=True):
    """An effect that a tool call has, or may have, outside the workdir."""

    kind: str
    command: str
    possible: bool = False
    """Whether the effect is only possible, because the program is not known to be local."""
    reversible: bool | None = None
    proves: bool = True
    """Whether the call's success means that the effect succeeded."""
    disproves: bool = True
    """Whether the call's failure means that the effect failed."""


class ProgramRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rule in a program's entry of the effects table. It applies if all of its conditions
    hold."""

    kind: str = LOCAL
    verbs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    every: str = ""
    last: str = ""
    any: str = ""
    reads: bool = False
    targets: int = 0
    reversible: bool | None = None
    possible: bool = False


class Named(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Names of programs that behave alike, and the names of their options that take a value."""

    names: tuple[str, ...]
    values: frozenset[str] = frozenset()


class KnownProgram(Named, frozen=True):
    """An entry of the effects table: a program, and the rules that determine its effects."""

    rules: tuple[ProgramRule, ...] = ()
    default: str = ""
    statement: frozenset[str] = frozenset()
    """Options whose value is a statement in the program's own language, such as SQL."""
    writes: str = ""
    """Pattern of the statements (in the program's own language) that change something."""


class Wrapper(Named, frozen=True):
    """A program that starts another program, such as `env` or `xargs`."""

    verbs: tuple[str, ...] = ()
    skip: int = 0
    script: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()


class Interpreter(Named, frozen=True):
    """A program that runs code, such as a shell or `python`."""

    shell: bool = False
    inline: frozenset[str] = frozenset()
    module: frozenset[str] = frozenset()
    verbs: tuple[str, ...] = ()


class Vocabulary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Words in the name of a script or target that show its purpose."""

    effect: frozenset[str]
    local: frozenset[str]
    code: str


class LocalPrograms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Programs that affect only this machine."""

    programs: frozenset[str]


class Tools(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Names of the agents' tools: those that run a shell command, and those that affect only this
    machine."""

    shells: frozenset[str]
    local: frozenset[str]


class Catalog(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole table of `catalog.toml`."""

    words: Vocabulary
    local: LocalPrograms
    wrappers: tuple[Wrapper, ...]
    interpreters: tuple[Interpreter, ...]
    programs: tuple[KnownProgram, ...]
    tools: Tools


class _Arguments(msgspec.Struct, frozen=True):
    """The words of a program's call, divided into options and other words."""

    options: tuple[str, ...]
    """Options. An option with a value is also listed with its value, as in `-X=POST`."""
    places: tuple[int, ...]
    """Indexes of the words that are not options."""
    words: tuple[str, ...]

    @property
    def plain(self) -> tuple[str, ...]:
        """Return the words that are not options."""
        return tuple(self.words[place] for place in self.places)

    def value_of(self, names: frozenset[str]) -> str | None:
        """Return the value of the first of these options that is given; None if none is given."""
        for option in self.options:
            name, equals, value = option.partition("=")
            if name in names and equals:
                return value
        return None


@cache
def catalog() -> Catalog:
    """Return the effects table. The file is read at the first call."""
    from pkgutil import get_data

    content = get_data("perdure.rules.effects", "catalog.json")
    return msgspec.json.decode(content or b"", type=resolved(Catalog))


def of_tool(name: str, summary: str, hint: str = "") -> tuple[EffectFinding, ...]:
    """Return the effects of a tool call outside the workdir. `hint`: see `events.ToolStarted`."""
    plain = name.lower()
    if plain in catalog().tools.shells or hint == "runs":
        return of_command(summary)
    if plain in catalog().tools.local or hint in ("reads", "edits"):
        return ()
    reversible = False if hint == "destroys" else None
    return (EffectFinding(TOOL, f"{name} {summary}".strip(), True, reversible),)


def of_command(command: str) -> tuple[EffectFinding, ...]:
    """Return the effects of a shell command outside the workdir, in the order of the command's
    text."""
    return _of_command(command[: LONGEST + 1])


@lru_cache(maxsize=4096)
def _of_command(command: str) -> tuple[EffectFinding, ...]:
    search = _Search()
    search.script(command)
    found = search.found[:MOST_FOUND]
    if not search.whole:
        text = command if len(command) <= 200 else f"{command[:200]}..."
        found.append(EffectFinding(COMMAND, text, True, proves=False, disproves=False))
    return tuple(found)


class _Search:
    """Collects the effects of one command, and of the scripts and programs that it contains."""

    def __init__(self) -> None:
        self.found: list[EffectFinding] = []
        self.functions: set[str] = set()
        self.whole = True
        self.level = 0
        self.left = MOST_CALLS

    def script(self, text: str, proves: bool = True, disproves: bool = True) -> None:
        """Examine a script and collect its effects. `proves`: whether the success of the tool call
        shows that this script succeeded. `disproves`: whether its failure shows that this script
        failed."""
        if self.level > MOST_LEVELS or self.left <= 0:
            self.whole = False
            return
        self.level += 1
        script = read(text)
        self.functions |= script.functions
        self.whole = self.whole and script.whole
        for call in script.invocations:
            self._call(
                msgspec.structs.replace(
                    call, proves=call.proves and proves, disproves=call.disproves and disproves
                )
            )
        self.level -= 1

    def _call(self, call: Invocation) -> None:
        """Examine a program. If the program starts another one, examine that one too."""
        self.left -= 1
        if self.left < 0 or self.level > MOST_LEVELS:
            self.whole = False
            return
        words = _without_assignments(call.words)
        if not words or words[0] in self.functions:
            return
        name = _name(words[0])
        if name == "eval":
            self._text(" ".join(words[1:]), call)
        elif name == "trap" and len(words) > 1:
            self._text(words[1], call)
        elif (started := _started(name, words)) is not None:
            for inner in started:
                if isinstance(inner, str):
                    self._text(inner, call)
                else:
                    self._deeper(inner, call)
        elif name in _interpreters():
            self._interpreted(_interpreters()[name], name, words, call)
        else:
            self.found += _ordinary(name, words, call)

    def _deeper(self, words: tuple[str, ...], call: Invocation) -> None:
        self.level += 1
        self._call(msgspec.structs.replace(call, words=words))
        self.level -= 1

    def _text(self, text: str, call: Invocation) -> None:
        """Examine a script that is part of a command."""
        if text.replace(UNKNOWN, "").strip():
            self.script(text, call.proves, call.disproves)
        elif UNKNOWN in text:
            self.found.append(_possible(SCRIPT, call))

    def _interpreted(
        self, interpreter: Interpreter, name: str, words: Sequence[str], call: Invocation
    ) -> None:
        """Examine the code that an interpreter runs: inline code, a module, a file, or standard
        input."""
        # In `bash -lc text`, the text is the first word after all options.
        if interpreter.shell:
            inlined = frozenset[str]()
        else:
            inlined = interpreter.inline
        values = interpreter.values | inlined | interpreter.module
        given = _sorted(words, values, leading=True, verbs=interpreter.verbs)
        plain = given.plain[_verbs_at(interpreter.verbs, given.plain) :]
        inline = given.value_of(inlined)
        if interpreter.shell and interpreter.inline and _has(given.options, (_WITH_C,)):
            inline = plain[0] if plain else ""
        module = given.value_of(interpreter.module)
        if inline is not None:
            self._code(interpreter, inline, call)
        elif module is not None:
            at = next(n for n, word in enumerate(words) if word in interpreter.module)
            self._file((module, *words[at + 2 :]), call)
        elif plain and plain[0] != "-":
            if name in _programs() and not _CODE_FILE.search(plain[0]):
                self.found += _ordinary(name, words, call)
            else:
                self._file((_name(plain[0]), *plain[1:]), call, plain[0])
        elif call.stdin is not None:
            self._code(interpreter, call.stdin, call)
        elif call.piped:
            self.found.append(_possible(SCRIPT, call))

    def _file(self, words: tuple[str, ...], call: Invocation, path: str = "") -> None:
        """Collect the effects of a file or module that an interpreter runs with these arguments."""
        if _known(words[0]):
            self._deeper(words, call)
        else:
            self.found += _by_name((path or words[0], *words[1:]), call)

    def _code(self, interpreter: Interpreter, text: str, call: Invocation) -> None:
        if interpreter.shell:
            self._text(text, call)
        elif re.search(catalog().words.code, text) or text == UNKNOWN:
            self.found.append(_possible(CODE, call))


def _started(name: str, words: Sequence[str]) -> list[tuple[str, ...] | str] | None:
    """Return the command that a wrapper starts, as words or as a script; None if the program is not
    a wrapper."""
    for wrapper in catalog().wrappers:
        if name not in wrapper.names:
            continue
        if wrapper.after:
            return _after(wrapper, words) or None
        given = _sorted(words, wrapper.values | wrapper.script, leading=True, verbs=wrapper.verbs)
        consumed = _verbs_at(wrapper.verbs, given.plain)
        if wrapper.verbs and not consumed:
            continue
        script = given.value_of(wrapper.script)
        if script is not None:
            return [script]
        rest = given.plain[consumed:]
        passed = len(tuple(takewhile(_ASSIGNMENT.match, rest)))
        first = consumed + passed + wrapper.skip
        if first >= len(given.places):
            return []
        return [tuple(words[given.places[first] :])]
    return None


def _after(wrapper: Wrapper, words: Sequence[str]) -> list[tuple[str, ...] | str]:
    """Return the commands that a program such as `find` starts. Each command consists of the words
    between an option such as `-exec` and its `;` or `+`."""
    found: list[tuple[str, ...] | str] = []
    inner: list[str] | None = None
    for word in words:
        if inner is None:
            inner = [] if word in wrapper.after else None
        elif word in (";", "+"):
            found.append(tuple(inner))
            inner = None
        else:
            inner.append(word)
    if inner:
        return [*found, tuple(inner)]
    return found


def _by_name(words: Sequence[str], call: Invocation) -> list[EffectFinding]:
    """Return a possible effect of a script that belongs to the agent or the repository; empty if
    none is likely. The script itself is not read: only its name and its first argument are
    examined."""
    named = [words[0], *[word for word in words[1:2] if re.fullmatch(r"[\w:.-]+", word)]]
    if UNKNOWN in words[0] or any(_words(each) & catalog().words.effect for each in named):
        return [_possible(SCRIPT, call)]
    return []


def _ordinary(name: str, words: Sequence[str], call: Invocation) -> list[EffectFinding]:
    """Return the effects of a program that does not run another program."""
    program = _programs().get(name)
    if program is None:
        if name in catalog().local.programs or words[-1] in _HELP:
            return []
        if "/" in words[0] or _CODE_FILE.search(name):
            return _by_name(words, call)
        return [_possible(PROGRAM, call)]
    if program.default != "remote command" and (words[-1] in _HELP or words[1:2] == ("help",)):
        return []
    given = _sorted(words, program.values)
    rule = next((each for each in program.rules if _fits(each, program, given, call)), None)
    if rule is None:
        return [_finding(program.default or PROGRAM, call, not program.default, None)]
    if rule.kind == LOCAL:
        return []
    return [_finding(rule.kind, call, rule.possible, rule.reversible)]


def _fits(rule: ProgramRule, program: KnownProgram, given: _Arguments, call: Invocation) -> bool:
    """Return whether all conditions of a rule hold for this call."""
    plain = given.plain
    if rule.verbs and not any(_matches(pattern, plain) for pattern in rule.verbs):
        return False
    if rule.options and not _has(given.options, rule.options):
        return False
    if rule.every and not (plain and all(re.search(rule.every, word) for word in plain)):
        return False
    if rule.last and not (plain and re.search(rule.last, plain[-1])):
        return False
    if rule.any and not any(re.search(rule.any, word) for word in plain):
        return False
    if rule.reads and not _only_reads(program, given, call):
        return False
    if not rule.targets:
        return True
    at = _verbs_at(rule.verbs, plain)
    wanted = [word for word in plain[at : at + rule.targets] if "=" not in word]
    return all(map(_is_local_target, wanted))


def _has(options: Sequence[str], patterns: Sequence[str]) -> bool:
    wanted = "|".join(f"(?:{pattern})" for pattern in patterns)
    return any(re.fullmatch(wanted, option) for option in options)


def _only_reads(program: KnownProgram, given: _Arguments, call: Invocation) -> bool:
    statements = []
    for option in given.options:
        if option.partition("=")[0] in program.statement:
            statements.append(option.partition("=")[2])
    if not statements and call.stdin is not None:
        statements = [call.stdin]
    for text in statements:
        if text == UNKNOWN or re.search(program.writes, text):
            return False
    return bool(statements)


def _is_local_target(word: str) -> bool:
    parts = _words(word)
    known = catalog().words
    return UNKNOWN not in word and not parts & known.effect and bool(parts & known.local)


def _words(name: str) -> frozenset[str]:
    """Return the words in the name of a file or target, in lower case."""
    parts = re.split(r"[^a-zA-Z0-9]+", _CAMEL.sub(" ", name))
    return frozenset(part.lower() for part in parts if part)


def _sorted(
    words: Sequence[str],
    values: frozenset[str],
    *,
    leading: bool = False,
    verbs: Sequence[str] = (),
) -> _Arguments:
    """Return the words of a call, divided into options and others. `leading`: whether the program
    starts another one. In that case the first program's own options end at the first word that is
    neither a verb nor an assignment."""
    options: list[str] = []
    places: list[int] = []
    at = 1
    while at < len(words):
        word = words[at]
        if word == "--":
            places += range(at + 1, len(words))
            break
        if len(word) < 2 or word[0] != "-":
            places.append(at)
            plain = tuple(words[place] for place in places)
            if leading and not _is_part(plain, verbs) and not _ASSIGNMENT.match(word):
                places += range(at + 1, len(words))
                break
            at += 1
            continue
        if re.fullmatch(r"-[a-zA-Z]{2,}", word):
            short = f"-{word[-1]}"
        else:
            short = ""
        takes = word in values or (short in values and not word.startswith("--"))
        if takes and at + 1 < len(words):
            options.append(f"{word}={words[at + 1]}")
            if short:
                options.append(f"{short}={words[at + 1]}")
            at += 1
        options.append(word)
        at += 1
    return _Arguments(tuple(options), tuple(places), tuple(words))


def _is_part(plain: Sequence[str], verbs: Sequence[str]) -> bool:
    """Return whether the words are equal to one of the verbs, or to the first words of one. A verb
    may have several words."""
    return any(verb.split()[: len(plain)] == list(plain) for verb in verbs)


def _verbs_at(verbs: Sequence[str], plain: Sequence[str]) -> int:
    """Return the number of words of the longest verb that matches; 0 if none matches."""
    longest = 0
    for verb in verbs:
        if _matches(verb, plain):
            longest = max(longest, len(verb.split()))
    return longest


def _matches(pattern: str, plain: Sequence[str]) -> bool:
    wanted = pattern.split()
    if len(plain) < len(wanted) or (not wanted and plain):
        return False
    for part, word in zip(wanted, plain, strict=False):
        if UNKNOWN in word or not fnmatchcase(word.lower(), part):
            return False
    return True


@cache
def _programs() -> dict[str, KnownProgram]:
    found: dict[str, KnownProgram] = {}
    for each in reversed(catalog().programs):
        found |= dict.fromkeys(each.names, each)
    return found


@cache
def _interpreters() -> dict[str, Interpreter]:
    found: dict[str, Interpreter] = {}
    for each in catalog().interpreters:
        found |= dict.fromkeys(each.names, each)
    return found


def _known(name: str) -> bool:
    return (
        name in catalog().local.programs
        or name in _programs()
        or any(name in each.names for each in catalog().wrappers)
    )


def _name(word: str) -> str:
    """Return a program's name without its directory and version."""
    plain = _VERSIONED.sub("", word.rpartition("/")[2])
    if not plain or UNKNOWN in plain:
        return word
    unnumbered = plain.rstrip("0123456789.")
    if _known(plain) or plain in _interpreters() or not unnumbered:
        return plain
    if unnumbered in _interpreters() or _known(unnumbered):
        return unnumbered
    return plain


def _without_assignments(words: Sequence[str]) -> tuple[str, ...]:
    passed = len(tuple(takewhile(_ASSIGNMENT.match, words)))
    return tuple(words[passed:])


def _possible(kind: str, call: Invocation) -> EffectFinding:
    return _finding(kind, call, True, None)


def _finding(kind: str, call: Invocation, possible: bool, reversible: bool | None) -> EffectFinding:
    return EffectFinding(kind, call.text, possible, reversible, call.proves, call.disproves)
