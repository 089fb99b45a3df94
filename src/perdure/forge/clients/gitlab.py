"""The client for GitLab (`/api/v4`), based on its documentation (docs.gitlab.com/api). Repositories
are called projects; pull requests are called merge requests.

Differences from GitHub: issues and merge requests are numbered separately. The list of comments
includes events as notes with `system`, which are skipped. Roles are numbers. A status is a state
machine that refuses a transition to its present state. A review that requests changes without a
text has no note, so this client cannot see it (gitlab-org/gitlab 592358).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import islice
from urllib.parse import quote

from perdure.errors import Conflict, ForgeDenied, ForgeRefused, NotFound
from perdure.forge.clients.gitea_like import (
    ITEMS_MOST,
    LOGS_MOST,
    STATUS_MOST,
    contains,
    log_of,
    rfc3339,
    sha,
)
from perdure.forge.clients.http import NEWEST_MOST, HttpClient, QueryValue, checked, part
from perdure.forge.webhooks.hunks import hunk_at
from perdure.forge.webhooks.payload import Payload
from perdure.model.forge.rules import has_mark
from perdure.model.forge.state import (
    Access,
    Branch,
    CheckState,
    Comment,
    CommentKind,
    CommitCheck,
    FailedCheck,
    FailedDelivery,
    Issue,
    IssueRef,
    Pull,
    Reaction,
)

DEVELOPER, MAINTAINER = 30, 40
"""Numbers of two roles: the lowest that may push, and the lowest that administers the project
(docs.gitlab.com/user/permissions)."""

EMOJI = {
    Reaction.EYES: "eyes",
    Reaction.ROCKET: "rocket",
    Reaction.HOORAY: "tada",
    Reaction.CONFUSED: "confused",
    Reaction.HEART: "heart",
    Reaction.UP: "thumbsup",
    Reaction.DOWN: "thumbsdown",
}
STATES = {
    CheckState.PENDING: "running",
    CheckState.SUCCESS: "success",
    CheckState.FAILURE: "failed",
    CheckState.ERROR: "failed",
}
DRAFT = "Draft: "


class GitLab:
    """Implements `perdure.protocols.ForgeApi` for GitLab."""

    # In a merge request, GitLab executes `/approve` as its own command, and stores no comment. So
    # perdure's commands need a prefix (docs.gitlab.com/user/project/quick_actions).
    command_prefix = "/perdure "

    def __init__(self, address: str, asking: HttpClient) -> None:
        self.address, self._asking = address, asking
        self._login = ""

    def __str__(self) -> str:
        return f"{self.address} ({self._asking.token})"

    def close(self) -> None:
        self._asking.close()

    def _pages(self, path: str, **query: QueryValue) -> Iterator[Payload]:
        return self._asking.pages(path, size="per_page", **query)

    def whoami(self) -> str:
        self._login = self._login or self._asking.get("user").name("username")
        return self._login

    def repositories(self, patterns: Sequence[str]) -> Sequence[str]:
        plain = [pattern for pattern in patterns if not set("*?[") & set(pattern)]
        wild = [pattern for pattern in patterns if set("*?[") & set(pattern)]
        if wild:
            pages = self._pages("projects", membership="true", simple="true", archived="false")
        else:
            pages = iter(())
        seen = [each.repository("path_with_namespace") for each in pages]
        found = []
        for name in seen:
            if name and any(fnmatchcase(name, pattern) for pattern in wild):
                found.append(name)
        return list(dict.fromkeys([*plain, *found]))[:ITEMS_MOST]

    def permission(self, repository: str, login: str) -> Access:
        part(login)
        place = project(repository)
        people = self._pages(f"{place}/members/all", query=login)
        found = []
        for each in people:
            if (
                each.name("username").casefold() == login.casefold()
                and each.name("state") == "active"
            ):
                found.append(each)
        if not found:
            self._asking.get(place)
            return Access.NONE
        level = max(each.number("access_level") for each in found)
        if level >= MAINTAINER:
            return Access.ADMIN
        if level >= DEVELOPER:
            return Access.WRITE
        return Access.READ

    def issue(self, ref: IssueRef) -> Issue:
        if ref.pull:
            return self.pull(ref.repository, ref.number)
        return issue(ref.repository, self._asking.get(issue_path(ref)))

    def pull(self, repository: str, number: int) -> Pull:
        return self._whole(
            repository, self._asking.get(issue_path(IssueRef(repository, number, True)))
        )

    def _whole(self, repository: str, found: Payload) -> Pull:
        head, base = found.number("source_project_id"), found.number("target_project_id")
        if head == base:
            return pull(repository, found, repository)
        try:
            if head:
                fork = self._asking.get(f"projects/{head}").repository("path_with_namespace")
            else:
                fork = ""
        except NotFound:
            fork = ""
        return pull(repository, found, fork)

    def open_issues(
        self, repository: str, *, label: str = "", assignee: str = "", since: int = 0
    ) -> Sequence[Issue]:
        place = project(repository)
        query = {
            "state": "opened",
            "scope": "all",
            "labels": label,
            "updated_after": rfc3339(since),
        }
        issues = self._pages(f"{place}/issues", **query, assignee_username=assignee)
        pulls = self._pages(f"{place}/merge_requests", **query)
        found = [issue(repository, payload) for payload in issues]
        found += [pull(repository, payload, "") for payload in pulls]
        result = []
        for each in found:
            if each.open and contains(each.labels, label) and contains(each.assignees, assignee):
                result.append(each)
        return result

    def chosen_by(
        self, ref: IssueRef, *, label: str = "", assignee: str = "", reopened: bool = False
    ) -> str:
        return ""

    def comments(self, ref: IssueRef, *, since: int = 0) -> Sequence[Comment]:
        # The comment that was changed last comes first. So the loop can stop at the first one that
        # is older than `since`.
        found: list[Comment] = []
        for each in self._notes(ref, sort="desc", order_by="updated_at"):
            if each.updated < since:
                break
            found.append(each)
        return sorted(found, key=lambda each: (each.created, len(each.id), each.id))

    def _notes(self, ref: IssueRef, **query: QueryValue) -> Iterator[Comment]:
        for each in self._pages(f"{issue_path(ref)}/notes", **query):
            if not each.yes("system"):
                yield self._comment_of(ref, each)

    def _comment_of(self, ref: IssueRef, found: Payload) -> Comment:
        page = "merge_requests" if ref.pull else "issues"
        address = f"{self.address}/{ref.repository}/-/{page}/{ref.number}"
        line = found.name("type") == "DiffNote"
        removed = line and not found.number("position", "new_line")
        side = "old" if removed else "new"
        return Comment(
            id=found.id("id"),
            kind=CommentKind.LINE if line else CommentKind.COMMENT,
            author=found.name("author", "username"),
            text=found.text("body"),
            created=found.time("created_at"),
            updated=found.time("updated_at"),
            url=f"{address}#note_{found.id('id')}",
            path=found.name("position", f"{side}_path") if line else "",
            line=found.number("position", f"{side}_line") if line else 0,
            removed=removed,
            confidential=found.yes("internal") or found.yes("confidential"),
        )

    def find_comment(self, ref: IssueRef, marker: str) -> Comment | None:
        me = self.whoami().casefold()
        for each in self._notes(ref, sort="asc", order_by="created_at"):
            if each.author.casefold() == me and has_mark(each.text, marker):
                return each
        return None

    def comment(self, ref: IssueRef, text: str) -> Comment:
        return self._comment_of(
            ref, self._asking.put("POST", f"{issue_path(ref)}/notes", {"body": text})
        )

    def edit_comment(self, ref: IssueRef, comment: Comment, text: str) -> Comment:
        return self._comment_of(
            ref,
            self._asking.put("PUT", f"{issue_path(ref)}/notes/{part(comment.id)}", {"body": text}),
        )

    def react(self, ref: IssueRef, reaction: Reaction, comment: Comment | None = None) -> None:
        if comment is not None:
            place = f"{issue_path(ref)}/notes/{part(comment.id)}"
        else:
            place = issue_path(ref)
        try:
            self._asking.put("POST", f"{place}/award_emoji", {"name": EMOJI[reaction]})
        except NotFound:
            # GitLab also answers 404 if the reaction exists already ("has already been taken").
            me = self.whoami().casefold()
            for each in self._pages(f"{place}/award_emoji"):
                author = each.name("user", "username").casefold()
                if (each.name("name"), author) == (EMOJI[reaction], me):
                    return
            raise

    def set_status(
        self,
        repository: str,
        commit: str,
        state: CheckState,
        *,
        context: str,
        text: str = "",
        url: str = "",
    ) -> None:
        said = {
            "state": STATES[state],
            "name": context,
            "description": text[:STATUS_MOST],
            "target_url": url,
        }
        try:
            self._asking.put(
                "POST",
                f"{project(repository)}/statuses/{sha(commit)}",
                {name: value for name, value in said.items() if value},
            )
        except ForgeRefused as error:
            if "Cannot transition status" not in str(error):
                raise

    def checks(self, repository: str, commit: str) -> Sequence[CommitCheck]:
        found = self._pages(f"{project(repository)}/repository/commits/{sha(commit)}/statuses")
        ordered = sorted(map(_check, found), key=lambda each: each.updated)
        return list({each.name: each for each in ordered}.values())

    def failed_checks(self, repository: str, commit: str) -> Sequence[FailedCheck]:
        place = project(repository)
        newest: dict[str, Payload] = {}
        # Only the newest entry of a retried job is reported.
        for each in self._pages(f"{place}/repository/commits/{sha(commit)}/statuses"):
            known = newest.get(each.name("name"))
            if known is None or known.number("id") <= each.number("id"):
                newest[each.name("name")] = each
        found: list[FailedCheck] = []
        for each in newest.values():
            if each.name("status") == "failed" and not each.yes("allow_failure"):
                found.append(self._failed_job(place, each, with_log=len(found) < LOGS_MOST))
        return found

    def _failed_job(self, place: str, found: Payload, *, with_log: bool) -> FailedCheck:
        """Return one failed job with its log. An entry that a job reported has the id of that job.
        An entry that was set through the API has an id that no job has, so no log is found for it.
        """
        log, note = "", f"Its log was not read: at most {LOGS_MOST} logs are."
        if with_log:
            log, note = log_of(self._asking, f"{place}/jobs/{part(found.id('id'))}/trace")
        return FailedCheck(
            name=found.name("name"),
            url=found.url("target_url"),
            text=found.name("description"),
            log=log,
            note=note,
        )

    def hunk(
        self, repository: str, number: int, path: str, line: int, *, removed: bool = False
    ) -> str:
        side = "old_path" if removed else "new_path"
        for each in self._pages(f"{issue_path(IssueRef(repository, number, True))}/diffs"):
            if each.name(side) == path:
                return hunk_at(each.text("diff"), line, removed=removed)
        return ""

    def branch(self, repository: str, name: str) -> Branch | None:
        place = project(repository)
        try:
            found = self._asking.get(f"{place}/repository/branches/{part(name)}")
        except NotFound:
            self._asking.get(place)
            return None
        return Branch(found.name("name"), found.name("commit", "id"))

    def find_pull(self, repository: str, head: str) -> Pull | None:
        query = {"state": "all", "source_branch": head, "order_by": "created_at", "sort": "desc"}
        pages = self._pages(f"{project(repository)}/merge_requests", **query)
        found = []
        for each in pages:
            if each.number("source_project_id") == each.number("target_project_id"):
                found.append(each)
        own = []
        for each in found:
            if each.name("source_branch") == head:
                own.append(pull(repository, each, repository))
        for one in own:
            if one.open:
                return one
        return own[0] if own else None

    def pull_at(self, repository: str, commit: str) -> Pull | None:
        pages = self._pages(f"{project(repository)}/merge_requests", state="opened")
        found = next((each for each in pages if each.name("sha") == commit), None)
        if found is not None:
            return self._whole(repository, found)
        return None

    def open_pull(
        self, repository: str, *, head: str, base: str, title: str, text: str, draft: bool = False
    ) -> Pull:
        found = self.find_pull(repository, head)
        if found is not None and found.open:
            return found
        body = {
            "source_branch": head,
            "target_branch": base,
            "title": f"{DRAFT}{title}" if draft else title,
            "description": text,
        }
        try:
            return self._whole(
                repository, self._asking.put("POST", f"{project(repository)}/merge_requests", body)
            )
        except (Conflict, ForgeRefused) as error:
            found = self.find_pull(repository, head)
            if found is not None and found.open:
                return found
            raise ForgeRefused(str(error)) from error

    def failed_deliveries(
        self, repository: str, receiver: str, *, since: int
    ) -> Sequence[FailedDelivery] | None:
        place = project(repository)
        try:
            hooks = []
            for each in self._pages(f"{place}/hooks"):
                if each.url("url").partition("?")[0].rstrip("/").endswith(receiver):
                    hooks.append(each)
            found: list[FailedDelivery] = []
            for hook in hooks:
                found += self._failed(f"{place}/hooks/{part(hook.id('id'))}")
        except (NotFound, ForgeDenied):
            return None  # The login is not a maintainer, or GitLab is older than 17.3.
        if hooks:
            return found
        return None

    def _failed(self, hook: str) -> Iterator[FailedDelivery]:
        """Yield the deliveries of a webhook that never succeeded. All attempts to send the same
        delivery have the same idempotency key. GitLab lists the attempts of seven days, newest
        first, without their times."""
        attempts = []
        for each in islice(self._pages(f"{hook}/events"), NEWEST_MOST):
            attempts.append((each.id("request_headers", "Idempotency-Key"), each))
        taken = set()
        for key, each in attempts:
            if re.fullmatch(r"2\d\d", each.name("response_status")):
                taken.add(key)
        for key, each in dict(reversed(attempts)).items():
            if key and key not in taken:
                event = each.name("request_headers", "X-Gitlab-Event")
                yield FailedDelivery(hook=hook, id=each.id("id"), delivery=key, event=event, at=0)

    def redeliver(self, repository: str, failed: FailedDelivery) -> None:
        self._asking.put("POST", f"{failed.hook}/events/{part(failed.id)}/resend", {})


def issue(repository: str, found: Payload) -> Issue:
    """Return the issue that GitLab's JSON describes."""
    return Issue(
        ref=IssueRef(repository, found.number("iid")),
        title=found.name("title"),
        text=found.text("description"),
        author=found.name("author", "username"),
        open=found.name("state") == "opened",
        labels=found.names("labels"),
        assignees=tuple(filter(None, found.all_names("assignees", "username"))),
        created=found.time("created_at"),
        updated=found.time("updated_at"),
        closed=found.time("closed_at"),
        url=found.url("web_url"),
        confidential=found.yes("confidential"),
    )


