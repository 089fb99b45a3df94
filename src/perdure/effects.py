"""The effect ledger: what an agent did to the world outside its workdir, read from its tool calls.
Pure.

A workdir can be restored and a conversation resumed, but a push or a published package cannot be
taken back. So they are listed by attempt, and the next attempt is told: already done, verify before
you repeat. Read from the journal by `report` and by the prompt; nothing is stored beside it. What
is seen are commands in shell tools; an effect inside a script of the agent's own is not.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator

from perdure.events import Record, ToolEnded, ToolStarted
from perdure.lateclass import dataclass

KINDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("push", re.compile(r"git (?:-\S+ |-[cC] \S+ )*push\b(?!.*--dry-run)")),
    (
        "pull request",
        re.compile(
            r"(?:gh pr|glab mr|tea pulls?|hub pull-request) "
            r"?(?:create|new|merge|close|edit|ready|review)?\b"
        ),
    ),
    ("comment", re.compile(r"(?:gh (?:pr|issue)|glab (?:mr|issue)|tea) (?:comment|note)\b")),
    ("issue", re.compile(r"(?:gh|glab|tea) issues? (?:create|close|edit|reopen|delete)\b")),
    ("release", re.compile(r"(?:gh|glab|tea) releases? (?:create|upload|edit|delete)\b")),
    ("forge API", re.compile(r"gh api .*(?:-X|--method)[ =]?(?:POST|PUT|PATCH|DELETE)\b")),
    (
        "publish",
        re.compile(
            r"(?:npm|pnpm|yarn|bun|cargo|poetry|uv|hatch|flit|gem|dart pub|mvn|gradle) "
            r"(?:push|publish|deploy)\b(?!.*--dry-run)"
        ),
    ),
    ("publish", re.compile(r"(?:python3? -m )?twine upload\b")),
    ("publish", re.compile(r"(?:docker|podman|buildah|skopeo|helm) (?:image )?(?:push|copy)\b")),
    (
        "deploy",
        re.compile(
            r"(?:kubectl|helm|terraform|tofu|pulumi|flyctl|fly) "
            r"(?:apply|delete|create|replace|install|upgrade|destroy|up|deploy)\b"
        ),
    ),
)
_LOOKS = re.compile(
    r"(?:gh pr|glab mr|tea pulls?) (?:view|list|ls|diff|status|checks|checkout)\b|--help\b"
)
_SHELLS = re.compile(r"(?:\S*/)?(?:ba|da|z|k)?sh$")
_SEPARATORS = frozenset({"&&", "||", ";", "|", "&", "\n", "(", ")", "{", "}", "then", "do", "else"})
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


@dataclass(frozen=True, slots=True)
class Effect:
    """One effect. `ok`: the command came back well (True), badly (False), or its end was not seen
    (None)."""

    attempt: int
    kind: str
    command: str
    ok: bool | None


def ledger(records: Iterable[Record]) -> list[Effect]:
    """The effects of a run, in the order in which their commands were started."""
    found: list[Effect] = []
    at: dict[tuple[int, str], list[int]] = {}
    for record in records:
        match record.event:
            case ToolStarted(tool_id=tool_id, summary=summary):
                for kind, command in effects_of(summary):
                    at.setdefault((record.attempt, tool_id), []).append(len(found))
                    found.append(Effect(record.attempt, kind, command, None))
            case ToolEnded(tool_id=tool_id, ok=ok):
                for place in at.get((record.attempt, tool_id), []):
                    found[place] = Effect(
                        found[place].attempt, found[place].kind, found[place].command, ok
                    )
            case _:
                pass
    return found


def effects_of(command: str) -> list[tuple[str, str]]:
    """Kind and text of every effect in one shell command."""
    return [(kind, single) for single in singles(command) for kind in [_kind(single)] if kind]


def _kind(single: str) -> str:
    if _LOOKS.search(single):
        return ""
    return next((kind for kind, pattern in KINDS if pattern.match(single)), "")


def singles(command: str, depth: int = 3) -> Iterator[str]:
    """The simple commands in a shell line, without assignments, sudo and the like; `sh -c` is
    looked into."""
    for words in _pieces(command):
        while words and (
            _ASSIGNMENT.match(words[0])
            or words[0] in ("sudo", "env", "time", "exec", "command", "nohup")
        ):
            words = words[1:]
        if not words:
            continue
        script = next(
            (words[n + 1] for n, word in enumerate(words[1:-1], 1) if re.fullmatch(r"-\w*c", word)),
            "",
        )
        if _SHELLS.match(words[0]) and script and depth:
            yield from singles(script, depth - 1)
        else:
            yield " ".join(words)


def _pieces(command: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(command.replace("\n", " ; "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        tokens = list(lexer)
    except ValueError:  # an open quote: what stands before it still counts
        tokens = command.split()
    piece: list[str] = []
    for token in tokens:
        if token in _SEPARATORS:
            yield piece
            piece = []
        else:
            piece.append(token)
    yield piece
