"""Gitea's API, after modules/structs and routers/api/v1 of 1.26.4."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from tests.servers.forge.server import Answered, Asked, Page, Raw, Route
from tests.servers.forge.state import Item, Job, Repository, Said, Status

PREFIX = "/api/v1/"
LEVELS = ["none", "read", "write", "admin"]
REACTIONS = ("+1", "-1", "laugh", "hooray", "confused", "heart", "rocket", "eyes")


def asker(headers: Mapping[str, str]) -> str:
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token if kind in ("token", "Bearer") else ""


def dressed(method: str, path: str, status: int, value: Any) -> tuple[int, Any]:
    return status, value


def time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat().replace("+00:00", "Z")


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000) if text else 0


def repository(asked: Asked, name: str, least: str = "read") -> Repository:
    """Return the repository if the login has at least this permission. Raise an error with the
    forge's answer otherwise."""
    found = asked.state.repositories.get(name)
    level = found.access.get(asked.login, "none") if found else "none"
    if found is None or level == "none":
        raise Answered(404, {"message": "The target couldn't be found."})
    if LEVELS.index(level) < LEVELS.index(least):
        raise Answered(403, {"message": f"user should have a permission to {least} to a repo"})
    return found


def item(asked: Asked, name: str, number: str) -> Item:
    found = repository(asked, name).items.get(int(number))
    if found is None:
        raise Answered(404)
    return found


def user(asked: Asked, login: str) -> dict[str, Any]:
    return {
        "id": asked.state.people.get(login, 0),
        "login": login,
        "username": login,
        "email": f"{login}@example.com",
    }


def issue(asked: Asked, name: str, found: Item) -> dict[str, Any]:
    return {
        "id": found.number, "number": found.number, "title": found.title, "body": found.text, "user": user(asked, found.author),
        "state": "open" if found.open else "closed", "labels": [{"name": label} for label in found.labels],
        "assignees": [user(asked, login) for login in found.assignees] or None, "created_at": time(found.created),
        "closed_at": time(found.closed) if found.closed else None,
        "updated_at": time(found.updated), "html_url": f"{asked.url}/{name}/{'pulls' if found.head else 'issues'}/{found.number}",
        "pull_request": {"merged": found.merged, "merged_at": None, "draft": found.draft} if found.head else None,
    }  # fmt: skip


def pull(asked: Asked, name: str, found: Item) -> dict[str, Any]:
    branches = repository(asked, name).branches()
    place = {"repo_id": 1, "repo": {"full_name": name}}
    return issue(asked, name, found) | {
        "merged": found.merged, "merged_at": time(found.updated) if found.merged else None, "draft": found.draft,
        "head": {"label": found.head, "ref": found.head, "sha": branches.get(found.head, ""), **place},
        "base": {"label": found.base, "ref": found.base, "sha": branches.get(found.base, ""), **place},
        "requested_reviewers": [user(asked, login) for login in found.reviewers],
    }  # fmt: skip


def comment(asked: Asked, name: str, found: Said) -> dict[str, Any]:
    return {
        "id": found.id, "body": found.text, "user": user(asked, found.author), "created_at": time(found.created),
        "updated_at": time(found.updated), "html_url": f"{asked.url}/{name}/issues/1#issuecomment-{found.id}",
    }  # fmt: skip


def line(asked: Asked, name: str, found: Said) -> dict[str, Any]:
    return comment(asked, name, found) | {
        "path": found.path, "position": found.line, "original_position": 0, "pull_request_review_id": found.review,
        "diff_hunk": found.hunk,
    }  # fmt: skip


def review(asked: Asked, name: str, found: Said, lines: int) -> dict[str, Any]:
    states = {
        "changes_requested": "REQUEST_CHANGES",
        "approved": "APPROVED",
        "commented": "COMMENT",
        "dismissed": "REQUEST_CHANGES",
    }
    return comment(asked, name, found) | {
        "state": states.get(found.verdict, "PENDING"), "dismissed": found.verdict == "dismissed", "comments_count": lines,
        "submitted_at": time(found.created),
    }  # fmt: skip


def status(found: Status) -> dict[str, Any]:
    said = {
        "context": found.name,
        "status": found.state,
        "description": found.text,
        "target_url": found.url,
    }
    return said | {"updated_at": time(found.updated)}


# --- routes
# --------------------------------------------------------------------------------------------------------


def whoami(asked: Asked) -> Any:
    return user(asked, asked.login)


def repositories(asked: Asked) -> Any:
    mine = [
        each
        for each in asked.state.repositories.values()
        if each.access.get(asked.login, "none") not in ("none", "read")
    ]
    return Page([{"id": each.id, "full_name": each.name} for each in mine], "limit")


def get_repository(asked: Asked, name: str) -> Any:
    found = repository(asked, name)
    return {"id": found.id, "full_name": found.renamed or name, "default_branch": "main"}


