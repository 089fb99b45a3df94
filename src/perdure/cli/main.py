"""The command `perdure`: finds the verb, loads only its module, and handles all errors in one
place. Nothing heavy is imported here, so that `perdure ls` does not load what only other verbs
need."""

from __future__ import annotations

import atexit
import codecs
import errno
import faulthandler
import gc
import os
import sys

from perdure.errors import ConfigError, PerdureError

TYPE_CHECKING = False  # importing typing is too slow for `perdure ls` and `--help`
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from typing import Any

VERBS: dict[str, tuple[str, str]] = {
    "run": ("runs.run", "start a task: an agent, a prompt, a workdir of its own"),
    "retry": ("runs.run", "continue a task where it stopped"),
    "update": ("runs.run", "give a task new instructions, in the same conversation"),
    "tell": ("runs.tell", "tell a running agent something, without ending its turn"),
    "resume": ("runs.resume", "continue any conversation, including ones you started yourself"),
    "fork": ("runs.fork", "start a run from the conversation and files of another run"),
    "ls": ("runs.ls", "list runs"),
    "digest": ("runs.digest", "show what happened while you were away"),
    "top": ("runs.top", "watch all runs in this terminal; answer, retry and stop them"),
    "show": ("runs.look", "show one run, its attempts and receipts"),
    "logs": ("runs.look", "show what the agent said and did; -f follows"),
    "attach": ("runs.attach", "follow a running attempt; Ctrl-C leaves, and the run continues"),
    "wait": ("runs.attach", "wait until a run has ended; the exit code is the run's"),
    "why": ("runs.look", "show how each attempt started, and the evidence for its receipt"),
    "cost": ("runs.cost", "show tokens and dollars by run, agent, repository, day or label"),
    "receipt": (
        "runs.receipt",
        "print the receipt of an attempt, signed or plain, or verify one",
    ),
    "key": ("runs.receipt", "make, show and trust the keys that sign receipts"),
    "requests": ("runs.requests", "list what agents ask you: calls to allow, and questions"),
    "approve": (
        "runs.requests",
        "allow a call that an agent asks for; --always: later ones too",
    ),
    "deny": ("runs.requests", "refuse a call that an agent asks for"),
    "answer": ("runs.requests", "answer an agent's question"),
    "stop": ("runs.stop", "stop a run; perdure retry continues it later"),
    "open": ("runs.open", "print the command to continue a run in the agent's own program"),
    "take-back": ("runs.open", "give an opened run back to perdure, and show what changed"),
    "sessions": ("data.sessions", "list conversations, yours too; read, check or repair one"),
    "diff": ("runs.changes", "show what a run changed, committed or not"),
    "apply": (
        "runs.changes",
        "apply a run's changes to your checkout; your edits stay",
    ),
    "path": ("runs.path", 'print a run\'s workdir: cd "$(perdure path NAME)"'),
    "checkpoints": (
        "runs.checkpoints",
        "list a run's checkpoints: workdir and conversation together",
    ),
    "restore": ("runs.checkpoints", "restore a checkpoint; the current state is saved first"),
    "export": (
        "data.capsule",
        "write a run's checkpoint into one file, a capsule",
    ),
    "import": ("data.capsule", "import a run from a capsule, without starting it"),
    "move": (
        "data.capsule",
        "push a run to a checkpoint store, or pull it on another machine",
    ),
    "rm": (
        "runs.changes",
        "remove a finished run; its workdir goes to the trash",
    ),
    "reset": (
        "data.clean",
        "save, then clear a run's workdir and conversation; can be undone",
    ),
    "gc": ("data.clean", "delete unneeded data that can be restored; --dry-run lists it"),
    "trash": ("data.clean", "list what was removed, restore it, or delete it for good"),
    "du": ("data.clean", "show perdure's disk usage by class, agent and repository"),
    "map": ("runs.map", "print the project map that agents are given"),
    "work": ("runs.pool", "run queued tasks; take over runs whose supervisor died"),
    "serve": ("server.serve", "run the web service: dashboard, API, webhooks, workers"),
    "operator": (
        "kubernetes.operator",
        "on Kubernetes: make Jobs for TaskRuns, and write their status",
    ),
    "audit": ("data.audit", "show who did what, and check that the record was not changed"),
    "token": ("server.token", "create, list and revoke API tokens"),
    "whoami": ("server.whoami", "show who you are to this machine, or to a server"),
    "notify": ("server.notify", "list sent notifications; test a channel"),
    "inbox": ("server.inbox", "list webhook deliveries, show one, or process one again"),
    "plan": (
        "runs.plan",
        "check, draw, run and show a plan of many tasks",
    ),
    "agents": (
        "overview",
        "list the agents: versions, programs, homes, abilities",
    ),
    "home": ("data.home", "keep the agents' homes on a volume: link, status, verify, unlink"),
    "entrypoint": (
        "kubernetes.entrypoint",
        "prepare a container's volume and homes, then run a command",
    ),
    "config": ("overview", "show every setting and its value; --origin: where it comes from"),
    "doctor": (
        "doctor",
        "check agents, logins, git, directories and settings",
    ),
    "prove": ("prove", "test the installed agents (offline, no key)"),
    "demo": ("runs.demo", "watch an agent be killed and continue (no key, no setup)"),
    "completion": ("completion", "print the completion for bash, zsh or fish"),
    "_drive": ("runs.run", ""),
}

