"""The command `perdure`: finds the verb, loads only its module, and maps every error once.

Nothing heavy is imported here: `perdure ls` must not pay for what another verb needs.
"""

from __future__ import annotations

import codecs
import errno
import faulthandler
import os
import sys

from perdure.errors import NO_PROC, ConfigError, PerdureError

TYPE_CHECKING = False  # typing is too dear for `perdure ls` and `--help`
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from typing import Any

VERBS: dict[str, tuple[str, str]] = {
    "run": ("run", "start a task: an agent, a prompt, a workdir of its own"),
    "retry": ("run", "go on with a task where it stopped"),
    "update": ("run", "give a task new instructions, in the same conversation"),
    "resume": ("resume", "go on with a chosen conversation, also one that was begun by hand"),
    "fork": ("fork", "start a run whose conversation and files begin where another run stands"),
    "ls": ("ls", "list runs"),
    "top": (
        "top",
        "all runs at once in this terminal: who needs input, who works; look in, retry, stop",
    ),
    "show": ("look", "show one run, its attempts and receipts"),
    "logs": ("look", "what the agent said and did; -f follows"),
    "attach": ("attach", "follow a run at work; Ctrl-C leaves, and the run goes on"),
    "why": ("look", "how each attempt started, on which evidence, and what its receipt says"),
    "stop": ("stop", "stop a run; perdure retry goes on later"),
    "open": ("open", "go on by hand in the agent's own program; no attempt starts meanwhile"),
    "take-back": (
        "open",
        "give a run back that you had open, and see what became of its conversation",
    ),
    "sessions": (
        "sessions",
        "list conversations, also those begun by hand; read one, check them, mend one",
    ),
    "diff": ("changes", "show what a run changed, committed or not"),
    "apply": ("changes", "bring a run's changes into your checkout; nothing is overwritten"),
    "checkpoints": (
        "checkpoints",
        "list what was saved of a run: workdir and conversation together",
    ),
    "restore": (
        "checkpoints",
        "take workdir and conversation back to a checkpoint; what is there is saved first",
    ),
    "export": (
        "capsule",
        "write a run's checkpoint into one file, a capsule: conversation, files, journal",
    ),
    "import": ("capsule", "take a run in from a capsule; nothing runs before you say so"),
    "move": (
        "capsule",
        "bring a run to a checkpoint store, or take one up from there on another machine",
    ),
    "rm": (
        "changes",
        "take a finished run off the list, its workdir into the trash if all of it is saved",
    ),
    "reset": (
        "clean",
        "save, then clear a run's workdir and conversation, so that it begins anew; can be undone",
    ),
    "gc": (
        "clean",
        "take away what nobody needs any more and is saved elsewhere; --dry-run shows it",
    ),
    "trash": ("clean", "list what was taken away, bring it back, or delete it for ever"),
    "du": ("clean", "show how much disk perdure takes, by class, agent and repository"),
    "map": (
        "map",
        "the project map: what the files here export and import, as an agent would be told it",
    ),
    "work": ("pool", "perform whatever is due, and take over what lost its supervisor"),
    "serve": ("serve", "take webhooks of a forge, and perform whatever is due beside"),
    "operator": (
        "operator",
        "on Kubernetes: make Jobs of TaskRuns, and write what became of them into their status",
    ),
    "token": (
        "token",
        "tokens for those who ask perdure serve: make one, list them, take one away",
    ),
    "inbox": ("inbox", "list what forges delivered, show a delivery, or read one again"),
    "plan": (
        "plan",
        "a plan of many tasks in one conversation: check it, draw it, run it, see how it stands",
    ),
    "agents": (
        "settled",
        "list the agents: version, program, home, what they can, how many are at work",
    ),
    "home": ("home", "keep the agents' homes on a volume: link, status, verify, unlink"),
    "entrypoint": (
        "entrypoint",
        "begin a container: check the volume, link the homes, run a command under an init",
    ),
    "config": ("settled", "show every setting, its value and where it comes from"),
    "doctor": (
        "doctor",
        "check this machine: agents, git, directories, settings, what the agents get",
    ),
    "prove": (
        "prove",
        "run the installed agents against perdure's own model server: what holds for these "
        "versions",
    ),
    "completion": ("completion", "print the completion for bash, zsh or fish"),
    "_drive": ("run", ""),
}

HOLDS_SECRETS = frozenset(
    "run retry update resume fork plan work serve operator move export import top _drive".split()
)
"""Verbs that hold tokens and passwords while agents of the same user live."""


