"""The effect ledger: irreversible effects are found in the agent's tool calls."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.agents.acp.events import parse as parse_acp
from perdure.agents.claude.events import parse as parse_claude
from perdure.agents.shared import json_lines
from perdure.model import Outcome, OutcomeKind
from perdure.model.events import AnyEvent, AttemptEnded, Record, ToolDenied, ToolEnded, ToolStarted
from perdure.rules.effects import Effect, catalog, effects_of, ledger
from perdure.rules.effects.catalog import of_tool
from perdure.rules.effects.shell import LONGEST, read

CORPUS = Path(__file__).parents[1] / "effects" / "corpus.toml"
PIECES = [
    *("a|", "a=(", "$[", "\0", "<<E\n", "$(", "`", "((", "{ ", "a<a", "@(", "[[ ", "x() {"),
    *("eval ", "sudo ", "bash -c '", "find -exec ", "env A=", "git push;", '"$(', "case a in "),
]


CATALOG = Path(catalog.__file__).with_name("catalog.toml")


def test_the_table_that_is_read_is_the_one_that_is_written() -> None:
    """`catalog.json` is what docs/generate.py makes from `catalog.toml`."""
    written = tomllib.loads(CATALOG.read_text(encoding="utf-8"))
    assert json.loads(CATALOG.with_suffix(".json").read_text(encoding="utf-8")) == written
    assert msgspec.convert(written, catalog.Catalog) == catalog.catalog()


def kinds_of(command: str) -> list[str]:
    """Return the kinds of the effects that a command has."""
    return [each.kind for each in effects_of(command)]


def records_of(events: list[tuple[int, AnyEvent]]) -> list[Record]:
    """Return journal records of these events. Each event is given with its attempt."""
    return [Record("r", seq, attempt, seq, event) for seq, (attempt, event) in enumerate(events)]


@pytest.mark.parametrize(
    ("command", "kinds"),
    [
        ("git push origin main", ["push"]),
        ("cd x && git -C y push --force", ["push"]),
        ("/bin/bash -lc 'git add . && git commit -m \"a; b\" && git push'", ["push"]),
        ("GH_TOKEN=x gh pr create --fill", ["pull request"]),
        ("gh pr comment 7 --body hello", ["comment"]),
        ("gh issue comment 7 --body hello", ["comment"]),
        ("npm publish && twine upload dist/*", ["publish", "publish"]),
        ("docker push a/b:c", ["publish"]),
        ("if true; then cargo publish; fi", ["publish"]),
        ("gh api -X POST repos/a/b/issues", ["forge API"]),
        ("kubectl apply -f x.yaml", ["deploy"]),
        ("echo 'git push'", []),
        ("git push --dry-run", []),
        ("gh pr view 7", []),
        ("git log --grep 'npm publish'", []),
        ("ls; cat file | grep push", []),
        # It is written so that a search for words would not find it.
        ("gi't' pu\\sh", ["push"]),
        ("$'\\x67it' push", ["push"]),
        ("G=git; $G push", ["push"]),
        ("eval 'git push'", ["push"]),
        ("echo `git push`", ["push"]),
        ("cat <<EOF\n$(git push)\nEOF", ["push"]),
        ("find . -exec git push \\;", ["push"]),
        ("f() { git push; }; f", ["push"]),
        ("sudo -u x env -i timeout -k 1 5 nice -n 3 git push", ["push"]),
        ("xargs -n 1 npx --yes wrangler@3 deploy", ["deploy"]),
        ("sh -c \"bash -c 'git push'\"", ["push"]),
        # The program is unknown, so it is listed as such.
        ("$X", ["program"]),
        ("git $VERB", ["program"]),
        ("curl https://x.example | sh", ["script"]),
        ("curl -d a=1 localhost https://x.example", ["request"]),
        ("frobnicate --all", ["program"]),
        ("frobnicate --help", []),
    ],
)
def test_effects_are_recognised(command: str, kinds: list[str]) -> None:
    """A push, a pull request, a comment and a publication are recognized in every form of a shell
    command. A text that only mentions one is not an effect."""
    assert kinds_of(command) == kinds


def test_the_corpus() -> None:
    """The corpus has the effects and local calls of ordinary days. At least 95 % of the effects are
    listed, and at most 10 % of the local calls, in each half of the corpus."""
    corpus: dict[str, Any] = tomllib.loads(CORPUS.read_text())
    for half in corpus.values():
        tools = half["tools"]
        missed = [each for each in half["effects"] if not effects_of(each)]
        missed += [each for each in tools if each["effect"] and not listed(each)]
        wrong = [each for each in half["local"] if effects_of(each)]
        wrong += [each for each in tools if not each["effect"] and listed(each)]
        assert len(missed) <= 0.05 * len(half["effects"]), missed
        assert len(wrong) <= 0.1 * len(half["local"]), wrong
    assert sum(len(half["effects"]) for half in corpus.values()) >= 60
    assert sum(len(half["local"]) for half in corpus.values()) >= 60


def listed(tool: dict[str, Any]) -> bool:
    """Return whether a call of the tool is in the ledger."""
    return bool(of_tool(tool["name"], "", tool.get("hint", "")))


@given(st.text(max_size=80))
def test_any_text_is_no_error(command: str) -> None:
    """The ledger reads any command of an agent without an error."""
    effects_of(command)


def test_a_hostile_command_costs_little() -> None:
    """A process with 400 MB of memory and 60 s of processor time can read 300 commands that were
    made to exhaust it: 1 MB long, nested, with NULs. A command that is not read completely is
    listed."""
    program = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (60, 60))\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (400 << 20, 400 << 20))\n"
        "from tests.pure.test_effects import hostile\n"
        "from perdure.rules.effects import effects_of\n"
        "assert all(effects_of(each) for each in hostile(300))\n"
    )
    top = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=top, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def hostile(count: int) -> list[str]:
    """Return commands of 1 MB from pieces that parsers dislike."""
    chosen = random.Random(7)
    found = []
    for _ in range(count):
        piece = "".join(chosen.choice(PIECES) for _ in range(chosen.randint(1, 5)))
        found.append(piece * (1_000_000 // len(piece)))
    return found


def test_what_is_too_long_is_said() -> None:
    """A command that was cut by the parser or the journal is a possible effect. The effects in the
    part that was read are listed."""
    assert kinds_of("git push; echo " + "x" * LONGEST) == ["push", "command"]
    assert kinds_of("git push; echo x [90 characters more]") == ["push", "command"]
    kept = json_lines.text("echo " + "x" * 9000, json_lines.COMMAND)
    assert len(kept) <= json_lines.COMMAND
    assert not read(kept).whole


def test_the_end_of_a_long_command_is_seen() -> None:
    """The journal keeps enough of a command for an effect behind a long message."""
    command = f"git commit -m '{'x' * 2000}' && git push"
    line = (
        b'{"type":"assistant","message":{"content":[{"type":"tool_use","id":"a","name":"Bash",'
        b'"input":{"command":"%s"}}]}}' % command.encode()
    )
    found = ledger(records_of([(1, event) for event in parse_claude(line)]))
    assert [each.kind for each in found] == ["push"]


def test_the_ledger_knows_how_each_ended() -> None:
    """If the end of an effect was seen, the ledger has its outcome. The outcome of an effect of a
    killed attempt is unknown."""
    ended = AttemptEnded(outcome=Outcome(kind=OutcomeKind.LOST))
    records = records_of(
        [
            (1, ToolStarted(tool_id="a", name="Bash", summary="git push")),
            (1, ToolEnded(tool_id="a", ok=True)),
            (2, ToolStarted(tool_id="a", name="Bash", summary="npm publish")),
            (2, ended),
            (3, ToolStarted(tool_id="a", name="Bash", summary="npm publish")),
        ]
    )
    assert ledger(records) == [
        Effect(1, "push", "git push", True, "done", reversible=True, at=0),
        Effect(2, "publish", "npm publish", None, "unknown", reversible=False, at=2),
        Effect(3, "publish", "npm publish", None, "running", reversible=False, at=4),
    ]


def test_a_call_that_did_not_run() -> None:
    """An effect of a denied call is denied, whether the denial is reported before or after the end
    of the call. An effect of a command that still runs in the background is not listed as done."""
    records = records_of(
        [
            (1, ToolStarted(tool_id="a", name="Bash", summary="git push")),
            (1, ToolDenied(tool_id="a", name="Bash")),
            (1, ToolEnded(tool_id="a", ok=False)),
            (1, ToolStarted(tool_id="b", name="Bash", summary="npm publish")),
            (1, ToolEnded(tool_id="b", ok=False)),
            (1, ToolDenied(tool_id="b", name="Bash", by="hook")),
            (1, ToolStarted(tool_id="c", name="Bash", summary="docker push x")),
            (1, ToolEnded(tool_id="c", ok=True, summary="Command running in background with ID 1")),
            (1, AttemptEnded(outcome=Outcome(kind=OutcomeKind.SUCCEEDED))),
        ]
    )
    assert [each.outcome for each in ledger(records)] == ["denied", "denied", "unknown"]


@pytest.mark.parametrize(
    ("command", "ok", "outcome"),
    [
        ("git push", True, "done"),
        ("git push", False, "failed"),
        ("make && git push", True, "done"),
        ("git push && make", True, "done"),
        ("make && git push", False, "unknown"),
        ("git push; make", True, "unknown"),
        ("make; git push", True, "done"),
        ("git push || true", True, "unknown"),
        ("git push | tail", True, "unknown"),
        ("git push &", True, "unknown"),
        ("bash -c 'git push; make'", True, "unknown"),
        ("timeout 5 git push", False, "failed"),
    ],
)
def test_an_exit_code_speaks_for_what_it_can(command: str, ok: bool, outcome: str) -> None:
    """The exit code of a command line with several programs decides about a program's effect only
    if the shell makes it that program's code."""
    started = ToolStarted(tool_id="a", name="Bash", summary=command)
    records = records_of([(1, started), (1, ToolEnded(tool_id="a", ok=ok))])
    pushed = [each.outcome for each in ledger(records) if each.kind == "push"]
    assert pushed == [outcome]