def permission(asked: Asked, name: str, login: str) -> Any:
    found = repository(asked, name)
    if asked.login != login and found.access.get(asked.login) != "admin":
        raise Answered(
            403,
            {
                "message": (
                    "Only admins can query all permissions, repo admins can query all repo "
                    "permissions"
                )
            },
        )
    login = next((each for each in asked.state.people if each.casefold() == login.casefold()), "")
    if not login:
        raise Answered(404)
    level = found.access.get(login, "none")
    return {"permission": level, "role_name": level, "user": user(asked, login)}


def issues(asked: Asked, name: str) -> Any:
    found = sorted(repository(asked, name).items.values(), key=lambda each: -each.created)
    query = asked.query
    known = {label for each in found for label in each.labels}
    # Gitea ignores names of labels that do not exist.
    labels = set(filter(None, query.get("labels", "").split(","))) & known
    found = [
        each for each in found
        if each.open == (query.get("state", "open") == "open") and (not labels or labels & set(each.labels))
        and (not query.get("assigned_by") or query["assigned_by"] in each.assignees) and each.updated >= ms(query.get("since", ""))
    ]  # fmt: skip
    return Page([issue(asked, name, each) for each in found], "limit")


def get_issue(asked: Asked, name: str, number: str) -> Any:
    return issue(asked, name, item(asked, name, number))


def timeline(asked: Asked, name: str, number: str) -> Any:
    found = [
        {
            "type": kind,
            "user": user(asked, by),
            "body": "1" if kind == "label" else "",
            "removed_assignee": False,
        }
        | {"label": {"label": {"name": what}}, "assignees": {"assignee": user(asked, what)}}.get(
            kind, {}
        )
        for kind, what, by in item(asked, name, number).chosen
    ]
    return Page(found, "limit")


def get_pull(asked: Asked, name: str, number: str) -> Any:
    found = item(asked, name, number)
    if not found.head:
        raise Answered(404)
    return pull(asked, name, found)


def pulls(asked: Asked, name: str) -> Any:
    wanted = {"open": [True], "closed": [False], "all": [True, False]}[
        asked.query.get("state", "open")
    ]
    found = [
        each for each in repository(asked, name).items.values() if each.head and each.open in wanted
    ]
    head = asked.query.get("head", "").partition(":")[2]
    found = [each for each in found if not head or each.head == head]
    newest = sorted(found, key=lambda each: -each.updated)
    return Page([pull(asked, name, each) for each in newest], "limit")


def open_pull(asked: Asked, name: str) -> Any:
    repo = repository(asked, name)
    body = asked.body
    branches = repo.branches()
    if not body.get("title"):
        raise Answered(422, {"message": "[Title]: Required"})
    if body["head"] not in branches or body["base"] not in branches:
        raise Answered(404)
    if any(
        each.open and (each.head, each.base) == (body["head"], body["base"])
        for each in repo.items.values()
    ):
        raise Answered(
            409,
            {"message": f"pull request already exists for these targets [head: {body['head']}]"},
        )
    title = body["title"]
    found = asked.state.pull(
        name,
        asked.login,
        title,
        body.get("body", ""),
        body["head"],
        body["base"],
        title.startswith("WIP: "),
    )
    return 201, pull(asked, name, found)


def comments(asked: Asked, name: str, number: str) -> Any:
    since = ms(asked.query.get("since", ""))
    plain = [each for each in item(asked, name, number).said if not each.verdict and not each.path]
    return [comment(asked, name, each) for each in plain if each.updated >= since]


def add_comment(asked: Asked, name: str, number: str) -> Any:
    item(asked, name, number)
    if not asked.body.get("body"):
        raise Answered(422, {"message": "[Body]: Required"})
    return 201, comment(
        asked, name, asked.state.say(name, int(number), asked.login, asked.body["body"])
    )


def said(asked: Asked, name: str, id: str) -> Said:
    everything = (each for one in repository(asked, name).items.values() for each in one.said)
    found = next((each for each in everything if each.id == int(id)), None)
    if found is None:
        raise Answered(404)
    return found


def edit_comment(asked: Asked, name: str, id: str) -> Any:
    found = said(asked, name, id)
    if found.author != asked.login and repository(asked, name).access.get(asked.login) != "admin":
        raise Answered(403)
    found.text, found.updated = asked.body["body"], asked.state.tick()
    return comment(asked, name, found)


def react(asked: Asked, name: str, number: str) -> Any:
    return reacted(asked, item(asked, name, number).reactions)


def react_to_comment(asked: Asked, name: str, id: str) -> Any:
    return reacted(asked, said(asked, name, id).reactions)


def reacted(asked: Asked, reactions: set[tuple[str, str]]) -> Any:
    content = asked.body["content"]
    if content not in REACTIONS:
        raise Answered(403, {"message": f"'{content}' is not an allowed reaction"})
    there = (asked.login, content) in reactions
    reactions.add((asked.login, content))
    return 200 if there else 201, {
        "user": user(asked, asked.login),
        "content": content,
        "created_at": time(asked.state.tick()),
    }