def pull(repository: str, found: Payload, head_repository: str) -> Pull:
    """Return the pull request for a merge request in GitLab's JSON."""
    return Pull(
        ref=IssueRef(repository, found.number("iid"), True),
        title=found.name("title"),
        text=found.text("description"),
        author=found.name("author", "username"),
        open=found.name("state") == "opened",
        labels=found.names("labels"),
        assignees=tuple(filter(None, found.all_names("assignees", "username"))),
        created=found.time("created_at"),
        updated=found.time("updated_at"),
        closed=found.time("closed_at") or found.time("merged_at"),
        url=found.url("web_url"),
        merged=found.name("state") == "merged",
        draft=found.yes("draft"),
        head=found.name("source_branch"),
        head_commit=found.name("sha"),
        head_repository=head_repository,
        base=found.name("target_branch"),
        reviewers=tuple(filter(None, found.all_names("reviewers", "username"))),
    )


def _check(found: Payload) -> CommitCheck:
    states = {
        "success": CheckState.SUCCESS,
        "failed": CheckState.FAILURE,
        "canceled": CheckState.ERROR,
        "skipped": CheckState.SUCCESS,
    }
    # A job that waits for a person to start it does not block the pipeline.
    states["manual"] = CheckState.SUCCESS
    return CommitCheck(
        name=found.name("name"),
        state=states.get(found.name("status"), CheckState.PENDING),
        text=found.name("description"),
        url=found.url("target_url"),
        updated=found.time("finished_at") or found.time("created_at"),
    )


def project(repository: str) -> str:
    """Return the API path of a project. The full name is quoted as a single path segment."""
    return f"projects/{quote(checked(repository), safe='')}"


def issue_path(ref: IssueRef) -> str:
    """Return the API path of an issue or a merge request."""
    kind = "merge_requests" if ref.pull else "issues"
    return f"{project(ref.repository)}/{kind}/{ref.number}"
