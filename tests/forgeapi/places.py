"""The small forge as a `Place` for the suite of `ForgeApi`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from perdure.forge.clients.connections import connect
from perdure.forge.clients.tokens import ForgeToken
from perdure.model.forge.deliveries import Forge
from perdure.model.forge.state import IssueRef
from perdure.protocols import ForgeApi
from tests.servers.forge import Repository, SmallForge
from tests.servers.forge.state import Item

REPOSITORY = "shop/prices"
TOKENS = {"dev-bot": "t0ken-of-the-bot", "cid": "t0ken-of-cid"}


class SmallPlace:
    """Implements `tests.forgeapi.suite.Place` with a `SmallForge`."""

    def __init__(self, kind: Forge, small: SmallForge) -> None:
        self.kind, self.small = kind, small
        self.repository = REPOSITORY
        self._clients: list[ForgeApi] = []
        for login, token in TOKENS.items():
            small.state.person(login, token)
        small.state.repository(REPOSITORY, ada="admin", ben="write", cid="read", dev_bot="admin")
        self.forge = self.with_token(TOKENS["dev-bot"])

    def with_token(self, token: str) -> ForgeApi:
        client = connect(
            self.kind, self.small.url, ForgeToken("the variable THE_TOKEN", held=token)
        )
        self._clients.append(client)
        return client

    def as_reader(self) -> ForgeApi:
        return self.with_token(TOKENS["cid"])

    def close(self) -> None:
        for each in self._clients:
            each.close()

    @property
    def repo(self) -> Repository:
        return self.small.state.repositories[REPOSITORY]

    def _item(self, ref: IssueRef) -> Item:
        return self.repo.items[ref.number]

    def issue(
        self,
        author: str,
        title: str,
        text: str = "",
        labels: Sequence[str] = (),
        assignees: Sequence[str] = (),
    ) -> int:
        return self.small.state.issue(REPOSITORY, author, title, text, labels, assignees).number

    def pull(self, author: str, title: str, head: str, base: str = "main") -> int:
        self.branch(head)
        return self.small.state.pull(REPOSITORY, author, title, "", head, base).number

    def branch(self, name: str) -> str:
        commit = f"{len(self.repo.named) + 2:040x}"
        self.repo.named[name] = commit
        return commit

    def say(self, ref: IssueRef, author: str, text: str) -> None:
        self.small.state.say(REPOSITORY, ref.number, author, text)

    def review(
        self,
        number: int,
        author: str,
        verdict: str,
        text: str,
        lines: Sequence[tuple[str, int, str]] = (),
    ) -> None:
        self.small.state.review(REPOSITORY, number, author, verdict, text, lines)

    def end(self, ref: IssueRef, *, merged: bool = False) -> None:
        self.small.state.end(REPOSITORY, ref.number, merged=merged)

    def reopen(self, ref: IssueRef) -> None:
        self.small.state.reopen(REPOSITORY, ref.number)

    def delete_comment(self, ref: IssueRef, id: str) -> None:
        self._item(ref).said = [each for each in self._item(ref).said if str(each.id) != id]

    def reactions(self, ref: IssueRef) -> set[tuple[str, str]]:
        return self._item(ref).reactions


@contextmanager
def small_place(kind: Forge, dialect: Any, **options: Any) -> Iterator[SmallPlace]:
    """Make a small forge of a kind, with the people of the suite."""
    with SmallForge(dialect, **options) as small:
        place = SmallPlace(kind, small)
        try:
            yield place
        finally:
            place.close()
