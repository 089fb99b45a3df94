"""The code that the clients for GitHub and Gitea share. Gitea's API was modeled on GitHub's. The
modules `gitea` and `github` add what differs."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from urllib.parse import quote

from perdure.errors import Conflict, ForgeError, ForgeRefused, NotFound
from perdure.forge.clients.http import HttpClient, checked, part
from perdure.forge.webhooks.payload import Payload
from perdure.model.forge.rules import has_mark
from perdure.model.forge.state import (
    Access,
    Branch,
    CheckState,
    CheckVerdict,
    Comment,
    CommentKind,
    CommitCheck,
    FailedCheck,
    Issue,
    IssueRef,
    Pull,
    Reaction,
)

STATUS_MOST = 140
"""Maximum length of a status description, in characters. This is GitHub's limit; it is used for the
other forges too."""
ITEMS_MOST = 1000
LOGS_MOST = 5
"""Maximum number of job logs that are fetched for one commit."""
BROKEN = frozenset({"failure", "timed_out", "startup_failure"})
"""Conclusions that mean that a job failed."""

VERDICTS = {
    "APPROVED": CheckVerdict.APPROVED,
    "CHANGES_REQUESTED": CheckVerdict.CHANGES_REQUESTED,
    "REQUEST_CHANGES": CheckVerdict.CHANGES_REQUESTED,
    "COMMENTED": CheckVerdict.COMMENTED,
    "COMMENT": CheckVerdict.COMMENTED,
}
"""Verdict for each state of a review, as GitHub and Gitea name the states. A review in any other
state was not submitted yet, or was dismissed."""


class GiteaLikeClient(ABC):
    """Implements `perdure.protocols.ForgeApi` as far as GitHub and Gitea agree. The subclasses add
    what differs."""

    size: str
    """Name of this forge's query parameter for the number of items on a page."""

    command_prefix = "/"

    def __init__(self, address: str, asking: HttpClient) -> None:
        self.address, self._asking = address, asking
        self._login = ""

    def __str__(self) -> str:
        return f"{self.address} ({self._asking.token})"

    def close(self) -> None:
        self._asking.close()

    def whoami(self) -> str:
        self._login = self._login or self._asking.get("user").name("login")
        return self._login

    def repositories(self, patterns: Sequence[str]) -> Sequence[str]:
        plain = [pattern for pattern in patterns if not set("*?[") & set(pattern)]
        wild = [pattern for pattern in patterns if set("*?[") & set(pattern)]
        found = []
        for each in self._own_repositories() if wild else ():
            name = each.repository("full_name")
            if name and any(fnmatchcase(name, pattern) for pattern in wild):
                found.append(name)
        return list(dict.fromkeys([*plain, *found]))[:ITEMS_MOST]

    def _own_repositories(self) -> Iterator[Payload]:
        return self._asking.pages("user/repos", size=self.size)

    def permission(self, repository: str, login: str) -> Access:
        place = f"{repo_path(repository)}/collaborators/{part(login)}/permission"
        try:
            return access(self._asking.get(place).name("permission"))
        except NotFound:
            self._asking.get(repo_path(repository))  # Raises NotFound if the repository is missing.
            return Access.NONE

    def issue(self, ref: IssueRef) -> Issue:
        return issue(ref.repository, self._asking.get(issue_path(ref)))

    def pull(self, repository: str, number: int) -> Pull:
        return pull(repository, self._asking.get(f"{repo_path(repository)}/pulls/{number}"))

    def open_issues(
        self, repository: str, *, label: str = "", assignee: str = "", since: int = 0
    ) -> Sequence[Issue]:
        pages = self._asking.pages(
            f"{repo_path(repository)}/issues",
            size=self.size,
            state="open",
            labels=label,
            since=rfc3339(since),
            **self._assigned(assignee),
        )
        found = [issue(repository, each) for each in pages]
        # Gitea drops unknown values from a query. A label that does not exist would therefore
        # return all issues.
        result = []
        for each in found:
            if each.open and contains(each.labels, label) and contains(each.assignees, assignee):
                result.append(each)
        return result

    @abstractmethod
    def _assigned(self, assignee: str) -> Mapping[str, str]: ...

    def chosen_by(
        self, ref: IssueRef, *, label: str = "", assignee: str = "", reopened: bool = False
    ) -> str:
        return ""

    def comments(self, ref: IssueRef, *, since: int = 0) -> Sequence[Comment]:
        found = list(self._comments(ref, since))
        if ref.pull:
            found += self._reviews(ref, since)
        # Comments of the same second are sorted by their ids. Ids are decimal numbers as text, so
        # the shorter of two ids is the smaller number.
        recent = [each for each in found if each.updated >= since]
        return sorted(recent, key=lambda each: (each.created, len(each.id), each.id))

    def _comments(self, ref: IssueRef, since: int) -> Iterator[Comment]:
        pages = self._asking.pages(
            f"{issue_path(ref)}/comments", size=self.size, since=rfc3339(since)
        )
        return map(comment_of, pages)

    @abstractmethod
    def _reviews(self, ref: IssueRef, since: int) -> Iterator[Comment]: ...

    def find_comment(self, ref: IssueRef, marker: str) -> Comment | None:
        me = self.whoami().casefold()
        own = (each for each in self._comments(ref, 0) if each.author.casefold() == me)
        for each in own:
            if has_mark(each.text, marker):
                return each
        return None

    def comment(self, ref: IssueRef, text: str) -> Comment:
        return comment_of(self._asking.put("POST", f"{issue_path(ref)}/comments", {"body": text}))

    def edit_comment(self, ref: IssueRef, comment: Comment, text: str) -> Comment:
        place = f"{repo_path(ref.repository)}/issues/comments/{part(comment.id)}"
        return comment_of(self._asking.put("PATCH", place, {"body": text}))

    def react(self, ref: IssueRef, reaction: Reaction, comment: Comment | None = None) -> None:
        if comment is not None and comment.kind is CommentKind.LINE and self.lines_apart:
            room = "pulls"
        else:
            room = "issues"
        if comment is not None:
            place = f"{repo_path(ref.repository)}/{room}/comments/{part(comment.id)}"
        else:
            place = issue_path(ref)
        self._asking.put("POST", f"{place}/reactions", {"content": reaction.value})

    lines_apart = True
    """Whether reactions to a comment on a line of the diff use a separate API path
    (`/pulls/comments`)."""

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
            "state": state.value,
            "context": context,
            "description": text[:STATUS_MOST],
            "target_url": url,
        }
        body = {name: value for name, value in said.items() if value}
        self._asking.put("POST", f"{repo_path(repository)}/statuses/{sha(commit)}", body)

    def checks(self, repository: str, commit: str) -> Sequence[CommitCheck]:
        found = self._asking.get(
            f"{repo_path(repository)}/commits/{sha(commit)}/status", **{self.size: 100}
        )
        return list(map(_check, found.all("statuses")))

    def failed_checks(self, repository: str, commit: str) -> Sequence[FailedCheck]:
        found = []
        for each in self.checks(repository, commit):
            if each.state in FAILED:
                found.append(failed_status(each))
        return found

    def _log(self, repository: str, job: str, hosts: Sequence[str] = ()) -> tuple[str, str]:
        """Return a pair: the end of a job's log, and the reason why there is no log. One of the two
        is always empty. The path of the log is the same on GitHub and Gitea."""
        return log_of(self._asking, f"{repo_path(repository)}/actions/jobs/{part(job)}/logs", hosts)

    def hunk(
        self, repository: str, number: int, path: str, line: int, *, removed: bool = False
    ) -> str:
        return ""

    def branch(self, repository: str, name: str) -> Branch | None:
        try:
            found = self._asking.get(f"{repo_path(repository)}/branches/{branch_part(name)}")
        except NotFound:
            self._asking.get(repo_path(repository))
            return None
        return Branch(found.name("name"), found.name("commit", "sha") or found.name("commit", "id"))

    def pull_at(self, repository: str, commit: str) -> Pull | None:
        pages = self._asking.pages(f"{repo_path(repository)}/pulls", size=self.size, state="open")
        for each in pages:
            found = pull(repository, each)
            if found.head_commit == commit:
                return found
        return None

    @abstractmethod
    def find_pull(self, repository: str, head: str) -> Pull | None: ...

    def open_pull(
        self, repository: str, *, head: str, base: str, title: str, text: str, draft: bool = False
    ) -> Pull:
        found = self.find_pull(repository, head)
        if found is not None and found.open:
            return found
        body = self._drafted({"head": head, "base": base, "title": title, "body": text}, draft)
        try:
            return pull(
                repository, self._asking.put("POST", f"{repo_path(repository)}/pulls", body)
            )
        except (Conflict, ForgeRefused) as error:
            # Either another process opened the pull request first, or an earlier request succeeded
            # and its answer was lost.
            found = self.find_pull(repository, head)
            if found is not None and found.open:
                return found
            raise ForgeRefused(str(error)) from error

    @abstractmethod
    def _drafted(self, body: dict[str, object], draft: bool) -> dict[str, object]: ...