GROUPS: tuple[tuple[str, str, str], ...] = (
    ("Work", "run retry update stop attach", "tell fork resume wait"),
    ("Answer", "requests", "approve deny answer"),
    ("Look", "ls show logs why diff top", "digest receipt cost sessions map audit"),
    ("Take over", "apply open path", "take-back"),
    ("Time", "restore", "checkpoints export import move"),
    ("Plans", "plan", ""),
    ("Tidy", "rm gc", "reset trash du"),
    ("Serve", "serve", "work token whoami inbox notify operator entrypoint"),
    ("Set up", "doctor config demo", "agents prove key home completion"),
)
"""All verbs, in groups. Each group has a heading, the verbs that `perdure --help` shows, and the
further verbs that only `perdure help all` shows."""

ALIASES = {
    "status": "ls",
    "ps": "ls",
    "list": "ls",
    "log": "logs",
    "cancel": "stop",
    "kill": "stop",
    "send": "tell",
    "steer": "tell",
    "watch": "top",
    "cd": "path",
    "clean": "gc",
    "remove": "rm",
    "undo": "restore",
    "close": "take-back",
}
"""Words that are accepted instead of a verb, each with that verb."""

GUESSES = {
    "version": "perdure --version",
    "upgrade": "pipx upgrade perdure, or pip install --upgrade perdure",
    "login": "perdure doctor shows which agents are logged in; log in with the agent's own program",
    "auth": "perdure doctor shows which agents are logged in; log in with the agent's own program",
    "stats": "perdure cost, or perdure sessions stats",
    "pause": "perdure stop NAME, and later perdure retry NAME",
    "continue": "perdure retry NAME, or perdure resume for any conversation",
    "restart": "perdure retry NAME, or perdure reset NAME to start over",
    "rerun": "perdure retry NAME",
    "start": "perdure run PROMPT",
    "checkout": 'perdure apply NAME, or cd "$(perdure path NAME)"',
    "merge": "perdure apply NAME",
    "push": "perdure move NAME --to STORE",
    "pull": "perdure move NAME --from STORE",
}
"""Hints for words that are not verbs. For these words, proposing the verb with the most similar
spelling would be wrong."""

HOLDS_SECRETS = frozenset(
    "run retry update tell approve deny answer resume fork plan work serve operator move export "
    "import top _drive".split()
)
"""Verbs whose process may have tokens and passwords in memory. Agents of the same user run at the
same time, so their access to this process is forbidden."""


