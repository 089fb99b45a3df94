"""GitHub's API, after its published description (see `tests.forgeapi.published`). Parts that equal
Gitea's are imported from `gitea`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.forgeapi.published import dressed
from tests.servers.forge import gitea
from tests.servers.forge.gitea import R
from tests.servers.forge.server import Answered, Asked, Page, Raw, Request, Route
from tests.servers.forge.state import Repository, Said

__all__ = ["PREFIX", "ROUTES", "asker", "check", "dressed"]

PREFIX = "/api/v3/"


def asker(headers: Mapping[str, str]) -> str:
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token if kind == "Bearer" and headers.get("user-agent") else ""


def check(request: Request) -> None:
    from tests.forgeapi import published

    # The address at which a log is stored is not part of the API.
    if request.status not in (401, 404) and "/kept/" not in request.path:
        published.check(request.method, request.path, request.query, request.body)


def permission(asked: Asked, name: str, login: str) -> Any:
    found = gitea.repository(asked, name, "write")
    known = next((each for each in asked.state.people if each.casefold() == login.casefold()), "")
    if not known:
        raise Answered(404, {"message": f"{login} is not a user"})
    level = found.access.get(known, "none")
    return {"permission": level, "role_name": level, "user": None}


def issues(asked: Asked, name: str) -> Any:
    query = asked.query
    found = sorted(gitea.repository(asked, name).items.values(), key=lambda each: -each.created)
    wanted = set(filter(None, query.get("labels", "").split(",")))
    found = [
        each for each in found
        if each.open == (query.get("state", "open") == "open") and wanted <= set(each.labels)
        and (not query.get("assignee") or query["assignee"] in each.assignees) and each.updated >= gitea.ms(query.get("since", ""))
    ]  # fmt: skip
    return Page([issue(asked, name, each.number) for each in found], "per_page", 100)


def issue(asked: Asked, name: str, number: int | str) -> Any:
    item = gitea.item(asked, name, str(number))
    if item.moved:
        return 301, Raw("", {"location": f"{asked.url}{PREFIX}repos/{item.moved}"})
    found = gitea.issue(asked, name, item)
    present = gitea.repository(asked, name).renamed or name
    found["repository_url"] = f"{asked.url}{PREFIX}repos/{present}"
    if found["pull_request"] is None:
        return {
            **{key: each for key, each in found.items() if key != "pull_request"},
            "assignees": found["assignees"] or [],
        }
    address = "https://github.invalid/"
    return found | {
        "pull_request": dict.fromkeys(("diff_url", "html_url", "patch_url", "url"), address),
        "assignees": [],
    }


def whole(asked: Asked, name: str, number: int) -> dict[str, Any]:
    found = gitea.pull(asked, name, gitea.item(asked, name, str(number)))
    short = name.partition("/")[2]
    return found | {
        "assignees": found["assignees"] or [],
        "head": found["head"] | {"repo": {"full_name": name, "name": short}},
    }


def get_pull(asked: Asked, name: str, number: str) -> Any:
    gitea.get_pull(asked, name, number)
    return whole(asked, name, int(number))


def pulls(asked: Asked, name: str) -> Any:
    page = gitea.pulls(asked, name)
    return Page([whole(asked, name, each["number"]) for each in page.items], "per_page", 100)


def open_pull(asked: Asked, name: str) -> Any:
    repo, body = gitea.repository(asked, name), asked.body
    branches = repo.branches()
    if body["head"] not in branches or body["base"] not in branches:
        raise Answered(
            422,
            {
                "message": "Validation Failed",
                "errors": [{"resource": "PullRequest", "field": "head", "code": "invalid"}],
            },
        )
    if any(each.open and each.head == body["head"] for each in repo.items.values()):
        raise Answered(
            422,
            {
                "message": "Validation Failed",
                "errors": [{"message": "A pull request already exists"}],
            },
        )
    found = asked.state.pull(
        name,
        asked.login,
        body["title"],
        body.get("body", ""),
        body["head"],
        body["base"],
        body.get("draft", False),
    )
    return 201, whole(asked, name, found.number)


def comments(asked: Asked, name: str, number: str) -> Any:
    return Page(gitea.comments(asked, name, number), "per_page", 100)


def lines(asked: Asked, name: str, number: str) -> Any:
    since = gitea.ms(asked.query.get("since", ""))
    found = [
        each for each in gitea.item(asked, name, number).said if each.path and each.updated >= since
    ]
    return Page(
        [
            gitea.comment(asked, name, each)
            | {"path": each.path, "line": each.line, "diff_hunk": each.hunk}
            for each in found
        ],
        "per_page",
        100,
    )


def reviews(asked: Asked, name: str, number: str) -> Any:
    return Page(
        [
            review(asked, name, each)
            for each in gitea.item(asked, name, number).said
            if each.verdict
        ],
        "per_page",
        100,
    )


def review(asked: Asked, name: str, found: Said) -> Any:
    return gitea.comment(asked, name, found) | {
        "state": found.verdict.upper(),
        "submitted_at": gitea.time(found.created),
    }


def combined(asked: Asked, name: str, commit: str) -> Any:
    found = gitea.combined(asked, name, commit)
    # On GitHub, jobs are check runs and not statuses.
    each_one = [
        {**each, "state": each["status"]}
        for each in found["statuses"]
        if not each["target_url"].startswith("/")
    ]
    return found | {"statuses": each_one}


def check_runs(asked: Asked, name: str, commit: str) -> Any:
    found = [
        {"id": each.id, "name": each.name, "status": "completed" if each.conclusion else "in_progress",
         "conclusion": each.conclusion or None, "html_url": f"https://github.invalid/{name}/actions/runs/1/job/{each.id}",
         "app": {"slug": each.app}, "output": {"title": None, "summary": each.summary or None, "text": None}}
        for each in gitea.jobs_of(asked, name, commit)
    ]  # fmt: skip
    return {"total_count": len(found), "check_runs": found}


def job_log(asked: Asked, name: str, id: str) -> Any:
    found = gitea.job(asked, name, id)
    where = gitea.repository(asked, name).logs or f"{asked.url}{PREFIX}"
    return 302, Raw("", {"location": f"{where}repos/{name}/kept/{found.id}"})


def kept_log(asked: Asked, name: str, id: str) -> Any:
    return Raw(gitea.job(asked, name, id).log)


def add_status(asked: Asked, name: str, commit: str) -> Any:
    status, found = gitea.add_status(asked, name, commit)
    return status, found | {"state": found["status"]}


def branch(asked: Asked, name: str, which: str) -> Any:
    found = gitea.branch(asked, name, which)
    return found | {"commit": {"sha": found["commit"]["id"]}}


def administered(asked: Asked, name: str) -> Repository:
    found = gitea.repository(asked, name)
    if found.access.get(asked.login) != "admin":
        raise Answered(404)
    return found


def hooks(asked: Asked, name: str) -> Any:
    found = administered(asked, name)
    return Page(
        [{"id": found.id, "config": {"url": found.hook}}] if found.hook else [], "per_page", 100
    )


def deliveries(asked: Asked, name: str, id: str) -> Any:
    newest = sorted(administered(asked, name).sent, key=lambda each: -each.id)
    return [
        {"id": each.id, "guid": each.delivery, "event": each.event, "status_code": each.status, "delivered_at": gitea.time(each.at),
         "status": "OK" if each.status < 300 else "Invalid HTTP Response"}
        for each in newest
    ]  # fmt: skip


def again(asked: Asked, name: str, hook: str, id: str) -> Any:
    administered(asked, name).again.append(int(id))
    return 202, {}


def no_organisation(asked: Asked, name: str) -> Any:
    raise Answered(404)


OWN: list[Route] = [
    ("GET", rf"{R}/collaborators/([^/]+)/permission", permission),
    ("GET", rf"{R}/issues", issues),
    ("GET", rf"{R}/issues/(\d+)", issue),
    ("GET", rf"{R}/issues/(\d+)/comments", comments),
    ("GET", rf"{R}/pulls", pulls),
    ("POST", rf"{R}/pulls", open_pull),
    ("GET", rf"{R}/pulls/(\d+)", get_pull),
    ("GET", rf"{R}/pulls/(\d+)/comments", lines),
    ("GET", rf"{R}/pulls/(\d+)/reviews", reviews),
    ("POST", rf"{R}/pulls/comments/(\d+)/reactions", gitea.react_to_comment),
    ("POST", rf"{R}/statuses/([0-9a-f]{{40}})", add_status),
    ("GET", rf"{R}/commits/([0-9a-f]{{40}})/status", combined),
    ("GET", rf"{R}/commits/([0-9a-f]{{40}})/check-runs", check_runs),
    ("GET", rf"{R}/branches/(.+)", branch),
    ("GET", rf"{R}/actions/jobs/(\d+)/logs", job_log),
    ("GET", rf"{R}/kept/(\d+)", kept_log),
    ("GET", rf"{R}/hooks", hooks),
    ("GET", rf"{R}/hooks/(\d+)/deliveries", deliveries),
    ("POST", rf"{R}/hooks/(\d+)/deliveries/(\d+)/attempts", again),
    ("GET", r"orgs/([^/]+)/hooks", no_organisation),
]
ROUTES = [*OWN, *(each for each in gitea.ROUTES if each[:2] not in {one[:2] for one in OWN})]