def reviews(asked: Asked, name: str, number: str) -> Any:
    found = get_said(asked, name, number)
    return Page(
        [
            review(asked, name, each, sum(one.review == each.id for one in found))
            for each in found
            if each.verdict
        ],
        "limit",
    )


def review_lines(asked: Asked, name: str, number: str, id: str) -> Any:
    return [
        line(asked, name, each) for each in get_said(asked, name, number) if each.review == int(id)
    ]


def get_said(asked: Asked, name: str, number: str) -> list[Said]:
    return item(asked, name, number).said


def add_status(asked: Asked, name: str, commit: str) -> Any:
    repo = repository(asked, name, "write")
    body = asked.body
    words = (
        body.get("context", "default"),
        body["state"],
        body.get("description", ""),
        body.get("target_url", ""),
    )
    found = Status(*words, asked.state.tick())
    repo.statuses.setdefault(commit, []).append(found)
    return 201, status(found)


def combined(asked: Asked, name: str, commit: str) -> Any:
    newest = {each.name: each for each in repository(asked, name).statuses.get(commit, [])}
    # Gitea's own Actions set a status for each job, under such a name, with an address that has
    # only a path.
    for each in jobs_of(asked, name, commit):
        context = f"CI / {each.name} (push)"
        newest[context] = Status(
            context, job_state(each), "", f"/{name}/actions/runs/1/jobs/{each.id}", 0
        )
    return {
        "sha": commit,
        "state": "success",
        "total_count": len(newest),
        "statuses": [status(each) for each in newest.values()],
    }


def job_state(found: Job) -> str:
    return {"": "pending", "success": "success", "skipped": "success"}.get(
        found.conclusion, "failure"
    )


def jobs_of(asked: Asked, name: str, commit: str) -> list[Job]:
    """Return the newest job of each name."""
    return list({each.name: each for each in repository(asked, name).jobs.get(commit, [])}.values())


def job(asked: Asked, name: str, id: str) -> Job:
    found = next(
        (
            each
            for jobs in repository(asked, name).jobs.values()
            for each in jobs
            if each.id == int(id)
        ),
        None,
    )
    if found is None or not found.log:
        raise Answered(404)
    return found


def runs(asked: Asked, name: str) -> Any:
    commit = asked.query["head_sha"]
    broken = any(each.conclusion == "failure" for each in jobs_of(asked, name, commit))
    found = [
        {
            "id": 7,
            "head_sha": commit,
            "status": "completed",
            "conclusion": "failure" if broken else "success",
        }
    ]
    return {"workflow_runs": found, "total_count": 1}


def run_jobs(asked: Asked, name: str, id: str) -> Any:
    found = [
        each for commit in repository(asked, name).jobs for each in jobs_of(asked, name, commit)
    ]
    told = [
        {"id": each.id, "name": each.name, "conclusion": each.conclusion, "html_url": f"{asked.url}/{name}/actions/runs/1/jobs/{each.id}"}
        for each in found
    ]  # fmt: skip
    return {"jobs": told, "total_count": len(told)}


def job_log(asked: Asked, name: str, id: str) -> Any:
    return Raw(job(asked, name, id).log)


def branch(asked: Asked, name: str, which: str) -> Any:
    found = repository(asked, name).branches().get(which)
    if found is None:
        raise Answered(404)
    return {"name": which, "commit": {"id": found}, "protected": False}


R = r"repos/([\w.-]+/[\w.-]+)"
ROUTES: list[Route] = [
    ("GET", "user", whoami),
    ("GET", "user/repos", repositories),
    ("GET", R, get_repository),
    ("GET", rf"{R}/collaborators/([^/]+)/permission", permission),
    ("GET", rf"{R}/issues", issues),
    ("GET", rf"{R}/issues/(\d+)", get_issue),
    ("GET", rf"{R}/issues/(\d+)/comments", comments),
    ("POST", rf"{R}/issues/(\d+)/comments", add_comment),
    ("GET", rf"{R}/issues/(\d+)/timeline", timeline),
    ("PATCH", rf"{R}/issues/comments/(\d+)", edit_comment),
    ("POST", rf"{R}/issues/(\d+)/reactions", react),
    ("POST", rf"{R}/issues/comments/(\d+)/reactions", react_to_comment),
    ("GET", rf"{R}/pulls", pulls),
    ("POST", rf"{R}/pulls", open_pull),
    ("GET", rf"{R}/pulls/(\d+)", get_pull),
    ("GET", rf"{R}/pulls/(\d+)/reviews", reviews),
    ("GET", rf"{R}/pulls/(\d+)/reviews/(\d+)/comments", review_lines),
    ("POST", rf"{R}/statuses/([0-9a-f]{{40}})", add_status),
    ("GET", rf"{R}/commits/([0-9a-f]{{40}})/status", combined),
    ("GET", rf"{R}/branches/(.+)", branch),
    ("GET", rf"{R}/actions/runs", runs),
    ("GET", rf"{R}/actions/runs/(\d+)/jobs", run_jobs),
    ("GET", rf"{R}/actions/jobs/(\d+)/logs", job_log),
]
