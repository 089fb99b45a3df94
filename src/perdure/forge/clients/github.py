"""The client for GitHub and GitHub Enterprise Server, based on GitHub's published description of
its REST API (version 2022-11-28).

Differences from Gitea: checks exist in addition to statuses and are listed separately. Comments on
lines have their own paths. A user who administers the webhooks of a repository or its organization
can list the deliveries that failed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, takewhile

from perdure.errors import ForgeDenied, NotFound
from perdure.forge.clients.gitea_like import (
    BROKEN,
    FAILED,
    LOGS_MOST,
    GiteaLikeClient,
    comment_of,
    failed_status,
    issue,
    issue_path,
    pull,
    repo_path,
    review,
    rfc3339,
    sha,
)
from perdure.forge.clients.http import NEWEST_MOST, HttpClient, part
from perdure.forge.webhooks.payload import Payload, cut
from perdure.model.forge.state import (
    CheckState,
    Comment,
    CommentKind,
    CommitCheck,
    FailedCheck,
    FailedDelivery,
    Issue,
    IssueRef,
    Pull,
)

ACCEPT = "application/vnd.github+json"
LOG_HOSTS = (".blob.core.windows.net", ".githubusercontent.com")
"""Suffixes of the hosts where github.com keeps the logs of jobs. github.com redirects there, with a
signature in the URL. Redirects to any other host are not followed. The token is not sent to the
hosts of logs."""
ACTIONS = "github-actions"
"""Slug of the GitHub app whose check runs are jobs. For these, the id of the check run is also the
id of the job."""
SAID_MOST = 4000
"""Maximum number of characters kept of the text that a check run reports about itself."""
CONCLUSIONS = {
    **dict.fromkeys(("success", "neutral", "skipped"), CheckState.SUCCESS),
    **dict.fromkeys(("failure", "timed_out", "action_required"), CheckState.FAILURE),
    **dict.fromkeys(("cancelled", "startup_failure", "stale"), CheckState.ERROR),
}


class GitHub(GiteaLikeClient):
    """Implements `perdure.protocols.ForgeApi` for GitHub."""

    size = "per_page"

    def __init__(
        self, address: str, asking: HttpClient, log_hosts: Sequence[str] = LOG_HOSTS
    ) -> None:
        super().__init__(address, asking)
        self._log_hosts = log_hosts

    def issue(self, ref: IssueRef) -> Issue:
        """Return the issue. Raises NotFound also if it was transferred to another repository, where
        GitHub redirects to the new issue."""
        found = self._asking.get(issue_path(ref))
        name = found.url("repository_url").partition("/repos/")[2]
        is_other = found.number("number") != ref.number
        if not is_other and name and name.casefold() != ref.repository.casefold():
            # Either the issue was transferred, or the whole repository was renamed.
            now = self._asking.get(repo_path(ref.repository)).repository("full_name")
            is_other = now.casefold() != name.casefold()
        if is_other:
            raise NotFound(f"{ref} was transferred to {name or 'another repository'}")
        return issue(ref.repository, found)

    def _assigned(self, assignee: str) -> Mapping[str, str]:
        return {"assignee": assignee}

    def _reviews(self, ref: IssueRef, since: int) -> Iterator[Comment]:
        place = f"{repo_path(ref.repository)}/pulls/{ref.number}"
        yield from filter(None, map(review, self._asking.pages(f"{place}/reviews", size=self.size)))
        for each in self._asking.pages(f"{place}/comments", size=self.size, since=rfc3339(since)):
            yield comment_of(each, CommentKind.LINE)

    def checks(self, repository: str, commit: str) -> Sequence[CommitCheck]:
        runs = self._asking.get(
            f"{repo_path(repository)}/commits/{sha(commit)}/check-runs",
            filter="latest",
            per_page=100,
        )
        return [*super().checks(repository, commit), *map(_check_run, runs.all("check_runs"))]

    def failed_checks(self, repository: str, commit: str) -> Sequence[FailedCheck]:
        place = f"{repo_path(repository)}/commits/{sha(commit)}/check-runs"
        runs = self._asking.get(place, filter="latest", per_page=100).all("check_runs")
        found: list[FailedCheck] = []
        for each in runs:
            if each.name("conclusion") in BROKEN:
                found.append(self._failed_run(repository, each, with_log=len(found) < LOGS_MOST))
        statuses = super().checks(repository, commit)
        return [*found, *(failed_status(each) for each in statuses if each.state in FAILED)]

    def _failed_run(self, repository: str, found: Payload, *, with_log: bool) -> FailedCheck:
        output = found.at("output")
        said = [output.name("title"), output.text("summary"), output.text("text")]
        log, note = "", f"Its log was not read: at most {LOGS_MOST} logs are."
        if found.name("app", "slug") != ACTIONS:
            note = "The forge has no log of it."
        elif with_log:
            log, note = self._log(repository, found.id("id"), self._log_hosts)
        text = cut("\n".join(filter(None, said)), SAID_MOST)
        return FailedCheck(
            name=found.name("name"), url=found.url("html_url"), text=text, log=log, note=note
        )

    def find_pull(self, repository: str, head: str) -> Pull | None:
        owner = repository.partition("/")[0]
        pages = self._asking.pages(
            f"{repo_path(repository)}/pulls",
            size=self.size,
            state="all",
            head=f"{owner}:{head}",
            sort="created",
            direction="desc",
        )
        found = [one for one in (pull(repository, each) for each in pages) if one.head == head]
        own = [one for one in found if one.head_repository.casefold() == repository.casefold()]
        for one in own:
            if one.open:
                return one
        return own[0] if own else None

    def _drafted(self, body: dict[str, object], draft: bool) -> dict[str, object]:
        return body | {"draft": draft}

    def failed_deliveries(
        self, repository: str, receiver: str, *, since: int
    ) -> Sequence[FailedDelivery] | None:
        told = False
        found: list[FailedDelivery] = []
        for place in (repo_path(repository), f"orgs/{part(repository.partition('/')[0])}"):
            try:
                hooks = []
                for each in self._asking.pages(f"{place}/hooks", size=self.size):
                    if _leads_to(each, receiver):
                        hooks.append(each)
            except (NotFound, ForgeDenied):
                # Skip the webhooks of this repository or organization: the login is not an
                # administrator of the repository, or the owner is not an organization.
                continue
            for hook in hooks:
                told = True
                found += self._failed(f"{place}/hooks/{part(hook.id('id'))}", since)
        if told:
            return found
        return None

    def _failed(self, hook: str, since: int) -> Iterator[FailedDelivery]:
        """Yield each delivery that never succeeded, represented by its newest attempt. GitHub lists
        attempts newest first."""
        pages = islice(self._asking.pages(f"{hook}/deliveries", size=self.size), NEWEST_MOST)
        attempts = [*takewhile(lambda each: each.time("delivered_at") >= since, pages)]
        taken = {each.id("guid") for each in attempts if 200 <= each.number("status_code") < 300}
        newest = {each.id("guid"): each for each in reversed(attempts)}
        for guid, each in newest.items():
            if guid and guid not in taken:
                yield FailedDelivery(
                    hook=hook,
                    id=each.id("id"),
                    delivery=guid,
                    event=each.name("event"),
                    at=each.time("delivered_at"),
                )

    def redeliver(self, repository: str, failed: FailedDelivery) -> None:
        self._asking.put("POST", f"{failed.hook}/deliveries/{part(failed.id)}/attempts", {})


def api_of(address: str) -> str:
    """Return the address of the API for the address of a GitHub server. github.com has a separate
    host for the API; Enterprise Server has a path."""
    if address == "https://github.com":
        return "https://api.github.com"
    return f"{address}/api/v3"


def _leads_to(hook: Payload, receiver: str) -> bool:
    return hook.url("config", "url").partition("?")[0].rstrip("/").endswith(receiver)


def _check_run(found: Payload) -> CommitCheck:
    over = found.name("status") == "completed"
    return CommitCheck(
        name=found.name("name"),
        state=CONCLUSIONS.get(found.name("conclusion"), CheckState.ERROR)
        if over
        else CheckState.PENDING,
        text=found.name("output", "title"),
        url=found.url("html_url"),
        updated=found.time("completed_at") or found.time("started_at"),
    )
