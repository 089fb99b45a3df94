"""The tables `[agents.NAME]`: which agent works for which people, and which intents it handles.
Read by `config`, used by `dispatch`. Does no input or output.

Nobody is trusted by default. An agent works only for the authors that its rule names, or for people
who may write to the repository according to the forge. It never reacts to its own events.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from msgspec import Struct

from perdure.model import Permissions
from perdure.model.durations import duration
from perdure.model.forge.deliveries import Forge, Intent, IntentKind
from perdure.model.forge.sources import token_of

TRIGGERS = (
    *("assigned", "labelled", "mentioned", "review_requested"),
    *(
        "commented",
        "line_commented",
        "changes_requested",
        "approved",
        "edited",
        "ci_failed",
        "reopened",
    ),
)
BEGINNING = frozenset({"assigned", "labelled", "mentioned", "review_requested"})
"""Triggers that start a task. All other triggers only continue an existing task."""
OWN_MARK = "<!-- perdure:"
"""Beginning of the marker that every comment of perdure contains, no matter which login posts the
comment. The marker is at the beginning of a line."""
OWN_CHECK = "perdure/"
"""Prefix of the names of all commit statuses that perdure sets."""

_CLONE = re.compile(
    r"(?:https://[^\s@?#{}/]+|http://(?:localhost|127\.0\.0\.1)(?::[0-9]{1,5})?"
    r"|ssh://(?:[\w.-]+@)?[^\s@?#{}/]+)/[^\s@?#]*"
    r"|[\w.-]+@[A-Za-z0-9][A-Za-z0-9.-]*:[^\s@?#:]*|/[^\0\n]*"
)
"""Pattern of a clone address. The server's name must not contain `{repository}`, so that a delivery
can never choose the server."""


class Rule(Struct, frozen=True, kw_only=True):
    """The rule for one agent. `name` is the name that the configuration gives to the agent."""

    name: str
    agent: str
    """The agent program, such as `claude`."""
    clone: str
    """Address to clone from: https, ssh, http on this machine, or an absolute path. `{repository}`
    stands for `owner/name`."""
    authors: tuple[str, ...] = ()
    """Logins of the authors that the agent works for; empty: everybody with the required access."""
    access: str = ""
    """Minimum access to the repository that an author must have on the forge: `write` or `admin`.
    See `least`."""
    login: str = ""
    """The agent's login on the forge. People assign it, mention it, or ask it for a review."""
    labels: tuple[str, ...] = ()
    repositories: tuple[str, ...] = ("*",)
    """Patterns for the repositories of the rule, as `owner/name`."""
    triggers: tuple[str, ...] = TRIGGERS
    token_file: str = ""
    """Absolute path of a file with the agent's token for the forge's API. If none of the three
    token settings is given, the token of the delivery's source is used."""
    token_env: str = ""
    token_credential: str = ""
    sources: tuple[str, ...] = ()
    """Names of the `[webhooks.NAME]` tables whose deliveries the rule handles; empty: all."""
    model: str = ""
    """Model for the rule's runs. For this and the next five fields, empty (or 0) means the user's
    setting."""
    permissions: str = ""
    budget_usd: float = 0.0
    timeout: float = 0.0
    attempts: int = 0
    verify: str = ""
    concurrency: int = 0
    """Maximum number of the rule's runs at the same time; 0: no limit."""
    git_name: str = ""
    """Author name of the agent's commits; empty: the same as for any run."""
    git_email: str = ""
    templates: str = ""
    """Directory of prompt templates for this rule; empty: perdure's own templates."""
    report: bool = True
    """Whether runs are reported to the forge by a comment, reactions and a status. This needs a
    token."""
    publish: str = "no"
    """The action after a success: push the `branch`, push it and open a `pull` request, or nothing
    (`no`)."""
    ci_attempts: int = 3
    """Maximum number of consecutive times that the agent is told about failed checks of its own
    branch. A comment by a person starts the count again."""
    confidential: bool = False
    """Whether the agent also works on issues that only members may read. Note that the branch that
    it pushes may be public."""
    archive: str = "checkpoint"
    """Form in which the clean-up keeps a workdir: `checkpoint`, or `capsule` for a checkpoint and a
    capsule of it."""

    @property
    def least(self) -> str:
        """Return the minimum access that the forge must confirm for an author: `write` or `admin`.
        Return "" (no minimum) if the rule names its authors and `access` is not set."""
        return self.access or ("" if self.authors else "write")

    @property
    def git_identity(self) -> dict[str, str]:
        return {"NAME": self.git_name, "EMAIL": self.git_email}

    def __str__(self) -> str:
        whom = ", ".join(self.authors) or "all"
        right = f" who may {self.least}" if self.least else ""
        return f"{self.name} ({self.agent}, for {whom}{right})"


