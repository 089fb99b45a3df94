"""Who works on what: the tables `[agents.NAME]`, and which intents each of them wants. Pure; read by `config`, asked by `dispatching`.

Nobody is trusted by default: an agent works only for the authors that its rule names, and never on its own events.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase

from perdure.forges.intents import Intent, IntentKind
from perdure.forges.sources import token_of

TRIGGERS = ("assigned", "labelled", "mentioned", "review_requested", "commented", "line_commented", "changes_requested", "ci_failed")
BEGINNING = frozenset({"assigned", "labelled", "mentioned", "review_requested"})
"""These begin a task; the others go on with one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One agent of a team, by the name that the team gives it."""

    name: str
    agent: str
    """The CLI."""
    authors: tuple[str, ...]
    """Whom it works for, by login."""
    clone: str
    """Where it clones from: an https address or an absolute path, with `{repository}` for `owner/name`."""
    login: str = ""
    """Its own on the forge: who is assigned, mentioned, asked for a review."""
    labels: tuple[str, ...] = ()
    repositories: tuple[str, ...] = ("*",)
    """Patterns for `owner/name`."""
    triggers: tuple[str, ...] = TRIGGERS
    token_file: str = ""
    """Its own access to the forge's API (an absolute path); neither of the two: that of the source which sends the deliveries."""
    token_env: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.agent}, for {', '.join(self.authors)})"


def wants(rule: Rule, intent: Intent) -> str:
    """The trigger by which the rule wants the intent, or empty."""
    author, login = intent.author.casefold(), rule.login.casefold()
    known = author in {name.casefold() for name in rule.authors} and author != login
    if not known or not any(fnmatchcase(intent.repository, pattern) for pattern in rule.repositories):
        return ""
    return next((trigger for trigger in _triggers(rule, intent, login) if trigger in rule.triggers), "")


def _triggers(rule: Rule, intent: Intent, login: str) -> Sequence[str]:
    meant = bool(login) and login in {name.casefold() for name in intent.whom}
    mentioned = ["mentioned"] if login and login in {name.casefold() for name in intent.mentions} else []
    labelled = ["labelled"] if set(rule.labels) & set(intent.labels) else []
    assigned = ["assigned"] if meant else []
    match intent.kind:
        case IntentKind.OPENED:
            return [*assigned, *labelled, *mentioned]
        case IntentKind.ASSIGNED | IntentKind.LABELLED:
            return [*assigned, *labelled]
        case IntentKind.REVIEW_REQUESTED:
            return ["review_requested"] if meant else []
        case IntentKind.COMMENTED:
            return [*mentioned, "commented"]
        case IntentKind.LINE_COMMENTED | IntentKind.CHANGES_REQUESTED | IntentKind.CI_FAILED:
            return [intent.kind.value]
    return []


def branch_of(rule: Rule, number: int) -> str:
    """The branch that the agent works on for an issue."""
    return f"perdure/{rule.name}-{number}"


def issue_of(rule: Rule, intent: Intent) -> int:
    """The number that the work goes by: the pull request of the agent's own branch belongs to the issue that it was begun for."""
    own = re.fullmatch(rf"perdure/{re.escape(rule.name)}-([1-9][0-9]{{0,14}})", intent.branch)
    return int(own[1]) if own else intent.number


def rules(value: object) -> tuple[Rule, ...]:
    """The rules of an `[agents]` table, or of the same as JSON. Raises ValueError."""
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, Mapping):
        raise ValueError("a table [agents.NAME] with agent, authors and clone is needed")
    return tuple(_rule(str(name), table) for name, table in value.items())


def _rule(name: str, table: object) -> Rule:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", name):
        raise ValueError(f"{name!r} cannot be a part of a branch's name: small letters, digits and - can")
    if not isinstance(table, Mapping):
        raise ValueError(f"a table [agents.{name}] is needed")
    known = [field.name for field in fields(Rule)][1:]
    if unknown := [key for key in table if key not in known]:
        raise ValueError(f"{name} has no setting {unknown[0]!r}; known are {', '.join(known)}")
    lists = {key: _texts(name, key, table[key]) for key in ("authors", "labels", "repositories", "triggers") if key in table}
    texts = {key: _text(name, key, table[key]) for key in ("agent", "clone", "login") if key in table}
    file, variable = token_of(name, table)
    if missing := [key for key in ("agent", "authors", "clone") if not {**lists, **texts}.get(key)]:
        raise ValueError(f"{name} needs {missing[0]}")
    if "*" in "".join(lists["authors"]):
        raise ValueError(f"the authors of {name} are logins, one by one: whoever is named there has the agent at his command")
    if wrong := [trigger for trigger in lists.get("triggers", ()) if trigger not in TRIGGERS]:
        raise ValueError(f"{name}: there is no trigger {wrong[0]!r}; known are {', '.join(TRIGGERS)}")
    if not re.fullmatch(r"(?:https://[^\s@?#]+|/[^\0\n]*)", texts["clone"]):
        raise ValueError(f"clone of {name} is an https address without credentials, or an absolute path, with {{repository}} in it")
    return Rule(
        name=name,
        agent=texts["agent"],
        authors=lists["authors"],
        clone=texts["clone"],
        login=texts.get("login", ""),
        labels=lists.get("labels", ()),
        repositories=lists.get("repositories", ("*",)),
        triggers=lists.get("triggers", TRIGGERS),
        token_file=file,
        token_env=variable,
    )


def _text(name: str, key: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} of {name} is a text")
    return value


def _texts(name: str, key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
        raise ValueError(f"{key} of {name} is a list of texts")
    return tuple(value)
