"""The client for Gitea and Forgejo: `/api/v1`, as Gitea 1.26 describes it in its
templates/swagger/v1_json.tmpl. Forgejo's API has all the calls that are used here.

Differences from GitHub: only an administrator of the repository may query another user's permission
(routers/api/v1/repo/collaborators.go). `/assignees` is open to all, but it is no substitute: in an
organization it includes users who may only read. The API does not report failed webhook deliveries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from msgspec.structs import replace

from perdure.errors import ForgeDenied, ForgeRefused, NotFound
from perdure.forge.clients.gitea_like import (
    BROKEN,
    FAILED,
    LOGS_MOST,
    GiteaLikeClient,
    comment_of,
    failed_status,
    pull,
    repo_path,
    review,
    sha,
)
from perdure.forge.clients.http import NEWEST_MOST, part
from perdure.forge.webhooks.payload import Payload
from perdure.model.forge.state import (
    Access,
    Comment,
    CommentKind,
    FailedCheck,
    FailedDelivery,
    IssueRef,
    Pull,
)

DRAFT = "WIP: "
"""Prefix of the title of a draft pull request (setting WORK_IN_PROGRESS_PREFIXES)."""


class Gitea(GiteaLikeClient):
    """Implements `perdure.protocols.ForgeApi` for Gitea."""

    size = "limit"
    lines_apart = False

    def permission(self, repository: str, login: str) -> Access:
        try:
            return super().permission(repository, login)
        except ForgeDenied as error:
            if "permission" not in str(error):
                raise
            raise ForgeDenied(
                f"{self.address} shows the permissions in {repository} only to its "
                f"administrators; {self.whoami()} is not one",
                "make it an administrator of the repository, or name the authors in the rule",
            ) from error

    def _assigned(self, assignee: str) -> Mapping[str, str]:
        return {"assigned_by": assignee}

    def chosen_by(
        self, ref: IssueRef, *, label: str = "", assignee: str = "", reopened: bool = False
    ) -> str:
        """Return the login of the user who last added the label, assigned the login `assignee`, or
        reopened the issue; empty if unknown. The issue's timeline is read. In it, the event of a
        label has the body `1` when the label is added, and an empty body when it is removed
        (models/issues/issue_label.go)."""
        who = ""
        for each in self._asking.pages(
            f"{repo_path(ref.repository)}/issues/{ref.number}/timeline", size=self.size
        ):
            match each.name("type"):
                case "label":
                    same = (
                        bool(label)
                        and each.name("label", "name") == label
                        and each.text("body") == "1"
                    )
                case "assignees":
                    whom = each.name("assignee", "login").casefold()
                    same = (
                        bool(assignee)
                        and whom == assignee.casefold()
                        and not each.yes("removed_assignee")
                    )
                case kind:
                    same = reopened and kind == "reopen"
            who = each.name("user", "login") if same else who
        return who

    def _reviews(self, ref: IssueRef, since: int) -> Iterator[Comment]:
        place = f"{repo_path(ref.repository)}/pulls/{ref.number}/reviews"
        for each in self._asking.pages(place, size=self.size):
            found = review(each)
            if found is None or found.updated < since:
                continue
            yield found
            if each.number("comments_count"):
                for line in self._asking.pages(
                    f"{place}/{part(found.id)}/comments", size=self.size
                ):
                    yield comment_of(line, CommentKind.LINE)

    def failed_checks(self, repository: str, commit: str) -> Sequence[FailedCheck]:
        statuses = [each for each in self.checks(repository, commit) if each.state in FAILED]
        left = {each.name: each for each in statuses}
        found: list[FailedCheck] = []
        for job in self._failed_jobs(repository, commit) if statuses else []:
            # Gitea's own Actions set a status for each job, named `workflow / job (event)`. The
            # webhook about a failed job uses this name too, so it is kept as the name of the check.
            name = next((each for each in left if f" / {job.name} (" in each), "")
            left.pop(name, None)
            found.append(replace(job, name=name or job.name))
        return [*found, *map(failed_status, left.values())]

    def _failed_jobs(self, repository: str, commit: str) -> list[FailedCheck]:
        """Return the failed jobs of Gitea's own Actions for a commit. Empty if the API does not
        report jobs (Gitea before 1.25, Forgejo), or not to this login."""
        found: list[FailedCheck] = []
        place = f"{repo_path(repository)}/actions/runs"
        try:
            runs = self._asking.get(place, head_sha=sha(commit), **{self.size: 50}).all(
                "workflow_runs"
            )
            for run in runs:
                if run.name("head_sha") != commit or run.name("conclusion") not in BROKEN:
                    continue
                answer = self._asking.get(f"{place}/{part(run.id('id'))}/jobs", **{self.size: 50})
                # Gitea 1.26 calls the list `jobs`, earlier versions `workflow_jobs`.
                for job in (*answer.all("jobs"), *answer.all("workflow_jobs")):
                    if job.name("conclusion") in BROKEN:
                        found.append(
                            self._failed_job(repository, job, with_log=len(found) < LOGS_MOST)
                        )
        except (NotFound, ForgeRefused):
            return []
        except ForgeDenied as error:
            if error.everywhere:
                raise
            return []
        return found

    def _failed_job(self, repository: str, job: Payload, *, with_log: bool) -> FailedCheck:
        if with_log:
            log, note = self._log(repository, job.id("id"))
        else:
            log, note = ("", f"Its log was not read: at most {LOGS_MOST} logs are.")
        return FailedCheck(name=job.name("name"), url=job.url("html_url"), log=log, note=note)

    def find_pull(self, repository: str, head: str) -> Pull | None:
        place = f"{repo_path(repository)}/pulls"
        for state in ("open", "closed"):
            pages = self._asking.pages(place, size=self.size, state=state, sort="recentupdate")
            for each in islice(pages, NEWEST_MOST):
                found = pull(repository, each)
                if found.head == head and found.head_repository.casefold() == repository.casefold():
                    return found
        return None

    def _drafted(self, body: dict[str, object], draft: bool) -> dict[str, object]:
        if draft:
            return body | {"title": f"{DRAFT}{body['title']}"}
        return body

    def failed_deliveries(
        self, repository: str, receiver: str, *, since: int
    ) -> Sequence[FailedDelivery] | None:
        return None

    def redeliver(self, repository: str, failed: FailedDelivery) -> None:
        raise NotFound(
            f"{self.address} cannot redeliver: its API has no such call",
            "redeliver it on the forge",
        )


class Forgejo(Gitea):
    """Implements `perdure.protocols.ForgeApi` for Forgejo."""