def wants(rule: Rule, intent: Intent) -> str:
    """Return the trigger by which the rule handles the intent; "" if it does not. If `rule.least`
    is not empty, the caller still has to check the author's access on the forge."""
    if not is_for(rule, intent) and not is_own_check(rule, intent):
        return ""
    for trigger in _triggers(rule, intent, rule.login.casefold()):
        if trigger in rule.triggers:
            return trigger
    return ""


def is_for(rule: Rule, intent: Intent) -> bool:
    """Return whether the rule accepts the intent's author and repository. False for the agent's own
    events and for everything that perdure wrote."""
    author = intent.author.casefold()
    known = not rule.authors or author in {name.casefold() for name in rule.authors}
    own = (
        not author
        or author == rule.login.casefold()
        or has_mark(intent.text)
        or has_mark(intent.before)
    )
    return known and not own and not _is_told_by_us(intent) and _is_there(rule, intent)


def has_mark(text: str, mark: str = OWN_MARK) -> bool:
    """Return whether a line of a comment begins with the mark. If a person quotes a comment of
    perdure, the forge puts `>` before each quoted line, so a quoted mark does not count."""
    return any(line.lstrip().startswith(mark) for line in text.splitlines())


def is_own_check(rule: Rule, intent: Intent) -> bool:
    """Return whether a check failed on the branch that the agent itself works on. The author of
    this event is not checked: it is the login that pushed, which is often the agent itself or a
    bot."""
    is_failed = intent.kind is IntentKind.CI_FAILED and is_own(rule, intent)
    return is_failed and not _is_told_by_us(intent) and _is_there(rule, intent)


def _is_told_by_us(intent: Intent) -> bool:
    """Return whether the failed check is a commit status that perdure set because a run failed. If
    such a status started a new attempt, failures and new attempts would follow each other forever.
    """
    return intent.kind is IntentKind.CI_FAILED and intent.text.startswith(OWN_CHECK)


def _is_there(rule: Rule, intent: Intent) -> bool:
    return any(fnmatchcase(intent.repository, pattern) for pattern in rule.repositories)


def _triggers(rule: Rule, intent: Intent, login: str) -> Sequence[str]:
    meant = bool(login) and login in {name.casefold() for name in intent.whom}
    if login and login in {name.casefold() for name in intent.mentions}:
        mentioned = ["mentioned"]
    else:
        mentioned = []
    if set(rule.labels) & set(intent.labels):
        labelled = ["labelled"]
    else:
        labelled = []
    assigned = ["assigned"] if meant else []
    match intent.kind:
        case IntentKind.OPENED:
            return [*assigned, *labelled, *mentioned]
        case IntentKind.ASSIGNED | IntentKind.LABELLED:
            return [*assigned, *labelled]
        case IntentKind.REVIEW_REQUESTED:
            if meant:
                return ["review_requested"]
            return []
        case IntentKind.COMMENTED:
            return [*mentioned, "commented"]
        case IntentKind.EDITED | IntentKind.COMMENT_EDITED:
            return [*mentioned, "edited"]
        case (
            IntentKind.LINE_COMMENTED
            | IntentKind.CHANGES_REQUESTED
            | IntentKind.APPROVED
            | IntentKind.CI_FAILED
            | IntentKind.REOPENED
        ):
            return [intent.kind.value]
    return []


def branch_of(rule: Rule, number: int, *, apart: bool = False) -> str:
    """Return the branch that the agent works on for an issue. `apart`: see `is_apart`."""
    kind = "mr" if apart else ""
    return f"perdure/{rule.name}-{kind}{number}"


def is_apart(rule: Rule, intent: Intent, number: int) -> bool:
    """Return whether the branch's name must say that `number` is the number of a GitLab merge
    request. GitLab numbers merge requests and issues separately, and a project's first merge
    request often has the same number as its issue."""
    if intent.forge is not Forge.GITLAB:
        return False
    own = _own(rule, intent.branch)
    if own:
        return bool(own[1])
    return intent.pull and number == intent.number


def is_own(rule: Rule, intent: Intent) -> bool:
    """Return whether the intent is about a branch that the agent itself works on."""
    return _own(rule, intent.branch) is not None


def issue_of(rule: Rule, intent: Intent) -> int:
    """Return the number of the issue or pull request that the intent's work belongs to. For a pull
    request of the agent's own branch, it is the number in the branch's name."""
    own = _own(rule, intent.branch)
    if own:
        return int(own[2])
    return intent.number


