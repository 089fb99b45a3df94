"""A real Gitea as a `Place` for the suite of `ForgeApi`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

from perdure.forge.clients.connections import connect
from perdure.forge.clients.tokens import ForgeToken
from perdure.model.forge.deliveries import Forge
from perdure.model.forge.state import IssueRef
from perdure.protocols import ForgeApi
from tests.servers.gitea.server import Gitea

VERDICTS = {"approved": "APPROVED", "changes_requested": "REQUEST_CHANGES", "commented": "COMMENT"}
_files = count()


class GiteaPlace:
    """Implements `tests.forgeapi.suite.Place` with a repository of the organisation `shop`, and its
    people."""

    def __init__(self, gitea: Gitea, name: str = "prices") -> None:
        self.gitea = gitea
        for login in ("ada", "ben", "cid", "dev-bot"):
            gitea.user(login)
        gitea.organisation("shop")
        self.repository = gitea.repository(
            "shop", name, ada="admin", ben="write", cid="read", dev_bot="admin"
        )
        self.labels: dict[str, int] = {}
        self._clients: list[ForgeApi] = []
        self.forge = self.with_token(gitea.tokens["dev-bot"])

    def with_token(self, token: str) -> ForgeApi:
        client = connect(
            Forge.GITEA,
            self.gitea.url,
            ForgeToken("the variable THE_TOKEN", held=token),
            self.gitea.ca_file,
        )
        self._clients.append(client)
        return client

    def as_reader(self) -> ForgeApi:
        return self.with_token(self.gitea.tokens["cid"])

    def close(self) -> None:
        for each in self._clients:
            each.close()

    def _do(self, method: str, path: str, body: object = None, by: str = "ada") -> Any:
        return self.gitea.api(method, f"/repos/{self.repository}{path}", body, by=by)

    def issue(
        self,
        author: str,
        title: str,
        text: str = "",
        labels: Sequence[str] = (),
        assignees: Sequence[str] = (),
    ) -> int:
        number: int = self._do("POST", "/issues", {"title": title, "body": text}, author)["number"]
        if labels:
            self._do(
                "POST",
                f"/issues/{number}/labels",
                {"labels": [self._label(name) for name in labels]},
            )
        if assignees:
            self._do("PATCH", f"/issues/{number}", {"assignees": assignees})
        return number

    def _label(self, name: str) -> int:
        if name not in self.labels:
            self.labels[name] = self._do("POST", "/labels", {"name": name, "color": "#00aa00"})[
                "id"
            ]
        return self.labels[name]

    def pull(self, author: str, title: str, head: str, base: str = "main") -> int:
        self.branch(head)
        number: int = self._do(
            "POST", "/pulls", {"head": head, "base": base, "title": title}, author
        )["number"]
        return number

    def branch(self, name: str) -> str:
        return self.gitea.commit(
            self.repository, "main", f"file-{next(_files)}", "x\n", by="ben", onto=name
        )

    def say(self, ref: IssueRef, author: str, text: str) -> None:
        self._do("POST", f"/issues/{ref.number}/comments", {"body": text}, author)

    def review(
        self,
        number: int,
        author: str,
        verdict: str,
        text: str,
        lines: Sequence[tuple[str, int, str]] = (),
    ) -> None:
        comments = [
            {"path": path, "new_position": line, "body": said} for path, line, said in lines
        ]
        self._do(
            "POST",
            f"/pulls/{number}/reviews",
            {"event": VERDICTS[verdict], "body": text, "comments": comments},
            author,
        )

    def end(self, ref: IssueRef, *, merged: bool = False) -> None:
        if merged:
            self.gitea.merge(self.repository, ref.number)
        else:
            self._do("PATCH", f"/issues/{ref.number}", {"state": "closed"})

    def reopen(self, ref: IssueRef) -> None:
        self._do("PATCH", f"/issues/{ref.number}", {"state": "open"})

    def delete_comment(self, ref: IssueRef, id: str) -> None:
        self._do("DELETE", f"/issues/comments/{id}")

    def reactions(self, ref: IssueRef) -> set[tuple[str, str]]:
        return {
            (each["user"]["login"], each["content"])
            for each in self._do("GET", f"/issues/{ref.number}/reactions") or []
        }