_UNWRITABLE = "perdure-escape"
"""Name of the error handler for text that a stream cannot encode."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that the command line names. Return the exit code."""
    # Collect garbage less often. Imported modules are never freed, and repeated collections took 7
    # % of the time of a start.
    gc.set_threshold(50_000, 20, 20)
    if not os.environ.get("HOME"):
        _set_home()
    if argv is not None:
        words = list(argv)
        return _guarded(lambda: _perform(words))
    words = sys.argv[1:]
    ended: list[int] = []
    # atexit calls the first registered function last. All functions that are registered later are
    # therefore called before `_leave` ends the process.
    atexit.register(_leave, ended)
    ended.append(_guarded(lambda: _perform(words)))
    return ended[0]


def _set_home() -> None:
    """Set HOME to the account's home directory, if the account has one. A systemd service or a
    container may have no HOME. The agents then use the account's home directory. So perdure's
    state, perdure's settings and git's settings must be in that directory too."""
    from perdure.config.home import user_home

    home = user_home(os.environ)
    if home.parent != home:
        os.environ["HOME"] = str(home)


def _leave(ended: list[int]) -> None:
    """End the process immediately, with the verb's exit code.

    Python's own shutdown would first clear every module, which takes as long as a start of Python.
    `ended` contains the exit code. After an unexpected error it is empty. Then Python prints the
    traceback and shuts down as usual.
    """
    if ended:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(ended[0])


