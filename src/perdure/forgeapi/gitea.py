"""Gitea and Forgejo: `/api/v1`, as Gitea 1.26 describes it in its templates/swagger/v1_json.tmpl. Forgejo's is the same where it is used.

What is its own: whoever asks for another's permission must be an administrator of the repository (routers/api/v1/repo/collaborators.go);
`/assignees`, which anybody may ask, is no answer, as in an organisation it names who may only read. Which deliveries failed, it does not
tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from perdure.errors import ForgeDenied, NotFound
from perdure.forgeapi.alike import Alike, pull, repos, review, told
from perdure.forgeapi.asking import part
from perdure.forges.standing import Access, Comment, CommentKind, FailedDelivery, IssueRef, Pull

DRAFT = "WIP: "
"""A pull request whose title begins so is a draft (setting WORK_IN_PROGRESS_PREFIXES)."""


class Gitea(Alike):
    """`perdure.protocols.ForgeApi` for Gitea."""

    size = "limit"
    lines_apart = False

    def permission(self, repository: str, login: str) -> Access:
        try:
            return super().permission(repository, login)
        except ForgeDenied as error:
            if "permission" not in str(error):
                raise
            raise ForgeDenied(
                f"{self.address} tells the permissions in {repository} to its administrators only, and {self.whoami()} is none",
                "make it an administrator of the repository, or name the authors in the rule",
            ) from error

    def _assigned(self, assignee: str) -> Mapping[str, str]:
        return {"assigned_by": assignee}

    def chosen_by(self, ref: IssueRef, *, label: str = "", assignee: str = "", reopened: bool = False) -> str:
        """From the timeline: a label that is put on has the body `1`, one that is taken off has none (models/issues/issue_label.go)."""
        who = ""
        for each in self._asking.pages(f"{repos(ref.repository)}/issues/{ref.number}/timeline", size=self.size):
            match each.name("type"):
                case "label":
                    same = bool(label) and each.name("label", "name") == label and each.text("body") == "1"
                case "assignees":
                    whom = each.name("assignee", "login").casefold()
                    same = bool(assignee) and whom == assignee.casefold() and not each.yes("removed_assignee")
                case kind:
                    same = reopened and kind == "reopen"
            who = each.name("user", "login") if same else who
        return who

    def _reviews(self, ref: IssueRef, since: int) -> Iterator[Comment]:
        place = f"{repos(ref.repository)}/pulls/{ref.number}/reviews"
        for each in self._asking.pages(place, size=self.size):
            found = review(each)
            if found is None or found.updated < since:
                continue
            yield found
            if each.number("comments_count"):
                for line in self._asking.pages(f"{place}/{part(found.id)}/comments", size=self.size):
                    yield told(line, CommentKind.LINE)

    def find_pull(self, repository: str, head: str) -> Pull | None:
        place = f"{repos(repository)}/pulls"
        for state in ("open", "closed"):
            for each in self._asking.pages(place, size=self.size, state=state, sort="recentupdate"):
                found = pull(repository, each)
                if found.head == head and found.head_repository.casefold() == repository.casefold():
                    return found
        return None

    def _drafted(self, body: dict[str, object], draft: bool) -> dict[str, object]:
        return body | {"title": f"{DRAFT}{body['title']}"} if draft else body

    def failed_deliveries(self, repository: str, receiver: str, *, since: int) -> Sequence[FailedDelivery] | None:
        return None

    def redeliver(self, repository: str, failed: FailedDelivery) -> None:
        raise NotFound(f"{self.address} can be asked for no delivery again: its API has no such call", "press redeliver on the forge")


class Forgejo(Gitea):
    """`perdure.protocols.ForgeApi` for Forgejo."""