def _own(rule: Rule, branch: str) -> re.Match[str] | None:
    return re.fullmatch(rf"perdure/{re.escape(rule.name)}-(mr)?([1-9][0-9]{{0,14}})", branch)


def rules(value: object) -> tuple[Rule, ...]:
    """Return the rules in an `[agents]` table. `value` is the table, or its content as JSON text.
    Raises ValueError if a setting is invalid."""
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, Mapping):
        raise ValueError("expected a table [agents.NAME] with agent and clone")
    return tuple(_rule(str(name), table) for name, table in value.items())


def _rule(name: str, table: object) -> Rule:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", name):
        raise ValueError(
            f"{name!r} must have only lowercase letters, digits and -, because it becomes part of "
            "a branch name"
        )
    if not isinstance(table, Mapping):
        raise ValueError(f"expected a table [agents.{name}]")
    if unknown := [key for key in table if key not in READERS]:
        raise ValueError(f"{name} has no setting {unknown[0]!r}; known are {', '.join(READERS)}")
    token_of(name, table)
    found: dict[str, Any] = {}
    for key, value in table.items():
        try:
            found[key] = READERS[key](value)
        except ValueError as error:
            raise ValueError(f"{key} of {name} {error}") from None
    if missing := [key for key in ("agent", "clone") if not found.get(key)]:
        raise ValueError(f"{name} needs {missing[0]}")
    if bool(found.get("git_name")) != bool(found.get("git_email")):
        raise ValueError(f"{name} needs git_name and git_email together")
    return Rule(name=name, **found)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a text")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(each, str) and each for each in value)
    ):
        raise ValueError("must be a list of texts")
    return tuple(value)


def _authors(value: object) -> tuple[str, ...]:
    if "*" in "".join(found := _texts(value)):
        raise ValueError(
            "must be a list of logins without wildcards: everyone listed can start this agent"
        )
    return found


def _triggers_of(value: object) -> tuple[str, ...]:
    found = _texts(value)
    if wrong := [trigger for trigger in found if trigger not in TRIGGERS]:
        raise ValueError(f"has no trigger {wrong[0]!r}; known are {', '.join(TRIGGERS)}")
    return found


def _clone(value: object) -> str:
    if not _CLONE.fullmatch(found := _text(value)):
        words = (
            "must be an https address without credentials (http on this machine), an ssh address, "
            "or an absolute path"
        )
        raise ValueError(f"{words}; {{repository}} may follow the name of the server")
    return found


def _one_of(*choices: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return str(value)

    return check


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1000:
        raise ValueError("must be a whole number from 1 to 1000")
    return value


def _money(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise ValueError("must be an amount of dollars")
    return float(value)


def _seconds(value: object) -> float:
    wrong = ValueError("must be a duration such as 90s, 15m, 2h or 7d")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise wrong
    try:
        return duration(str(value))
    except ValueError:
        raise wrong from None


def _yes(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _identity(value: object) -> str:
    """Check a name or address that git uses unchanged, and return it. It must be one line without
    `<` and `>`. Raises ValueError."""
    if not re.fullmatch(r"[^\x00-\x1f\x7f<>]{1,200}", found := _text(value)):
        raise ValueError("must be one line without < and >")
    return found


def _directory(value: object) -> str:
    if not re.fullmatch(r"/[^\0]*", found := _text(value)):
        raise ValueError("must be an absolute path")
    return found


READERS: dict[str, Callable[[object], Any]] = {
    "agent": _text,
    "authors": _authors,
    "access": _one_of("write", "admin"),
    "clone": _clone,
    "login": _text,
    "labels": _texts,
    "repositories": _texts,
    "triggers": _triggers_of,
    "sources": _texts,
    "model": _text,
    "permissions": _one_of(*Permissions),
    "budget_usd": _money,
    "timeout": _seconds,
    "attempts": _count,
    "verify": _text,
    "concurrency": _count,
    "git_name": _identity,
    "git_email": _identity,
    "templates": _directory,
    "report": _yes,
    "publish": _one_of("no", "branch", "pull"),
    "ci_attempts": _count,
    "confidential": _yes,
    "archive": _one_of("checkpoint", "capsule"),
    # `token_of` checks these three settings together, because only one of them may be given.
    "token_file": _text,
    "token_env": _text,
    "token_credential": _text,
}
"""Settings of a rule, each with a function that checks and returns its value. The function raises
ValueError for an invalid value. Its message continues a sentence that begins with the setting's
name."""