FAILED = frozenset({CheckState.FAILURE, CheckState.ERROR})


def failed_status(check: CommitCheck) -> FailedCheck:
    """Return a failed status as a failed check. There is no log: the status was set through the
    API, not by a job of the forge."""
    return FailedCheck(
        name=check.name, url=check.url, text=check.text, note="The forge has no log of it."
    )


def log_of(asking: HttpClient, path: str, hosts: Sequence[str] = ()) -> tuple[str, str]:
    """Return a pair: the end of a log, and the reason why there is no log. One of the two is always
    empty. Never raises a ForgeError, because a check is reported even if its log is missing."""
    try:
        return asking.tail(path, hosts), ""
    except NotFound:
        return (
            "",
            f"There is no log: {asking.api} has none at {path}, or does not show it to the login "
            f"of {asking.token}",
        )
    except ForgeError as error:
        return "", f"There is no log: {error}"


def access(word: str) -> Access:
    """Return the access level for a permission name that GitHub or Gitea uses, such as `triage`.
    Returns `none` for an unknown name."""
    return {
        "owner": Access.ADMIN,
        "admin": Access.ADMIN,
        "maintain": Access.WRITE,
        "write": Access.WRITE,
    }.get(word, Access.READ if word in ("read", "triage") else Access.NONE)


