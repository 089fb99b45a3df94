"""Saved rules allow no more than a person has seen. They are tested with hostile commands, against
patterns and exact calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from perdure.engine.attempt.requests import load, path_of, rendered, save
from perdure.errors import ConfigError, UsageError
from perdure.rules.approvals import ApprovalRule, check_pattern, decide, rule_for

PUSH = {"command": "git push origin main", "description": "Push"}


def shell(command: str, **more: Any) -> dict[str, Any]:
    return {"command": command, **more}


def decided(rules: list[ApprovalRule], given: dict[str, Any], tool: str = "Bash") -> str:
    found = decide(rules, run="r", repository="/srv/shop", tool=tool, given=given)
    return found.decision if found else ""


def test_without_a_pattern_only_the_very_call_fits() -> None:
    """Without a pattern, a rule allows only exactly the call that was shown. The model's
    description may differ; any other difference is refused."""
    rule = rule_for("allow", "Bash", PUSH)
    assert decided([rule], {**PUSH, "description": "Another"}) == "allow"
    for given in (
        shell("git push origin main; rm -rf /"),
        shell("git push origin main "),
        shell("git push origin main\nrm -rf /"),
        shell("git push origin main", run_in_background=True),
        shell("git push origin main", dangerouslyDisableSandbox=True),
        shell("git push origin *"),
        {"command": ["git push origin main"]},
        {},
    ):
        assert decided([rule], given) == "", given
    assert decided([rule], PUSH, tool="Other") == ""
    write = rule_for("allow", "Write", {"file_path": "/a", "content": "x"})
    assert decided([write], {"content": "x", "file_path": "/a"}, "Write") == "allow"
    assert decided([write], {"content": "y", "file_path": "/a"}, "Write") == ""


HOSTILE = [
    "git push; rm -rf /",
    "git push origin; rm -rf /",
    "git push origin && rm -rf /",
    "git push origin || rm -rf /",
    "git push origin | sh",
    "git push origin |& sh",
    "git push origin & rm -rf /",
    "git push origin\nrm -rf /",
    "git push origin\r\nrm -rf /",
    "git push $(rm -rf /)",
    "git push `rm -rf /`",
    'git push "$(rm -rf /)"',
    'git push "`rm -rf /`"',
    "git push <(rm -rf /)",
    "git push origin > /etc/passwd",
    "git >x push origin",
    "git push origin < /etc/passwd",
    "git push origin <<< x",
    "git push origin <<E\nx\nE",
    "git push $REMOTE",
    "git push ${REMOTE}",
    "git push $'\\x3b'",
    "git push *",
    "git push ~",
    "git push {a,b}",
    "git push origin\\\n; rm",
    "git push --receive-pack=/tmp/x origin",
    "git push -f origin",
    "git push 'a' --exec=/tmp/x",
    "GIT_SSH_COMMAND=/tmp/x git push origin",
    "! git push origin",
    "(git push origin)",
    "{ git push origin; }",
    "if git push origin; then rm -rf /; fi",
    "git() { rm -rf /; }; git push origin",
    "git push origin # comment",
    "time git push origin",
    "git push origin \x00; rm",
    "git push \u202eorigin",
    "git push 'origin",
    "git push !!",
    "git push origin " + "a" * 5000,
    "/tmp/git push origin",
    "git pushx origin",
    "git push",
    "",
]


@pytest.mark.parametrize("command", HOSTILE)
def test_a_pattern_spans_one_program_with_plain_words(command: str) -> None:
    rule = rule_for("allow", "Bash", PUSH, "git push *")
    assert decided([rule], shell(command)) == ""


def test_what_a_pattern_is_for() -> None:
    rule = rule_for("allow", "Bash", PUSH, "git push *")
    for command in ("git push origin", "git push origin 'main branch'", 'git push "a;b" c'):
        assert decided([rule], shell(command)) == "allow", command
    assert decided([rule], shell("git push origin", timeout=5)) == "allow"
    assert decided([rule], shell("git push origin", run_in_background=True)) == ""
    inner = rule_for("allow", "Bash", PUSH, "git push origin ma*")
    assert decided([inner], shell("git push origin master")) == "allow"
    assert decided([inner], shell("git push origin main x")) == ""
    forced = rule_for("allow", "Bash", shell("git push -f origin"), "git push -f *")
    assert decided([forced], shell("git push -f main")) == "allow"


@pytest.mark.parametrize(
    "pattern",
    ["*", "git* push", "bash -c *", "sudo *", "/bin/sh *", "xargs *", "", "'git", "npm publish *"],
)
def test_patterns_that_no_rule_can_have(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        rule_for("allow", "Bash", PUSH, pattern or " ")


@pytest.mark.parametrize(
    "pattern",
    [
        "python3.12 *", "pypy3 *", "make -f ?", "tar [a-z]f x", "/usr/bin/vim.basic *", "uv run *", "find . *",
        "git *", "git -c x *", "git config *", "git submodule *", "git bisect *", "git filter-branch *", "git rebase *",
        "git difftool *", "git mergetool *", "git grep -O*", "git alias *", "git pus?", "git push --exec *",
        "git push --receive-pack=* x", "tool -*", "tool --ex*",
    ],
)  # fmt: skip
def test_no_pattern_allows_any_program(pattern: str) -> None:
    """A pattern that allows any program is refused. Only a denying rule may have it."""
    with pytest.raises(ValueError, match="pattern"):
        check_pattern(pattern, "allow")
    check_pattern(pattern, "deny")
    written = ApprovalRule(decision="allow", tool="Bash", pattern=pattern)
    assert decided([written], shell(pattern.replace("*", "x").replace("?", "x"))) == ""


@pytest.mark.parametrize(
    "word",
    [
        "../x", "a/../../x", "..", "+main", ":main", "https://evil.example/x", "ext::x", "git@evil.example:x",
        "/etc/passwd", "of=/dev/sda", "@/etc/passwd",
    ],
)  # fmt: skip
def test_a_wildcard_does_not_lead_away(word: str) -> None:
    """A wildcard does not match other directories and servers, nor a refspec that deletes or
    forces."""
    given = shell("git push origin main")
    for pattern in ("git push *", "git push origin ?*"):
        rule = rule_for("allow", "Bash", given, pattern)
        assert decided([rule], shell(f"git push origin {word}")) == ""
    denying = rule_for("deny", "Bash", given, "git push *")
    assert decided([denying], shell(f"git push origin {word} -f")) == "deny"


def test_what_a_pattern_writes_out_its_wildcard_may_follow() -> None:
    for pattern, command in (
        ("cp /srv/* x", "cp /srv/a x"),
        ("git push origin +ma*", "git push origin +main"),
        ("fetch https://example.org/*", "fetch https://example.org/a"),
        ("tool --out=/srv/*", "tool --out=/srv/a"),
    ):
        rule = ApprovalRule(decision="allow", tool="Bash", pattern=pattern)
        assert decided([rule], shell(command)) == "allow", command
    above = ApprovalRule(decision="allow", tool="Bash", pattern="cp /srv/* x")
    assert decided([above], shell("cp /srv/../etc/passwd x")) == ""


def test_a_long_command_is_judged_at_once() -> None:
    """A command of any length is judged quickly, because the search reads it once. An earlier
    version took twice as long for each further letter."""
    rule = rule_for("allow", "Bash", PUSH, "git push *")
    assert decided([rule], shell("git push " + "a" * 2000 + " | tail")) == ""
    assert decided([rule], shell("git push " + "a" * 200)) == "allow"


def test_a_rule_that_no_file_can_hold_is_refused() -> None:
    rule = rule_for("allow", "Bash", shell("echo \ud800"))
    with pytest.raises(UsageError, match="invalid Unicode"):
        rendered(rule)


def test_deny_wins_wherever_it_is_in_the_file() -> None:
    """A denying pattern also finds its program inside a longer command."""
    allow = rule_for("allow", "Bash", PUSH, "git push *")
    deny = rule_for("deny", "Bash", PUSH, "git push origin *")
    for rules in ([allow, deny], [deny, allow]):
        assert decided(rules, PUSH) == "deny"
        assert decided(rules, shell("git push fork main")) == "allow"
    assert decided([deny], shell("make && git push origin main; true")) == "deny"


@pytest.mark.parametrize("scope", ["run", "repository"])
def test_a_rule_holds_where_it_was_made_for(scope: Literal["run", "repository"]) -> None:
    here = {"run": "r", "repository": "/srv/shop"}
    rule = rule_for("allow", "Bash", PUSH)
    for value, found in ((here[scope], True), ("other", False)):
        limited = ApprovalRule(
            decision=rule.decision,
            tool=rule.tool,
            command=rule.command,
            **{scope: value},
        )
        assert bool(decided([limited], PUSH)) is found


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Rules with every kind of character are read back unchanged. Hidden characters are escaped in
    the file, so that a reviewer sees them."""
    nasty = "echo '\u202e\x1b[8m\x7f\u200b\"\\\n\t\U000e0041 ü' # ]]\n[[rule]]"
    rules = [rule_for("allow", "Bash", shell(nasty)), rule_for("deny", "Bash", PUSH, "git push *")]
    for each in rules:
        save(tmp_path, each)
    assert list(load(tmp_path)) == rules
    text = path_of(tmp_path).read_text()
    assert not set(text) & set("\x1b\x7f\u202e\u200b\U000e0041")
    assert text.count("[[rule]]\n") == 2
    path_of(tmp_path).write_text(text + "\n[[rule]]\ndecision = 'maybe'\ntool = 'Bash'\n")
    with pytest.raises(ConfigError, match=r"approvals\.toml"):
        load(tmp_path)
    with pytest.raises(ConfigError):
        save(tmp_path, rules[0])