_UNWRITABLE = "perdure-escape"
"""The name of the error handler for text that a stream cannot encode."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb. Returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return _guarded(lambda: _perform(words))


def _perform(words: list[str]) -> int:
    if words[:1] == ["help"] and len(words) > 1:
        words = [*words[1:], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        from perdure import __version__

        print(f"perdure {__version__}")
        return 0
    if words[0] == "--cluster":
        return _on_cluster(words[1:], "perdure --cluster")
    verb = words[0]
    if verb not in VERBS:
        return _refuse(f"there is no verb {verb!r}", _near(verb))
    if verb in HOLDS_SECRETS:
        from perdure.secrecy import forbid_reading

        forbid_reading()
    parser = parser_of(verb)
    # Only words without a dash can be mixed in, and the mixing costs a second parser; a command to
    # the end of the line (`...`) cannot.
    places = any(not action.option_strings and action.nargs != "..." for action in parser._actions)
    arguments = parser.parse_intermixed_args(words[1:]) if places else parser.parse_args(words[1:])
    code: int = _part(verb, "verb")(arguments)
    return code


def kubectl_perdure() -> int:
    """The command `kubectl-perdure`, which kubectl finds for `kubectl perdure`."""
    return _guarded(lambda: _on_cluster(sys.argv[1:], "kubectl perdure"))


def _on_cluster(words: Sequence[str], prog: str) -> int:
    from perdure.cli.cluster import main

    return main(words, prog)


def _guarded(run: Callable[[], int]) -> int:
    """What a verb returns, or what its error is worth."""
    _open_streams()
    if not faulthandler.is_enabled():
        faulthandler.enable(2)  # Else a fault in a library ends it without a word.
    code = 0
    try:
        code = run()
        sys.stdout.flush()
    except ConfigError as error:
        for problem in error.problems:
            print(f"perdure: {problem}", file=sys.stderr)
        return _refuse(
            f"{len(error.problems)} problem(s) in the configuration", error.hint, error.exit_code
        )
    except PerdureError as error:
        return _refuse(str(error), error.hint, error.exit_code)
    except BrokenPipeError:
        return code  # The reader went away (`perdure logs | head`); nothing is wrong.
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if str(error.filename).startswith("/proc/") and not os.path.exists("/proc/self/stat"):  # noqa: PTH110
            return _refuse(*NO_PROC, 7)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return _refuse(
            f"The disk under {error.filename or 'a file of perdure'} is full",
            "free some space, then try again",
            7,
        )
    finally:
        _let_go()
    return code


def _open_streams() -> None:
    """Where a program was started without a standard stream (`perdure ls >&-`), nothing is what it
    writes to and reads."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and stream.errors == "strict":
            codecs.register_error(_UNWRITABLE, _escaped)
            reconfigure(errors=_UNWRITABLE)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """What the stream's encoding does not have (a locale that is not UTF-8, a file name that is no
    text), as JSON escapes it: so the output of --json stays what it says."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)), error.end


def _let_go() -> None:
    """What cannot be written any more is dropped: else Python tries again at its exit, complains,
    and makes a code of its own of it."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The verb's own parser: what it takes is read here by the command, its reference, its manual
    page and the completion."""
    import argparse

    from perdure.cli.parsing import Parser
    from perdure.cli.text import columns

    def form(prog: str) -> argparse.HelpFormatter:
        # With a width of its own, because argparse would load shutil (and its compressors) for each
        # flag to find one.
        return argparse.HelpFormatter(prog, width=(columns(sys.stdout) or 100) - 2)

    parser = Parser(
        prog=f"perdure {verb}", description=VERBS[verb][1], allow_abbrev=False, formatter_class=form
    )
    _part(verb, "arguments")(parser)
    return parser


def _part(verb: str, what: str) -> Any:
    from importlib import import_module

    return getattr(
        import_module(f"perdure.cli.{VERBS[verb][0]}"),
        f"{verb.strip('_').replace('-', '_')}_{what}",
    )


def usage() -> str:
    """The overview: verbs, exit codes, and where to begin."""
    verbs = "\n".join(f"  {verb:10} {text}" for verb, (_, text) in VERBS.items() if text)
    return (
        "usage: perdure VERB ...\n\n"
        "Runs coding agents so that a task's workdir and conversation survive whatever kills "
        "them.\n\n"
        f"{verbs}\n\n"
        'begin with:  perdure run "Fix the failing test"      (in a git repository)\n'
        "on a cluster: perdure --cluster VERB ..., or kubectl perdure VERB ...\n"
        "more:        perdure VERB --help, perdure --version"
    )


def _refuse(message: str, hint: str = "", code: int = 2) -> int:
    from perdure.cli.text import clean

    print(f"perdure: {clean(message).rstrip('.')}", file=sys.stderr)
    if hint:
        print(f"  {clean(hint)}", file=sys.stderr)
    return code


def _near(verb: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(verb, [name for name in VERBS if not name.startswith("_")], 1)
    return f"perdure {near[0]}" if near else "perdure --help"