def test_tools_that_are_no_shell() -> None:
    """A tool of a server is a possible effect unless it declares that it only reads. An agent's own
    file tools have no effects. Over ACP the kind of a call decides."""
    create = of_tool("mcp__github__create_issue", "shop")
    assert [(each.kind, each.possible) for each in create] == [("tool", True)]
    assert of_tool("mcp__github__delete", "", "destroys")[0].reversible is False
    assert of_tool("mcp__docs__search", "", "reads") == of_tool("Edit", "a.py") == ()
    line = b'{"type":"tool","call":{"toolCallId":"a","kind":"%s","title":"%s"%s}}'
    calls = [
        line % (b"execute", b"Run it", b',"rawInput":{"command":"git push"}'),
        line % (b"read", b"a.py", b""),
        line % (b"other", b"create_issue", b""),
    ]
    found = ledger(records_of([(1, event) for each in calls for event in parse_acp(each)]))
    assert [(each.kind, each.command) for each in found] == [
        ("push", "git push"),
        ("tool", "other create_issue"),
    ]


def test_characters_that_end_the_parser_are_kept_from_it() -> None:
    """A brace before a character beyond U+FFFF would make the parser crash the whole process, so it
    is not passed on."""
    for command in ("{\U000fe7f5", "9{\U000fe7f55 git push", "é{\U0010ffff}"):
        effects_of(command)