def issue(repository: str, found: Payload) -> Issue:
    """Return the issue that GitHub's or Gitea's JSON describes."""
    ref = IssueRef(repository, found.number("number"), bool(found.at("pull_request")))
    return Issue(
        ref=ref,
        title=found.name("title"),
        text=found.text("body"),
        author=found.name("user", "login"),
        open=found.name("state") == "open",
        labels=_names(found, "labels", "name"),
        assignees=_names(found, "assignees", "login"),
        created=found.time("created_at"),
        updated=found.time("updated_at"),
        closed=found.time("closed_at"),
        url=found.url("html_url"),
    )


def pull(repository: str, found: Payload) -> Pull:
    """Return the pull request that GitHub's or Gitea's JSON describes."""
    return Pull(
        ref=IssueRef(repository, found.number("number"), True),
        title=found.name("title"),
        text=found.text("body"),
        author=found.name("user", "login"),
        open=found.name("state") == "open",
        labels=_names(found, "labels", "name"),
        assignees=_names(found, "assignees", "login"),
        created=found.time("created_at"),
        updated=found.time("updated_at"),
        closed=found.time("closed_at") or found.time("merged_at"),
        url=found.url("html_url"),
        merged=found.yes("merged") or bool(found.time("merged_at")),
        draft=found.yes("draft"),
        head=found.name("head", "ref"),
        head_commit=found.name("head", "sha"),
        head_repository=found.repository("head", "repo", "full_name"),
        base=found.name("base", "ref"),
        reviewers=_names(found, "requested_reviewers", "login"),
    )


def comment_of(found: Payload, kind: CommentKind = CommentKind.COMMENT) -> Comment:
    """Return the comment that GitHub's or Gitea's JSON describes."""
    line = (
        found.number("line")
        or found.number("original_line")
        or found.number("position")
        or found.number("original_position")
    )
    return Comment(
        id=found.id("id"),
        kind=kind,
        author=found.name("user", "login"),
        text=found.text("body"),
        created=found.time("created_at"),
        updated=found.time("updated_at"),
        url=found.url("html_url"),
        path=found.name("path"),
        line=line if kind is CommentKind.LINE else 0,
        removed=found.name("side") == "LEFT",
        hunk=found.text("diff_hunk"),
        review=found.id("pull_request_review_id") if kind is CommentKind.LINE else "",
    )


def review(found: Payload) -> Comment | None:
    """Return a review without its comments on lines; None if the review is not submitted yet or was
    dismissed."""
    verdict = VERDICTS.get(found.name("state").upper())
    if verdict is None or found.yes("dismissed"):
        return None
    at = found.time("submitted_at")
    return Comment(
        id=found.id("id"),
        kind=CommentKind.REVIEW,
        author=found.name("user", "login"),
        text=found.text("body"),
        created=at,
        updated=found.time("updated_at") or at,
        url=found.url("html_url"),
        verdict=verdict,
    )


def _check(found: Payload) -> CommitCheck:
    state = found.name("state") or found.name("status")
    return CommitCheck(
        name=found.name("context"),
        state=CheckState(state) if state in list(CheckState) else CheckState.PENDING,
        text=found.name("description"),
        url=found.url("target_url"),
        updated=found.time("updated_at"),
    )


def _names(found: Payload, list_: str, key: str) -> tuple[str, ...]:
    return tuple(filter(None, found.all_names(list_, key)))


def contains(names: Sequence[str], wanted: str) -> bool:
    """Return whether the list contains `wanted`, ignoring case. Return True if `wanted` is
    empty."""
    return not wanted or wanted.casefold() in set(map(str.casefold, names))


def rfc3339(ms: int) -> str:
    """Format a time (ms since 1970) for a query, rounded down to the second. Returns an empty text
    for 0."""
    if ms > 0:
        return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return ""


def sha(commit: str) -> str:
    """Return the full hash of a commit unchanged. Raises NotFound if the text is not a full
    hash."""
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", commit):
        raise NotFound(f"{commit[:100]!r} is not a valid commit id")
    return commit


def branch_part(name: str) -> str:
    """Quote a branch's name for a path, keeping its slashes. Raises NotFound for an invalid
    name."""
    if not name or len(name) > 255 or any(piece in ("", ".", "..") for piece in name.split("/")):
        raise NotFound(f"{name[:100]!r} is not a valid branch name")
    return quote(name.encode("utf-8", "replace"))


def repo_path(repository: str) -> str:
    """Return the API path of a repository."""
    return f"repos/{checked(repository)}"


def issue_path(ref: IssueRef) -> str:
    """Return the API path of an issue, or of the general discussion of a pull request."""
    return f"{repo_path(ref.repository)}/issues/{ref.number}"
