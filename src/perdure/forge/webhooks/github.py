"""Reads webhooks of GitHub and GitHub Enterprise Server. `X-Hub-Signature-256` contains the
signature; `X-GitHub-Event` and the body's `action` name the event.

Names are those in the webhook reference of docs.github.com and in the recorded payloads of
`@octokit/webhooks-examples` 7.6.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from perdure.forge.webhooks.author_text import mentioned, stop_commands
from perdure.forge.webhooks.payload import Payload
from perdure.forge.webhooks.signatures import by_hmac
from perdure.model.forge.deliveries import Forge, Intent, IntentKind, PayloadReading

EVENT = ("x-github-event",)
DELIVERY = ("x-github-delivery",)

OWN_BRANCH = "perdure/"
BROKEN = frozenset({"failure", "timed_out", "startup_failure", "error"})
SIMPLE = {
    "opened": IntentKind.OPENED,
    "reopened": IntentKind.REOPENED,
    "deleted": IntentKind.CLOSED,
    "transferred": IntentKind.CLOSED,
    "closed": IntentKind.CLOSED,
}


SAID = {"created": None, "edited": IntentKind.COMMENT_EDITED}
"""Kind of intent for each action on a comment. None means that the kind depends on the comment. A
deleted comment has no intent: the run has either read it already, or will never read it."""


def authentic(
    headers: Mapping[str, str], body: bytes, secrets: Sequence[str], now_s: float
) -> bool:
    """Return whether one of the secrets signed the body with SHA-256. A signature with SHA-1 alone
    is not enough."""
    kind, _, digest = headers.get("x-hub-signature-256", "").partition("=")
    return kind == "sha256" and by_hmac(secrets, body, digest)


def translate(event: str, payload: Payload) -> PayloadReading:
    """Return the intent of an event, or the reason why it has none."""
    action = payload.name("action")
    match event:
        case "issues":
            return _thing(payload, payload.at("issue"), action, pull=False)
        case "pull_request":
            return _thing(payload, payload.at("pull_request"), action, pull=True)
        case "issue_comment" if action in SAID:
            issue = payload.at("issue")
            kind = SAID[action] or IntentKind.COMMENTED
            return _comment_reading(
                payload, kind, issue, payload.at("comment"), pull=bool(issue.at("pull_request"))
            )
        case "pull_request_review_comment" if action in SAID:
            kind = SAID[action] or IntentKind.LINE_COMMENTED
            return _comment_reading(
                payload, kind, payload.at("pull_request"), payload.at("comment"), pull=True
            )
        case "pull_request_review" if action == "submitted":
            return _review(payload)
        case "pull_request_review" if action == "edited" and payload.at("changes", "body"):
            return _comment_reading(
                payload,
                IntentKind.COMMENT_EDITED,
                payload.at("pull_request"),
                payload.at("review"),
                pull=True,
            )
        case "check_run" | "check_suite" | "workflow_run" if action == "completed":
            return _check(payload, payload.at(event), rollup=event != "check_run")
        case "status":
            return _status(payload)
        case "delete" if payload.name("ref_type") == "branch":
            return intent(
                Forge.GITHUB, payload, IntentKind.BRANCH_DELETED, branch=payload.name("ref")
            )
        case "push" if payload.yes("deleted") and payload.name("ref").startswith("refs/heads/"):
            return intent(
                Forge.GITHUB,
                payload,
                IntentKind.BRANCH_DELETED,
                branch=payload.name("ref").removeprefix("refs/heads/"),
            )
    what = f"{event}/{action}" if action else event
    return PayloadReading(None, f"no action for {what}"[:200])


def intent(
    forge: Forge,
    payload: Payload,
    kind: IntentKind,
    thing: Payload | None = None,
    *,
    pull: bool = False,
    branch: str = "",
    whom: Sequence[str] = (),
    labels: Sequence[str] = (),
    text: str = "",
    url: str = "",
    commit: str = "",
    number: int = 0,
    said: Payload | None = None,
    unassigned: Sequence[str] = (),
    unlabelled: Sequence[str] = (),
    rollup: bool = False,
) -> PayloadReading:
    """Return an intent of the given kind, or the reason why the event has none. The payload has
    GitHub's format, which Gitea and Forgejo also use. `thing` is the issue or pull request, and
    `said` the comment or review."""
    thing, said = thing or Payload(None), said or Payload(None)
    text = text or said.text("body")
    changes, edited = payload.at("changes"), kind is IntentKind.EDITED
    before = changes.text("body", "from")
    if edited and not changes.at("body"):
        before = thing.text("body")
    now = thing.text("body") if edited else text
    hunk = said.text("diff_hunk")
    repository = payload.repository("repository", "full_name")
    if not repository:
        return PayloadReading(None, "it names no repository")
    number = number or thing.number("number")
    if kind not in (IntentKind.BRANCH_DELETED, IntentKind.CI_FAILED) and not number:
        return PayloadReading(None, "it names no issue and no pull request")
    sender = payload.at("sender")
    found = Intent(
        kind=kind,
        forge=forge,
        repository=repository,
        number=number,
        pull=pull,
        author=sender.name("login") or sender.name("username"),
        whom=tuple(filter(None, whom)),
        labels=tuple(filter(None, labels)),
        mentions=_new(mentioned(now), mentioned(before)),
        title=thing.name("title"),
        description=thing.text("body"),
        text=text,
        branch=branch or own_branch(thing, repository),
        commit=commit or thing.name("head", "sha"),
        path=said.name("path"),
        line=line_of(said),
        removed=said.name("side") == "LEFT",
        hunk=hunk,
        comment=said.id("id"),
        before=before,
        title_before=changes.name("title", "from") or (thing.name("title") if edited else ""),
        unassigned=tuple(filter(None, unassigned)),
        unlabelled=tuple(filter(None, unlabelled)),
        stops=_new(stop_commands(text), stop_commands(before)),
        rollup=rollup,
        url=url or said.url("html_url") or thing.url("html_url"),
        clone_url=payload.url("repository", "clone_url"),
        at=thing.time("updated_at"),
    )
    return PayloadReading(found)


def line_of(said: Payload) -> int:
    """Return the line number of a comment in the diff. If the line no longer exists, return the
    number that it had when the comment was written. Returns 0 if the comment is not on a line."""
    names = ("line", "original_line", "position", "original_position")
    if said.name("path"):
        return next(filter(None, map(said.number, names)), 0)
    return 0


def _new(now: tuple[str, ...], before: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(each for each in now if each not in before)


def own_branch(pull: Payload, repository: str) -> str:
    """Return the head branch of a pull request; empty if it comes from a fork. An agent's branch is
    recognized by its name, and a branch in a fork could have the same name."""
    head = pull.repository("head", "repo", "full_name")
    if head.casefold() == repository.casefold():
        return pull.name("head", "ref")
    return ""


def own_head(payload: Payload, run: Payload) -> str:
    """Return the branch whose commit was checked; empty for a branch of a fork."""
    head = run.repository("head_repository", "full_name") or payload.repository(
        "repository", "full_name"
    )
    if head.casefold() == payload.repository("repository", "full_name").casefold():
        return run.name("head_branch")
    return ""


def _thing(payload: Payload, thing: Payload, action: str, *, pull: bool) -> PayloadReading:
    kind, whom, labels, text = SIMPLE.get(action), [""], [""], ""
    unassigned, unlabelled = "", ""
    if kind is IntentKind.OPENED:
        whom = thing.all_names("assignees", "login")
        labels = thing.all_names("labels", "name")
        text = thing.text("body")
    elif pull and action == "closed" and thing.yes("merged"):
        kind = IntentKind.MERGED
    elif action == "assigned":
        kind, whom = IntentKind.ASSIGNED, [payload.name("assignee", "login")]
    elif action == "labeled":
        kind, labels = IntentKind.LABELLED, [payload.name("label", "name")]
    elif action == "review_requested":
        kind, whom = IntentKind.REVIEW_REQUESTED, [payload.name("requested_reviewer", "login")]
    elif action == "unassigned":
        kind, unassigned = IntentKind.UNASSIGNED, payload.name("assignee", "login")
    elif action == "review_request_removed":
        kind, unassigned = IntentKind.UNASSIGNED, payload.name("requested_reviewer", "login")
    elif action == "unlabeled":
        kind, unlabelled = IntentKind.UNLABELLED, payload.name("label", "name")
    elif action == "edited" and is_reworded(payload):
        kind = IntentKind.EDITED
    if kind is None:
        name = "pull_request" if pull else "issues"
        return PayloadReading(None, f"no action for {name}/{action}"[:200])
    return intent(
        Forge.GITHUB,
        payload,
        kind,
        thing,
        pull=pull,
        whom=whom,
        labels=labels,
        text=text,
        unassigned=[unassigned],
        unlabelled=[unlabelled],
    )


def is_reworded(payload: Payload) -> bool:
    """Return whether an edit changed the title or the text. An edit of a pull request may also have
    changed only its base."""
    return bool(payload.at("changes", "title") or payload.at("changes", "body"))


def _comment_reading(
    payload: Payload, kind: IntentKind, thing: Payload, comment: Payload, *, pull: bool
) -> PayloadReading:
    return intent(Forge.GITHUB, payload, kind, thing, pull=pull, said=comment)


def _review(payload: Payload) -> PayloadReading:
    review = payload.at("review")
    state = review.name("state").lower()
    if state == "changes_requested":
        return _comment_reading(
            payload, IntentKind.CHANGES_REQUESTED, payload.at("pull_request"), review, pull=True
        )
    if state == "commented" and review.text("body").strip():
        return _comment_reading(
            payload, IntentKind.LINE_COMMENTED, payload.at("pull_request"), review, pull=True
        )
    if state == "approved" and review.text("body").strip():
        return _comment_reading(
            payload, IntentKind.APPROVED, payload.at("pull_request"), review, pull=True
        )
    return PayloadReading(None, f"no action for a review that is {state or 'empty'}"[:200])


def _check(payload: Payload, check: Payload, *, rollup: bool) -> PayloadReading:
    """Return the intent of a check run, a check suite, or a workflow run. Each names its pull
    requests, unless they come from a fork."""
    if check.name("conclusion").lower() not in BROKEN:
        return PayloadReading(None, "the check has not failed")
    number = next((pull.number("number") for pull in check.all("pull_requests")), 0)
    return intent(
        Forge.GITHUB,
        payload,
        IntentKind.CI_FAILED,
        number=number,
        pull=bool(number),
        text=check.name("name"),
        branch=own_head(payload, check) or own_head(payload, check.at("check_suite")),
        commit=check.name("head_sha"),
        url=check.url("html_url"),
        rollup=rollup,
    )


def branch_at(payload: Payload) -> str:
    """Return the branch that a status concerns. If several branches are at the status's commit,
    prefer an agent's branch. Empty if no branch is at that commit."""
    names = payload.all_names("branches", "name")
    return min(names, key=lambda name: not name.startswith(OWN_BRANCH), default="")


def _status(payload: Payload) -> PayloadReading:
    if payload.name("state") not in BROKEN:
        return PayloadReading(None, "the check has not failed")
    return intent(
        Forge.GITHUB,
        payload,
        IntentKind.CI_FAILED,
        text=payload.name("context"),
        branch=branch_at(payload),
        commit=payload.name("sha"),
        url=payload.url("target_url"),
    )