def _perform(words: list[str]) -> int:
    if words == ["help", "all"]:
        _overview(usage(whole=True))
        return 0
    if words[:1] == ["help"] and len(words) > 1:
        words = [*words[1:], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        _overview(usage())
        if words:
            return 0
        return 2
    if words[0] in ("-V", "--version"):
        from perdure import __version__

        print(f"perdure {__version__}")
        return 0
    if words[0] == "--cluster":
        return _on_cluster(words[1:], "perdure --cluster")
    verb = ALIASES.get(words[0], words[0])
    if verb not in VERBS:
        return _refuse(f"there is no verb {verb!r}", _near(verb))
    if verb in HOLDS_SECRETS:
        from perdure.host.system import forbid_reading

        forbid_reading()
    parser = parser_of(verb)
    # Allow flags between positional arguments. argparse builds a second parser for that, so this is
    # done only if the verb has positional arguments. argparse cannot do this for an argument that
    # takes the rest of the line (`...`).
    if any(map(_is_place, parser._actions)):
        arguments = parser.parse_intermixed_args(words[1:])
    else:
        arguments = parser.parse_args(words[1:])
    if getattr(arguments, "any_run", False) and arguments.name is None:
        from perdure.cli.runs.newest import newest_here

        arguments.name = newest_here(verb)
    code: int = _part(verb, "verb")(arguments)
    return code


def _overview(text: str) -> None:
    from perdure.cli.text import say

    say(text, 13)  # Continuation lines begin at the column of the summaries.


def kubectl_perdure() -> int:
    """Run the command `kubectl-perdure`, which kubectl finds for `kubectl perdure`."""
    return _guarded(lambda: _on_cluster(sys.argv[1:], "kubectl perdure"))


def _on_cluster(words: Sequence[str], prog: str) -> int:
    from perdure.cli.kubernetes.verbs import main

    return main(words, prog)


def _guarded(run: Callable[[], int]) -> int:
    """Call `run`, and print a message for an error that it raises. Return the exit code of the verb
    or of the error."""
    _open_streams()
    if not faulthandler.is_enabled():
        faulthandler.enable(2)  # Print a traceback if a library crashes.
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
        return code  # The reader closed the pipe (`perdure logs | head`), which is no error.
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            # The terminal has printed `^C`. A newline keeps the prompt at the start of a line.
            print(file=sys.stderr)
        return 130
    except OSError as error:
        from perdure.host import system

        if str(error.filename).startswith("/proc/") and (lacking := system.problem()):
            return _refuse(*lacking, 7)
        # The module `tempfile` raises an OSError with this message.
        if str(error.strerror).startswith("No usable temporary directory"):
            return _refuse(
                "No directory for temporary files is writable",
                "set TMPDIR to a writable directory",
                7,
            )
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return _refuse(
            f"The disk under {error.filename or 'a file of perdure'} is full",
            "free some space, then try again",
            7,
        )
    finally:
        _discard_output()
    return code


def _open_streams() -> None:
    """Open the null device for each standard stream that is closed (`perdure ls >&-`). Make the
    output streams escape what they cannot encode."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and stream.errors == "strict":
            codecs.register_error(_UNWRITABLE, _escaped)
            reconfigure(errors=_UNWRITABLE)


def _is_place(action: argparse.Action) -> bool:
    return not action.option_strings and action.nargs != "..."


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Return JSON escapes for the characters that a stream cannot encode. Such characters occur in
    a locale without UTF-8, or in a file name that is not UTF-8. With these escapes the output of
    --json stays valid."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)), error.end


def _discard_output() -> None:
    """Drop output that can no longer be written. Otherwise Python tries to write it again at exit,
    prints an error, and changes the exit code."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the parser of a verb. The command, its reference, its manual page and the completion
    all use this parser."""
    import argparse

    from perdure.cli.parser import Parser
    from perdure.cli.text import columns

    def form(prog: str) -> argparse.HelpFormatter:
        # Set the width here. Otherwise argparse determines it for each flag, and loads shutil (and
        # its compression modules) for that.
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


def usage(*, whole: bool = False) -> str:
    """Return the overview: how to start, and the verbs in groups. If `whole` is true, it includes
    the verbs that only `perdure help all` shows."""
    lines = [
        "usage: perdure VERB ...",
        "",
        "Runs coding agents whose workdir and conversation survive kills and crashes.",
    ]
    for heading, first, rest in GROUPS:
        verbs = [*first.split(), *(rest.split() if whole else ())]
        lines += ["", heading]
        for verb in verbs:
            lines.append(f"  {verb:12} {VERBS[verb][1]}")
    lines += [
        "",
        'start with:  perdure run "Fix the failing test"      (in a git repository)',
        "more:        perdure help all, perdure VERB --help, perdure --version",
    ]
    if whole:
        import textwrap

        pairs = ", ".join(f"{alias}\0=\0{verb}" for alias, verb in ALIASES.items())
        known = textwrap.fill(f"also known:  {pairs}", 80, subsequent_indent=" " * 13)
        lines += ["on a cluster: perdure --cluster VERB ..., or kubectl perdure VERB ..."]
        lines += [known.replace("\0", " ")]
    return "\n".join(lines)


def _refuse(message: str, hint: str = "", code: int = 2) -> int:
    from perdure.cli.style import linked, wrapped
    from perdure.cli.text import clean, columns

    label, width = linked("perdure", _page_of(code), sys.stderr), columns(sys.stderr)
    print(wrapped(f"{label}: {clean(message).rstrip('.')}", width), file=sys.stderr)
    if hint:
        print(wrapped(f"  {clean(hint)}", width), file=sys.stderr)
    return code


def _page_of(code: int) -> Callable[[], str]:
    """Return a function that finds the address of the page about an exit code. The address is taken
    from the metadata of the installed package. The function returns an empty string if there is no
    such metadata, for example if perdure runs from its source tree."""

    def address() -> str:
        from importlib.metadata import PackageNotFoundError, metadata

        try:
            pages = metadata("perdure").get_all("Project-URL") or []
        except PackageNotFoundError:
            return ""
        found = dict(page.split(", ", 1) for page in pages if ", " in page)
        home = found.get("Source", "")
        if home:
            return f"{home}/blob/main/docs/errors/exit-{code}.md"
        return ""

    return address


def _near(verb: str) -> str:
    if verb in GUESSES:
        return GUESSES[verb]
    from difflib import get_close_matches

    known = [name for name in (*VERBS, *ALIASES) if not name.startswith("_")]
    near = get_close_matches(verb, known, 2)
    if near:
        return f"Did you mean: perdure {' or perdure '.join(near)}"
    # A sentence in place of a verb is probably a prompt.
    if " " in verb.strip():
        return f'perdure run "{verb}"'
    return "perdure --help"
