"""The state of a forge, which the dialects show in their own form. Tests change it as people do on
the web pages."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

BEGAN = 1_790_000_000_000
"""Time of the first event, in milliseconds since 1970. Each later event is a second after the
previous one."""


@dataclass
class Said:
    """A comment, a review (with its verdict) or a comment on a line (with its path)."""

    id: int
    author: str
    text: str
    created: int
    updated: int
    verdict: str = ""
    path: str = ""
    line: int = 0
    hunk: str = ""
    review: int = 0
    reactions: set[tuple[str, str]] = field(default_factory=set)


@dataclass
class Item:
    """An issue, or a pull request if it has a `head`."""

    number: int
    author: str
    title: str
    text: str
    labels: list[str]
    assignees: list[str]
    created: int
    updated: int
    open: bool = True
    closed: int = 0
    confidential: bool = False
    moved: str = ""
    """The path of the issue in another repository to which it was transferred."""
    merged: bool = False
    draft: bool = False
    head: str = ""
    base: str = ""
    reviewers: list[str] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    reactions: set[tuple[str, str]] = field(default_factory=set)
    chosen: list[tuple[str, str, str]] = field(default_factory=list)
    """The actors of labels, assignments and reopenings, as (event, name, actor). The event is
    label, assignees or reopen."""


@dataclass
class Status:
    name: str
    state: str
    text: str
    url: str
    updated: int


@dataclass
class Job:
    """A job of the forge's own CI: how it ended, and its log."""

    id: int
    name: str
    conclusion: str
    log: str = ""
    app: str = "github-actions"
    summary: str = ""


@dataclass
class Sent:
    """A webhook that was sent, and the receiver's answer."""

    id: int
    delivery: str
    event: str
    status: int
    at: int


@dataclass
class Repository:
    name: str
    id: int
    access: dict[str, str]
    """The permission of each login: none, read, write or admin."""
    git: Path | None = None
    """A bare repository that has the branches of this one, if there is one."""
    named: dict[str, str] = field(default_factory=dict)
    """The branches, if there is no git repository."""
    items: dict[int, Item] = field(default_factory=dict)
    statuses: dict[str, list[Status]] = field(default_factory=dict)
    jobs: dict[str, list[Job]] = field(default_factory=dict)
    """The jobs of each commit."""
    diffs: dict[int, list[tuple[str, str]]] = field(default_factory=dict)
    """Path and diff of each file of a pull request."""
    logs: str = ""
    """Address of the host that stores its logs, if that is not the forge."""
    hook: str = ""
    """Address to which its webhooks are sent."""
    renamed: str = ""
    """New name of the repository, if it was renamed."""
    sent: list[Sent] = field(default_factory=list)
    again: list[int] = field(default_factory=list)
    """Ids of the deliveries that were requested again."""

    def branches(self) -> dict[str, str]:
        if self.git is None:
            return dict(self.named)
        argv = [
            "git",
            "-C",
            str(self.git),
            "for-each-ref",
            "--format=%(refname:short) %(objectname)",
            "refs/heads",
        ]
        lines = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
        return {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in lines}


class State:
    """The state of a forge. `tokens`: the login of each valid token, by the token. `people`: all
    known logins."""

    def __init__(self) -> None:
        self.tokens: dict[str, str] = {}
        self.people: dict[str, int] = {}
        self.blocked: set[str] = set()
        self.repositories: dict[str, Repository] = {}
        self._ids = count(101)
        self._now = BEGAN

    def now_is(self, ms: int) -> None:
        """Let all later events happen after this time."""
        self._now = max(self._now, ms)

    def tick(self) -> int:
        self._now += 1000
        return self._now

    def person(self, login: str, token: str = "") -> str:
        self.people.setdefault(login, next(self._ids))
        if token:
            self.tokens[token] = login
        return login

    def repository(self, name: str, git: Path | None = None, **access: str) -> Repository:
        """Make a repository. `access` has the permission of each login; the login `dev-bot` is
        given as `dev_bot`."""
        people = {login.replace("_", "-"): level for login, level in access.items()}
        for login in people:
            self.person(login)
        found = self.repositories[name] = Repository(name, next(self._ids), people, git)
        if git is None:
            found.named["main"] = "1" * 40
        return found

    def issue(
        self,
        name: str,
        author: str,
        title: str,
        text: str = "",
        labels: Sequence[str] = (),
        assignees: Sequence[str] = (),
    ) -> Item:
        repository = self.repositories[name]
        self.person(author)
        number, now = len(repository.items) + 1, self.tick()
        item = Item(number, author, title, text, list(labels), list(assignees), now, now)
        item.chosen = [
            *(("label", each, author) for each in labels),
            *(("assignees", each, author) for each in assignees),
        ]
        repository.items[number] = item
        return item

    def pull(
        self,
        name: str,
        author: str,
        title: str,
        text: str,
        head: str,
        base: str,
        draft: bool = False,
    ) -> Item:
        item = self.issue(name, author, title, text)
        item.head, item.base, item.draft = head, base, draft
        return item

    def say(self, name: str, number: int, author: str, text: str, **more: str | int) -> Said:
        item = self.repositories[name].items[number]
        self.person(author)
        now = self.tick()
        said = Said(next(self._ids), author, text, now, now, **more)  # type: ignore[arg-type]
        item.said.append(said)
        item.updated = now
        return said

    def review(
        self,
        name: str,
        number: int,
        author: str,
        verdict: str,
        text: str,
        lines: Sequence[tuple[str, int, str]] = (),
    ) -> Said:
        found = self.say(name, number, author, text, verdict=verdict)
        for path, line, words in lines:
            self.say(name, number, author, words, path=path, line=line, review=found.id)
        return found

    def job(
        self,
        name: str,
        commit: str,
        job: str,
        conclusion: str = "failure",
        log: str = "",
        **more: str,
    ) -> Job:
        """Add a job of the forge's own CI. An empty conclusion means that the job is still
        running."""
        found = Job(next(self._ids), job, conclusion, log, **more)
        self.repositories[name].jobs.setdefault(commit, []).append(found)
        return found

    def label(self, name: str, number: int, by: str, label: str) -> None:
        item = self.repositories[name].items[number]
        item.labels.append(label)
        item.chosen.append(("label", label, by))
        item.updated = self.tick()

    def end(self, name: str, number: int, *, merged: bool = False) -> None:
        item = self.repositories[name].items[number]
        item.open, item.merged, item.updated = False, merged, self.tick()
        item.closed = item.updated

    def reopen(self, name: str, number: int, by: str = "ada") -> None:
        item = self.repositories[name].items[number]
        item.chosen.append(("reopen", "", by))
        item.open, item.closed, item.updated = True, 0, self.tick()
