"""The effect ledger: what cannot be taken back is found in the agent's commands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.effects import Effect, effects_of, ledger
from perdure.events import Record, ToolEnded, ToolStarted


@pytest.mark.parametrize(
    ("command", "kinds"),
    [
        ("git push origin main", ["push"]),
        ("cd x && git -C y push --force", ["push"]),
        ("/bin/bash -lc 'git add . && git commit -m \"a; b\" && git push'", ["push"]),
        ("GH_TOKEN=x gh pr create --fill", ["pull request"]),
        ("gh pr comment 7 --body hello", ["pull request"]),
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
    ],
)
def test_effects_are_recognised(command: str, kinds: list[str]) -> None:
    """A push, a pull request, a comment, a publish are seen, however the shell wraps them; talking
    about one is not."""
    assert [kind for kind, _ in effects_of(command)] == kinds


@given(st.text(max_size=80))
def test_any_text_is_no_error(command: str) -> None:
    """Whatever an agent runs, the ledger does not raise."""
    effects_of(command)


def test_the_ledger_knows_how_each_ended() -> None:
    """An effect whose end was seen says so; one that was killed stays open."""
    events = [
        (1, ToolStarted(tool_id="a", name="Bash", summary="git push")),
        (1, ToolEnded(tool_id="a", ok=True)),
        (2, ToolStarted(tool_id="a", name="Bash", summary="npm publish")),
    ]
    records = [Record("r", seq, attempt, 0, event) for seq, (attempt, event) in enumerate(events)]
    assert ledger(records) == [
        Effect(1, "push", "git push", True),
        Effect(2, "publish", "npm publish", None),
    ]
